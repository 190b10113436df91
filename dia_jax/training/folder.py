"""A run's folder: its identity, its checkpoints, its metrics and their plot.

    settings.json    the run's identity and initial values; once there is a checkpoint, only the same run may resume
    checkpoints/     Orbax; written in the background and renamed when complete
    metrics.jsonl    one JSON object per line, each with its step
    loss.png         a plot of the metrics

A run that is killed resumes from its last checkpoint. Metrics after that step are discarded and logged again. Knows no
model and no data.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dia_jax.files import new_file, visible, write_whole
from dia_jax.training.settings import TrainingError

RESULT_FOLDERS = frozenset({"model", "adapter", "codec"})
"""Folders in which a finished run leaves its result."""


class RunFolder:
    """The folder of a run, new or resumed.

    Args:
        path: of the folder.
        identity: JSON values that must be equal when the run is resumed.
        base: the checkpoint that the run starts from, which must lie outside of the folder; None for random weights.
        **initial: values that are fixed when the run is created. On a resumed run the attribute `initial` holds
            the recorded ones, whatever is passed.

    Raises:
        TrainingError: the folder holds another run or other files, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike, identity: dict[str, Any], base: Path | None = None, **initial: Any):
        self.path, self.initial = Path(path).absolute(), initial
        if base is not None and base.resolve().is_relative_to(self.path.resolve()):
            raise TrainingError(f"{base} lies in the run's own folder; name another folder for the run.")
        identity = json.loads(json.dumps(identity))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            settings, names = self.path / "settings.json", visible(self.path)
            recorded = json.loads(settings.read_text()) if "settings.json" in names else {}
            if names and not (isinstance(recorded, dict) and identity.keys() <= recorded.keys()):
                raise TrainingError(f"{path} is not empty and holds no run of this kind; name a new folder.")
            if "checkpoints" in names and any(name.isdigit() for name in os.listdir(self.path / "checkpoints")):
                changed = [name for name in identity if recorded[name] != identity[name]]
                if changed:
                    changes = "; ".join(f"{name} was {recorded[name]!r} and is {identity[name]!r}" for name in changed)
                    raise TrainingError(f"{path} holds another run: {changes}. Name a new folder.")
                self.initial = {name: recorded.get(name, value) for name, value in initial.items()}
            elif names & RESULT_FOLDERS:
                raise TrainingError(
                    f"{path} holds the result of a run, but none of its checkpoints to resume from; name a new folder."
                )
            if _is_writer():
                write_whole(settings, json.dumps(identity | self.initial, indent=2) + "\n")
        except OSError as error:
            raise TrainingError(f"Cannot write {path}: {error.strerror}.") from None
        except json.JSONDecodeError:
            raise TrainingError(f"{path}/settings.json is damaged; name a new folder.") from None

    @contextlib.contextmanager
    def checkpoints(self, keep: int) -> Iterator[ocp.training.Checkpointer]:
        """The checkpoint manager, which keeps the latest `keep`; on exit it waits for pending saves."""
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
        """The latest checkpoint, laid out as a tree of `jax.ShapeDtypeStruct`; None if there is none."""
        return None if manager.latest is None else manager.load(manager.latest, like)

    def discard_metrics_after(self, step: int) -> None:
        """Removes the metrics of later steps, which a resumed run logs again."""
        path = self.path / "metrics.jsonl"
        if path.exists() and _is_writer():
            complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_whole(path, "".join(line for line in complete if json.loads(line)["step"] <= step))

    def log(self, step: int, **metrics: Any) -> None:
        """Appends a line to the metrics.

        Raises:
            TrainingError: "loss" or "gradient_norm" is not finite, so the weights are lost.
        """
        if _is_writer():
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step} | metrics) + "\n")
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(metrics.get(name, 0.0)):
                raise TrainingError(
                    f"The {name.replace('_', ' ')} is {metrics[name]} at step {step}; start a new run with a "
                    "lower learning rate."
                )

    def plot(self, names: Sequence[str], *, unit: str) -> None:
        """Draws `loss.png`: the named metrics over the steps; of a list its first value."""
        if not _is_writer():
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


def mean_metrics(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each metric over the steps, rounded and ready for JSON. Waits for the steps' results."""
    return {
        name: np.mean([np.asarray(each[name]) for each in metrics], axis=0).round(5).tolist() for name in metrics[0]
    }


def _is_writer() -> bool:
    """Whether this is the one of several processes that writes files."""
    return jax.process_index() == 0
