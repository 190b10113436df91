"""A script and the pace of its voices -> chunks that the model can speak well, before anything is spoken.

A chunk is what is decoded as one clip: some turns of at most two speakers, long enough to be steady and short enough
for the model's positions with the voices' prompts before it. Knows scripts, paces and limits; knows no sound and runs
no model.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence

from dia_jax.alignment import FRAME_RATE
from dia_jax.config import DiaConfig, DiaError
from dia_jax.longform.dividing import clauses, cut, sentences
from dia_jax.longform.script import Script, Turn
from dia_jax.voice import TAGS

ROOM = 1.6
"""How much longer than expected a chunk may become before it is broken off."""

STEADY = 5.0
"""Seconds. Shorter clips tend to be unstable (nari-labs/dia, generation guidelines), so they are avoided."""

TAG_BYTES = 3
"""What a change of speaker adds to a chunk's time, in bytes: the tag and the spaces around it."""


class PlanError(DiaError):
    """A script that cannot be planned for this model; the message says why, and where."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """What a plan knows of a speaker.

    Attributes:
        rate: bytes a second.
        prompt_frames: of the voice's prompt; 0 for none.
        prompt_bytes: of its transcript, with the tag; 0 for none.
    """

    rate: float
    prompt_frames: int = 0
    prompt_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """A turn, or a piece of one, in a chunk.

    Attributes:
        turn: index of the turn in the script.
        piece: what is said; the whole turn unless that is too long.
        is_first: whether it begins its turn.
        tag: "S1" or "S2".
        begin: characters of the chunk's text before its own.
    """

    turn: int
    piece: Turn
    is_first: bool
    tag: str
    begin: int


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What is decoded as one clip.

    Attributes:
        number: index in the plan.
        parts: what is said, in order.
        chapter: index of the script's chapter.
        text: the script of the clip, without the voices' transcripts.
        cast: who speaks under which tag, such as {"S1": "Anna", "S2": "Ben"}.
        seconds: how long it should take.
        most_frames: after which it is broken off.
    """

    number: int
    parts: tuple[Part, ...]
    chapter: int
    text: str
    cast: Mapping[str, str]
    seconds: float
    most_frames: int


def plan(
    script: Script,
    paces: Mapping[str, Pace],
    config: DiaConfig,
    *,
    kept: Sequence[Sequence[Turn]] = (),
) -> tuple[Chunk, ...]:
    """Divides a script into chunks.

    Of all divisions at the ends of turns the one is taken whose chunks are nearest to the middle of the wanted length,
    none too short to be steady where that can be avoided, and with few turns divided.

    Args:
        script: what is to be spoken.
        paces: of each speaker.
        config: of the model.
        kept: the turns of the chunks of an earlier plan. Those that are still there stay chunks of their own, so that a
            change of one line changes only its chunk.

    Raises:
        PlanError: a voice's prompt leaves no room, or a word is too long for the model.
    """
    longest = {name: _longest(paces[name], config) for name in script.speakers}
    pieces: list[tuple[int, bool, Turn]] = []
    for number, turn in enumerate(script.turns):
        room = longest[turn.speaker]
        if room < 1:
            raise PlanError(
                f"The prompt of {turn.speaker!r} takes {paces[turn.speaker].prompt_frames} of the model's "
                f"{config.frame_budget} frames, which leaves no room to speak; use a recording of 5 to 10 s."
            )
        divided = _divide(turn, paces[turn.speaker], room)
        pieces += [(number, i == 0, piece) for i, piece in enumerate(divided)]
    starts = [chapter.first_turn for chapter in script.chapters]
    chapters = [sum(start <= number for start in starts) - 1 for number, _, _ in pieces]
    bounds, at = [], 0
    for begin, stop in [*_still_there(pieces, kept), (len(pieces), len(pieces))]:
        bounds += [(at + a, at + b) for a, b in _boundaries(pieces[at:begin], chapters[at:begin], paces, config)]
        bounds += [(begin, stop)] if stop > begin else []
        at = stop
    return tuple(
        _chunk(i, pieces[begin:stop], chapters[begin], script.speakers, paces, config)
        for i, (begin, stop) in enumerate(bounds)
    )


def whole(script: Script, paces: Mapping[str, Pace], config: DiaConfig) -> Chunk:
    """A script of at most two speakers as one chunk, whatever its length: for a clip that is there already.

    Raises:
        PlanError: there are more speakers.
    """
    if len(script.speakers) > len(TAGS):
        raise PlanError(f"There are {len(script.speakers)} speakers; a clip has at most two.")
    return _chunk(0, [(i, True, turn) for i, turn in enumerate(script.turns)], 0, script.speakers, paces, config)


def _still_there(pieces: Sequence[tuple[int, bool, Turn]], kept: Sequence[Sequence[Turn]]) -> list[tuple[int, int]]:
    """Where the chunks of an earlier plan are among the pieces."""
    old = [(piece.speaker, piece.spoken) for chunk in kept for piece in chunk]
    new = [(piece.speaker, piece.spoken) for _, _, piece in pieces]
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    found, first = [], 0
    for chunk in kept:
        last = first + len(chunk)
        for block in blocks:
            if chunk and block.a <= first and last <= block.a + block.size:
                found.append((block.b + first - block.a, block.b + last - block.a))
        first = last
    return found


