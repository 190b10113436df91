"""Low-rank adapters (Hu et al., 2021): small matrices beside the kernels of a model that stays as it is.

Knows the model's `Linear`, which it stands in for while training; merging a saved adapter into a checkpoint is the
business of `checkpoint.load_params`.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from dia_jax.model import DiaModel, Linear


class LoraLinear(nnx.Module):
    """base(x) + alpha / rank * b a x, with a [rank, in] and b [out, rank] in float32, zero until drawn or read."""

    def __init__(self, base: Linear, rank: int, alpha: float):
        outputs, inputs = base.weight.shape
        self.base = base
        self.gain = alpha / rank
        self.a = nnx.LoRAParam(jnp.zeros((rank, inputs), jnp.float32))
        self.b = nnx.LoRAParam(jnp.zeros((outputs, rank), jnp.float32))

    @property
    def dtype(self) -> jnp.dtype:
        return self.base.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        low = jnp.einsum("...I,KI->...K", x.astype(self.dtype), self.a[...].astype(self.dtype))
        added = jnp.einsum("...K,OK->...O", low, self.b[...].astype(self.dtype), preferred_element_type=jnp.float32)
        return self.base(x) + self.gain * added


def add_lora(model: DiaModel, *, rank: int, alpha: float) -> None:
    """Puts an adapter beside every kernel of the layers, in place; embeddings, norms and logits have none."""
    for stack in (model.encoder, model.decoder):
        for _, module in list(nnx.iter_modules(stack.layers)):
            for name, child in list(vars(module).items()):
                if isinstance(child, Linear):
                    setattr(module, name, LoraLinear(child, rank, alpha))


def initial_adapters(abstract: nnx.State, seed: int) -> nnx.State:
    """Adapters that change nothing yet: a normal with deviation 1 / sqrt(inputs), b zero.

    Args:
        abstract: the shapes of the `nnx.LoRAParam`s of a model after `add_lora`.
        seed: of a.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, value: Any) -> jax.Array:
        shape = value.shape
        noise = rng.standard_normal(shape, np.float32) * shape[1] ** -0.5 if path[-1] == "a" else np.zeros(shape)
        return jnp.asarray(noise, jnp.float32)

    return nnx.from_flat_state(
        [(path, value.replace(draw(path, value))) for path, value in nnx.to_flat_state(abstract)]
    )


def write_adapter(folder: Path, adapter: nnx.State, *, rank: int, alpha: float) -> None:
    """Writes `adapter.safetensors` and `adapter.json` into an existing, empty folder.

    Args:
        folder: see above.
        adapter: the `nnx.LoRAParam`s of a model after `add_lora`.
        rank, alpha: as in `add_lora`.
    """
    arrays = {
        ".".join(map(str, path)): np.asarray(value[...], np.float32) for path, value in nnx.to_flat_state(adapter)
    }
    save_file(arrays, folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(json.dumps({"rank": rank, "alpha": alpha}) + "\n")
