"""Training steps on this device: seconds, rows a second, memory.

    python benchmarks/training.py                        # full size: adapters; on a GPU all weights too
    python benchmarks/training.py --model tiny           # the small voice's sizes
    python benchmarks/training.py --small                # tiny sizes, to see that it runs

Random weights and random codes, one bucket. The floor is the products alone, forward and twice that backward (and
forward once more, for what is recomputed), at the device's own speed of a large product, measured here. Writes
benchmarks/results/training-*.json.
"""

import argparse
import dataclasses
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import RESULTS, machine, table, write_results

from dia_jax import DiaConfig
from dia_jax.training.settings import TrainSettings
from dia_jax.training.step import compile_step, initial_state, make_mesh, make_recipe
from dia_jax.training.weights import frozen_weights, initial_weights
from dia_jax.untrained import SMALL_DIA

sys.path.insert(0, str(Path(__file__).parent / "tiny"))
from model import CONFIG as TINY


def flops(dtype: str) -> float:
    """Floating-point operations a second of a large product."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    run = jax.jit(lambda x: x @ x)
    run(x).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def memory_gb() -> float:
    """Peak so far: of the device if it tells, else of the process."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9


def measure(config: DiaConfig, settings: TrainSettings, clips: int, rows: int, steps: int) -> dict[str, Any]:
    mesh = make_mesh(1)
    recipe, trained, frozen = make_recipe(config, settings)
    frozen = frozen_weights(config, settings, frozen, mesh)
    state = initial_state(recipe, initial_weights(config, settings, trained), mesh)
    total = sum(x.size for x in jax.tree.leaves(frozen if settings.lora_rank else state.trained))
    rng = np.random.default_rng(0)
    channels = config.decoder.num_channels
    batch = {
        "text": rng.integers(1, 120, (clips, 128)).astype(np.int32),
        "text_mask": np.ones((clips, 128), bool),
        "grid": rng.integers(0, config.eos_token_id, (clips, rows + 1, channels)).astype(np.int32),
        "history_mask": np.ones((clips, rows), bool),
        "loss_mask": np.ones((clips, rows, channels), bool),
        "spoken_byte": np.full((clips, rows), -1, np.int32),
    }
    began = time.perf_counter()
    step = compile_step(recipe, mesh, state, frozen)
    step.gradients.lower(state.trained, frozen, batch, state.step).compile()
    compiling = time.perf_counter() - began
    times = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, noted = step(state, frozen, [batch])
        loss = float(noted["loss"])
        times.append(time.perf_counter() - began)
    seconds = float(np.median(times[1:]))
    # An embedding is looked up, not multiplied; adapters add nothing that counts.
    tables = config.decoder.num_channels * config.decoder.vocab_size * config.decoder.hidden_size
    passes = (2 if settings.lora_rank else 3) + settings.loss.remat
    floor = 2 * passes * (total - tables) * clips * rows / flops(settings.dtype)
    return {
        "trained": f"LoRA of rank {settings.lora_rank}" if settings.lora_rank else "all weights",
        "parameters": total,
        "dtype": settings.dtype,
        "clips": clips,
        "rows": rows,
        "seconds": seconds,
        "rows_a_second": clips * rows / seconds,
        "over_floor": seconds / floor,
        "compile_seconds": compiling,
        "memory_gb": memory_gb(),
        "loss": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["full", "tiny"], default="full")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--clips", type=int, help="in a batch; by default what fits")
    parser.add_argument("--rows", type=int, default=256, help="of a clip")
    parser.add_argument("--steps", type=int, default=2, help="that are timed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    base = TrainSettings(dtype=dtype, steps=1000)
    if options.small:
        config, runs = SMALL_DIA, [base, dataclasses.replace(base, lora_rank=16)]
    elif options.model == "tiny":
        config, runs = TINY, [base]
    else:
        config, runs = DiaConfig(), [dataclasses.replace(base, lora_rank=16)] + ([] if on_cpu else [base])
    clips = options.clips or (1 if on_cpu and options.model == "full" else 16)
    rows = [measure(config, settings, clips, options.rows, options.steps) for settings in runs]
    header = ["trained", "clips x rows", "dtype", "s a step", "rows/s", "over floor", "compile, s", "peak memory, GB"]
    cells = [
        [
            r["trained"],
            f"{r['clips']} x {r['rows']}",
            r["dtype"],
            f"{r['seconds']:.2f}",
            f"{r['rows_a_second']:.0f}",
            f"{r['over_floor']:.2f}",
            f"{r['compile_seconds']:.0f}",
            f"{r['memory_gb']:.1f}",
        ]
        for r in rows
    ]
    print(table(header, cells))
    size = "small" if options.small else options.model
    name = f"training-{size}-{machine()['device'].replace(' ', '-').lower()}"
    print(f"written to {write_results(options.results, name, machine() | {'rows': rows})}")


if __name__ == "__main__":
    main()
