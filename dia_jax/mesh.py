"""Devices that decode: which clips they work on, and which part of the weights and caches each one holds.

Knows meshes and the model's parameter names; knows no checkpoints, loops or training (whose mesh is in
`training.step`).

A mesh has two axes. Along "data", each group of devices decodes clips of its own, with a whole copy of the weights.
Along "model", the devices of a group share each clip: attention heads, the columns of the mlp and the vocabulary are
split over them, so that a step reads a part of the weights on each.
"""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dia_jax.config import DiaConfig, DiaError
from dia_jax.ops import KV


class MeshError(DiaError):
    """Devices that this model cannot be decoded on; the message says what would do."""


def decode_mesh(config: DiaConfig, mesh: Mesh | None = None) -> Mesh:
    """A mesh with the axes "data" and "model".

    Args:
        config: of the model.
        mesh: axes "data" or "model" or both, of devices of this process; None puts all of these along "data".

    Raises:
        MeshError: it has other axes or devices, or "model" does not divide what it has to.
    """
    mesh = mesh or local_mesh()
    if not set(mesh.axis_names) <= {"data", "model"}:
        raise MeshError(f'The mesh has the axes {", ".join(mesh.axis_names)}; it may have "data" and "model".')
    if not set(mesh.devices.flat) <= set(jax.local_devices()):
        raise MeshError("The mesh has devices of another process; a model decodes on those of one process.")
    model = mesh.shape.get("model", 1)
    enc, dec = config.encoder, config.decoder
    sizes = {
        "the encoder's key/value heads": enc.num_kv_heads,
        "the decoder's key/value heads": dec.num_kv_heads,
        "the cross-attention's key/value heads": dec.cross_num_kv_heads,
        "the encoder's mlp_size": enc.mlp_size,
        "the decoder's mlp_size": dec.mlp_size,
        "the encoder's hidden_size": enc.hidden_size,
        "the decoder's hidden_size": dec.hidden_size,
        "the channels' vocabularies": dec.num_channels * dec.vocab_size,
    }
    wrong = [f"{name} ({size:,})" for name, size in sizes.items() if size % model]
    if wrong:
        most = int(np.gcd.reduce(list(sizes.values())))
        fit = [str(n) for n in range(1, most + 1) if most % n == 0]
        raise MeshError(
            f'The axis "model" is {model}, which does not divide {", ".join(wrong)}; it may be {", ".join(fit)}.'
        )
    grid = mesh.devices if mesh.axis_names != ("model", "data") else mesh.devices.T
    return Mesh(grid.reshape(-1, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def local_mesh(devices_per_clip: int = 1, *, most_groups: int | None = None) -> Mesh:
    """A mesh of this process's devices.

    Args:
        devices_per_clip: that share each clip.
        most_groups: of such devices; None for as many as there are.

    Raises:
        MeshError: there are fewer devices.
    """
    devices = jax.local_devices()
    if not 1 <= devices_per_clip <= len(devices):
        raise MeshError(
            f"{devices_per_clip} devices cannot share a clip: this process has {len(devices)} "
            f"({devices[0].device_kind})."
        )
    grid = np.array(devices[: len(devices) // devices_per_clip * devices_per_clip]).reshape(-1, devices_per_clip)
    return Mesh(grid[:most_groups], ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_of(params: nnx.State) -> Mesh:
    """The devices that parameters are on, or would be put on by default."""
    where = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh):
        return where.mesh
    devices = list(where.device_set) if where else jax.local_devices()[:1]
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def groups(mesh: Mesh) -> list[Mesh]:
    """The groups of devices that share each clip, as meshes with the one axis "model"."""
    return [Mesh(row, ("model",), axis_types=(AxisType.Auto,)) for row in mesh.devices]


# What is split over "model", by the last names of a parameter's path. The sums over what is split meet in the outputs
# of o_proj and wo, one all-reduce each.
_SPLIT_AXIS = {
    ("q_proj", "weight"): 0,
    ("k_proj", "weight"): 0,
    ("v_proj", "weight"): 0,
    ("o_proj", "weight"): 1,
    ("wi_fused", "weight"): 1,
    ("wo", "weight"): 1,
    ("logits_dense", "weight"): 0,
    ("embedding", "embedding"): 1,
    ("embeddings", "embedding"): 1,
    ("q_proj", "scale"): 0,
    ("k_proj", "scale"): 0,
    ("v_proj", "scale"): 0,
    ("wi_fused", "scale"): 1,
    ("logits_dense", "scale"): 0,
}


def sharding(mesh: Mesh, path: tuple) -> NamedSharding:
    """Where the parameter of a path lies: split over "model" or not, and copied along "data"."""
    axis = _SPLIT_AXIS.get((str(path[-2]), str(path[-1])))
    if axis is None or mesh.shape["model"] == 1:
        return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "model"))


def place(params: nnx.State, mesh: Mesh) -> nnx.State:
    """The parameters where `sharding` wants them; without a copy if they are there."""
    flat = nnx.to_flat_state(params)
    return nnx.from_flat_state([(p, v.replace(jax.device_put(v[...], sharding(mesh, p)))) for p, v in flat])


def params_of_group(params: nnx.State, group: Mesh) -> nnx.State:
    """The same parameters on the devices of one group, without a copy."""

    def of_group(path: tuple, value: Any) -> Any:
        array = value[...]
        shards = {shard.device: shard.data for shard in array.addressable_shards}
        parts = [shards[device] for device in group.devices.flat]
        return value.replace(jax.make_array_from_single_device_arrays(array.shape, sharding(group, path), parts))

    return nnx.from_flat_state([(path, of_group(path, value)) for path, value in nnx.to_flat_state(params)])


def split_heads(tree: Any) -> Any:
    """Inside of a compiled function: splits all caches of a tree over the devices that share a clip, if several do."""
    if not _is_shared():
        return tree
    split = functools.partial(jax.lax.with_sharding_constraint, shardings=PartitionSpec(None, "model"))
    return jax.tree.map(
        lambda x: KV(split(x.k), split(x.v)) if isinstance(x, KV) else x, tree, is_leaf=lambda x: isinstance(x, KV)
    )


def replicate(x: jax.Array) -> jax.Array:
    """Inside of a compiled function: gives each of the devices that share a clip the whole array."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if _is_shared() else x


def _is_shared() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape.get("model", 1) > 1
