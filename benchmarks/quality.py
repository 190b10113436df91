"""What bfloat16 and int8 do to what is drawn: teacher-forced, full size, against float32 on the same random weights.

    python benchmarks/quality.py
    python benchmarks/quality.py --small      # tiny sizes, to see that it runs

Over the rows of a random grid: the divergence KL(float32 || variant) of the guided distribution of a channel's token,
in nats (guidance 3, temperature 1, before top-k and top-p), and how often both find the same token the likeliest.

Two kinds of weights: queries scaled by 1 / sqrt(head_dim), which gives scores of deviation 1; and queries of unit
variance, as sharp as Dia's attention factor of 1.0 leaves them, where every layer multiplies whatever differs. A
trained model lies between; bfloat16 is the yardstick. Writes benchmarks/results/quality-*.json.
"""

import argparse
import gc
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import RESULTS, SCRIPT, machine, table, write_results
from flax import nnx
from parity import configs

from dia_jax import DiaConfig
from dia_jax.checkpoint import DTYPES, dia_from_json
from dia_jax.text import encode_text
from dia_jax.untrained import random_params

VARIANTS = ("bfloat16", "int8 in float32", "int8 in bfloat16")


def make(config: DiaConfig, variant: str, *, sharp: bool) -> tuple[nnx.GraphDef, nnx.State]:
    """The same weights for every variant, rounded last."""
    dtype = "bfloat16" if "bfloat16" in variant else "float32"
    graphdef, params = random_params(config, dtype="float32" if "int8" in variant else dtype)
    if sharp:
        flat = []
        for path, value in nnx.to_flat_state(params):
            if path[-2] == "q_proj":
                sizes = config.encoder if path[0] == "encoder" else config.decoder
                head_dim = config.decoder.cross_head_dim if "cross_attention" in path else sizes.head_dim
                value = value.replace(value[...] * value.dtype.type(head_dim**0.5))
            flat.append((path, value))
        params = nnx.from_flat_state(flat)
    if "int8" in variant:
        model = nnx.merge(graphdef, params)
        model.quantize()
        for _, module in nnx.iter_graph(model):
            if isinstance(module, nnx.Module) and hasattr(module, "scale"):
                module.dtype = DTYPES[dtype]
        graphdef, params = nnx.split(model)
    return graphdef, params


def guided(logits: np.ndarray, scale: float = 3.0) -> np.ndarray:
    """Logits of the unconditional and the conditional row, [2, T, C, V] -> float64 log probabilities [T, C, V]."""
    uncond, cond = logits.astype(np.float64)
    mixed = cond + scale * (cond - uncond)
    mixed -= mixed.max(axis=-1, keepdims=True)
    return mixed - np.log(np.exp(mixed).sum(axis=-1, keepdims=True))


def run(config: DiaConfig, variant: str, inputs: dict[str, np.ndarray], *, sharp: bool) -> np.ndarray:
    graphdef, params = make(config, variant, sharp=sharp)
    forward = jax.jit(
        lambda graphdef, params, *args: teacher_forced(nnx.merge(graphdef, params), *args), static_argnums=0
    )
    return guided(np.asarray(forward(graphdef, params, inputs["text"], inputs["grid"])))


def teacher_forced(model: Any, text: jax.Array, grid: jax.Array) -> jax.Array:
    """Both lanes of one clip, as when generating."""
    mask = text != 0
    cross = model.decoder.cross_cache(model.encoder(text, mask))
    start = jnp.zeros(1, jnp.int32)
    hidden, _ = model.decoder(grid, start, cross, mask, unconditional=model.unconditional())
    return model.decoder.logits(hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="rows of the grid")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    size = "small" if options.small else "full"
    config = dia_from_json(configs(options.small)[0].to_dict())
    rng = np.random.default_rng(0)
    inputs = {
        "text": encode_text(SCRIPT, max_length=1024)[None].astype(np.int32),
        "grid": rng.integers(0, 1024, (1, options.rows, 9)).astype(np.int32),
    }
    rows = []
    for sharp in (False, True):
        exact = run(config, "float32", inputs, sharp=sharp)
        for variant in VARIANTS:
            gc.collect()
            other = run(config, variant, inputs, sharp=sharp)
            divergence = (np.exp(exact) * (exact - other)).sum(axis=-1)
            agree = (exact.argmax(axis=-1) == other.argmax(axis=-1)).mean()
            rows.append(
                {
                    "queries": "unit variance" if sharp else "scaled",
                    "variant": variant,
                    "kl_mean": float(divergence.mean()),
                    "kl_p99": float(np.quantile(divergence, 0.99)),
                    "top1_agreement": float(agree),
                }
            )
            print(rows[-1], flush=True)
    cells = [
        [r["queries"], r["variant"], f"{r['kl_mean']:.1e}", f"{r['kl_p99']:.1e}", f"{100 * r['top1_agreement']:.1f} %"]
        for r in rows
    ]
    print(f"\n{size} size, {options.rows} rows x 9 channels, {machine()['device']}\n")
    print(table(["queries", "variant", "KL, mean", "KL, 99th percentile", "same likeliest token"], cells))
    name = f"quality-{size}-{machine()['device'].replace(' ', '-').lower()}"
    print(f"written to {write_results(options.results, name, machine() | {'rows': options.rows, 'variants': rows})}")


if __name__ == "__main__":
    main()
