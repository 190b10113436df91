"""Host memory while a full-size checkpoint is loaded, for each layout, against its bound: the model and its largest
tensor.

    python benchmarks/memory.py                    # 6.4 GB float32 a layout; 7 GB of disk, a few minutes each
    python benchmarks/memory.py --layouts orbax
    python benchmarks/memory.py --small

Each load runs in a process of its own; its peak is the operating system's figure for that process (mapped files count),
less what it held after it had loaded a small model in the same layout, so that libraries are not counted as weights.
Writes benchmarks/results/memory-*.json.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, machine, table, write_results

LAYOUTS = ("transformers", "reference", "reference-pth", "orbax")

CHILD = """
import sys
import jax
from dia_jax import load_params, open_checkpoint
load_params(open_checkpoint(sys.argv[2]), dtype=sys.argv[3])

def status(field):  # not getrusage: its peak outlives exec, so it would hold the parent's
    fields = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(fields[field].split()[0]) * 1024

before = status("VmRSS")
graphdef, params = load_params(open_checkpoint(sys.argv[1]), dtype=sys.argv[3])
sizes = [x.nbytes for x in jax.tree.leaves(params)]
print(before, status("VmHWM"), sum(sizes), max(sizes))
"""

WRITER = """
import sys
from dia_jax import DiaConfig, save_params
from dia_jax.untrained import SMALL_DIA, random_params
config = SMALL_DIA if sys.argv[3] == "small" else DiaConfig()
save_params(sys.argv[1], config, random_params(config)[1], layout=sys.argv[2])
"""


def run(code: str, *args: object) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    size = "small" if options.small else "full"
    rows, results = [], []
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dia"
            run(WRITER, path, layout, size)
            run(WRITER, Path(folder) / "warm", layout, "small")
            for dtype in options.dtypes:
                before, peak, model, largest = map(int, run(CHILD, path, Path(folder) / "warm", dtype).split())
                # What is read is float32 whatever it becomes, so the largest tensor in flight is too.
                largest *= np.dtype("float32").itemsize // (4 if dtype == "float32" else 2)
                over = (peak - before) / (model + largest)
                results.append(
                    {
                        "layout": layout,
                        "dtype": dtype,
                        "before": before,
                        "peak": peak,
                        "model": model,
                        "largest": largest,
                    }
                )
                rows.append(
                    [layout, dtype, *(f"{x / 1e9:.3f}" for x in (before, peak - before, model, largest)), f"{over:.3f}"]
                )
                print(rows[-1], flush=True)
    header = [
        "layout",
        "dtype",
        "before, GB",
        "rise to peak, GB",
        "model, GB",
        "largest tensor, GB",
        "rise / (model + largest)",
    ]
    print(f"\n{size} size\n\n{table(header, rows)}")
    path = write_results(options.results, f"memory-{size}", machine() | {"results": results})
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
