"""Chunks that came out well -> one recording, and where in it each word is.

Knows samples, words and planned silences. Every sound begins and ends faded, and what lies between two sounds at a
join is silence of the planned length, so no join clicks. Knows no model and no verdicts.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dia_jax.alignment import FRAME_RATE, Word
from dia_jax.longform.judge import PlacedWord
from dia_jax.longform.mastering import edges, fade, level
from dia_jax.longform.plan import Chunk, Part
from dia_jax.longform.script import Script
from dia_jax.longform.speech import SpokenChapter, SpokenTurn

FADE = 5.0
"""Milliseconds over which a sound begins and ends."""
CUT = 0.01
"""Seconds over which the quietest place between two words is looked for."""
GAIN = 12.0
"""The most that a speaker's level is changed, in dB."""
RAMP = 0.02
"""Seconds over which one speaker's gain becomes the next one's."""


Stretch = tuple[str, int, int]
"""Who speaks from which sample to which."""


@dataclasses.dataclass(frozen=True)
class Gaps:
    """Silence between sounds in seconds, where chunks are joined. Within a chunk the model sets its own pace.

    Attributes:
        turn: before another speaker.
        same_speaker: where a speaker goes on.
        chapter: before a chapter.
    """

    turn: float = 0.35
    same_speaker: float = 0.2
    chapter: float = 1.2


