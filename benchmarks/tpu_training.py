"""What the TPU's own compiler makes of a full-size training step on a slice of four chips: memory and collectives.

    python -m venv .venv-tpu && .venv-tpu/bin/pip install '.[train]' libtpu
    .venv-tpu/bin/python benchmarks/tpu_training.py                     # v4-8 and v5e-4, full and LoRA: some minutes
    .venv-tpu/bin/python benchmarks/tpu_training.py --targets v5e --rows 4096

Needs no TPU: `libtpu` compiles for one on any Linux machine. The weights are spread over the four chips (fsdp=4), the
computation is bfloat16 over float32 weights, every layer is recomputed in the backward pass. Exits with 1 if a step
does not fit. Writes benchmarks/results/tpu-training-compiled.json.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no TPU to ask

import argparse
import json
import math
import multiprocessing
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from dia_jax import DiaConfig
from dia_jax.training.settings import LossSettings, TrainSettings
from dia_jax.training.step import abstract_state, batch_sharding, compile_step, make_mesh, make_recipe, shardings
from dia_jax.untrained import SMALL_DIA

SLICES = {"v4-8": "v4:2x2x1", "v5e-4": "v5e:2x2"}
MEMORY_GB = {"v4-8": 32, "v5e-4": 16}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def _needs(compiled: Any) -> float:
    """GB on a chip: what goes in, what comes out beside it, and what is made on the way."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes) / 1e9


def _gb_a_chip(tree: Any) -> float:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e9


def compile_for(target: str, settings: TrainSettings, config: DiaConfig, clips: int, rows: int) -> dict[str, Any]:
    """Compiles one step for a slice, from shapes alone."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=SLICES[target]).devices
    mesh = make_mesh(settings.fsdp, list(devices))
    recipe, trained, frozen = make_recipe(config, settings)

    state = abstract_state(recipe, trained, mesh)

    def placed(tree: Any) -> Any:
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings(mesh, tree)
        )

    text, channels = 512, config.decoder.num_channels
    shapes = {
        "text": ((clips, text), jnp.int32),
        "text_mask": ((clips, text), jnp.bool_),
        "grid": ((clips, rows + 1, channels), jnp.int32),
        "history_mask": ((clips, rows), jnp.bool_),
        "loss_mask": ((clips, rows, channels), jnp.bool_),
        "spoken_byte": ((clips, rows), jnp.int32),
    }
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }
    began = time.perf_counter()
    step = compile_step(recipe, mesh, state, frozen)
    weights = state.trained
    number = jax.ShapeDtypeStruct((), jnp.int32)
    gradients = step.gradients.lower(weights, placed(frozen), batch, number).compile()
    update = step.update.lower(state, weights, 1).compile()
    # While the gradients are computed the optimizer's state and the average wait; the update needs no frozen weights.
    waiting = _gb_a_chip(state) - _gb_a_chip(weights)
    needs = [_needs(gradients) + waiting, _needs(update) + _gb_a_chip(placed(frozen))]
    counts = {name: len(re.findall(rf" {name}(?:-start)?\(", gradients.as_text())) for name in COLLECTIVES}
    return {
        "slice": target,
        "what": f"LoRA of rank {settings.lora_rank}" if settings.lora_rank else "all weights",
        "clips": clips,
        "rows": rows,
        "gb_a_chip": max(needs),
        "gb_state": _gb_a_chip(state) + _gb_a_chip(placed(frozen)),
        "gb_temporary": gradients.memory_analysis().temp_size_in_bytes / 1e9,
        "gb_of": MEMORY_GB[target],
        "collectives": {name: count for name, count in counts.items() if count},
        "compile_seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=list(SLICES), default=list(SLICES))
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 16], help="of adapters; 0 trains all weights")
    parser.add_argument("--rows", type=int, default=1024, help="of a clip, 86 a second")
    parser.add_argument("--clips", type=int, default=8, help="in a batch, a multiple of four")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file"
    )
    options = parser.parse_args()
    config = SMALL_DIA if options.small else DiaConfig()
    results = []
    print("| slice | trained | clips x rows | GB a chip | state | temporary | collectives | compile, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for target in options.targets:
        for rank in options.ranks:
            settings = TrainSettings(fsdp=4, lora_rank=rank, loss=LossSettings(remat=True))
            # In a process of its own: the compiler does not give its gigabytes back.
            with multiprocessing.get_context("spawn").Pool(1) as process:
                r = process.apply(compile_for, (target, settings, config, options.clips, options.rows))
            results.append(r)
            collectives = ", ".join(f"{count} {name}" for name, count in r["collectives"].items())
            print(
                f"| {target} | {r['what']} | {r['clips']} x {r['rows']} | {r['gb_a_chip']:.2f} of {r['gb_of']} | "
                f"{r['gb_state']:.2f} | {r['gb_temporary']:.2f} | {collectives} | {r['compile_seconds']:.0f} |",
                flush=True,
            )
    versions = {name: version(name) for name in ("jax", "libtpu", "flax", "optax")}
    options.results.mkdir(exist_ok=True)
    target = options.results / "tpu-training-compiled.json"
    target.write_text(json.dumps({"versions": versions, "results": results}, indent=2) + "\n")
    print(f"written to {target}")
    if any(result["gb_a_chip"] > result["gb_of"] for result in results):
        raise SystemExit("A step does not fit.")


if __name__ == "__main__":
    main()
