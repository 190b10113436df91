"""A page to hear a recording by: a player, and a transcript that follows it with what was found wrong in each line.

Knows HTML; the layout and the script are in page.html. Knows no sound. The page asks no other host for anything, and
without JavaScript it still plays and reads.
"""

import html
import importlib.resources
import itertools
import json
import string
from collections.abc import Sequence
from urllib.parse import quote

from dia_jax.longform.speech import Speech, SpokenChapter, SpokenChunk, SpokenTurn, name_chapters

COLOURS = 6
"""How many speakers have a colour of their own."""
SAME_TIME = 0.05
"""A turn that begins at most this long before a chapter belongs to it, in seconds."""


def page(speech: Speech, *, audio: str) -> str:
    """An HTML page for a recording, in one file.

    Args:
        speech: the recording. Its samples are not in the page.
        audio: the name of its sound file, which lies beside the page.

    Returns:
        the text of the page, to be written as UTF-8.
    """
    title = " ".join(speech.title.split()) or "Recording"
    chapters = name_chapters(speech.chapters)
    words = speech.words
    times = {
        # The page searches for a time, so starts must not fall.
        "starts": list(itertools.accumulate((round(float(word.start), 3) for word in words), max)),
        "ends": [round(float(word.end), 3) for word in words],
    }
    template = importlib.resources.files("dia_jax.longform").joinpath("page.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        title=_text(title),
        facts=_text(_facts(speech)),
        audio=_text("./" + quote(audio)),
        name=_text(audio),
        filter=_filter(speech),
        chapters=_contents(chapters),
        transcript=_transcript(speech, chapters),
        times=_script_json(times),
    )


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _script_json(value: object) -> str:
    """JSON that can stand in a script element, which neither `</script>` nor `<!--` may."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0.0)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _speakers(speech: Speech) -> list[str]:
    """In the order in which they speak first."""
    return list(dict.fromkeys(turn.speaker for turn in speech.turns))


def _passed(chunk: SpokenChunk) -> bool:
    return bool(chunk.verdict.get("passed"))


def _chunks(speech: Speech, turn: SpokenTurn) -> list[SpokenChunk]:
    return [chunk for chunk in speech.chunks if chunk.number in turn.chunks]


def _has_problem(speech: Speech, turn: SpokenTurn) -> bool:
    return not all(_passed(chunk) for chunk in _chunks(speech, turn))


def _facts(speech: Speech) -> str:
    facts = [_clock(speech.seconds), ", ".join(_speakers(speech))]
    if speech.chunks:
        passed = sum(_passed(chunk) for chunk in speech.chunks)
        takes = sum(chunk.takes for chunk in speech.chunks)
        facts.append(f"{passed} of {_count(len(speech.chunks), 'chunk')} passed, {_count(takes, 'take')}")
    return " · ".join(fact for fact in facts if fact)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _filter(speech: Speech) -> str:
    if not speech.chunks:
        return ""
    found = sum(_has_problem(speech, turn) for turn in speech.turns)
    disabled = "" if found else " disabled"
    return f'<label><input type="checkbox" id="only"{disabled}> Only lines with problems ({found})</label>'


def _contents(chapters: Sequence[SpokenChapter]) -> str:
    if not chapters:
        return ""
    links = [
        f'<li><a href="#chapter-{number}" data-start="{chapter.start:.3f}"><span class="time">{_clock(chapter.start)}'
        f"</span> {_text(chapter.title)}</a></li>"
        for number, chapter in enumerate(chapters, 1)
    ]
    return "\n".join(['<nav class="chapters" aria-label="Chapters">', "<ol>", *links, "</ol>", "</nav>"])


def _transcript(speech: Speech, chapters: Sequence[SpokenChapter]) -> str:
    """A section for each chapter, and one for what comes before the first."""
    colours = {speaker: index % COLOURS for index, speaker in enumerate(_speakers(speech))}
    starts = [0.0, *(chapter.start for chapter in chapters), float("inf")]
    sections: list[str] = []
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        turns = [
            turn
            for turn in speech.turns
            if (number == 0 or start - SAME_TIME <= turn.start) and turn.start < end - SAME_TIME
        ]
        if not turns and number == 0:
            continue
        heading = [f'<h2 id="chapter-{number}">{_text(chapters[number - 1].title)}</h2>'] if number else []
        lines = [_line(speech, turn, colours[turn.speaker]) for turn in turns]
        sections += ["<section>", *heading, '<ol class="turns">', *lines, "</ol>", "</section>"]
    return "\n".join(sections)


def _line(speech: Speech, turn: SpokenTurn, colour: int) -> str:
    start = turn.words[0].start if turn.words else turn.start
    words = " ".join(f'<span class="w">{_text(word.text)}</span>' for word in turn.words) or _text(turn.text)
    speaker = _text(" ".join(turn.speaker.split()))
    problem = " problem" if _has_problem(speech, turn) else ""
    return "\n".join(
        [
            f'<li class="turn s{colour}{problem}" id="turn-{turn.number}">',
            f'<div class="head"><button type="button" class="play time" data-start="{start:.3f}" '
            f'aria-label="Play {speaker} from {_clock(start)}">{_clock(start)}</button>'
            f'<span class="speaker">{speaker}</span></div>',
            f'<p class="text">{words}</p>',
            *(_verdict(chunk) for chunk in _chunks(speech, turn)),
            "</li>",
        ]
    )


def _verdict(chunk: SpokenChunk) -> str:
    """What was found in a chunk, in one line; the takes that were not kept unfold below it."""
    problems = [str(problem) for problem in chunk.verdict.get("problems", ())]
    if _passed(chunk):
        kind, said = "passed", "passed"
    else:
        kind, said = "failed", " ".join(problems) or "not passed"
    parts = [
        f'<details class="verdict {kind}"><summary>Chunk {chunk.number}: {_text(said)}</summary>',
        f"<p>{_count(chunk.takes, 'take')}, {_clock(chunk.start)} to {_clock(chunk.end)}.</p>",
    ]
    if chunk.rejected:
        falls = [
            f"<li>Seed {_text(str(take.get('seed')))}: {_text(' '.join(map(str, take.get('problems', ()))))}</li>"
            for take in chunk.rejected
        ]
        parts += ["<p>Not kept:</p>", "<ul>", *falls, "</ul>"]
    return "\n".join([*parts, "</details>"])