def part_seconds(piece: Turn, pace: Pace) -> float:
    """How long a turn should take, the change of speaker included."""
    return (len(piece.spoken.encode()) + TAG_BYTES) / pace.rate


def _longest(pace: Pace, config: DiaConfig) -> float:
    """Seconds of speech that fit behind a voice's prompt, at most as many as are wanted."""
    rows = (config.frame_budget - pace.prompt_frames) / FRAME_RATE / ROOM
    text = (config.encoder.max_length - pace.prompt_bytes - 2 * TAG_BYTES) / pace.rate
    return min(config.speech.chunk_seconds[1], rows, text)


def _divide(turn: Turn, pace: Pace, longest: float) -> list[Turn]:
    """Halves a turn until each piece fits: between sentences, else between clauses, else between words."""
    if part_seconds(turn, pace) <= longest:
        return [turn]
    text = turn.spoken
    for ranges in (sentences(text), clauses(text), [(word.start, word.stop) for word in turn.words]):
        points = [start for start, _ in ranges if start > 0]
        if points:
            middle = min(points, key=lambda point: abs(len(text) / 2 - point))
            break
    else:
        raise PlanError(
            f"At {turn.place}, a word of {len(text.encode())} bytes takes {part_seconds(turn, pace):.0f} s; at most "
            f"{longest:.0f} s fit into one clip. Divide it."
        )
    return [piece for half in cut(turn, [middle]) for piece in _divide(half, pace, longest)]


def _boundaries(
    pieces: Sequence[tuple[int, bool, Turn]],
    chapters: Sequence[int],
    paces: Mapping[str, Pace],
    config: DiaConfig,
) -> list[tuple[int, int]]:
    """The cheapest division, by dynamic programming over its last chunk."""
    seconds = config.speech.chunk_seconds
    wanted = (seconds[0] + seconds[1]) / 2
    costs, last = [0.0], [0]
    for stop in range(1, len(pieces) + 1):
        best, begin_of_best = math.inf, stop - 1
        names: set[str] = set()
        length = 0.0
        for begin in range(stop - 1, -1, -1):
            _, is_first, piece = pieces[begin]
            names.add(piece.speaker)
            length += part_seconds(piece, paces[piece.speaker])
            if len(names) > len(TAGS) or chapters[begin] != chapters[stop - 1]:
                break
            if begin < stop - 1 and not _fits(length, names, paces, config):
                break
            cost = costs[begin] + ((length - wanted) / wanted) ** 2
            cost += 4 * max(0.0, (min(STEADY, seconds[0]) - length) / STEADY) + (0 if is_first else 1)
            if cost < best:
                best, begin_of_best = cost, begin
        costs.append(best)
        last.append(begin_of_best)
    bounds, stop = [], len(pieces)
    while stop:
        bounds.append((last[stop], stop))
        stop = last[stop]
    return bounds[::-1]


def _fits(length: float, names: set[str], paces: Mapping[str, Pace], config: DiaConfig) -> bool:
    given = sum(paces[name].prompt_frames for name in names)
    if length > config.speech.chunk_seconds[1] or given / FRAME_RATE + length > config.speech.steady_seconds:
        return False
    size = sum(paces[name].prompt_bytes + TAG_BYTES for name in names) + length * max(paces[n].rate for n in names)
    return given + length * ROOM * FRAME_RATE <= config.frame_budget and size <= config.encoder.max_length


def _chunk(
    number: int,
    pieces: Sequence[tuple[int, bool, Turn]],
    chapter: int,
    names: Sequence[str],
    paces: Mapping[str, Pace],
    config: DiaConfig,
) -> Chunk:
    speakers = sorted({piece.speaker for _, _, piece in pieces}, key=names.index)
    if set(speakers) <= set(TAGS):
        tags = {name: name for name in speakers}  # a script that names the tags means them
    elif config.speech.tag_voices and len(names) <= len(TAGS):
        tags = dict(zip(names, TAGS, strict=False))
    else:
        tags = dict(zip(speakers, TAGS, strict=False))
    text, parts, before = "", [], None
    for turn, is_first, piece in pieces:
        tag = tags[piece.speaker]
        if tag != before:
            text += f" [{tag}]" if text else f"[{tag}]"
        text += " "
        parts.append(Part(turn, piece, is_first, tag, len(text)))
        text += piece.spoken
        before = tag
    if config.speech.closing_tag:
        text += f" [{TAGS[1 - TAGS.index(before)]}]"
    length = sum(part_seconds(piece, paces[piece.speaker]) for _, _, piece in pieces)
    cast = {tags[name]: name for name in sorted(speakers, key=lambda name: tags[name])}
    return Chunk(number, tuple(parts), chapter, text, cast, length, math.ceil(length * ROOM * FRAME_RATE))
