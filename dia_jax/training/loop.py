"""A run that trains Dia: its updates, and what it writes along the way.

What an update does follows from the settings and its number, so a run that was killed resumes from its last checkpoint
as if it had never stopped. Knows the step, the batches and the run's folder, to which it adds `samples/` and at the end
`model/` or `adapter/`; knows no audio except through class `Dia`.
"""

import dataclasses
import functools
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from dia_jax.checkpoint import codec_beside, dia_to_json, new_directory, open_checkpoint, write_params
from dia_jax.codec import Codec
from dia_jax.config import DiaConfig
from dia_jax.mesh import local_mesh
from dia_jax.pipeline import Dia, open_codec
from dia_jax.text import encode_text
from dia_jax.training.batches import Dataset, batches
from dia_jax.training.folder import RunFolder, mean_metrics
from dia_jax.training.lora import write_adapter
from dia_jax.training.loss import loss
from dia_jax.training.settings import BatchSettings, TrainingError, TrainSettings, identity
from dia_jax.training.step import (
    Recipe,
    TrainState,
    abstract_state,
    batch_sharding,
    compile_step,
    initial_state,
    make_mesh,
    make_recipe,
    schedule,
)
from dia_jax.training.weights import frozen_weights, initial_weights

VALIDATION_BATCHES = 8
"""Batches of the held-out data in one validation."""

OTHER_TEXT = "channel_0_with_another_text"
"""Metric of a validation: the loss of channel 0 when each clip is given the script of the next one."""

PLOTTED_METRICS = ("loss", "channels", "validation_loss", f"validation_{OTHER_TEXT}")


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
    """Trains Dia, from the beginning or from the last checkpoint in the run's folder.

    Args:
        run: the run's folder; several processes must share it.
        data: a prepared folder, see `prepare.prepare`.
        settings: of the run.
        base: the checkpoint to start from, or the config of a model to train from random weights.
        codec: decodes the samples; without it there are none.
        validation: a prepared folder whose loss is logged at every checkpoint.
        sample_texts: scripts to generate every `settings.sample_every` updates.
        progress: show a progress bar.

    Returns:
        the folder of the result: `run/model`, in the layout of `transformers`, or `run/adapter` with LoRA.

    Raises:
        TrainingError: the settings do not fit the base, the data, the devices or the run in the folder, or the loss is
            not finite any more.
        DataError: the prepared data cannot be used.
        TextError: a sample text is not a valid script.
        CheckpointError, ConfigError: the base cannot be read.
    """
    checkpoint = None if isinstance(base, DiaConfig) else open_checkpoint(base)
    config: Any = base if checkpoint is None else checkpoint.config
    if not isinstance(config, DiaConfig):
        raise TrainingError(f"{base} holds a DAC codec, not Dia.")
    if checkpoint is None and settings.lora_rank:
        raise TrainingError("Adapters need trained weights beside them; name a checkpoint as the base.")
    if checkpoint is not None and checkpoint.quantize:
        raise TrainingError(f"{base} is stored in {checkpoint.quantize}; train from one that is not quantized.")
    mesh = make_mesh(settings.fsdp)
    dataset = Dataset(data, config)
    held_out = None if validation is None else Dataset(validation, config)
    own_codec = None if checkpoint is None else codec_beside(checkpoint.path)
    for name, each in ((own_codec, open_codec(own_codec) if own_codec else None), ("the one for samples", codec)):
        if each and not dataset.made_by(each):
            raise TrainingError(f"{data} was prepared with another codec than {name}; prepare it with that one.")
    for text in sample_texts:
        encode_text(text, max_length=config.encoder.max_length, vocab_size=config.encoder.vocab_size)

    base_path, base_digest = (None, None) if checkpoint is None else (checkpoint.path, checkpoint.digest())
    run_identity = identity(settings) | {"model": dia_to_json(config), "data": dataset.digest, "base": base_digest}
    folder = RunFolder(run, run_identity, base_path, devices=mesh.size)
    if folder.initial["devices"] % mesh.size:
        raise TrainingError(
            f"{run} started on {folder.initial['devices']} devices, for which its batches are composed; {mesh.size} "
            "devices cannot share them. Resume with a number of devices that divides it."
        )
    recipe, trained, frozen = make_recipe(config, settings)
    frozen = frozen_weights(config, settings, frozen, mesh, checkpoint)
    with folder.checkpoints(settings.keep) as manager:
        state = folder.restore(manager, abstract_state(recipe, trained, mesh))
        if state is None:
            state = initial_state(recipe, initial_weights(config, settings, trained, checkpoint), mesh)
        texts = sample_texts if codec is not None else ()
        loop = _Loop(folder, recipe, mesh, config, manager, dataset, held_out, codec, texts, own_codec)
        return loop.run(state, frozen, progress)