@dataclasses.dataclass(frozen=True)
class SpokenTake:
    """A chunk as it was spoken.

    Attributes:
        samples: float32 [n].
        words: when they are said in it.
    """

    chunk: Chunk
    samples: np.ndarray
    words: tuple[PlacedWord, ...]


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A stretch of a take that is kept whole: from one join to the next.

    Attributes:
        take: index.
        parts: indices of the chunk's parts in it, half open.
        first, last: samples of the take.
        silence: seconds before it.
    """

    take: int
    parts: tuple[int, int]
    first: int
    last: int
    silence: float


def join(
    script: Script, takes: Sequence[SpokenTake], gaps: Gaps, *, rate: int
) -> tuple[np.ndarray, tuple[SpokenTurn, ...], tuple[SpokenChapter, ...], tuple[tuple[float, float], ...]]:
    """Joins takes.

    Args:
        script: of which each turn is in a take.
        takes: of all chunks of the plan, in order.
        gaps: between them.
        rate: the sample rate in Hz.

    Returns:
        float32 samples; the turns; the chapters; and where each take begins and ends, in seconds.
    """
    stretches = [_stretches(take, rate) for take in takes]
    gains = _gains(takes, stretches, rate)
    segments = _segments(script, takes, gaps, rate)
    pieces: list[np.ndarray] = []
    position = 0
    spans: dict[int, tuple[float, float]] = {}
    words: dict[int, list[Word]] = {}
    where: dict[int, tuple[float, float]] = {}
    levelled = [_at_level(take, parts, gains, rate) for take, parts in zip(takes, stretches, strict=True)]
    for segment in segments:
        pieces.append(np.zeros(round(segment.silence * rate), np.float32))
        position += len(pieces[-1])
        sound = fade(levelled[segment.take][segment.first : segment.last], rate=rate, milliseconds=FADE)
        begin, end = position / rate, (position + len(sound)) / rate
        chunk = takes[segment.take].chunk
        for number in range(*segment.parts):
            turn = chunk.parts[number].turn
            for placed in takes[segment.take].words:
                if placed.part == number:
                    shift = begin - segment.first / rate
                    start, stop = (shift + t / FRAME_RATE for t in (placed.timing.start, placed.timing.end))
                    start, stop = min(max(start, begin), end), min(max(stop, begin), end)
                    words.setdefault(turn, []).append(Word(placed.word.text, start, stop, placed.timing.confidence))
            # A turn of sounds alone has no words: it is where its segment is.
            before = where.get(turn, (begin, begin))[0]
            where[turn] = (before, end)
        spans[segment.take] = (spans.get(segment.take, (begin, end))[0], end)
        pieces.append(sound)
        position += len(sound)
    pieces.append(np.zeros(round(script.final_pause * rate), np.float32))
    turns = _turns(script, takes, words, where)
    chapters = tuple(SpokenChapter(chapter.title, turns[chapter.first_turn].start) for chapter in script.chapters)
    return np.concatenate(pieces), turns, chapters, tuple(spans[i] for i in range(len(takes)))


def _turns(
    script: Script,
    takes: Sequence[SpokenTake],
    words: Mapping[int, list[Word]],
    where: Mapping[int, tuple[float, float]],
) -> tuple[SpokenTurn, ...]:
    chunks: dict[int, list[int]] = {}
    for take in takes:
        for part in take.chunk.parts:
            if take.chunk.number not in chunks.setdefault(part.turn, []):
                chunks[part.turn].append(take.chunk.number)
    found = []
    for number, turn in enumerate(script.turns):
        said = _in_order(words.get(number, []))
        start, end = (said[0].start, said[-1].end) if said else where[number]
        found.append(SpokenTurn(number, turn.speaker, turn.text, start, end, tuple(said), tuple(chunks[number])))
    return tuple(found)


def _in_order(words: list[Word]) -> list[Word]:
    """Times that never go back: a word that was left out or said twice may lie anywhere."""
    ordered, before = [], 0.0
    for word in words:
        start = max(word.start, before)
        ordered.append(dataclasses.replace(word, start=start, end=max(word.end, start)))
        before = start
    return ordered


def _segments(script: Script, takes: Sequence[SpokenTake], gaps: Gaps, rate: int) -> list[_Segment]:
    """Where the takes are cut: at their edges, and where the script asks for a pause within one."""
    firsts = {chapter.first_turn for chapter in script.chapters}
    segments: list[_Segment] = []
    before = None
    for index, take in enumerate(takes):
        parts = take.chunk.parts
        cuts = [i for i, part in enumerate(parts) if i and part.piece.pause]
        bounds = [0, *(_quietest_between(take, cut, rate) for cut in cuts), len(take.samples)]
        for begin, stop, low, high in zip([0, *cuts], [*cuts, len(parts)], bounds, bounds[1:], strict=False):
            first, last = edges(take.samples[low:high], rate=rate)
            silence = silence_before(parts[begin], before, firsts, gaps)
            before = parts[stop - 1].piece.speaker
            segments.append(_Segment(index, (begin, stop), low + first, low + last, silence))
    return segments


def silence_before(part: Part, before: str | None, firsts: Collection[int], gaps: Gaps) -> float:
    """Seconds of silence where a sound begins with this part.

    Args:
        before: who spoke last; None at the beginning, where there is only silence that the script asks for.
        firsts: the turns that begin chapters.
        gaps: where the script asks for none.
    """
    if before is None or part.piece.pause:
        return part.piece.pause
    if part.is_first and part.turn in firsts:
        return gaps.chapter
    return gaps.turn if part.piece.speaker != before else gaps.same_speaker


def _quietest_between(take: SpokenTake, part: int, rate: int) -> int:
    """The sample at which a take is divided before a part."""
    ends = [placed.timing.end for placed in take.words if placed.part < part and placed.timing.frames]
    starts = [placed.timing.start for placed in take.words if placed.part >= part and placed.timing.frames]
    end, start = max(ends, default=0), min(starts, default=int(len(take.samples) / rate * FRAME_RATE))
    # Half a tenth of a second further on either side: an attention is not sharper than that.
    low = max(round((min(end, start) / FRAME_RATE - 0.05) * rate), 0)
    high = min(round((max(end, start) / FRAME_RATE + 0.05) * rate), len(take.samples))
    size = round(CUT * rate)
    if high - low < 2 * size:
        return (low + high) // 2
    power = np.convolve(take.samples[low:high].astype(np.float64) ** 2, np.ones(size), "valid")
    quiet = np.flatnonzero(power <= power.min() + 1e-9 * size)
    return low + int(quiet[len(quiet) // 2]) + size // 2


def _gains(takes: Sequence[SpokenTake], stretches: Sequence[Sequence[Stretch]], rate: int) -> dict[str, float]:
    """For each speaker the gain in dB that brings it to the median level of all."""
    heard: dict[str, list[np.ndarray]] = {}
    for take, parts in zip(takes, stretches, strict=True):
        for name, low, high in parts:
            heard.setdefault(name, []).append(take.samples[low:high])
    levels = {name: level(np.concatenate(sounds), rate=rate) for name, sounds in heard.items()}
    known = [value for value in levels.values() if math.isfinite(value)]
    middle = float(np.median(known)) if known else 0.0
    return {
        name: float(np.clip(middle - value, -GAIN, GAIN)) if math.isfinite(value) else 0.0
        for name, value in levels.items()
    }


def _at_level(take: SpokenTake, stretches: Sequence[Stretch], gains: Mapping[str, float], rate: int) -> np.ndarray:
    """The take's samples, each speaker at the level of all."""
    gain = np.zeros(len(take.samples))
    for name, low, high in stretches:
        gain[low:high] = gains[name]
    if np.ptp(gain) > 0:
        size = round(RAMP * rate)
        gain = np.convolve(np.pad(gain, size // 2, mode="edge"), np.ones(size) / size, "same")
        gain = gain[size // 2 : size // 2 + len(take.samples)]
    return (take.samples * 10 ** (gain / 20)).astype(np.float32)


def _stretches(take: SpokenTake, rate: int) -> list[Stretch]:
    """Who speaks from which sample to which; a change lies at the quietest place between two words."""
    parts = take.chunk.parts
    cuts = [i for i, part in enumerate(parts) if i and part.tag != parts[i - 1].tag]
    bounds = [0, *(_quietest_between(take, cut, rate) for cut in cuts), len(take.samples)]
    names = [parts[begin].piece.speaker for begin in (0, *cuts)]
    return [(name, low, max(high, low)) for name, low, high in zip(names, bounds, bounds[1:], strict=False)]
