"""The decode loop, lowered for an accelerator that this machine need not have: what tpu.py and gpu.py examine.

Knows how the loop is called. Imports no torch, so that it runs where only a compiler is installed.
"""

import functools
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from dia_jax import DiaConfig
from dia_jax.checkpoint import abstract_params
from dia_jax.decode import DecodeState, decode_chunk
from dia_jax.slots import empty_state

RESULTS = Path(__file__).parent / "results"


def lower_decode(
    device: jax.Device,
    config: DiaConfig,
    *,
    batch: int,
    rows: int,
    text_size: int,
    dtype: str,
    quantize: Any = None,
) -> tuple[Any, Any, DecodeState]:
    """Lowers `decode_chunk` for `device`, of a topology; no array is made.

    Args:
        device: what it is to run on.
        config: of the model.
        batch: clips.
        rows: positions of the self-attention's caches.
        text_size: of the scripts, padded.
        dtype: the compute dtype.
        quantize: see `model.Quantize`.

    Returns:
        The lowered program, and the shapes and dtypes of its weights and of its state.
    """
    make = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device))
    graphdef, params = abstract_params(config, dtype, quantize)
    params = jax.tree.map(lambda x: make(x.shape, x.dtype), params)
    empty = functools.partial(
        empty_state, config, slots=batch, cache=rows, text=text_size, dtype=np.dtype(jnp.dtype(dtype))
    )
    state = jax.tree.map(lambda x: make(x.shape, x.dtype), jax.eval_shape(empty))
    return decode_chunk.trace(graphdef, params, state, make((), jnp.int32)).lower(), params, state


def write_compiled(folder: Path, name: str, packages: list[str], results: dict[str, Any], *, complete: bool) -> None:
    """Writes <folder>/<name>.json with the versions of `packages`; among the kept results only what is complete."""
    if not complete and folder == RESULTS:
        return
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    versions = {package: version(package) for package in packages}
    path.write_text(json.dumps({"versions": versions, **results}, indent=2) + "\n")
    print(f"written to {path}")
