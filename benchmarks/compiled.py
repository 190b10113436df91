"""The decode loop, lowered for an accelerator that this machine need not have: what tpu.py and gpu.py examine.

Knows how the loop is called. Imports no torch, so that it runs where only a compiler is installed.
"""

import functools
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dia_jax import DiaConfig
from dia_jax.checkpoint import abstract_params
from dia_jax.decode import DecodeState, decode_chunk, unconditional
from dia_jax.mesh import sharding
from dia_jax.slots import empty_state

RESULTS = Path(__file__).parent / "results"


def lower_decode(
    devices: Sequence[jax.Device],
    config: DiaConfig,
    *,
    batch: int,
    rows: int,
    text_size: int,
    dtype: str,
    quantize: Any = None,
) -> tuple[Any, Any, DecodeState]:
    """Lowers `decode_chunk` for devices of a topology; no array is made.

    Args:
        devices: what it is to run on; several share each clip.
        config: of the model.
        batch: clips.
        rows: positions of the self-attention's caches.
        text_size: of the scripts, padded.
        dtype: the compute dtype.
        quantize: see `model.Quantize`.

    Returns:
        The lowered program, and the shapes, dtypes and shardings of its weights and of its state.
    """
    group = Mesh(np.array(devices), ("model",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(group, PartitionSpec())
    heads = NamedSharding(group, PartitionSpec(None, "model")) if len(devices) > 1 else whole

    def make(x: Any, where: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    graphdef, params = abstract_params(config, dtype, quantize)
    flat = [(path, value.replace(make(value, sharding(group, path)))) for path, value in nnx.to_flat_state(params)]
    params = nnx.from_flat_state(flat)
    constants = [make(x, whole) for x in jax.eval_shape(functools.partial(unconditional, graphdef), params)]
    empty = functools.partial(
        empty_state, config, slots=batch, cache=rows, text=text_size, dtype=np.dtype(jnp.dtype(dtype))
    )
    state = jax.eval_shape(empty)
    slots, caches = jax.tree.map(lambda x: make(x, whole), state.slots), (state.cache, state.cross)
    state = DecodeState(slots, *jax.tree.map(lambda x: make(x, heads), caches))
    steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    with jax.set_mesh(group):
        return decode_chunk.trace(graphdef, params, constants, state, steps).lower(), params, state


def write_compiled(folder: Path, name: str, packages: list[str], results: dict[str, Any], *, complete: bool) -> None:
    """Writes <folder>/<name>.json with the versions of `packages`; among the kept results only what is complete."""
    if not complete and folder == RESULTS:
        return
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    versions = {package: version(package) for package in packages}
    path.write_text(json.dumps({"versions": versions, **results}, indent=2) + "\n")
    print(f"written to {path}")
