"""Low-rank adapters (Hu et al., 2021): two small trained matrices beside each frozen kernel.

Knows the model's `Linear`, which `LoraLinear` wraps while training. Does not merge a saved adapter into a checkpoint;
`checkpoint.load_params` does.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from dia_jax.model import DiaModel, Linear
from dia_jax.ops import precision


class LoraLinear(nnx.Module):
    """base(x) + alpha / rank * b a x, with float32 parameters a [rank, in] and b [out, rank], all outputs in one axis.

    Both are created as zeros; `initial_adapters` draws their values. The products are computed in the dtype of the
    base, float32 [..., in] -> float32 [..., *out].
    """

    def __init__(self, base: Linear, rank: int, alpha: float):
        *outputs, inputs = base.weight.shape
        self.base = base
        self.gain = alpha / rank
        self.a = nnx.LoRAParam(jnp.zeros((rank, inputs), jnp.float32))
        self.b = nnx.LoRAParam(jnp.zeros((math.prod(outputs), rank), jnp.float32))

    @property
    def dtype(self) -> jnp.dtype:
        return self.base.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kind = precision(self.dtype)
        low = jnp.einsum("...I,KI->...K", x.astype(self.dtype), self.a[...].astype(self.dtype), precision=kind)
        b = self.b[...].astype(self.dtype)
        added = jnp.einsum("...K,OK->...O", low, b, precision=kind, preferred_element_type=jnp.float32)
        out = self.base(x)
        return out + self.gain * added.reshape(out.shape)


def add_lora(model: DiaModel, *, rank: int, alpha: float) -> None:
    """Adds an adapter to every kernel of the layers, in place; embeddings, norms and the logits have none.

    Args:
        model: its layers' `Linear` modules are replaced by `LoraLinear`.
        rank: of the adapters.
        alpha: numerator of their gain, alpha / rank.
    """
    for stack in (model.encoder, model.decoder):
        modules = [node for _, node in nnx.iter_graph(stack.layers) if isinstance(node, nnx.Module)]
        for module in modules:
            for name, child in list(vars(module).items()):
                if isinstance(child, Linear):
                    setattr(module, name, LoraLinear(child, rank, alpha))


def initial_adapters(abstract: nnx.State, seed: int) -> nnx.State:
    """Draws adapters that do not change the model: a is normal with deviation 1 / sqrt(inputs), and b is 0.

    Args:
        abstract: the `nnx.LoRAParam`s of a model after `add_lora`, as shapes.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, value: Any) -> jax.Array:
        shape = value.shape
        noise = rng.standard_normal(shape, np.float32) * shape[1] ** -0.5 if path[-1] == "a" else np.zeros(shape)
        return jnp.asarray(noise, jnp.float32)

    return nnx.from_flat_state(
        [(path, value.replace(draw(path, value))) for path, value in nnx.to_flat_state(abstract)]
    )


def below_adapters(params: nnx.State, frozen: nnx.State) -> nnx.State:
    """Moves a model's weights to the paths that they have after `add_lora`.

    Args:
        params: weights of the model without adapters.
        frozen: what is not an adapter in the model after `add_lora`, as shapes.
    """
    values = dict(nnx.to_flat_state(params))
    flat = [
        (path, value.replace(values[tuple(part for part in path if part != "base")][...]))
        for path, value in nnx.to_flat_state(frozen)
    ]
    return nnx.from_flat_state(flat)


def write_adapter(folder: Path, adapter: nnx.State, *, rank: int, alpha: float) -> None:
    """Writes `adapter.safetensors` and `adapter.json`.

    Args:
        folder: an existing, empty folder.
        adapter: the `nnx.LoRAParam`s of a model after `add_lora`.
        rank, alpha: see `add_lora`.
    """
    arrays = {
        ".".join(map(str, path)): np.asarray(value[...], np.float32) for path, value in nnx.to_flat_state(adapter)
    }
    save_file(arrays, folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(json.dumps({"rank": rank, "alpha": alpha}) + "\n")