@dataclasses.dataclass
class _Loop:
    """The loop over the updates of a run.

    Attributes:
        folder: of the run.
        recipe, mesh: of its step.
        config: of the model.
        manager: of the checkpoints.
        dataset: what is trained on.
        held_out: what is validated on, if anything.
        codec: decodes the samples.
        sample_texts: their scripts; none without a codec.
        own_codec: path of the codec that is stored with the base and copied to the result.
    """

    folder: RunFolder
    recipe: Recipe
    mesh: Mesh
    config: DiaConfig
    manager: ocp.training.Checkpointer
    dataset: Dataset
    held_out: Dataset | None
    codec: Codec | None
    sample_texts: tuple[str, ...]
    own_codec: Path | None

    def run(self, state: TrainState, frozen: Any, progress: bool) -> Path:
        """Makes the remaining updates and returns the folder of the result."""
        settings = self.recipe.settings
        step = compile_step(self.recipe, self.mesh, state, frozen)
        made = int(state.step)
        self.folder.discard_metrics_after(made)
        stream = self._batches(self.dataset, settings.batch, start=made * settings.accumulate)
        bar = tqdm(total=settings.steps, initial=made, desc="training", disable=not progress)
        pending: list[dict[str, jax.Array]] = []  # metrics since the last line
        frames, began = 0, time.monotonic()
        for number in range(made + 1, settings.steps + 1):
            accumulated = [next(stream) for _ in range(settings.accumulate)]
            frames += sum(int(batch["loss_mask"][..., 0].sum()) for batch in accumulated)
            state, metrics = step(state, frozen, map(self._place, accumulated))
            pending.append(metrics)
            bar.update()
            last = number == settings.steps
            save = last or number % settings.save_every == 0
            # At every checkpoint too, so that later lines do not depend on whether the run was killed there.
            if save or number % settings.log_every == 0:
                line = mean_metrics(pending)  # waits for the steps
                speed = frames / (time.monotonic() - began)
                rate = float(np.asarray(schedule(settings)(number - 1)))
                self.folder.log(number, **line, learning_rate=rate, frames_per_second=round(speed, 1))
                bar.set_postfix(loss=f"{line['loss']:.3f}", frames_per_second=f"{speed:.0f}")
                pending, frames = [], 0
            if settings.sample_every and (last or number % settings.sample_every == 0):
                self._sample(number, state, frozen)
            if save:
                self._validate(number, state, frozen)
                self.folder.plot(PLOTTED_METRICS, unit="nats")
                saved: Any = state
                self.manager.save_async(number, saved)
            if not pending:
                began = time.monotonic()
        bar.close()
        self.manager.wait()
        return self._export(state)

    def _batches(self, dataset: Dataset, settings: BatchSettings, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        seed, devices = self.recipe.settings.seed, self.folder.initial["devices"]
        return batches(dataset, settings, seed=seed, multiple=devices, start=start)

    def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        sharding = batch_sharding(self.mesh)
        return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}

    def _result(self, state: TrainState) -> Any:
        """The weights to evaluate and to save."""
        return state.average if self.recipe.settings.ema_decay else state.trained

    def _validate(self, step: int, state: TrainState, frozen: Any) -> None:
        """Logs the loss of the held-out data, over the same batches each time."""
        if self.held_out is None:
            return
        settings = BatchSettings(self.recipe.settings.batch.positions, text_dropout=0.0)
        stream = itertools.islice(self._batches(self.held_out, settings), VALIDATION_BATCHES)
        found = [self._evaluate(self._result(state), frozen, self._place(batch)) for batch in stream]
        others = np.array([float(parts.pop(OTHER_TEXT)) for parts in found])
        values = mean_metrics(found)
        if not np.isnan(others).all():
            values[OTHER_TEXT] = round(float(np.nanmean(others)), 5)
        self.folder.log(step, **{f"validation_{name}": value for name, value in values.items()})

    @functools.cached_property
    def _evaluate(self) -> Any:
        def evaluate(trained: Any, frozen: Any, batch: Any) -> dict[str, Any]:
            """The loss and its parts, and channel 0's loss with the scripts exchanged; NaN if all are equal."""
            model, settings = self.recipe.model(trained, frozen), self.recipe.settings.loss
            value, parts = loss(model, batch, dataclasses.replace(settings, alignment_weight=0.0))
            other = batch | {name: jnp.roll(batch[name], 1, axis=0) for name in ("text", "text_mask")}
            other_loss = loss(model, other, settings)[1]["channels"][0]
            # They are equal in a batch of one clip, or of copies of it.
            differs = jnp.any(other["text"] != batch["text"])
            return parts | {"loss": value, OTHER_TEXT: jnp.where(differs, other_loss, jnp.nan)}

        return jax.jit(evaluate, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def _sample(self, step: int, state: TrainState, frozen: Any) -> None:
        """Writes the sample texts as audio."""
        if not self.sample_texts:
            return
        weights, frozen = _gather(self._result(state)), _gather(frozen)
        if jax.process_index() != 0:
            return
        model = self.recipe.model(weights, frozen)
        dia = Dia(self.config, *nnx.split(model), codec=self.codec, mesh=local_mesh())
        max_tokens = min(512, self.config.frame_budget)
        (self.folder.path / "samples").mkdir(exist_ok=True)
        clips = dia.generate(list(self.sample_texts), seed=list(range(len(self.sample_texts))), max_tokens=max_tokens)
        for index, samples in enumerate(clips):
            dia.save_audio(self.folder.path / "samples" / f"{step:07}-{index}.wav", samples)

    def _export(self, state: TrainState) -> Path:
        """Writes the result, replacing that of an earlier, shorter end of the same run."""
        settings, weights = self.recipe.settings, _gather(self._result(state))
        target = self.folder.path / ("adapter" if settings.lora_rank else "model")
        if jax.process_index() == 0:
            with new_directory(target, replace=True) as folder:
                if settings.lora_rank:
                    write_adapter(folder, weights, rank=settings.lora_rank, alpha=settings.lora_alpha)
                else:
                    # Not in the layout of Orbax, which all processes would have to write together.
                    write_params(folder, self.config, weights, layout="transformers")
                    if self.own_codec is not None:
                        shutil.copytree(self.own_codec, folder / "dac")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("exported")
        return target


def _gather(tree: Any) -> Any:
    """Copies arrays that are sharded over several processes to each of them."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree
