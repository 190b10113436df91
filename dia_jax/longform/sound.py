"""What can be measured of a clip without knowing its text: pitch, quiet parts, silences, clipping.

Knows mono samples. Knows no script, no codes and no thresholds; levels and edges are in `mastering`. Pitch needs the
extra `long`.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from dia_jax.longform.mastering import MasteringError, edges, frame_power, level

CONFIDENT = 0.8
"""From this confidence on a pitch counts; below there is breath, noise or silence."""
PITCHES = (50.0, 600.0)
"""The lowest and the highest pitch of a voice, in Hz."""
SILENT = 35.0
"""How far below its active level, in dB, a part of a clip is silence."""
FRAME = 0.01
"""Seconds."""


@dataclasses.dataclass(frozen=True)
class Pitch:
    """The pitch of a clip.

    Attributes:
        times: float [n], seconds, where there is a pitch.
        hertz: float [n].
    """

    times: np.ndarray
    hertz: np.ndarray

    def median(self, start: float = 0.0, end: float = np.inf) -> float:
        """The median between two times in Hz; NaN where less than 0.1 s has a pitch."""
        inside = self.hertz[(self.times >= start) & (self.times < end)]
        return float(np.median(inside)) if len(inside) >= 6 else float("nan")


def check_pitch() -> None:
    """Raises MasteringError unless a pitch can be measured, before any work is done."""
    _detector()


def pitch(samples: np.ndarray, *, rate: int) -> Pitch:
    """Finds the pitch by SwiftF0 (Nieradzik, 2025), every 16 ms.

    Args:
        samples: float32 [n].
        rate: the sample rate in Hz.

    Raises:
        MasteringError: swift-f0 is missing.
    """
    if len(samples) < 0.1 * rate:
        return Pitch(np.zeros(0), np.zeros(0))
    found = _detector().detect(np.asarray(samples, np.float32), rate)
    in_range = (found.pitch_hz > PITCHES[0]) & (found.pitch_hz < PITCHES[1])
    sure = (found.confidence >= CONFIDENT) & in_range
    return Pitch(np.asarray(found.timestamps)[sure], np.asarray(found.pitch_hz)[sure])


@functools.cache
def _detector() -> Any:
    """SwiftF0 with its weights."""
    try:
        from swift_f0 import SwiftF0
    except ImportError:
        raise MasteringError("The pitch of a voice is measured by swift-f0: pip install 'dia_jax[long]'.") from None
    return SwiftF0()


def levels(samples: np.ndarray, *, rate: int) -> np.ndarray:
    """The level of each 10 ms in dBFS, float [n]; -120 for silence."""
    return 10 * np.log10(np.maximum(frame_power(samples, size=round(FRAME * rate)), 1e-12))


def floor(samples: np.ndarray, *, rate: int) -> float:
    """The level of the quietest twentieth between the edges of a clip, in dB below its active level: negative.

    Speech has gaps; noise fills them.
    """
    first, last = edges(samples, rate=rate)
    if first == last:
        return -120.0
    inside = samples[first:last]
    return float(np.percentile(levels(inside, rate=rate), 5)) - level(inside, rate=rate)


def longest_silence(samples: np.ndarray, *, rate: int) -> tuple[float, float]:
    """Where the longest silence between the edges of a clip begins, and how long it is, in seconds."""
    first, last = edges(samples, rate=rate)
    if first == last:
        return 0.0, 0.0
    inside = samples[first:last]
    quiet = levels(inside, rate=rate) < level(inside, rate=rate) - SILENT
    stretches = np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)
    if not len(stretches):
        return 0.0, 0.0
    begin, end = stretches[np.argmax(stretches[:, 1] - stretches[:, 0])]
    return first / rate + begin * FRAME, (end - begin) * FRAME


def end_level(samples: np.ndarray, *, rate: int, seconds: float = 0.06) -> float:
    """The level of the last 60 ms, in dB below the active level; a word that is cut ends loud."""
    last = samples[-round(seconds * rate) :]
    return float(levels(last, rate=rate).max()) - level(samples, rate=rate)


def clipped(samples: np.ndarray) -> float:
    """The part of the samples that lie at or beyond full scale."""
    return float((np.abs(samples) >= 0.999).mean()) if len(samples) else 0.0
