"""Scripts of any length, as people write them -> turns and chapters.

    # The title

    ## A chapter

    [Anna] Hello, Ben. (pause 1.5) Are you there?
    [Ben] (laughs) I *am*. [Anna] Good.

Knows tags, pauses, headings and Markdown's emphasis, and the JSON form. Knows no model and none of its limits, no
voices, and not who is in the cast.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dia_jax.config import short
from dia_jax.longform.places import GONE, ScriptError, Source, clean, excerpt, is_json, parse_json, read_text
from dia_jax.longform.words import SOUND, ScriptWord, Spellings, check_pronunciations, has_word
from dia_jax.text import NONVERBAL_TAGS

MAX_BYTES = 1_000_000
MAX_NAME = 40
MAX_PAUSE = 60.0

_EMPHASIS = re.compile(r"(?P<skip>\[[^\[\]\n]*\])|(?P<blank>\n[^\S\n]*\n)|\*+|_+")
_RULE = re.compile(r"([-*_])(?:[^\S\n]*\1){2,}")
_HEADING = re.compile(r"(#{1,6})(?:\s+(.*?))??(?:\s+#+)?")
_SPECIAL = re.compile(
    r"""
      \[ (?P<name>[^\[\]\n]*) (?P<closed> \] (?: \0*:(?=[\s\0]|$) )? )?
    | (?P<stray>\])
    | \( [^\S\n]* (?i:pause) (?![^\W\d]|[-'’]) (?P<seconds>[^()\[\]\n]*) (?P<ended>\))? (?P<marks>[.,;:!?…]*)
    """,
    re.VERBOSE,
)
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one speaker says without a stated pause in between.

    Attributes:
        speaker: the name in the tag.
        text: as it is written, without tags, with single spaces.
        spoken: what the model shall read: the text with its words spelled as they are pronounced.
        words: in order. Sounds such as `(laughs)` are not among them; a turn may consist of sounds alone.
        pause: seconds of silence asked for before the turn.
        line, column: where it begins in the text, from 1. In a script that is no text: its number, and 0.
    """

    speaker: str
    text: str
    spoken: str
    words: tuple[ScriptWord, ...]
    pause: float
    line: int
    column: int

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"line {self.line}, column {self.column}" if self.column else f"turn {self.line}"


@dataclasses.dataclass(frozen=True)
class Chapter:
    """Begins at a turn and goes on to the next chapter; `title` is "" where the script has none."""

    title: str
    first_turn: int


@dataclasses.dataclass(frozen=True)
class Script:
    """What is to be said, by whom, in which order.

    A text has these rules; there are no escapes. It may have `MAX_BYTES`.

    - `[Name]` begins a turn, which may go over several lines; so does `[Name]:`. Names differ by case.
    - `(pause 1.5)` asks for silence, in seconds. Several add up, to `MAX_PAUSE` at most. In the middle of a turn it
      divides the turn in two.
    - `# Heading`, with one to six #, ends the turn before it. The first heading, if it is of level 1 and stands before
      any turn, is the title; all others begin chapters. Of headings without turns between, the titles are joined.
    - Without headings of chapters, blank lines begin chapters without titles where a tag follows. Where all turns
      stand alone between blank lines, there is one chapter. A line `---` is a blank line.
    - `*Emphasis*`, `**emphasis**` and `_emphasis_` lose their marks. `<!-- Comments -->` are left out.

    JSON is a list of turns {"speaker": ..., "text": ..., "pause": ...}, or has these keys, of which one of the last
    two is needed: "title", "cast" {name: path of a voice}, "pronunciations" {word: spelling}, "turns", "chapters"
    [{"title": ..., "turns": ...}]. Pauses, emphasis and comments are those of a text.

    Attributes:
        turns: one or more.
        chapters: cover all turns; their first turns ascend from 0.
        title: "" if there is none.
        cast: the path of a voice for some of the names, as it stands in the JSON.
        final_pause: seconds of silence asked for at the end.
        pronunciations: what `Turn.spoken` was made with.
    """

    turns: tuple[Turn, ...]
    chapters: tuple[Chapter, ...]
    title: str = ""
    cast: Mapping[str, str] = dataclasses.field(default_factory=dict)
    final_pause: float = 0.0
    pronunciations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def speakers(self) -> tuple[str, ...]:
        """All names, in the order in which they first speak."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    @classmethod
    def of(cls, script: "ScriptLike", *, pronunciations: Mapping[str, str] | None = None) -> "Script":
        """A script from a text or from Python objects.

        Args:
            script: a text; a list of pairs (speaker, text), or of turns as in JSON; what the JSON form holds; or a
                Script.
            pronunciations: whole words -> spellings. A word is looked up as it is written, then without regard to
                case; the longest entry wins. Parts between hyphens, and what stands before 's, are words too. Spellings
                are not looked up again. {"us": "us"} keeps a word from being read by an entry "US". They join the
                script's own; where both have a word, these count.

        Raises:
            ScriptError: it cannot be used; the message names the place.
        """
        if isinstance(script, str):
            return _from_text(script, "The script", pronunciations)
        if isinstance(script, Script):
            return _spell_anew(script, pronunciations)
        return _from_objects(script, "The script", pronunciations)

    @classmethod
    def read(cls, path: str | os.PathLike, *, pronunciations: Mapping[str, str] | None = None) -> "Script":
        """A script from a file: JSON if its name ends in .json, else a text. Arguments and errors are those of `of`."""
        name, text = os.fspath(path), read_text(path)
        if is_json(path):
            return _from_objects(parse_json(text, name), name, pronunciations)
        return _from_text(text, name, pronunciations)


ScriptLike = Script | str | Mapping[str, Any] | Sequence[tuple[str, str] | Mapping[str, Any]]


# --- What is inside of lines -----------------------------------------------------------------------------------------


class _Tag(NamedTuple):
    name: str
    offset: int


class _Said(NamedTuple):
    text: str
    offset: int


class _Pause(NamedTuple):
    seconds: float
    offset: int


def _mask(source: Source) -> str:
    """The text with `GONE` in place of comments and the marks of emphasis."""
    parts, stop = [], 0
    while (start := source.text.find("<!--", stop)) >= 0:
        parts.append(source.text[stop:start])
        stop = source.text.find("-->", start + 4) + 3
        if stop < 3:
            raise source.error(start, "the comment that begins here is never closed; end it with -->")
        # One line end stays, so that what follows a comment of several lines is on a line of its own.
        head, end, tail = source.text[start:stop].rpartition("\n")
        parts.append(GONE * len(head) + end + GONE * len(tail))
    text = "".join([*parts, source.text[stop:]])
    masked, opened = list(text), {"*": list[int](), "_": list[int]()}
    for run in _EMPHASIS.finditer(text):
        if run["skip"]:
            continue
        if run["blank"]:
            opened = {"*": [], "_": []}
            continue
        start, stop = run.span()
        before, after = text[start - 1 : start], text[stop : stop + 1]
        if before.strip() and not after.isalnum():
            waiting = opened[run[0][0]]
            while start < stop and waiting:
                masked[start] = masked[waiting.pop()] = GONE
                start += 1
        if after.strip() and not before.isalnum():
            opened[run[0][0]] += range(start, stop)
    return "".join(masked)


def _pieces(source: Source, masked: str, start: int, stop: int) -> Iterator[_Tag | _Said | _Pause]:
    """Divides a part of a text at tags and pauses."""
    for match in _SPECIAL.finditer(masked, start, stop):
        said, first, offset, start = masked[start : match.start()], start, match.start(), match.end()
        if match["marks"] and clean(said):
            said = said.rstrip() + match["marks"]  # "Wait (pause 1)." ends with its full stop
        elif match["marks"]:
            start = match.start("marks")
        if said:
            yield _Said(said, first)
        if match["stray"]:
            raise source.error(
                offset, "this ] closes no tag; write a tag as [Anna], and round brackets where none is meant"
            )
        if match["name"] is not None:
            if not match["closed"]:
                raise source.error(
                    offset,
                    f"the tag {excerpt(match[0])} is not closed before the next [ or the end of the line; write it as "
                    "[Anna], and round brackets where none is meant",
                )
            name = clean(match["name"])
            if problem := _name_problem(name):
                raise source.error(offset, problem)
            yield _Tag(name, offset)
        else:
            tag = masked[offset : match.start("marks")]
            if not match["ended"]:
                raise source.error(offset, f"the pause {excerpt(tag)} is not closed; write it as (pause 1.5)")
            number = clean(match["seconds"])
            if not _NUMBER.fullmatch(number) or float(number) > MAX_PAUSE:
                raise source.error(
                    offset,
                    f"{excerpt(tag)} is no pause of 0 to {MAX_PAUSE:g} seconds; write it as (pause 1.5), and with "
                    "other words where none is meant",
                )
            yield _Pause(float(number), offset)
    if start < stop:
        yield _Said(masked[start:stop], start)


def _name_problem(name: str) -> str | None:
    if not any(map(str.isalnum, name)):
        return f"the name {short(name)} has no letter and no digit; write one such as S1 or Anna"
    if len(name) > MAX_NAME:
        return f"the name {short(name)} is {len(name)} characters long, but at most {MAX_NAME} are taken; shorten it"
    if wrong := re.search(r"[^\w .'’\-]", name):
        return (
            f"the name {short(name)} holds {wrong[0]!r}, but names are made of letters, digits, spaces, _, -, . and '; "
            "change it, or write round brackets where no tag is meant"
        )
    if f"({name})" in NONVERBAL_TAGS or re.fullmatch(r"(?i:pause)[\d .]*", name):
        return f"[{name}] is no speaker; write it in round brackets, as (laughs) or (pause 1.5)"
    return None


# --- Turns -----------------------------------------------------------------------------------------------------------


class _Turns:
    """Gathers turns, and the silence between them, in the order of the script."""

    def __init__(self, spellings: "Spellings"):
        self.turns: list[Turn] = []
        self.pause = 0.0
        self._spellings = spellings
        self._source: Source | None = None
        self._speaker, self._offset = "", 0
        self._said: list[str] = []
        self._is_first = self._is_empty = True

    @property
    def speaking(self) -> bool:
        """A turn has begun and not ended."""
        return self._source is not None

    def begin(self, speaker: str, source: Source, offset: int) -> None:
        self.end()
        self._speaker, self._source, self._offset = speaker, source, offset
        self._said, self._is_first, self._is_empty = [], True, True

    def say(self, said: _Said) -> None:
        if clean(said.text):
            if self._is_empty and not self._is_first:
                self._offset = _first(said)
            self._is_empty = False
        self._said.append(said.text)

    def rest(self, pause: _Pause, source: Source) -> None:
        if self.speaking and not self._is_empty:
            self._finish()
        self.wait(pause.seconds, lambda problem: source.error(pause.offset, problem))

    def wait(self, seconds: float, error: Callable[[str], ScriptError]) -> None:
        self.pause += seconds
        if self.pause > MAX_PAUSE:
            raise error(
                f"the pauses before this place add up to {self.pause:g} seconds, but at most {MAX_PAUSE:g} are taken; "
                "shorten them"
            )

    def end(self) -> None:
        if self._source is not None:
            if self._is_first or not self._is_empty:
                self._finish()
            self._source = None

    def _finish(self) -> None:
        assert self._source is not None
        text = clean("".join(self._said))
        if not text:
            raise self._source.error(
                self._offset,
                f"the turn of {short(self._speaker)} is empty; write what it says, or remove it (a script needs no "
                "closing tag)",
            )
        if not has_word(text) and not SOUND.search(text):
            raise self._source.error(
                self._offset,
                f"the turn of {short(self._speaker)} says only {excerpt(text)}, which is no word and no sound; write "
                "words, a sound such as (sighs), or a pause such as (pause 1.5)",
            )
        spoken, words = self._spellings.speak(text)
        line, column = self._source.position(self._offset)
        self.turns.append(Turn(self._speaker, text, spoken, words, self.pause, line, column))
        self.pause, self._said, self._is_first, self._is_empty = 0.0, [], False, True


def _first(said: _Said) -> int:
    """Where the first character that is no space stands."""
    return said.offset + len(said.text) - len(said.text.replace(GONE, " ").lstrip())


# --- Texts -----------------------------------------------------------------------------------------------------------


def _from_text(text: str, name: str, pronunciations: Mapping[str, str] | None) -> Script:
    source = Source(name, text)
    data = source.text.encode()
    if len(data) > MAX_BYTES:
        raise source.error(
            len(data[:MAX_BYTES].decode(errors="ignore")),
            f"here the script passes {MAX_BYTES:,} bytes, the most that one may have, of its {len(data):,}; split it "
            "into several",
        )
    entries = check_pronunciations(pronunciations)
    gathered, masked = _Turns(Spellings(entries)), _mask(source)
    title, is_blank, stop = "", False, -1
    headings: list[tuple[str, int, int]] = []  # title, first turn, offset
    paragraphs: list[list[int]] = []  # first turns of tags, by the blank lines between them
    while stop < len(masked):
        start, stop = stop + 1, masked.find("\n", stop + 1)
        stop = len(masked) if stop < 0 else stop
        line = clean(masked[start:stop])
        if not line or _RULE.fullmatch(line):
            is_blank |= bool(line) or GONE not in masked[start:stop]
            continue
        if heading := _HEADING.fullmatch(line):
            gathered.end()
            if not heading[2]:
                raise source.error(start, "the heading has no words; write some, or remove it")
            if not gathered.turns and not headings and not title and len(heading[1]) == 1:
                title = heading[2]
            else:
                headings.append((heading[2], len(gathered.turns), start))
            continue
        for piece in _pieces(source, masked, start, min(stop + 1, len(masked))):
            match piece:
                case _Tag(speaker, offset):
                    gathered.begin(speaker, source, offset)
                    if is_blank or not paragraphs:
                        paragraphs.append([])
                    paragraphs[-1].append(len(gathered.turns))
                    is_blank = False
                case _Pause():
                    gathered.rest(piece, source)
                case _Said() if clean(piece.text):
                    if not gathered.speaking:
                        raise _untagged(source, masked, piece)
                    gathered.say(piece)
                    is_blank = False
                case _ if gathered.speaking:
                    gathered.say(piece)
    gathered.end()
    if not gathered.turns:
        raise source.error(0, "the script has no turn; write one such as [Anna] Hello")
    if headings:
        if headings[-1][1] == len(gathered.turns):
            raise source.error(
                headings[-1][2], f"no turn follows the heading {excerpt(headings[-1][0])}; write one, or remove it"
            )
        chapters = [] if headings[0][1] == 0 else [Chapter("", 0)]
        for first, titles in itertools.groupby(headings, key=lambda heading: heading[1]):
            chapters.append(Chapter(": ".join(heading[0] for heading in titles), first))
    elif any(len(paragraph) > 1 for paragraph in paragraphs):
        chapters = [Chapter("", paragraph[0]) for paragraph in paragraphs]
    else:
        chapters = [Chapter("", 0)]
    return Script(tuple(gathered.turns), tuple(chapters), title, final_pause=gathered.pause, pronunciations=entries)


def _untagged(source: Source, masked: str, said: _Said) -> ScriptError:
    offset, words = _first(said), excerpt(said.text)
    if "[" not in masked:
        return source.error(offset, f"{words} has no speaker; begin with a tag such as [S1] or [Anna]")
    where = "after a heading" if "[" in masked[:offset] else "before the first tag"
    return source.error(offset, f"{words} stands {where}, so it has no speaker; write a tag such as [Anna] before it")


# --- JSON and Python objects -----------------------------------------------------------------------------------------


def _spell_anew(script: Script, pronunciations: Mapping[str, str] | None) -> Script:
    if not (given := check_pronunciations(pronunciations)):
        return script
    entries = check_pronunciations({**given, **script.pronunciations, **given})
    spellings, turns = Spellings(entries), []
    for turn in script.turns:
        spoken, words = spellings.speak(turn.text)
        turns.append(dataclasses.replace(turn, spoken=spoken, words=words))
    return dataclasses.replace(script, turns=tuple(turns), pronunciations=entries)


def _from_objects(script: Any, name: str, pronunciations: Mapping[str, str] | None) -> Script:
    if isinstance(script, (list, tuple)):
        script = {"turns": script}
    if not isinstance(script, Mapping):
        raise ScriptError(f"{name} must be a list of turns, or a mapping with turns or chapters, not {short(script)}.")
    _check_keys(script, ("title", "cast", "pronunciations", "turns", "chapters"), name)
    if ("turns" in script) == ("chapters" in script):
        raise ScriptError(f"{name} must have either turns or chapters; give one of the two.")
    given = check_pronunciations(pronunciations)
    own = check_pronunciations(script.get("pronunciations"), f"{name}, pronunciations")
    entries = check_pronunciations({**given, **own, **given})
    title, cast = _check_title(script, f"{name}, title"), _check_cast(script.get("cast"), f"{name}, cast")
    gathered, chapters, count, room = _Turns(Spellings(entries)), [], 0, MAX_BYTES
    for prefix, part in _parts(script, name):
        chapters.append(Chapter("" if part is script else _check_title(part, f"{prefix}.title"), len(gathered.turns)))
        for place, turn in _items(part["turns"], f"{prefix}.turns" if part is not script else f"{name}, turns"):
            count += 1
            speaker, text, pause = _check_turn(turn, place)
            room -= len(text.encode())
            if room < 0:
                raise ScriptError(
                    f"{place}.text: here the script passes {MAX_BYTES:,} bytes, the most that one may have; split it "
                    "into several."
                )
            gathered.wait(pause, lambda problem, place=place: ScriptError(f"{place}.pause: {problem}."))
            source = Source(f"{place}.text", text, turn=count)
            gathered.begin(speaker, source, 0)
            masked = _mask(source)
            for piece in _pieces(source, masked, 0, len(masked)):
                match piece:
                    case _Tag():
                        raise source.error(
                            piece.offset,
                            f"the text of a turn holds the tag [{piece.name}]; make a turn of its own of what follows",
                        )
                    case _Pause():
                        gathered.rest(piece, source)
                    case _Said():
                        gathered.say(piece)
            gathered.end()
    return Script(tuple(gathered.turns), tuple(chapters), title, cast, gathered.pause, entries)


def _parts(script: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The chapters of a script, each with its place, or the script itself where it has none."""
    if "turns" in script:
        yield name, script
        return
    for place, chapter in _items(script["chapters"], f"{name}, chapters"):
        if isinstance(chapter, Mapping):
            _check_keys(chapter, ("title", "turns"), place)
        if not isinstance(chapter, Mapping) or "turns" not in chapter:
            raise ScriptError(f"{place}: {short(chapter)} must be a mapping with turns, and a title if it has one.")
        yield place, chapter


def _items(values: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The items of a list, each with its place."""
    if not isinstance(values, (list, tuple)) or not values:
        raise ScriptError(f"{place}: {short(values)} must be a list with one item or more.")
    for index, value in enumerate(values):
        yield f"{place}[{index}]", value


def _check_turn(turn: Any, place: str) -> tuple[str, str, float]:
    """Speaker, text and pause of a turn."""
    if isinstance(turn, (list, tuple)) and len(turn) == 2:
        turn = {"speaker": turn[0], "text": turn[1]}
    if isinstance(turn, Mapping):
        _check_keys(turn, ("speaker", "text", "pause"), place)
    if not isinstance(turn, Mapping) or "speaker" not in turn or "text" not in turn:
        raise ScriptError(f"{place}: {short(turn)} must be a mapping with speaker and text, or a pair of them.")
    speaker = " ".join(_check_string(turn["speaker"], f"{place}.speaker").split())
    if problem := _name_problem(speaker):
        raise ScriptError(f"{place}.speaker: {problem}.")
    pause = turn.get("pause", 0.0)
    if isinstance(pause, bool) or not isinstance(pause, (int, float)) or not 0 <= pause <= MAX_PAUSE:
        raise ScriptError(f"{place}.pause: {short(pause)} must be a number of seconds from 0 to {MAX_PAUSE:g}.")
    return speaker, _check_string(turn["text"], f"{place}.text"), float(pause)


def _check_keys(values: Mapping[Any, Any], known: tuple[str, ...], place: str) -> None:
    if unknown := [key for key in values if key not in known]:
        raise ScriptError(
            f"{place}: unknown {'key' if len(unknown) == 1 else 'keys'} {', '.join(map(short, unknown[:5]))}; "
            f"it may have {', '.join(known[:-1])} and {known[-1]}."
        )


def _check_string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ScriptError(f"{place}: {short(value)} must be a string.")
    Source(place, value)  # raises for characters that no script may hold
    return value


def _check_title(values: Mapping[str, Any], place: str) -> str:
    return " ".join(_check_string(values.get("title", ""), place).split())


def _check_cast(cast: Any, place: str) -> dict[str, str]:
    if cast is None:
        return {}
    if not isinstance(cast, Mapping):
        raise ScriptError(f"{place}: {short(cast)} must be a mapping from names to paths of voices.")
    for name, path in cast.items():
        if problem := _name_problem(_check_string(name, place)):
            raise ScriptError(f"{place}: {problem}.")
        if not _check_string(path, f"{place}, {short(name)}").strip():
            raise ScriptError(f"{place}, {short(name)}: the path is empty; write that of a voice.")
    return dict(cast)
