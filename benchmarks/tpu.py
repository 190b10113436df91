"""What the TPU's own compiler makes of the full-size decode loop: memory, bytes a step, what is copied inside the loop.

    python -m venv .venv-tpu && .venv-tpu/bin/pip install . libtpu
    .venv-tpu/bin/python benchmarks/tpu.py                              # four kinds of TPU, batch 1 and 16: ten minutes
    .venv-tpu/bin/python benchmarks/tpu.py --targets v5e --batches 1

Needs no TPU: `libtpu` compiles for one on any Linux machine. It wants an environment of its own, since JAX would look
for a TPU wherever it is installed.

Each program is compiled twice. As it will run, for its memory and for what it writes back from the fast on-chip memory.
And without staging there, for the bytes and the copies: the compiler's cost analysis counts a weight that is fetched
ahead of its use three times (read, written on the chip, read there), though it crosses the memory bus once. GB a step
are those bytes and what is written back. The floor is what a step must read: the decoder's kernels and both caches.

Exits with 1 if a program does not fit, moves more than 1.15 times the floor, copies a cache inside the loop or lays a
weight out anew there. Writes benchmarks/results/tpu-compiled.json.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to ask

import argparse
import itertools
import math
import re
import time
from pathlib import Path
from typing import Any

import jax
from compiled import RESULTS, lower_decode, write_compiled
from jax.experimental import topologies

from dia_jax import DiaConfig
from dia_jax.decode import decoder_weights, step_bytes
from dia_jax.untrained import SMALL_DIA

TOPOLOGIES = {"v5e": "v5e:2x2", "v4": "v4:2x2x1", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
MEMORY_GB = {"v5e": 16, "v4": 32, "v5p": 95, "v6e": 32}
BAR = 1.15
BIG = 1_000_000
ITEM_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1}


def copies_in_loop(hlo: str) -> list[tuple[str, tuple[int, ...], int]]:
    """Operations of the loop's body that write 1 MB or more to the main memory and only move it: name, shape, bytes.

    Fetching into the on-chip memory, space S(1), is none of them.
    """
    bodies = re.findall(r"\n(%[^\n]*\{\n.*?\n\})", hlo, flags=re.DOTALL)
    body = max((b for b in bodies if " dynamic-update-slice(" in b), key=len)
    found = []
    for line in body.splitlines():
        # What a copy-start gives is a tuple whose first part is the target.
        match = re.match(
            r"\s+(?:ROOT )?%\S+ = \(?((\w+)\[([\d,]*)\]\S*).*? (copy|copy-start|transpose|reshape)\(", line
        )
        if match and match[2] in ITEM_BYTES and "S(1)" not in match[1]:
            shape = tuple(int(size) for size in match[3].split(",") if size)
            size = math.prod(shape) * ITEM_BYTES[match[2]]
            if size >= BIG:
                found.append((match[4], shape, size))
    return found


def examine(target: str, batch: int, quantize: Any, *, config: DiaConfig, rows: int, text_size: int) -> dict[str, Any]:
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[target]).devices[0]
    lowered, params, state = lower_decode(
        device, config, batch=batch, rows=rows, text_size=text_size, dtype="bfloat16", quantize=quantize
    )
    began = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - began
    unstaged = lowered.compile(compiler_options={"xla_msa_enable": False})

    floor = sum(step_bytes(params, state).values())
    memory: Any = program.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    cache_size = math.prod(state.cache[0].k.shape)
    copies = copies_in_loop(unstaged.as_text())
    weight_sizes = {math.prod(value.shape) for value in decoder_weights(params)}
    cache_copies = [copy for copy in copies if math.prod(copy[1]) == cache_size]
    relayouts = [copy for copy in copies if math.prod(copy[1]) in weight_sizes]
    written_back = sum(size for _, _, size in copies_in_loop(program.as_text()))
    moved = unstaged.cost_analysis()["bytes accessed"] + written_back
    in_place = memory.alias_size_in_bytes >= sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
    return {
        "target": target,
        "batch": batch,
        "kernels": quantize or "bfloat16",
        "gb": total / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "floor_gb": floor / 1e9,
        "gb_a_step": moved / 1e9,
        "of_it_written_back_gb": written_back / 1e9,
        "over_floor": moved / floor,
        "cache_copies": cache_copies,
        "relayouts": relayouts,
        "compile_s": seconds,
        "good": total < MEMORY_GB[target] * 1e9
        and moved <= BAR * floor
        and in_place
        and not cache_copies
        and not relayouts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TOPOLOGIES, default=list(TOPOLOGIES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--kernels", nargs="+", choices=("bfloat16", "int8"), default=["bfloat16", "int8"])
    parser.add_argument("--rows", type=int, default=3072, help="of the self-attention's cache")
    parser.add_argument("--text-size", type=int, default=128, help="of the script, padded")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs; no bar holds there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = SMALL_DIA if options.small else DiaConfig()
    results = []
    header = ("TPU", "batch", "kernels", "memory, GB", "temporary", "GB a step", "written back", "over floor")
    print(f"| {' | '.join((*header, 'cache copies', 'relayouts'))} |\n|{'---|' * (len(header) + 2)}")
    for target, batch, kernels in itertools.product(options.targets, options.batches, options.kernels):
        quantize = "int8" if kernels == "int8" else None
        r = examine(target, batch, quantize, config=config, rows=options.rows, text_size=options.text_size)
        results.append(r)
        cells = [target, batch, kernels, f"{r['gb']:.2f} of {MEMORY_GB[target]}", f"{r['temporary_gb']:.3f}"]
        cells += [f"{r['gb_a_step']:.3f}", f"{r['of_it_written_back_gb']:.3f}", f"{r['over_floor']:.3f}"]
        cells += [len(r["cache_copies"]), len(r["relayouts"])]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    packages = ["jax", "jaxlib", "libtpu", "flax"]
    kept = {"rows": options.rows, "results": results}
    write_compiled(options.results, "tpu-compiled", packages, kept, complete=len(results) == 16)
    if not options.small and not all(r["good"] for r in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
