"""Training Dia: a step on a mesh of devices, and the run over many of them.

What a step does follows from the settings and its number, so a run that was killed goes on from its last checkpoint as
if nothing had been. Knows the loss, the batches and the run's folder, into which it writes `samples/` and at the end
`model/` or `adapter/`; knows no audio but the samples that it asks class `Dia` for.
"""

import dataclasses
import functools
import itertools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from dia_jax.checkpoint import (
    DTYPES,
    Checkpoint,
    abstract_params,
    codec_beside,
    dia_to_json,
    load_params,
    new_directory,
    open_checkpoint,
    write_params,
)
from dia_jax.config import DiaConfig
from dia_jax.model import DiaModel
from dia_jax.pipeline import Codec, Dia, load_codec_from
from dia_jax.text import encode_text
from dia_jax.training.data import BatchSettings, Dataset, batches
from dia_jax.training.lora import add_lora, initial_adapters, write_adapter
from dia_jax.training.loss import LossSettings, loss
from dia_jax.training.run import RunFolder, TrainingError, check_numbers, means


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """A run. Changing any of these makes another run of it, but for `FREE` and `loss.remat`.

    Attributes:
        steps: updates of the weights, in all.
        learning_rate: the highest, reached after `warmup_steps`; from there a cosine leads to a tenth of it.
        warmup_steps: updates.
        weight_decay: of kernels and embeddings (AdamW).
        clip_norm: gradients whose norm over all weights is larger are scaled down to it.
        accumulate: batches whose gradients are averaged into one update.
        dtype: of the computation; the weights that are trained and the optimizer's state are float32.
        lora_rank: trains adapters of this rank in place of the weights; 0 trains all weights.
        lora_alpha: gain of an adapter, times its rank.
        ema_decay: keep a running average of the weights, which is what is saved as the model; 0 for none.
        fsdp: devices over which the weights and the optimizer's state are spread; the others share the batch.
        alignment_steps: updates over which the alignment loss fades away.
        seed: of initial weights and of batches.
        batch: see `data.BatchSettings`.
        loss: see `loss.LossSettings`.
        log_every, save_every, sample_every: intervals, in updates; 0 for no samples.
        keep: checkpoints that are kept.
    """

    steps: int = 10_000
    learning_rate: float = 1e-4
    warmup_steps: int = 500
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    dtype: str = "bfloat16"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    ema_decay: float = 0.0
    fsdp: int = 1
    alignment_steps: int = 0
    seed: int = 0
    batch: BatchSettings = dataclasses.field(default_factory=BatchSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    log_every: int = 20
    save_every: int = 500
    sample_every: int = 0
    keep: int = 2

    def __post_init__(self):
        for name in ("steps", "accumulate", "fsdp", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("warmup_steps", "lora_rank", "alignment_steps", "sample_every", "weight_decay"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must not be negative.")
        if not 0 <= self.ema_decay < 1:
            raise TrainingError(f"ema_decay is {self.ema_decay}; it must lie in 0 .. 1.")
        check_numbers(self.learning_rate, self.seed)
        if self.dtype not in DTYPES:
            raise TrainingError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}.")


FREE = ("steps", "log_every", "save_every", "sample_every", "keep", "fsdp")
"""Settings that may change when a run is gone on with. (The learning rate's cosine ends at the new number of steps.)"""


VALIDATED = 8
"""Batches of the held-out data whose loss is noted."""

THIN = 32
"""Kernels with fewer rows or columns, which are adapters, are not spread."""

ANOTHER = "channel_0_with_another_text"
PICTURED = ("loss", "channels", "validation_loss", f"validation_{ANOTHER}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes.

    Attributes:
        step: int32, updates made.
        trained: float32 weights, or adapters.
        optimizer: optax's state.
        average: running average of `trained`; empty without one.
    """

    step: jax.Array
    trained: Any
    optimizer: Any
    average: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run is made of but its numbers.

    Attributes:
        graphdef: of the model in the compute dtype, with adapters if there are any.
        dtypes: of the trained weights in the computation.
        transform: optax's.
        settings: of the run.
    """

    graphdef: nnx.GraphDef
    dtypes: Any
    transform: optax.GradientTransformation
    settings: TrainSettings

    def model(self, trained: Any, frozen: Any) -> DiaModel:
        """The module in the compute dtype."""
        cast = jax.tree.map(lambda value, dtype: value.astype(dtype), trained, self.dtypes)
        # The frozen ones anew too: remat writes into variables, which must be of the trace that it runs in.
        return nnx.merge(self.graphdef, cast, jax.tree.map(lambda value: value, frozen))

    def gradients(self, trained: Any, frozen: Any, batch: Any, step: jax.Array) -> tuple[Any, dict[str, Any]]:
        """Of the loss, by the trained weights; and the loss's parts."""
        fades = max(self.settings.alignment_steps, 1)
        left = jnp.maximum(1 - step / fades, 0.0)

        def of(trained: Any) -> tuple[jax.Array, dict[str, Any]]:
            return loss(self.model(trained, frozen), batch, self.settings.loss, left)

        (value, parts), gradients = jax.value_and_grad(of, has_aux=True)(trained)
        return gradients, parts | {"loss": value}

    def update(self, state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array]:
        """One update, and the norm of the gradients."""
        updates, optimizer = self.transform.update(gradients, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        average = state.average
        if self.settings.ema_decay:
            # Early on the average would be of the random beginning: it runs over what there has been so far.
            decay = jnp.minimum(self.settings.ema_decay, (state.step + 1) / (state.step + 10))
            average = jax.tree.map(lambda old, new: old * decay + new * (1 - decay), average, trained)
        return TrainState(state.step + 1, trained, optimizer, average), optax.tree.norm(gradients)


def schedule(settings: TrainSettings) -> optax.Schedule:
    """Linear to the highest learning rate, then a cosine to a tenth of it, which the last update has.

    By updates made before: optax begins at 0, and so the first update would be none.
    """
    high = settings.learning_rate
    warm = min(settings.warmup_steps, settings.steps - 1)
    rates = optax.warmup_cosine_decay_schedule(0.0 if warm else high, high, warm, settings.steps, high / 10)
    return lambda made: rates(made + 1)


def make_program(config: DiaConfig, settings: TrainSettings) -> tuple[Program, Any, Any]:
    """The program of a run, and the trained and frozen weights as shapes and dtypes."""

    def make() -> DiaModel:
        model = DiaModel(config, dtype=DTYPES[settings.dtype], rngs=nnx.Rngs(0))
        if settings.lora_rank:
            add_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha)
        return model

    wanted = nnx.LoRAParam if settings.lora_rank else nnx.Param
    graphdef, trained, frozen = nnx.split(nnx.eval_shape(make), wanted, ...)
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
    return Program(graphdef, dtypes, transform, settings), trained, frozen


# --- Devices ---------------------------------------------------------------------------------------------------------


def make_mesh(fsdp: int, devices: list[Any] | None = None) -> Mesh:
    """All devices as (data, fsdp).

    Raises:
        TrainingError: their number is no multiple of fsdp.
    """
    devices = devices or jax.devices()
    if len(devices) % fsdp:
        raise TrainingError(f"fsdp is {fsdp}, but there are {len(devices)} devices; it must divide them.")
    grid = np.asarray(devices).reshape(-1, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Each kernel spread along its longest axis that the fsdp devices divide.

    What has none, or is thinner than `THIN`, is everywhere: gathering norms and adapters would cost more than it saves.
    """

    def of(value: Any) -> NamedSharding:
        fsdp = mesh.shape["fsdp"]
        axes = [axis for axis, size in enumerate(value.shape) if size % fsdp == 0]
        if fsdp == 1 or not axes or value.ndim < 2 or min(value.shape) < THIN:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(axes, key=lambda axis: value.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(["fsdp" if i == longest else None for i in range(value.ndim)])))

    return jax.tree.map(of, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Clips over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


@dataclasses.dataclass(frozen=True)
class Step:
    """A program on a mesh. The gradients are compiled once a bucket, the update once.

    Attributes:
        gradients: (trained, frozen, batch, step) -> (gradients, noted).
        add: (gradients, gradients) -> their sum; the first are donated.
        update: (state, sum of gradients, how many) -> (state, norm of their mean); the state is donated.
    """

    gradients: Any
    add: Any
    update: Any

    def __call__(
        self, state: TrainState, frozen: Any, accumulated: Iterable[Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update from the mean gradients of the batches, and what to note of it. The state that goes in is gone."""
        total, noted = None, []
        for batch in accumulated:
            gradients, parts = self.gradients(state.trained, frozen, batch, state.step)
            total = gradients if total is None else self.add(total, gradients)
            noted.append(parts)
        state, norm = self.update(state, total, len(noted))
        mean = jax.tree.map(lambda *each: sum(each) / len(each), *noted)
        return state, mean | {"gradient_norm": norm}


def compile_step(program: Program, mesh: Mesh, state: Any, frozen: Any) -> Step:
    """The step of a program, its arrays placed on a mesh."""
    everywhere, trained = NamedSharding(mesh, PartitionSpec()), shardings(mesh, state.trained)

    def add(one: Any, other: Any) -> Any:
        return jax.tree.map(jnp.add, one, other)

    def update(state: TrainState, total: Any, count: int) -> tuple[TrainState, jax.Array]:
        return program.update(state, jax.tree.map(lambda gradient: gradient / count, total))

    return Step(
        jax.jit(
            program.gradients,
            in_shardings=(trained, shardings(mesh, frozen), batch_sharding(mesh), everywhere),
            out_shardings=(trained, everywhere),
        ),
        jax.jit(add, in_shardings=(trained, trained), out_shardings=trained, donate_argnums=0),
        jax.jit(
            update,
            in_shardings=(shardings(mesh, state), trained, everywhere),
            out_shardings=(shardings(mesh, state), everywhere),
            donate_argnums=0,
        ),
    )


def initial_state(program: Program, trained: Any, mesh: Mesh) -> TrainState:
    """Step 0 from weights; every array is a new one, where it belongs."""
    make = functools.partial(_make_state, program)
    placed = jax.device_put(trained, shardings(mesh, trained))
    return jax.jit(make, out_shardings=shardings(mesh, jax.eval_shape(make, trained)))(placed)


def abstract_state(program: Program, trained: Any, mesh: Mesh) -> TrainState:
    """The shapes and places of a state."""
    state = jax.eval_shape(functools.partial(_make_state, program), trained)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, shardings(mesh, state)
    )


def _make_state(program: Program, trained: Any) -> TrainState:
    average = jax.tree.map(jnp.copy, trained) if program.settings.ema_decay else {}
    return TrainState(jnp.int32(0), jax.tree.map(jnp.copy, trained), program.transform.init(trained), average)


# --- The run ---------------------------------------------------------------------------------------------------------


def train(
    run: str | os.PathLike,
    data: str | os.PathLike,
    settings: TrainSettings,
    *,
    base: str | os.PathLike | DiaConfig,
    codec: Codec | None = None,
    validation: str | os.PathLike | None = None,
    sample_texts: tuple[str, ...] = (),
    progress: bool = False,
) -> Path:
    """Trains, from the beginning or from where the run's folder stands.

    Args:
        run: its folder, which all processes see.
        data: prepared, see `data.prepare`.
        settings: of the run.
        base: the checkpoint to begin with; or the config of a model to be trained from random weights.
        codec: to hear `sample_texts`, every `settings.sample_every` updates.
        validation: prepared data whose loss is noted at every checkpoint.
        sample_texts: scripts.
        progress: show a progress bar.

    Returns:
        the folder of what was trained: `run/model` in the layout of `transformers`, or `run/adapter` with LoRA.

    Raises:
        TrainingError: the folder holds another run, or the loss is no number any more.
        DataError, TextError, CheckpointError, ConfigError: see there.
    """
    checkpoint = None if isinstance(base, DiaConfig) else open_checkpoint(base)
    config: Any = base if checkpoint is None else checkpoint.config
    if not isinstance(config, DiaConfig):
        raise TrainingError(f"{base} holds a DAC codec, not Dia.")
    if checkpoint is None and settings.lora_rank:
        raise TrainingError("Adapters need a model to stand beside; name a checkpoint as the base.")
    if checkpoint is not None and checkpoint.quantize:
        raise TrainingError(f"{base} is stored in {checkpoint.quantize}; train from one that is not.")
    mesh = make_mesh(settings.fsdp)
    dataset = Dataset(data, config)
    held_out = None if validation is None else Dataset(validation, config)
    own = None if checkpoint is None else codec_beside(checkpoint.path)
    for name, each in ((own, load_codec_from(own) if own else None), ("the one for samples", codec)):
        if each and not dataset.made_by(each):
            raise TrainingError(f"{data} was prepared with another codec than {name}; prepare it with that one.")
    for text in sample_texts:
        encode_text(text, max_length=config.encoder.max_length, vocab_size=config.encoder.vocab_size)

    what: dict[str, Any] = {name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE}
    what["loss"].pop("remat")  # costs time or memory, and changes nothing else
    what |= {"model": dia_to_json(config), "data": dataset.digest, "base": checkpoint and checkpoint.digest()}
    folder = RunFolder(run, what, None if checkpoint is None else checkpoint.path, devices=mesh.size)
    if folder.first["devices"] % mesh.size:
        raise TrainingError(
            f"{run} began on {folder.first['devices']} devices, over which its batches are made up; {mesh.size} cannot "
            "share them. Go on with a number that divides it."
        )
    program, trained, frozen = make_program(config, settings)
    frozen = frozen_weights(config, settings, frozen, mesh, checkpoint)
    with folder.checkpoints(settings.keep) as manager:
        state = folder.restore(manager, abstract_state(program, trained, mesh))
        if state is None:
            state = initial_state(program, initial_weights(config, settings, trained, checkpoint), mesh)
        texts = sample_texts if codec is not None else ()
        _Run(folder, program, mesh, config, manager, dataset, held_out, codec, texts, own).go(state, frozen, progress)
    return folder.path / ("adapter" if settings.lora_rank else "model")


def initial_weights(
    config: DiaConfig, settings: TrainSettings, trained: nnx.State, checkpoint: Checkpoint | None = None
) -> nnx.State:
    """What a run begins with: the checkpoint's weights, or random ones; or adapters that change nothing yet."""
    if settings.lora_rank:
        return initial_adapters(trained, settings.seed)
    return _weights(config, settings, "float32", checkpoint)


def frozen_weights(
    config: DiaConfig, settings: TrainSettings, frozen: nnx.State, mesh: Mesh, checkpoint: Checkpoint | None = None
) -> nnx.State:
    """What stays as it is, where it belongs: with LoRA the model's weights, in the dtype of the computation."""
    if not settings.lora_rank:
        return frozen
    below = _below_adapters(_weights(config, settings, settings.dtype, checkpoint), frozen)
    return jax.device_put(below, shardings(mesh, below))


def _weights(config: DiaConfig, settings: TrainSettings, dtype: str, checkpoint: Checkpoint | None) -> nnx.State:
    if checkpoint is None:
        return random_weights(config, settings.seed, dtype)
    return load_params(checkpoint, dtype=dtype)[1]


def random_weights(config: DiaConfig, seed: int, dtype: str) -> nnx.State:
    """Small normal weights, deviation 0.02 as in the reference's config, and norms of 1.

    What is added to the stream of L layers is smaller by sqrt(2 L) (GPT-2), so that its scale does not grow with depth.
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


def _below_adapters(weights: nnx.State, frozen: nnx.State) -> nnx.State:
    """The weights under the paths that they have in a model with adapters."""
    values = dict(nnx.to_flat_state(weights))
    flat = [
        (path, value.replace(values[tuple(part for part in path if part != "base")][...]))
        for path, value in nnx.to_flat_state(frozen)
    ]
    return nnx.from_flat_state(flat)


@dataclasses.dataclass
class _Run:
    """The loop over the updates, and what it writes into the folder."""

    folder: RunFolder
    program: Program
    mesh: Mesh
    config: DiaConfig
    manager: ocp.training.Checkpointer
    dataset: Dataset
    held_out: Dataset | None
    codec: Codec | None
    sample_texts: tuple[str, ...]
    own_codec: Path | None

    def go(self, state: TrainState, frozen: Any, progress: bool) -> None:
        settings = self.program.settings
        step = compile_step(self.program, self.mesh, state, frozen)
        first = int(state.step)
        self.folder.forget_after(first)
        stream = self._batches(self.dataset, settings.batch, start=first * settings.accumulate)
        bar = tqdm(total=settings.steps, initial=first, desc="training", disable=not progress)
        noted: list[dict[str, jax.Array]] = []
        frames, began = 0, time.monotonic()
        for number in range(first + 1, settings.steps + 1):
            accumulated = [next(stream) for _ in range(settings.accumulate)]
            frames += sum(int(batch["learnt"][..., 0].sum()) for batch in accumulated)
            state, values = step(state, frozen, map(self._put, accumulated))
            noted.append(values)
            bar.update()
            last = number == settings.steps
            save = last or number % settings.save_every == 0
            speak = settings.sample_every and (last or number % settings.sample_every == 0)
            # At every checkpoint too: what is noted behind it does not depend on whether the run was killed there.
            if save or number % settings.log_every == 0:
                line = means(noted)  # waits for the steps
                speed = frames / (time.monotonic() - began)
                rate = float(np.asarray(schedule(settings)(number - 1)))
                self.folder.note(number, **line, learning_rate=rate, frames_per_second=round(speed, 1))
                bar.set_postfix(loss=f"{line['loss']:.3f}", frames_per_second=f"{speed:.0f}")
                noted, frames = [], 0
            if speak:
                self._speak(number, state, frozen)
            if save:
                self._validate(number, state, frozen)
                self.folder.picture(PICTURED, unit="nats")
                saved: Any = state
                self.manager.save_async(number, saved)
            if not noted:
                began = time.monotonic()
        bar.close()
        self.manager.wait()
        self._export(state)

    def _batches(self, dataset: Dataset, settings: BatchSettings, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        seed, devices = self.program.settings.seed, self.folder.first["devices"]
        return batches(dataset, settings, seed=seed, multiple=devices, start=start)

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        sharding = batch_sharding(self.mesh)
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

    def _best(self, state: TrainState) -> Any:
        return state.average if self.program.settings.ema_decay else state.trained

    def _validate(self, step: int, state: TrainState, frozen: Any) -> None:
        """Notes the loss of `VALIDATED` batches, the same each time."""
        if self.held_out is None:
            return
        plain = BatchSettings(self.program.settings.batch.rows, text_dropout=0.0)
        stream = itertools.islice(self._batches(self.held_out, plain), VALIDATED)
        found = [self._evaluate(self._best(state), frozen, self._put(batch)) for batch in stream]
        others = np.array([float(parts.pop(ANOTHER)) for parts in found])
        values = means(found)
        if not np.isnan(others).all():
            values[ANOTHER] = round(float(np.nanmean(others)), 5)
        self.folder.note(step, **{f"validation_{name}": value for name, value in values.items()})

    @functools.cached_property
    def _evaluate(self) -> Any:
        def evaluate(trained: Any, frozen: Any, batch: Any) -> dict[str, Any]:
            """The loss with the right scripts; with each clip reading its neighbour's, on channel 0, too."""
            model, settings = self.program.model(trained, frozen), self.program.settings.loss
            value, parts = loss(model, batch, dataclasses.replace(settings, alignment_weight=0.0))
            other = batch | {name: jnp.roll(batch[name], 1, axis=0) for name in ("text", "text_mask")}
            wrong = loss(model, other, settings)[1]["channels"][0]
            # A long clip is alone in its batch, or there with copies of itself.
            differs = jnp.any(other["text"] != batch["text"])
            return parts | {"loss": value, ANOTHER: jnp.where(differs, wrong, jnp.nan)}

        return jax.jit(evaluate, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def _speak(self, step: int, state: TrainState, frozen: Any) -> None:
        if not self.sample_texts:
            return
        best, frozen = _gathered(self._best(state)), _gathered(frozen)
        if jax.process_index() != 0:
            return
        model = self.program.model(best, frozen)
        dia = Dia(self.config, *nnx.split(model), codec=self.codec)
        budget = min(512, self.config.frame_budget)
        (self.folder.path / "samples").mkdir(exist_ok=True)
        clips = dia.generate(list(self.sample_texts), seed=list(range(len(self.sample_texts))), max_tokens=budget)
        for number, samples in enumerate(clips):
            dia.save_audio(self.folder.path / "samples" / f"{step:07}-{number}.wav", samples)

    def _export(self, state: TrainState) -> None:
        """Writes what was made in place of what an earlier end of the same run had made."""
        settings, best = self.program.settings, _gathered(self._best(state))
        if jax.process_index() == 0:
            target = self.folder.path / ("adapter" if settings.lora_rank else "model")
            with new_directory(target, replace=True) as folder:
                if settings.lora_rank:
                    write_adapter(folder, best, rank=settings.lora_rank, alpha=settings.lora_alpha)
                else:
                    write_params(folder, self.config, best, layout="transformers")  # Orbax would need all processes
                    if self.own_codec is not None:
                        shutil.copytree(self.own_codec, folder / "dac")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("exported")


def _gathered(tree: Any) -> Any:
    """Arrays that are spread over several processes, whole in each."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree
