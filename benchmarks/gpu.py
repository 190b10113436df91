"""What XLA's compiler for NVIDIA GPUs makes of the full-size decode loop: memory, bytes a step, copies, kernels.

    python -m venv .venv-gpu && .venv-gpu/bin/pip install .
    .venv-gpu/bin/pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12==12.9.86
    .venv-gpu/bin/python benchmarks/gpu.py                          # four kinds of GPU, batch 1 and 16: five minutes
    .venv-gpu/bin/python benchmarks/gpu.py --targets h100 --batches 1 --kernels 16-bit

Needs no GPU and no driver: the plugin (of the version of jax) compiles for a GPU that is described to it, and ptxas
comes with nvcc's package. An environment of its own, since JAX would look for a GPU wherever the plugin is installed.

XLA chooses among cuBLAS, Triton and their tiles by trying them out on the card; without one it takes the first, so
a real card's program may differ in its products. Bytes are counted by `hlo.py`, which says how. The floor is what a
step must read: the decoder's kernels and both caches. Kernels are what the GPU is told to run in a step; those that XLA
records in a command buffer (a CUDA graph) are launched by the host all at once.

Exits with 1 if a program does not fit, moves too much, copies a cache inside the loop, or launches too many kernels
(`bars`). Writes benchmarks/results/gpu-compiled.json.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it would say for every process that there is no driver

import argparse
import dataclasses
import itertools
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import hlo
import jax
from compiled import RESULTS, lower_decode, write_compiled
from jax.experimental import topologies

from dia_jax import DiaConfig
from dia_jax.decode import step_bytes
from dia_jax.untrained import SMALL_DIA


@dataclasses.dataclass(frozen=True)
class Card:
    """What XLA asks of a GPU, in its own units; those that all of ours share are in `describe`."""

    name: str
    capability: tuple[int, int]
    dtype: str
    cores: int
    units_per_core: int
    threads_per_core: int
    shared_per_core: int
    l2: int
    bandwidth: int
    memory: int
    ghz: float
    features: str = "NONE"


# H100 and A100 as XLA publishes them; the other two from NVIDIA's data sheets.
CARDS = {
    "h100": Card(
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        dtype="bfloat16",
        cores=132,
        units_per_core=128,
        threads_per_core=2048,
        shared_per_core=228 << 10,
        l2=50 << 20,
        bandwidth=3352320000000,
        memory=84942979072,
        ghz=1.98,
        features="ACCELERATED_FEATURES",
    ),
    "a100": Card(
        name="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        dtype="bfloat16",
        cores=108,
        units_per_core=64,
        threads_per_core=2048,
        shared_per_core=164 << 10,
        l2=40 << 20,
        bandwidth=1555200000000,
        memory=42331013120,
        ghz=1.41,
    ),
    "rtx4090": Card(
        name="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        dtype="bfloat16",
        cores=128,
        units_per_core=128,
        threads_per_core=1536,
        shared_per_core=100 << 10,
        l2=72 << 20,
        bandwidth=1008000000000,
        memory=25_300_000_000,
        ghz=2.52,
    ),
    # Turing has no bfloat16: XLA would convert every weight to float32, on every step.
    "t4": Card(
        name="Tesla T4",
        capability=(7, 5),
        dtype="float16",
        cores=40,
        units_per_core=64,
        threads_per_core=1024,
        shared_per_core=64 << 10,
        l2=4 << 20,
        bandwidth=320000000000,
        memory=15_800_000_000,
        ghz=1.59,
    ),
}


def describe(card: Card) -> str:
    """The card as XLA's GpuTargetConfigProto, in text."""
    major, minor = card.capability
    # All but 1 KB of a core's shared memory can go to one block; Turing reserves none.
    block = card.shared_per_core - (1024 if major >= 8 else 0)
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {card.threads_per_core}
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {block}
          shared_memory_per_core: {card.shared_per_core} core_count: {card.cores} fpus_per_core: {card.units_per_core}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          registers_per_core_limit: 65536 registers_per_block_limit: 65536 device_address_bits: 64
          memory_bandwidth: {card.bandwidth} l2_cache_size: {card.l2} device_memory_size: {card.memory}
          clock_rate_ghz: {card.ghz} name: "{card.name}" device_vendor: "NVIDIA Corporation"
          cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {card.features} }}
          driver_version: "12.9.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
          dnn_version: "9.10.0"
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{card.name}"
    """


def bars(target: str, batch: int, kernels: str) -> tuple[float, float]:
    """What a program may move, over the floor, and how many kernels it may launch in a step."""
    if target == "t4":
        # No Triton there: cuBLAS is given int8 kernels only after they were written out as float16.
        return (math.inf if kernels == "int8" else 1.3), math.inf
    most = {1: 400, 16: 450}.get(batch, math.inf) if target == "h100" else math.inf
    return (1.10 if batch == 1 else 1.25), most


def compile_and_list(lowered: Any) -> tuple[Any, str, dict[str, Any]]:
    """The program; its launches, as XLA lists them; and how XLA decides what goes into a command buffer."""
    with tempfile.TemporaryDirectory() as folder:
        program = lowered.compile(compiler_options={"xla_dump_to": folder})
        after = [*Path(folder).glob("*.thunk_sequence_after_thunk_passes.txt")]
        # It is left out where no pass changed the list, and then there is no command buffer.
        thunks = (after or [*Path(folder).glob("*.thunk_sequence.txt")])[0].read_text()
        config = next(Path(folder).glob("*.config.pbtxt")).read_text()
    rules = {
        "kinds": re.findall(r"xla_gpu_enable_command_buffer: (\w+)", config),
        "smallest": int(re.search(r"xla_gpu_graph_min_graph_size: (\d+)", config)[1]),
    }
    return program, thunks, rules


def examine(target: str, batch: int, kernels: str, *, config: DiaConfig, rows: int, text_size: int) -> dict[str, Any]:
    card = CARDS[target]
    topology = topologies.get_topology_desc(platform="cuda", target_config=describe(card), topology="1x1x1")
    lowered, params, state = lower_decode(
        topology.devices[:1],
        config,
        batch=batch,
        rows=rows,
        text_size=text_size,
        dtype=card.dtype,
        quantize="int8" if kernels == "int8" else None,
    )
    began = time.perf_counter()
    program, thunks, rules = compile_and_list(lowered)
    seconds = time.perf_counter() - began

    step = hlo.step_of(program.as_text(), cache_elements=math.prod(state.cache[0].k.shape))
    floor = sum(step_bytes(params, state).values())
    memory: Any = program.memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    in_place = memory.alias_size_in_bytes >= sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
    launches = step.kernels.total()
    most_moved, most_launched = bars(target, batch, kernels)
    return {
        "target": target,
        "batch": batch,
        "kernels": "int8" if kernels == "int8" else card.dtype,
        "gb": total / 1e9,
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "floor_gb": floor / 1e9,
        "gb_a_step": step.moved / 1e9,
        "over_floor": step.moved / floor,
        "cache_copies": step.copies,
        "relayouts": step.relayouts,
        "launches": launches,
        "launches_by_kind": dict(step.kernels.most_common()),
        "command_buffers": hlo.launches_by_buffer(thunks) | rules,
        "compile_s": seconds,
        "good": total < card.memory
        and step.moved <= most_moved * floor
        and in_place
        and not step.copies
        and launches <= most_launched,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=CARDS, default=list(CARDS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--kernels", nargs="+", choices=("16-bit", "int8"), default=["16-bit", "int8"])
    parser.add_argument("--rows", type=int, default=3072, help="of the self-attention's cache")
    parser.add_argument("--text-size", type=int, default=128, help="of the script, padded")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs; no bar holds there")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = SMALL_DIA if options.small else DiaConfig()
    results = []
    header = ("GPU", "batch", "kernels", "memory, GB", "temporary, MB", "GB a step", "over floor", "cache copies")
    header += ("relayouts", "kernels a step", "of these in command buffers", "kinds")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for target, batch, kernels in itertools.product(options.targets, options.batches, options.kernels):
        r = examine(target, batch, kernels, config=config, rows=options.rows, text_size=options.text_size)
        results.append(r)
        buffers = r["command_buffers"]
        cells = [target, batch, r["kernels"], f"{r['gb']:.2f}", f"{r['temporary_mb']:.1f}", f"{r['gb_a_step']:.3f}"]
        cells += [f"{r['over_floor']:.3f}", len(r["cache_copies"]), len(r["relayouts"]), r["launches"]]
        cells += [f"{buffers['inside']} in {buffers['buffers']}"]
        cells += [", ".join(f"{count} {kind}" for kind, count in r["launches_by_kind"].items())]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    packages = ["jax", "jaxlib", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12", "flax"]
    kept = {"rows": options.rows, "text_size": options.text_size, "results": results}
    complete = len(results) == 16 and not options.small
    write_compiled(options.results, "gpu-compiled", packages, kept, complete=complete)
    if not options.small and not all(r["good"] for r in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
