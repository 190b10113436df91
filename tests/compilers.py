"""Runs a benchmark that compiles for another machine: what test_gpu.py and test_tpu.py share."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def results_of(script: str, folder: Path, *options: str) -> list[dict[str, Any]]:
    """The results that a script of benchmarks/ writes into an empty folder, with its own bars met."""
    command = [sys.executable, BENCHMARKS / script, *options, "--results", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = folder.glob("*.json")
    return json.loads(written.read_text())["results"]
