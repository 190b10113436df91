"""Parity and speed on this device as one table to post: what parity.py and speed.py find, in a few lines.

    python benchmarks/report.py                  # full size, random weights: a quarter of an hour on a GPU
    python benchmarks/report.py --small          # tiny sizes, in a minute: whether it is right, not how fast it is
    python benchmarks/report.py --batches 1 4

The reference, `transformers`, runs on the GPU if there is one. Beside a TPU it runs on the host's CPU and is not timed.
Needs 15 GB of memory and 7 GB of disk. Writes benchmarks/results/report-*.json. notebooks/parity.ipynb is the same.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import parity
import speed
from common import RESULTS, machine, table, write_results

from dia_jax.devices import default_dtype


def collect(*, small: bool, frames: int = 60, batches: Sequence[int] | None = None, **turns: Any) -> dict[str, Any]:
    """Runs both benchmarks, in float32 and in what is usual on this device.

    Args:
        small: tiny sizes.
        frames: of the greedy generations.
        batches: clips that are decoded together. None: 1, and on an accelerator 16.
        turns: `steps` and `rounds` of `speed.measure`.
    """
    dtype = default_dtype(jax.devices()[0])
    checks = parity.check(small=small, frames=frames)
    if dtype != "float32":
        checks += parity.check(small=small, frames=frames, dtype=dtype)
    batches = batches or ([1] if jax.default_backend() == "cpu" else [1, 16])
    timed = speed.measure(small=small, variants=[dtype, "int8"], other_dtypes=[dtype], batches=batches, **turns)
    return machine() | {"checks": checks, "speed": timed}


def summary(results: dict[str, Any]) -> str:
    """The table of what `collect` gives, in Markdown."""
    timed, versions = results["speed"], results["versions"]
    reference = f"transformers {versions['transformers']} on torch {versions['torch']}, {results['torch_device']}"
    ours = f"jax {versions['jax']}, flax {versions['flax']}, Python {results['python']}"
    rows: list[list[Any]] = [
        ["ours", ours],
        ["reference", reference],
        ["host", f"{results['cpu']}, {results['cores']} cores"],
        ["memory, GB/s read", f"{max(timed['bandwidth_gb_s']):.0f}"],
    ]
    for what, value, bar, within in results["checks"]:
        judged = "" if within == "" else f" (limit: {bar})" if within else f" (**over the limit**: {bar})"
        rows.append([what, f"{value}{judged}"])
    for r in timed["rows"]:
        name = f"{r['variant']}, batch {r['batch']}"
        rows.append([f"{name}: ms a step", f"{r['ms']:.2f} ({r['over_floor']:.2f} x the floor, {r['floor_ms']:.2f})"])
        if r["first_audio_seconds"] is not None:
            rows.append([f"{name}: first sound of a stream, s", f"{r['first_audio_seconds']:.2f}"])
        rows.append([f"{name}: seconds of audio a second", f"{r['audio_seconds_a_second']:.2f}"])
    for p in timed["pairs"]:
        if "ratio" in p and not p["other"].startswith("dia_jax"):
            what = f"{p['other']} beside {p['ours']}, batch {p['batch']}: ms a step"
            rows.append([what, f"{p['other_ms']:.2f} ({p['ratio']:.2f} x ours)"])
    rows.append(["codec alone, times real time", f"{timed['codec']['realtime_factor']:.1f}"])
    return table([f"Dia, {timed['size']} size, random weights", results["device"]], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--frames", type=int, default=60, help="frames of the greedy generations")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 1, on an accelerator 1 16")
    parser.add_argument("--steps", type=int, help="steps a turn, see speed.py")
    parser.add_argument("--rounds", type=int, help="turns of each contender, see speed.py")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = vars(parser.parse_args())
    folder = options.pop("results")
    results = collect(**options)
    print("\n" + summary(results))
    name = f"report-{results['speed']['size']}-{results['device'].replace(' ', '-').lower()}"
    print(f"\nwritten to {write_results(folder, name, results)}")


if __name__ == "__main__":
    main()
