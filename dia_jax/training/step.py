"""One update of the weights, compiled for a mesh of devices.

Knows the loss, the optimizer and how arrays are sharded. Knows no files: where weights come from is the business of
`weights`, and when a step runs that of `loop`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dia_jax.checkpoint import DTYPES
from dia_jax.config import DiaConfig
from dia_jax.model import DiaModel
from dia_jax.training.lora import add_lora
from dia_jax.training.loss import loss
from dia_jax.training.settings import TrainingError, TrainSettings

MIN_SHARDED_SIZE = 32
"""Arrays with an axis shorter than this, which are adapters, are replicated."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes, and what a checkpoint holds.

    Attributes:
        step: int32, the number of updates made.
        trained: the float32 weights or adapters that are trained.
        optimizer: optax's state.
        average: a running average of `trained`; empty without `ema_decay`.
    """

    step: jax.Array
    trained: Any
    optimizer: Any
    average: Any


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a run computes gradients and updates: everything but arrays and devices.

    Attributes:
        graphdef: of the model in the compute dtype, with adapters if they are trained.
        dtypes: the compute dtype of each trained array.
        transform: optax's gradient transformation.
        settings: of the run.
    """

    graphdef: nnx.GraphDef
    dtypes: Any
    transform: optax.GradientTransformation
    settings: TrainSettings

    def model(self, trained: Any, frozen: Any) -> DiaModel:
        """The module in the compute dtype."""
        cast = jax.tree.map(lambda value, dtype: value.astype(dtype), trained, self.dtypes)
        # nnx.remat writes into variables, so they have to be created in the trace that it runs in, the frozen ones too.
        return nnx.merge(self.graphdef, cast, jax.tree.map(lambda value: value, frozen))

    def gradients(self, trained: Any, frozen: Any, batch: Any, step: jax.Array) -> tuple[Any, dict[str, Any]]:
        """The gradients of the loss by the trained weights, and the loss with its parts."""
        alignment_scale = jnp.maximum(1 - step / max(self.settings.alignment_steps, 1), 0.0)

        def loss_of(trained: Any) -> tuple[jax.Array, dict[str, Any]]:
            return loss(self.model(trained, frozen), batch, self.settings.loss, alignment_scale)

        (value, parts), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        return gradients, parts | {"loss": value}

    def update(self, state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array]:
        """The state after one update, and the global norm of the gradients."""
        updates, optimizer = self.transform.update(gradients, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        average = state.average
        if self.settings.ema_decay:
            # The decay starts low, or the average would long be that of the initial weights.
            decay = jnp.minimum(self.settings.ema_decay, (state.step + 1) / (state.step + 10))
            average = jax.tree.map(lambda old, new: old * decay + new * (1 - decay), average, trained)
        return TrainState(state.step + 1, trained, optimizer, average), optax.tree.norm(gradients)


def schedule(settings: TrainSettings) -> optax.Schedule:
    """The learning rate by the number of updates already made.

    It rises linearly to its peak, and a cosine then leads to a tenth of it at the last update.
    """
    peak = settings.learning_rate
    warmup = min(settings.warmup_steps, settings.steps - 1)
    rates = optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, settings.steps, peak / 10)
    # optax's schedule starts at 0, with which the first update would change nothing.
    return lambda updates: rates(updates + 1)


def make_recipe(config: DiaConfig, settings: TrainSettings) -> tuple[Recipe, Any, Any]:
    """The recipe of a run, and its trained and frozen weights as `jax.ShapeDtypeStruct`s."""

    def make() -> DiaModel:
        model = DiaModel(config, dtype=DTYPES[settings.dtype], rngs=nnx.Rngs(0))
        if settings.lora_rank:
            add_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha)
        return model

    kind = nnx.LoRAParam if settings.lora_rank else nnx.Param
    graphdef, trained, frozen = nnx.split(nnx.eval_shape(make), kind, ...)
    dtypes = jax.tree.map(lambda value: value.dtype, trained)
    trained = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, jnp.float32), trained)
    transform = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            schedule(settings),
            b2=0.95,
            weight_decay=settings.weight_decay,
            mask=lambda weights: jax.tree.map(lambda value: value.ndim > 1, weights),
        ),
    )
    return Recipe(graphdef, dtypes, transform, settings), trained, frozen


