"""Takes of chunks: what was made, with which seed, and what is thought of it; in memory or in a folder.

Knows how a take is named and kept. Knows no model and does not judge.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from dia_jax.alignment import Timing
from dia_jax.config import DiaError, one_line
from dia_jax.files import new_file
from dia_jax.longform.judge import PlacedWord, Verdict
from dia_jax.longform.plan import Chunk


class TakeError(DiaError):
    """A take that cannot be read or written; the message says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Take:
    """One attempt at a chunk.

    Attributes:
        attempt: 0 for the first; each further one was made because none before passed.
        candidate: index among those that were made at the same time.
        seed: follows from the script's seed, the chunk, candidate and attempt.
        codes: int32 [T, C].
        ended: whether it ended by itself.
        verdict: what is thought of it.
        timings: of each word of the chunk, in order.
    """

    attempt: int
    candidate: int
    seed: int
    codes: np.ndarray
    ended: bool
    verdict: Verdict
    timings: tuple[Timing, ...]

    def words(self, chunk: Chunk) -> tuple[PlacedWord, ...]:
        """The words of the chunk and when they are said."""
        words = [(number, word) for number, part in enumerate(chunk.parts) for word in part.piece.words]
        return tuple(PlacedWord(*word, timing) for word, timing in zip(words, self.timings, strict=True))


def digest(*values: Any) -> str:
    """A name for what can be written as JSON, and arrays."""
    hashed = hashlib.sha256()
    for value in values:
        data = value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value, sort_keys=True).encode()
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:16]


def seed_of(base: int, chunk: str, candidate: int, attempt: int) -> int:
    """The seed of a take; it does not depend on what else is made."""
    return int(digest(base, chunk, candidate, attempt)[:8], 16)


class Takes:
    """All takes of a script, by the chunk's key; in memory."""

    def __init__(self) -> None:
        self._takes: dict[str, dict[tuple[int, int], Take]] = {}

    def of(self, key: str) -> Mapping[tuple[int, int], Take]:
        """A chunk's takes, by attempt and candidate."""
        return self._takes.setdefault(key, {})

    def add(self, key: str, take: Take) -> None:
        self._takes.setdefault(key, {})[take.attempt, take.candidate] = take

    def first_attempt(self, key: str) -> int:
        """Takes of earlier attempts do not count: they were asked to be made anew."""
        return 0


class KeptTakes(Takes):
    """The same in a folder: each take is a file that is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def of(self, key: str) -> Mapping[tuple[int, int], Take]:
        if key not in self._takes:
            files = sorted((self.folder / key).glob("*.safetensors"))
            takes = [read_take(file) for file in files]
            self._takes[key] = {(take.attempt, take.candidate): take for take in takes}
        return self._takes[key]

    def add(self, key: str, take: Take) -> None:
        self.of(key)
        try:
            (self.folder / key).mkdir(parents=True, exist_ok=True)
            write_take(self.folder / key / f"{take.attempt}-{take.candidate}.safetensors", take)
        except OSError as error:
            raise TakeError(f"Cannot write a take into {self.folder}: {error.strerror}.") from None
        super().add(key, take)

    def first_attempt(self, key: str) -> int:
        path = self.folder / key / "anew"
        try:
            return int(path.read_text()) if path.exists() else 0
        except (OSError, ValueError):
            raise TakeError(f"{path} cannot be read; remove it to keep the takes beside it.") from None

    def make_anew(self, key: str) -> None:
        """From now on only attempts count that were not made yet."""
        latest = max((attempt for attempt, _ in self.of(key)), default=-1)
        if latest >= 0:
            with new_file(self.folder / key / "anew") as temporary:
                temporary.write_text(str(latest + 1))


def write_take(path: Path, take: Take) -> None:
    """Writes a take as a safetensors file."""
    about = {
        "attempt": take.attempt,
        "candidate": take.candidate,
        "seed": take.seed,
        "ended": take.ended,
        "verdict": take.verdict.as_json(),
        "timings": [dataclasses.astuple(timing) for timing in take.timings],
    }
    with new_file(path) as temporary:
        data = safetensors.numpy.save({"codes": take.codes.astype(np.int16)}, {"take": json.dumps(about)})
        temporary.write_bytes(data)


def read_take(path: Path) -> Take:
    """Reads what `write_take` wrote.

    Raises:
        TakeError: it is none.
    """
    try:
        with safe_open(path, framework="numpy") as tensors:
            about = json.loads((tensors.metadata() or {})["take"])
            codes = tensors.get_tensor("codes").astype(np.int32)
        verdict = about["verdict"]
        measures = {name: np.nan if value is None else value for name, value in verdict["measures"].items()}
        return Take(
            about["attempt"],
            about["candidate"],
            about["seed"],
            codes,
            about["ended"],
            Verdict(tuple(verdict["problems"]), verdict["score"], measures),
            tuple(Timing(*values) for values in about["timings"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TakeError(f"{path} is no take ({one_line(error)}); remove it, and it is made again.") from None
