"""A run's folder: what the run is, its checkpoints, its metrics and their picture.

    settings.json    what the run is; once it has a checkpoint, the folder is gone on with only by the same run
    checkpoints/     Orbax, written beside the training and renamed when whole
    metrics.jsonl    a line an interval
    loss.png         drawn from them

A run that is killed goes on from its last checkpoint; what was noted after it is forgotten, and noted again. Knows no
model and no data.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dia_jax.config import DiaError
from dia_jax.files import new_file, visible, write_whole


class TrainingError(DiaError):
    """A run that cannot begin or go on; the message says why."""


def check_numbers(learning_rate: float, seed: int) -> None:
    """Raises TrainingError if a run cannot be made with these."""
    if not (math.isfinite(learning_rate) and learning_rate >= 0):
        raise TrainingError(f"learning_rate is {learning_rate}; it must be a number from 0 up.")
    if not 0 <= seed < 2**32:
        raise TrainingError(f"seed is {seed}; it must be a whole number from 0 to {2**32 - 1}.")


MADE = frozenset({"model", "adapter", "codec"})
"""Folders in which a run leaves what it made."""


class RunFolder:
    """The folder of a run, begun or gone on with.

    Args:
        path: of the folder.
        what: what the run is, as JSON: what must be the same when it is gone on with.
        base: the checkpoint that it begins with, which must lie elsewhere; None for random weights.
        first: of the beginning, which stays so whatever it is afterwards; attribute `first` holds it.

    Raises:
        TrainingError: it holds another run or other things, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike, what: dict[str, Any], base: Path | None = None, **first: Any):
        self.path, self.first = Path(path).absolute(), first
        if base is not None and base.resolve().is_relative_to(self.path.resolve()):
            raise TrainingError(f"{base} lies in the run's own folder; name another folder for the run.")
        what = json.loads(json.dumps(what))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            settings, names = self.path / "settings.json", visible(self.path)
            before = json.loads(settings.read_text()) if "settings.json" in names else {}
            if names and not (isinstance(before, dict) and what.keys() <= before.keys()):
                raise TrainingError(f"{path} is not empty and no run of this kind; name a new folder.")
            if "checkpoints" in names and any(name.isdigit() for name in os.listdir(self.path / "checkpoints")):
                changed = [name for name in what if before[name] != what[name]]
                if changed:
                    told = "; ".join(f"{name} was {before[name]!r} and is {what[name]!r}" for name in changed)
                    raise TrainingError(f"{path} is another run: {told}. Name a new folder.")
                self.first = {name: before.get(name, value) for name, value in first.items()}
            elif names & MADE:
                raise TrainingError(
                    f"{path} holds what a run made, but none of its checkpoints to go on from; name a new folder."
                )
            if _is_first():
                write_whole(settings, json.dumps(what | self.first, indent=2) + "\n")
        except OSError as error:
            raise TrainingError(f"Cannot write {path}: {error.strerror}.") from None
        except json.JSONDecodeError:
            raise TrainingError(f"{path}/settings.json is damaged; name a new folder.") from None

    @contextlib.contextmanager
    def checkpoints(self, keep: int) -> Iterator[ocp.training.Checkpointer]:
        """The manager of its checkpoints, of which the last `keep` stay; leaving it waits for what is being saved."""
        always: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        latest: Any = ocp.training.preservation_policies.LatestN(keep)
        manager = ocp.training.Checkpointer(
            str(self.path / "checkpoints"),
            save_decision_policy=always,
            preservation_policy=latest,
            cleanup_tmp_directories=True,
        )
        with contextlib.closing(manager):
            yield manager

    def restore(self, manager: ocp.training.Checkpointer, like: Any) -> Any:
        """The last checkpoint, laid out as these `jax.ShapeDtypeStruct`s; None where there is none."""
        return None if manager.latest is None else manager.load(manager.latest, like)

    def forget_after(self, step: int) -> None:
        """Takes out of the metrics what was noted after the checkpoint that the run goes on from."""
        path = self.path / "metrics.jsonl"
        if path.exists() and _is_first():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_whole(path, "".join(line for line in whole if json.loads(line)["step"] <= step))

    def note(self, step: int, **values: Any) -> None:
        """Appends a line to the metrics.

        Raises:
            TrainingError: the loss is no number any more, or the gradients are none, by which the weights are lost.
        """
        if _is_first():
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(values.get(name, 0.0)):
                raise TrainingError(
                    f"The {name.replace('_', ' ')} is {values[name]} at step {step}; begin a new run with a "
                    "lower learning rate."
                )

    def picture(self, names: Sequence[str], *, unit: str) -> None:
        """Draws `loss.png`: these metrics over the steps, as far as they are noted; of a list the first value."""
        if not _is_first():
            return
        from matplotlib.figure import Figure

        path = self.path / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="step", ylabel=unit, yscale="log", title=self.path.name)
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                label = name.replace("_", " ") + (" 0" if isinstance(points[0][1], list) else "")
                axes.plot([step for step, _ in points], [np.ravel(value)[0] for _, value in points], label=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        with new_file(self.path / "loss.png") as temporary:
            figure.savefig(temporary)


def means(noted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each value over the steps, ready for JSON."""
    return {name: np.mean([np.asarray(each[name]) for each in noted], axis=0).round(5).tolist() for name in noted[0]}


def _is_first() -> bool:
    """Of several processes one writes."""
    return jax.process_index() == 0
