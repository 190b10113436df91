"""A second judge: what a recogniser hears in a take. Needs the extra `check`; knows no model of ours."""

import dataclasses
import difflib
import os
import re
from typing import Any

import numpy as np
import soxr

from dia_jax.config import one_line
from dia_jax.longform.judge import Verdict
from dia_jax.longform.mastering import MasteringError
from dia_jax.longform.plan import Chunk

MOST_WRONG = 0.35
"""The part of a chunk's words above which what is heard counts as a problem: small recognisers err themselves."""
RATE = 16_000


class Recogniser:
    """Whisper, by faster-whisper.

    Args:
        model: a name such as "base.en", which is fetched from the hub, or the folder of one.

    Raises:
        MasteringError: faster-whisper is missing, or the model cannot be had.
    """

    def __init__(self, model: str | os.PathLike = "base.en"):
        try:
            from faster_whisper import WhisperModel  # pyrefly: ignore[missing-import]
        except ImportError:
            raise MasteringError("A recogniser needs faster-whisper: pip install 'dia_jax[check]'.") from None
        try:
            self._model = WhisperModel(os.fspath(model), device="auto", compute_type="default")
        except (OSError, ValueError, RuntimeError) as error:
            raise MasteringError(f"The recogniser {os.fspath(model)!r} cannot be had: {one_line(error)}.") from None

    def hear(self, samples: np.ndarray, *, rate: int) -> str:
        """What is said in a clip, without temperature fallback, so that it is the same each time."""
        audio = soxr.resample(samples.astype(np.float32), rate, RATE)
        settings: dict[str, Any] = {"language": "en", "beam_size": 5, "temperature": 0.0}
        segments, _ = self._model.transcribe(audio, condition_on_previous_text=False, **settings)
        return " ".join(segment.text for segment in segments).strip()

    def judge(self, chunk: Chunk, samples: np.ndarray, verdict: Verdict, *, rate: int) -> Verdict:
        """A verdict with what the recogniser has to say added."""
        said = words(" ".join(part.piece.text for part in chunk.parts))
        heard = words(self.hear(samples, rate=rate))
        same = difflib.SequenceMatcher(None, said, heard, autojunk=False).get_matching_blocks()
        wrong = 1 - sum(block.size for block in same) / max(len(said), len(heard), 1)
        problems, score = verdict.problems, verdict.score + wrong
        if wrong > MOST_WRONG:
            text = " ".join(heard)
            problems = (*problems, f'A recogniser hears "{text if len(text) <= 80 else text[:77] + "..."}".')
            score += 1
        return dataclasses.replace(
            verdict, problems=problems, score=score, measures={**verdict.measures, "words_misheard": wrong}
        )


def words(text: str) -> list[str]:
    """Lower case, without marks, sounds and tags."""
    text = re.sub(r"\[[^\]]*\]|\([a-z ]+\)", " ", text).lower()
    return re.sub(r"[^\w' ]", " ", text).split()
