"""The weights that a run starts from, and those that it leaves as they are.

Knows checkpoints, adapters and how random weights are drawn; knows no optimizer and no data.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dia_jax.checkpoint import Checkpoint, abstract_params, load_params
from dia_jax.config import DiaConfig
from dia_jax.training.lora import below_adapters, initial_adapters
from dia_jax.training.settings import TrainSettings
from dia_jax.training.step import shardings


def initial_weights(
    config: DiaConfig, settings: TrainSettings, trained: nnx.State, checkpoint: Checkpoint | None = None
) -> nnx.State:
    """The float32 weights that a run trains, at step 0.

    Args:
        config: of the model.
        settings: of the run.
        trained: the trained weights as shapes, see `step.make_recipe`.
        checkpoint: the base; None for random weights.

    Returns:
        the base's weights or random ones; with LoRA, adapters that do not change the model.
    """
    if settings.lora_rank:
        return initial_adapters(trained, settings.seed)
    return _base_weights(config, settings, "float32", checkpoint)


def frozen_weights(
    config: DiaConfig, settings: TrainSettings, frozen: nnx.State, mesh: Mesh, checkpoint: Checkpoint | None = None
) -> nnx.State:
    """The weights that a run does not train, placed on the mesh: with LoRA the model's, in the compute dtype.

    Args:
        config: of the model.
        settings: of the run.
        frozen: the frozen weights as shapes, see `step.make_recipe`.
        mesh: see `step.make_mesh`.
        checkpoint: the base; None for random weights.
    """
    if not settings.lora_rank:
        return frozen
    weights = below_adapters(_base_weights(config, settings, settings.dtype, checkpoint), frozen)
    return jax.device_put(weights, shardings(mesh, weights))


def random_weights(config: DiaConfig, seed: int, dtype: str) -> nnx.State:
    """Draws weights to train from: normal with deviation 0.02, as in the reference's config, and norms of 1.

    The last kernels of attention and MLP are smaller by sqrt(2 L) for L layers (GPT-2), so that the scale of the
    residual stream does not grow with depth.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, value: Any) -> jax.Array:
        if len(value.shape) == 1:
            return jnp.ones(value.shape, jnp.float32)
        layers = config.encoder.num_layers if path[0] == "encoder" else config.decoder.num_layers
        gain = (2 * layers) ** -0.5 if path[-2] in ("o_proj", "wo") else 1.0
        return jnp.asarray(0.02 * gain * rng.standard_normal(value.shape, np.float32), value.dtype)

    _, abstract = abstract_params(config, dtype)
    return nnx.from_flat_state(
        [(path, value.replace(draw(path, value))) for path, value in nnx.to_flat_state(abstract)]
    )


def _base_weights(config: DiaConfig, settings: TrainSettings, dtype: str, checkpoint: Checkpoint | None) -> nnx.State:
    if checkpoint is None:
        return random_weights(config, settings.seed, dtype)
    return load_params(checkpoint, dtype=dtype)[1]
