"""Whether a chunk came out well: what is measured of a take, and what is wrong with it, in sentences.

Knows alignments, samples, codes and the voices that should be heard. Knows no engine and no files, and makes nothing.
What a threshold depends on, such as pace, pauses and quiet, is taken from the voice; the constants are for voices in
general.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dia_jax.alignment import FRAME_RATE, Alignment, Timing, byte_positions
from dia_jax.longform import sound
from dia_jax.longform.mastering import edges, level
from dia_jax.longform.plan import Chunk
from dia_jax.longform.words import ScriptWord
from dia_jax.voice import Voice

PACE = (0.2, 0.45)
"""The least and the most that the time of a chunk may differ from the expected, as a part of it."""
LOUD_END = -20.0
"""The highest level of the last 60 ms, in dB below the active level."""
SILENCE = 1.0
"""Seconds; a voice that pauses for long is allowed twice its own longest pause."""
NOISE = (12.0, -32.0)
"""A take is noisy if its quiet parts are so much louder, in dB, than the voice's, and above this, below its level."""
HANGING = 0.5
"""Seconds of sound in which no code changes."""
LEVEL = 10.0
"""By how many dB the level may differ from the voice's."""
CLIPPED = 1e-3
"""The largest part of samples that may be clipped."""
UNHEARD = 0.3
"""The part of its expected time below which a word was left out."""
UNCLEAR = 0.55
"""The part of the voice's own confidence below which a word is unclear."""
TWICE = 0.6
"""The part of its expected time from which on a second visit to a word counts."""
SEMITONE = 1 / 12
"""In octaves. Voices less than two of them apart are not told apart by pitch."""
OTHER_PITCH = 0.5
"""In octaves: further from its own pitch, nobody else needs to be nearer."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is thought of a take.

    Attributes:
        problems: one sentence each; none if it passed.
        score: orders takes of one chunk, lower is better; each problem counts at least 1.
        measures: numbers by name, for the report.
    """

    problems: tuple[str, ...]
    score: float
    measures: Mapping[str, float]

    @property
    def passed(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For files: problems, score and measures, NaN as None."""
        measures = {name: round(float(x), 4) if math.isfinite(x) else None for name, x in self.measures.items()}
        return {
            "passed": self.passed,
            "problems": list(self.problems),
            "score": round(self.score, 4),
            "measures": measures,
        }


@dataclasses.dataclass(frozen=True)
class PlacedWord:
    """A word of a chunk and when it is said.

    Attributes:
        part: index of its part in the chunk.
        word: of the part.
        timing: in frames of the chunk.
    """

    part: int
    word: ScriptWord
    timing: Timing


def place_words(chunk: Chunk, alignment: Alignment, *, prompt_frames: int) -> tuple[PlacedWord, ...]:
    """When each word of a chunk is said.

    Args:
        chunk: of the plan.
        alignment: of the voices' prompts with what was made; its script ends with that of the chunk.
        prompt_frames: before the chunk.
    """
    places, before = byte_positions(alignment.text), len(alignment.text) - len(chunk.text)
    found = []
    for number, part in enumerate(chunk.parts):
        for word in part.piece.words:
            begin = before + part.begin
            timing = alignment.timing(int(places[begin + word.start]), int(places[begin + word.stop]))
            start, end = (max(t - prompt_frames, 0) for t in (timing.start, timing.end))
            found.append(PlacedWord(number, word, dataclasses.replace(timing, start=start, end=end)))
    return tuple(found)


def judge(
    chunk: Chunk,
    codes: np.ndarray,
    samples: np.ndarray,
    words: tuple[PlacedWord, ...],
    alignment: Alignment,
    *,
    rate: int,
    ended: bool,
    voices: Mapping[str, Voice],
) -> Verdict:
    """Judges a take.

    Args:
        chunk: what was to be said.
        codes: int [T, C] of the take, without the prompts.
        samples: float32 [n] of the same.
        words: from `place_words`.
        alignment: of prompts and take.
        rate: the sample rate in Hz.
        ended: whether it ended by itself.
        voices: of all speakers of the script, by name, as far as they are known.
    """
    measures: dict[str, float] = {"ended": float(ended)}
    problems: list[tuple[float, str]] = []

    def complain(severity: float, sentence: str) -> None:
        problems.append((severity, sentence))

    first, last = edges(samples, rate=rate)
    if last - first < 0.1 * rate:
        return Verdict(("Nothing is heard.",), 100.0, measures)
    inside, own = samples[first:last], [voices[name] for name in chunk.cast.values() if name in voices]
    seconds = (last - first) / rate
    if not ended:
        complain(1, f"It did not end by itself within {len(codes) / FRAME_RATE:.1f} s.")
    measures |= {"seconds": seconds, "expected_seconds": chunk.seconds}
    tolerance = min(max(PACE[0], *(3 * voice.rate_spread for voice in own), 0), PACE[1]) if own else PACE[1]
    off = abs(math.log(seconds / chunk.seconds))
    if off > math.log(1 + tolerance):
        complain(off, f"It takes {seconds:.1f} s, where {chunk.seconds:.1f} s were expected.")

    measures["end_level"] = sound.end_level(samples, rate=rate)
    if measures["end_level"] > LOUD_END:
        complain(0.5, f"It ends at {measures['end_level']:.0f} dB, in the middle of a sound.")
    at, silence = sound.longest_silence(samples, rate=rate)
    allowed = max([SILENCE, *(2 * voice.longest_pause for voice in own)])
    measures["longest_silence"] = silence
    if silence > allowed:
        complain(silence - allowed, f"It is silent for {silence:.1f} s from {at:.1f} s on.")
    measures["floor"] = sound.floor(samples, rate=rate)
    usual = max((voice.floor for voice in own), default=-60.0)
    if measures["floor"] > max(usual + NOISE[0], NOISE[1]):
        complain(0.5, f"It is noisy: its quiet parts lie {-measures['floor']:.0f} dB below the voice.")
    hanging = _longest_hang(codes, samples, rate=rate)
    measures["hanging"] = hanging
    if hanging > HANGING:
        complain(hanging, f"A sound hangs for {hanging:.1f} s.")
    measures["level"] = level(inside, rate=rate)
    if own and abs(difference := measures["level"] - float(np.mean([voice.level for voice in own]))) > LEVEL:
        complain(0.3, f"It is {abs(difference):.0f} dB {'louder' if difference > 0 else 'quieter'} than the voice.")
    measures["clipped"] = sound.clipped(samples)
    if measures["clipped"] > CLIPPED:
        complain(0.5, f"{100 * measures['clipped']:.1f} % of its samples are clipped.")

    _judge_words(chunk, words, alignment, own, measures, complain)
    _judge_pitch(chunk, samples, words, voices, rate, measures, complain)
    problems.sort(key=lambda problem: -problem[0])
    score = sum(1 + severity for severity, _ in problems) + off + 1 - measures["confidence"]
    return Verdict(tuple(sentence for _, sentence in problems), score, measures)


def _longest_hang(codes: np.ndarray, samples: np.ndarray, *, rate: int) -> float:
    """Seconds of the longest sound in which no code changes; silence may."""
    same = (codes[1:] == codes[:-1]).all(axis=1)
    hop = len(samples) // max(len(codes), 1)
    loud = np.abs(samples[: len(codes) * hop].reshape(len(codes), -1)).max(axis=1) > 0.01
    stretches = np.flatnonzero(np.diff(same & loud[1:], prepend=False, append=False)).reshape(-1, 2)
    return float((stretches[:, 1] - stretches[:, 0]).max(initial=0)) * hop / rate


def _judge_words(
    chunk: Chunk,
    words: tuple[PlacedWord, ...],
    alignment: Alignment,
    own: list[Voice],
    measures: dict[str, float],
    complain: Any,
) -> None:
    """What was left out, said twice or unclear."""
    measures["alignment"] = alignment.heads[0][2] if alignment.heads else 0.0
    confidences = [placed.timing.confidence for placed in words if placed.timing.frames]
    measures["confidence"] = float(np.mean(confidences)) if confidences else 0.0
    if not words:
        return
    usual = float(np.mean([voice.confidence for voice in own])) if own else 1.0
    frames_a_byte = chunk.seconds * FRAME_RATE / max(sum(len(part.piece.spoken.encode()) for part in chunk.parts), 1)
    left_out, twice, unclear = [], [], []
    for placed in words:
        spoken = chunk.parts[placed.part].piece.spoken[placed.word.start : placed.word.stop]
        expected = len(spoken.encode()) * frames_a_byte
        if placed.timing.frames < UNHEARD * expected:
            left_out.append(placed)
        elif placed.timing.visits > 1 and placed.timing.frames >= (1 + TWICE) * expected:
            twice.append(placed)
        elif placed.timing.confidence < UNCLEAR * usual:
            unclear.append(placed)
    measures |= {"words_left_out": len(left_out), "words_twice": len(twice), "words_unclear": len(unclear)}
    if not alignment.trusted:
        return
    # A single short word can be lost in the grain of the attention; its neighbours would miss it too.
    lost = sum(len(placed.word.text) for placed in left_out)
    if lost >= 4:
        complain(lost / 4, f"{_quoted(left_out)} {_were(left_out)} left out.")
    if sum(len(placed.word.text) for placed in twice) >= 4:
        complain(len(twice), f"{_quoted(twice)} {_were(twice)} said twice.")
    if unclear and (len(unclear) >= 3 or len(unclear) > len(words) / 4):
        complain(0.3 * len(unclear), f"{_quoted(unclear)} {_were(unclear)} unclear.")


def _judge_pitch(
    chunk: Chunk,
    samples: np.ndarray,
    words: tuple[PlacedWord, ...],
    voices: Mapping[str, Voice],
    rate: int,
    measures: dict[str, float],
    complain: Any,
) -> None:
    """Whether each part is nearer to its own voice than to those of the others."""
    known = {name: voice.pitch for name, voice in voices.items() if math.isfinite(voice.pitch)}
    if not set(chunk.cast.values()) & set(known):
        return
    track = sound.pitch(samples, rate=rate)
    for number, part in enumerate(chunk.parts):
        name = part.piece.speaker
        heard = [placed.timing for placed in words if placed.part == number and placed.timing.frames]
        if name not in known or not heard:
            continue
        start, end = min(t.start for t in heard) / FRAME_RATE, max(t.end for t in heard) / FRAME_RATE
        median = track.median(start, end)
        if math.isnan(median):
            continue
        away = abs(math.log2(median / known[name]))
        measures["octaves_off"] = max(measures.get("octaves_off", 0.0), away)
        others = {
            other: abs(math.log2(median / hertz))
            for other, hertz in known.items()
            if abs(math.log2(hertz / known[name])) >= 2 * SEMITONE
        }
        nearest = min(others, key=lambda other: others[other], default=None)
        if nearest is not None and others[nearest] < away:
            complain(2, f"{name!r} is heard at {median:.0f} Hz, nearer to {nearest!r} than to {known[name]:.0f} Hz.")
        elif away > OTHER_PITCH:
            complain(1, f"{name!r} is heard at {median:.0f} Hz, far from {known[name]:.0f} Hz.")


def _quoted(words: list[PlacedWord]) -> str:
    text = " ".join(placed.word.text for placed in words)
    return f'"{text if len(text) <= 60 else text[:57] + "..."}"'


def _were(words: list[PlacedWord]) -> str:
    return "was" if len(words) == 1 else "were"
