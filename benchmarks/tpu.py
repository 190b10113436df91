"""What the TPU's own compiler makes of the full-size decode loop: memory, bytes a step, what is copied inside the loop.

    python -m venv .venv-tpu && .venv-tpu/bin/pip install . libtpu
    .venv-tpu/bin/python benchmarks/tpu.py                              # four kinds of TPU, `CASES`: half an hour
    .venv-tpu/bin/python benchmarks/tpu.py --targets v5e --chips 1 --batches 1

Needs no TPU: `libtpu` compiles for one on any Linux machine. It wants an environment of its own, since JAX would look
for a TPU wherever it is installed.

GB a step are what crosses the memory bus: what `hlo.py` counts in the optimised program, where all that the compiler
keeps in the fast memory on the chip costs nothing. The compiler's own cost analysis counts that too, and a weight that
is fetched ahead of its use three times; the JSON file has it beside the other. The floor is what a step must read: the
decoder's kernels and both caches.

Four chips share each clip (the axis "model" of `dia_jax.mesh`); bytes and floor are then those of one chip, and the
collectives of a step are listed. Chips that decode clips of their own each run the program of one chip.

Exits with 1 if a program does not fit, moves more than 1.15 times the floor (1.2 on four chips), copies a cache inside
the loop, lays a weight out anew there, or needs more than three collectives a layer. Writes
benchmarks/results/tpu-compiled.json.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to ask

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

from compiled import RESULTS, lower_decode, write_compiled
from hlo import step_of
from jax.experimental import topologies

from dia_jax import DiaConfig
from dia_jax.decode import step_bytes
from dia_jax.untrained import SMALL_DIA

TOPOLOGIES = {"v5e": "v5e:2x2", "v4": "v4:2x2x1", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
MEMORY_GB = {"v5e": 16, "v4": 32, "v5p": 95, "v6e": 32}
CASES = [(1, 1, 3072, 128), (1, 16, 3072, 512), (1, 64, 512, 512), (4, 1, 3072, 128), (4, 16, 3072, 512)]
"""Chips that share a clip, clips, positions of the caches, bytes of the scripts."""
BARS = {1: 1.15, 4: 1.2}


def examine(
    target: str, chips: int, batch: int, rows: int, text_size: int, quantize: Any, *, config: DiaConfig
) -> dict[str, Any]:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[target]).devices[:chips]
    lowered, params, state = lower_decode(
        devices, config, batch=batch, rows=rows, text_size=text_size, dtype="bfloat16", quantize=quantize
    )
    began = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - began

    floor = sum(step_bytes(params, state).values())
    memory: Any = program.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    cache_size = math.prod(state.cache[0].k.shape) // chips
    step = step_of(program.as_text(), cache_elements=cache_size)
    in_place = memory.alias_size_in_bytes >= step_bytes(params, state)["self cache"]
    return {
        "target": target,
        "chips": chips,
        "batch": batch,
        "rows": rows,
        "text_size": text_size,
        "kernels": quantize or "bfloat16",
        "gb": total / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "floor_gb": floor / 1e9,
        "gb_a_step": step.moved / 1e9,
        "of_it_written_back_gb": step.written_back / 1e9,
        "over_floor": step.moved / floor,
        "cost_analysis_gb": program.cost_analysis()["bytes accessed"] / 1e9,
        "cache_copies": step.copies,
        "relayouts": step.relayouts,
        "collectives": step.exchanges,
        "compile_s": seconds,
        "good": total < MEMORY_GB[target] * 1e9
        and step.moved <= BARS[chips] * floor
        and in_place
        and sum(count for count, _ in step.exchanges.values()) <= 3 * config.decoder.num_layers + 3
        and not step.copies
        and not step.relayouts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--chips", nargs="+", type=int, default=[1, 4], help="that share each clip")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--kernels", nargs="+", choices=("bfloat16", "int8"), default=["bfloat16", "int8"])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs; no bar holds there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = SMALL_DIA if options.small else DiaConfig()
    results = []
    header = ["TPU", "chips", "batch", "rows", "text", "kernels", "memory, GB", "temporary", "GB a step"]
    header += ["written back", "over floor", "cache copies", "relayouts", "collectives"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    cases = [case for case in CASES if case[0] in options.chips and case[1] in options.batches]
    for target, case, kernels in itertools.product(options.targets, cases, options.kernels):
        r = examine(target, *case, "int8" if kernels == "int8" else None, config=config)
        results.append(r)
        cells = [target, *case, kernels, f"{r['gb']:.2f} of {MEMORY_GB[target]}", f"{r['temporary_gb']:.3f}"]
        cells += [f"{r['gb_a_step']:.3f}", f"{r['of_it_written_back_gb']:.3f}", f"{r['over_floor']:.3f}"]
        cells += [len(r["cache_copies"]), len(r["relayouts"])]
        cells.append(", ".join(f"{count} {name} ({size:,} bytes)" for name, (count, size) in r["collectives"].items()))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    packages = ["jax", "jaxlib", "libtpu", "flax"]
    complete = len(results) == 2 * len(TOPOLOGIES) * len(CASES)
    write_compiled(options.results, "tpu-compiled", packages, {"results": results}, complete=complete)
    if not options.small and not all(r["good"] for r in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
