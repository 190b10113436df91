"""What comes out: a recording with its turns, words, chapters and chunks, each with its time.

Knows times in seconds and what was made of which turn. Knows no model, no files and no way to make any of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dia_jax.alignment import Word


@dataclasses.dataclass(frozen=True)
class SpokenTurn:
    """A turn of the script in the recording.

    Attributes:
        number: its index in the script.
        speaker: the name in the script.
        text: as it is written.
        start, end: in seconds.
        chunks: indices of the chunks that say it; more than one where it is long.
    """

    number: int
    speaker: str
    text: str
    start: float
    end: float
    words: tuple[Word, ...]
    chunks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class SpokenChapter:
    """A chapter of the recording; `title` is "" where the script has none."""

    title: str
    start: float


def name_chapters(chapters: Sequence[SpokenChapter]) -> tuple[SpokenChapter, ...]:
    """The chapters as a listener is shown them: each with a title of one line.

    One without a title is called by its number. A recording whose only chapter has no title has no chapters.
    """
    if len(chapters) == 1 and not chapters[0].title.strip():
        return ()
    return tuple(
        SpokenChapter(" ".join(chapter.title.split()) or f"Chapter {number}", chapter.start)
        for number, chapter in enumerate(chapters, 1)
    )


@dataclasses.dataclass(frozen=True)
class SpokenChunk:
    """What was decoded as one clip.

    Attributes:
        number: its index in the plan.
        start, end: in seconds of the recording.
        verdict: of the take that is kept, as `judge.Verdict.as_json` gives it: {"passed": bool, "problems":
            [sentences], "score": float, "measures": {name: number}}.
        takes: how many were made.
        rejected: for each of the others, why it was not kept: {"seed": int, "problems": [sentences]}.
    """

    number: int
    start: float
    end: float
    verdict: Mapping[str, Any]
    takes: int
    rejected: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Speech:
    """A finished recording.

    Attributes:
        samples: float32 [n], mono.
        rate: in Hz.
    """

    samples: np.ndarray
    rate: int
    turns: tuple[SpokenTurn, ...]
    chapters: tuple[SpokenChapter, ...]
    chunks: tuple[SpokenChunk, ...]
    title: str = ""

    @property
    def words(self) -> tuple[Word, ...]:
        """All words in order."""
        return tuple(word for turn in self.turns for word in turn.words)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.samples) / self.rate
