"""What XLA's compiler for NVIDIA GPUs makes of the decode loop: it fits, moves little, copies nothing, launches little.

Needs a plugin and ptxas, in an environment of its own and no GPU (see benchmarks/gpu.py):

    .venv-gpu/bin/pip install pytest
    .venv-gpu/bin/python -m pytest --noconftest -m gpu tests/test_gpu.py
"""

from pathlib import Path

import pytest

from compilers import results_of

MOST_MOVED = {1: 1.10, 16: 1.25}
MOST_LAUNCHED = {1: 400, 16: 450}


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["h100", "a100", "rtx4090", "t4"])
def test_the_compiled_loop(target: str, tmp_path: Path):
    pytest.importorskip("jax_cuda12_plugin")
    results = results_of("gpu.py", tmp_path, "--targets", target)
    assert len(results) == 4
    for result in results:
        assert not result["cache_copies"]
        assert result["command_buffers"]["outside"] == 0
        if target != "t4":
            assert result["over_floor"] <= MOST_MOVED[result["batch"]]
            assert not result["relayouts"]
        elif result["kernels"] == "float16":
            assert result["over_floor"] <= 1.3
        if target == "h100":
            assert result["launches"] <= MOST_LAUNCHED[result["batch"]]
