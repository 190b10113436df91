"""What the TPU's own compiler makes of the decode loop (it fits, moves little, copies nothing) and of a training step.

Needs libtpu, in an environment of its own and no TPU (see benchmarks/tpu.py):

    python -m venv .venv-tpu && .venv-tpu/bin/pip install '.[train]' libtpu pytest
    .venv-tpu/bin/python -m pytest --noconftest -m tpu tests/test_tpu.py
"""

from pathlib import Path

import pytest

from compilers import results_of


@pytest.mark.tpu
@pytest.mark.parametrize("target", ["v5e", "v4", "v5p", "v6e"])
def test_the_compiled_loop(target: str, tmp_path: Path):
    pytest.importorskip("libtpu")
    results = results_of("tpu.py", tmp_path, "--targets", target)
    assert [(each["chips"], each["batch"]) for each in results[::2]] == [(1, 1), (1, 16), (1, 64), (4, 1), (4, 16)]
    for result in results:
        assert 1 <= result["over_floor"] <= (1.15 if result["chips"] == 1 else 1.2)
        assert not result["cache_copies"]
        assert not result["relayouts"]
        exchanges = sum(count for count, _ in result["collectives"].values())
        assert exchanges == 0 if result["chips"] == 1 else 3 * 18 <= exchanges <= 3 * 18 + 3


@pytest.mark.tpu
@pytest.mark.parametrize("target", ["v4-8", "v5e-4"])
def test_the_compiled_training_step(target: str, tmp_path: Path):
    """All weights and adapters, full size: each fits its slice of four chips."""
    pytest.importorskip("libtpu")
    results = results_of("tpu_training.py", tmp_path, "--targets", target)
    assert [result["what"] for result in results] == ["all weights", "LoRA of rank 16"]
    assert all(result["gb_a_chip"] <= result["gb_of"] for result in results)
