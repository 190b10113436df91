"""A recording's text in time: subtitles, words as JSON, and a list of chapters.

Knows what subtitles should look like and how their formats are written. Knows no sound and no files.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence

from dia_jax.longform.speech import Speech, SpokenTurn, Word, name_chapters

LINE = 42
"""The most characters of a line; usual among broadcasters."""
LONGEST = 7.0
"""The longest that a cue is shown, in seconds."""
SHORTEST = 1000
"""How long a cue is shown at least, in milliseconds, where the next one leaves room."""
PAUSE = 0.5
"""A silence after which a new cue begins as well as after a sentence, in seconds."""

# What a cue costs, and what it costs to end one there. Only their order matters.
CUE, SHORT_CUE, AFTER_SENTENCE, AFTER_CLAUSE, AFTER_WORD = 10, 4, 0, 3, 8
SENTENCE_MARKS, CLAUSE_MARKS = ".?!…", ",;:–—)"
QUOTES = "\"'”’»"


@dataclasses.dataclass(frozen=True)
class _Cue:
    """What is shown at once: words of one turn in one or two lines. Times are whole milliseconds."""

    speaker: str
    lines: tuple[tuple[Word, ...], ...]
    start: int
    end: int


def srt(speech: Speech) -> str:
    """SubRip subtitles: at most two lines of 42 characters and 7 s a cue, which never spans two turns."""
    blocks = []
    for number, cue in enumerate(_cues(speech), 1):
        times = f"{_clock(cue.start, mark=',')} --> {_clock(cue.end, mark=',')}"
        blocks.append("\n".join([str(number), times, *(" ".join(w.text for w in line) for line in cue.lines)]) + "\n")
    return "\n".join(blocks)


def vtt(speech: Speech) -> str:
    """WebVTT subtitles: the cues of `srt`, with a voice tag for the speaker and the time of each word."""
    blocks = ["WEBVTT\n"]
    for cue in _cues(speech):
        lines, last = [], cue.start
        for line in cue.lines:
            parts = []
            for word in line:
                time = _milliseconds(word.start)
                # A time inside of a cue must lie within it, behind the one before.
                if last < time < cue.end:
                    parts.append(f"<{_clock(time)}>{_escape(word.text)}")
                    last = time
                else:
                    parts.append(_escape(word.text))
            lines.append(" ".join(parts))
        text = "\n".join(lines)
        blocks.append(f"{_clock(cue.start)} --> {_clock(cue.end)}\n<v {_escape(cue.speaker)}>{text}</v>\n")
    return "\n".join(blocks)


def words_json(speech: Speech) -> str:
    """All that is known of a recording but its samples, as JSON; times in seconds."""
    turns = [
        {
            "number": turn.number,
            "speaker": turn.speaker,
            "text": turn.text,
            **_span(turn),
            "chunks": list(turn.chunks),
            "words": [
                {"text": word.text, **_span(word), "confidence": round(float(word.confidence), 3)}
                for word in turn.words
            ],
        }
        for turn in speech.turns
    ]
    chunks = [
        {
            "number": chunk.number,
            **_span(chunk),
            "verdict": dict(chunk.verdict),
            "takes": chunk.takes,
            "rejected": [dict(take) for take in chunk.rejected],
        }
        for chunk in speech.chunks
    ]
    content = {
        "title": speech.title,
        "seconds": round(speech.seconds, 3),
        "rate": speech.rate,
        "chapters": [
            {"title": chapter.title, "start": round(float(chapter.start), 3)}
            for chapter in name_chapters(speech.chapters)
        ],
        "turns": turns,
        "chunks": chunks,
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def chapters_text(speech: Speech) -> str:
    """A line "00:00:00 Title" for each chapter, as podcast hosts and YouTube take them; "" without chapters."""
    return "".join(
        f"{_clock(_milliseconds(chapter.start))[:8]} {chapter.title}\n" for chapter in name_chapters(speech.chapters)
    )


def _span(timed: object) -> dict[str, float]:
    return {name: round(float(getattr(timed, name)), 3) for name in ("start", "end")}


# --- Cues ------------------------------------------------------------------------------------------------------------


def _cues(speech: Speech) -> list[_Cue]:
    """All cues in order. None begins before its first word or before the end of the one before, and none is empty."""
    groups = [(turn.speaker, group) for turn in speech.turns for group in _grouped(_said(turn))]
    cues, free = [], 0
    for index, (speaker, group) in enumerate(groups):
        start = max(_milliseconds(group[0].start), free)
        following = groups[index + 1][1][0].start if index + 1 < len(groups) else speech.seconds
        end = min(max(_milliseconds(group[-1].end), start + SHORTEST), _milliseconds(following))
        end = max(min(end, start + round(1000 * LONGEST)), start + 1)
        cues.append(_Cue(" ".join(speaker.split()), _lines(group) or (tuple(group),), start, end))
        free = end
    return cues


def _said(turn: SpokenTurn) -> list[Word]:
    """The words of a turn. Where none were timed, those of its text in equal steps, so that no line is lost."""
    if turn.words:
        return [dataclasses.replace(word, text=" ".join(word.text.split())) for word in turn.words if word.text.split()]
    texts = turn.text.split()
    step = max(turn.end - turn.start, 0.0) / max(len(texts), 1)
    return [
        Word(text, turn.start + index * step, turn.start + (index + 1) * step, 0.0) for index, text in enumerate(texts)
    ]


def _grouped(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Divides the words of a turn among cues at the least cost: few cues, which end where a thought does."""
    # best[i] is the least cost of the words from i on, and ends[i] where their first cue ends.
    best, ends = [0.0] * (len(words) + 1), [0] * len(words)
    for first in reversed(range(len(words))):
        best[first] = math.inf
        for last in range(first + 1, len(words) + 1):
            group = words[first:last]
            if len(group) > 1 and (group[-1].end - group[0].start > LONGEST or _lines(group) is None):
                break
            cost = CUE + best[last]
            if group[-1].end - group[0].start < SHORTEST / 1000:
                cost += SHORT_CUE
            if last < len(words):
                cost += _break_cost(words[last - 1], words[last])
            if cost < best[first]:
                best[first], ends[first] = cost, last
    first = 0
    while first < len(words):
        yield words[first : ends[first]]
        first = ends[first]