def make_mesh(fsdp: int, devices: list[Any] | None = None) -> Mesh:
    """A mesh of all devices with the axes data and fsdp.

    Raises:
        TrainingError: fsdp does not divide the number of devices.
    """
    devices = devices or jax.devices()
    if len(devices) % fsdp:
        raise TrainingError(f"fsdp is {fsdp}, but there are {len(devices)} devices; it must divide them.")
    grid = np.asarray(devices).reshape(-1, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each array of a tree: along its longest axis that the fsdp devices divide.

    An array that has no such axis, or whose last two have one shorter than `MIN_SHARDED_SIZE`, is replicated: gathering
    norms and adapters would cost more than sharding them saves.
    """

    def of(value: Any) -> NamedSharding:
        fsdp = mesh.shape["fsdp"]
        axes = [axis for axis, size in enumerate(value.shape) if size % fsdp == 0]
        if fsdp == 1 or not axes or value.ndim < 2 or min(value.shape[-2:]) < MIN_SHARDED_SIZE:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: value.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(["fsdp" if i == longest else None for i in range(value.ndim)])))

    return jax.tree.map(of, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its clips over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@dataclasses.dataclass(frozen=True)
class Step:
    """A recipe, compiled for a mesh: the gradients once per bucket, the update once.

    Attributes:
        gradients: (trained, frozen, batch, step) -> (gradients, metrics).
        add: (gradients, gradients) -> their sum; the first argument is donated.
        update: (state, sum of gradients, count) -> (state, norm of their mean); the state is donated.
    """

    gradients: Any
    add: Any
    update: Any

    def __call__(
        self, state: TrainState, frozen: Any, batches: Iterable[Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes one update from the mean gradients of the batches.

        Args:
            state: donated; use the returned one.
            frozen: see `weights.frozen_weights`.
            batches: at least one, placed by `batch_sharding`.

        Returns:
            the state, and the metrics: the means of the loss and its parts, and "gradient_norm".
        """
        total, metrics = None, []
        for batch in batches:
            gradients, parts = self.gradients(state.trained, frozen, batch, state.step)
            total = gradients if total is None else self.add(total, gradients)
            metrics.append(parts)
        state, norm = self.update(state, total, len(metrics))
        mean = jax.tree.map(lambda *each: sum(each) / len(each), *metrics)
        return state, mean | {"gradient_norm": norm}


def compile_step(recipe: Recipe, mesh: Mesh, state: Any, frozen: Any) -> Step:
    """The step of a recipe on a mesh; each part compiles when it first runs.

    Args:
        recipe: see `make_recipe`.
        mesh: see `make_mesh`.
        state: a `TrainState`, or one of shapes.
        frozen: the frozen weights, or their shapes.
    """
    replicated, trained = NamedSharding(mesh, PartitionSpec()), shardings(mesh, state.trained)

    def add(one: Any, other: Any) -> Any:
        return jax.tree.map(jnp.add, one, other)

    def update(state: TrainState, total: Any, count: int) -> tuple[TrainState, jax.Array]:
        return recipe.update(state, jax.tree.map(lambda gradient: gradient / count, total))

    return Step(
        jax.jit(
            recipe.gradients,
            in_shardings=(trained, shardings(mesh, frozen), batch_sharding(mesh), replicated),
            out_shardings=(trained, replicated),
        ),
        jax.jit(add, in_shardings=(trained, trained), out_shardings=trained, donate_argnums=0),
        jax.jit(
            update,
            in_shardings=(shardings(mesh, state), trained, replicated),
            out_shardings=(shardings(mesh, state), replicated),
            donate_argnums=0,
        ),
    )


def initial_state(recipe: Recipe, trained: Any, mesh: Mesh) -> TrainState:
    """The state at step 0, placed on the mesh. It copies the weights, because a step donates its state."""
    make = functools.partial(_make_state, recipe)
    placed = jax.device_put(trained, shardings(mesh, trained))
    return jax.jit(make, out_shardings=shardings(mesh, jax.eval_shape(make, trained)))(placed)


def abstract_state(recipe: Recipe, trained: Any, mesh: Mesh) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with their shardings."""
    state = jax.eval_shape(functools.partial(_make_state, recipe), trained)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings(mesh, state)
    )


def _make_state(recipe: Recipe, trained: Any) -> TrainState:
    average = jax.tree.map(jnp.copy, trained) if recipe.settings.ema_decay else {}
    return TrainState(jnp.int32(0), jax.tree.map(jnp.copy, trained), recipe.transform.init(trained), average)
