"""The benchmarks run as they are, at tiny sizes: what they print is not judged here.

parity.py and speed.py run in test_notebooks.py, as parts of notebooks/parity.ipynb.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("startup.py", ["--small"]),
        ("quality.py", ["--small", "--rows", "16"]),
        ("training.py", ["--small", "--clips", "2"]),
        ("batch.py", ["--small"]),
        ("memory.py", ["--small", "--layouts", "orbax", "--dtypes", "float32"]),
    ],
)
def test_benchmark_runs(script: str, options: list[str], tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / script, *options, "--results", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (written,) = tmp_path.iterdir()
    data = json.loads(written.read_text())
    assert data["versions"]["jax"]
    assert data["cores"] >= 1


@pytest.mark.slow
def test_damaged_input_is_accepted_or_refused_in_one_sentence(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "robustness.py", "--cases", "500", "--results", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / "robustness.json").read_text())["faults"] == 0