def _break_cost(word: Word, following: Word) -> int:
    if following.start - word.end >= PAUSE:
        return AFTER_SENTENCE
    mark = word.text.rstrip(QUOTES)[-1:]
    if mark and mark in SENTENCE_MARKS:
        return AFTER_SENTENCE
    return AFTER_CLAUSE if mark and mark in CLAUSE_MARKS else AFTER_WORD


def _lines(words: Sequence[Word]) -> tuple[tuple[Word, ...], ...] | None:
    """One line, or two of much the same length; None where they do not fit. A word alone always does."""
    lengths = [len(word.text) for word in words]
    total = sum(lengths) + len(lengths) - 1
    if total <= LINE or len(words) == 1:
        return (tuple(words),)
    best, at, length = math.inf, 0, -1
    for index in range(1, len(words)):
        length += lengths[index - 1] + 1
        rest = total - length - 1
        cost = abs(length - rest) + _break_cost(words[index - 1], words[index])
        if max(length, rest) <= LINE and cost < best:
            best, at = cost, index
    return (tuple(words[:at]), tuple(words[at:])) if at else None


# --- How it is written -----------------------------------------------------------------------------------------------


def _milliseconds(seconds: float) -> int:
    """Rounded up, so that nothing is shown before it is said; what floats add to a whole number does not count."""
    return max(math.ceil(round(1000 * seconds, 3)), 0)


def _clock(milliseconds: int, *, mark: str = ".") -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _escape(text: str) -> str:
    """Text as WebVTT wants it in cues and voice tags; this also keeps "-->" out."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
