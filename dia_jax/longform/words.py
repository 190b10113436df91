"""The words of a text, and what the model shall read for them.

Knows words, sounds and pronunciations. Knows no turns.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dia_jax.config import short
from dia_jax.longform.places import (
    FORBIDDEN,
    ScriptError,
    Source,
    excerpt,
    forbidden_problem,
    is_json,
    parse_json,
    read_text,
)
from dia_jax.text import NONVERBAL_TAGS

MAX_SPELLING = 200

SOUND = re.compile("|".join(map(re.escape, NONVERBAL_TAGS)))
RUN = re.compile(r"\S+")
_ATOM = re.compile(r"\w+|\W")


@dataclasses.dataclass(frozen=True)
class ScriptWord:
    """A word as it is written, with the marks that touch it.

    Attributes:
        start, stop: the characters of `Turn.spoken` that say it, half-open.
    """

    text: str
    start: int
    stop: int


def units(text: str) -> Iterator[tuple[int, int, bool]]:
    """The sounds, words and marks of a text: where each starts and stops, and whether it is a word.

    What touches a sound and holds no letter or digit is a mark.
    """
    sounds = [(match.start(), match.end()) for match in SOUND.finditer(text)]
    stop = 0
    for start, after in [*sounds, (len(text), len(text))]:
        for run in RUN.finditer(text, stop, start):
            touches = (sounds and run.end() == start < len(text)) or (run.start() == stop > 0)
            yield *run.span(), not touches or any(map(str.isalnum, run[0]))
        if start < after:
            yield start, after, False
        stop = after


def has_word(text: str) -> bool:
    """Whether there is a letter or digit outside of the sounds."""
    return any(map(str.isalnum, SOUND.sub("", text)))


class Spellings:
    """Finds whole words, and writes them as they are pronounced."""

    def __init__(self, entries: Mapping[str, str]):
        self._entries = entries
        self._folded: dict[str, str] = {}
        for word in entries:
            self._folded.setdefault(word.casefold(), word)
        self._longest = max((len(_ATOM.findall(word)) for word in entries), default=0)

    def speak(self, text: str) -> tuple[str, tuple[ScriptWord, ...]]:
        """What the model shall read for a text, and the words of both."""
        parts, words, position, after = [], [], 0, 0
        for start, stop, is_word in units(text):
            parts += [text[after:start], self._spell(text[start:stop]) if is_word else text[start:stop]]
            position += start - after
            if is_word:
                words.append(ScriptWord(text[start:stop], position, position + len(parts[-1])))
            position, after = position + len(parts[-1]), stop
        return "".join(parts), tuple(words)

    def circle(self) -> list[str] | None:
        """Words each of which is spelled with the next, and the last with the first; None if there are none.

        A word that is spelled with itself is none.
        """
        uses = {
            word: iter([other for _, other in self._find(spelling) if other not in (None, word)])
            for word, spelling in self._entries.items()
        }
        done: set[str] = set()
        for first in self._entries:
            path = {} if first in done else {first: None}
            while path:
                word = next(reversed(path))
                other = next(uses[word], None)
                if other is None:
                    done.add(word)
                    del path[word]
                elif other in path:
                    return list(path)[list(path).index(other) :]
                elif other not in done:
                    path[other] = None
        return None

    def _spell(self, word: str) -> str:
        return "".join(text if entry is None else self._entries[entry] for text, entry in self._find(word))

    def _find(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Divides a text at the words that have an entry; gives each part with its entry, if it has one."""
        if not self._longest:
            yield text, None
            return
        atoms, start = _ATOM.findall(text), 0
        while start < len(atoms):
            for stop in range(min(len(atoms), start + self._longest), start, -1):
                word = "".join(atoms[start:stop])
                entry = word if word in self._entries else self._folded.get(word.casefold())
                if entry is not None and _is_whole(atoms, start, stop):
                    yield word, entry
                    break
            else:
                stop = start + 1
                yield atoms[start], None
            start = stop


def _is_whole(atoms: Sequence[str], start: int, stop: int) -> bool:
    """Whether some atoms are a word of their own: no "can" in "can't", no "C++" in "C++x", but "JAX" in "JAX's"."""
    before, after = atoms[max(start - 2, 0) : start], atoms[stop : stop + 2]
    if any(atom[0].isalnum() for atom in (*before[-1:], *after[:1])):
        return False
    if before[1:] and before[1] in ("'", "’") and before[0][0].isalnum():
        return False
    return not (after[1:] and after[0] in ("'", "’") and after[1][0].isalnum() and after[1] not in ("s", "S"))


# --- Pronunciations --------------------------------------------------------------------------------------------------


def read_pronunciations(path: str | os.PathLike) -> dict[str, str]:
    """Reads whole words and their spellings, as `Script.of` takes them.

    Args:
        path: a JSON object if its name ends in .json, else lines `word = spelling`; what follows a # at a line's
            beginning or after a space is a comment.

    Raises:
        ScriptError: it cannot be read or used; the message names the place.
    """
    name, text = os.fspath(path), read_text(path)
    if is_json(path):
        return check_pronunciations(parse_json(text, name), name)
    source = Source(name, text)
    entries: dict[str, str] = {}
    offsets: dict[str, int] = {}
    for match in re.finditer(r"[^\n]+", source.text):
        line = re.split(r"(?:^|(?<=\s))#", match[0], maxsplit=1)[0]
        if not line.strip():
            continue
        offset = match.start() + len(line) - len(line.lstrip())
        word, equals, spelling = (part.strip() for part in line.partition("="))
        if not equals:
            raise source.error(offset, f"{excerpt(line)} has no =; write a line as JAX = jacks")
        if word in entries:
            raise source.error(
                offset, f"{short(word)} stands in line {source.locate(offsets[word])[0]} already; remove one of them"
            )
        if problem := _entry_problem(word, spelling):
            raise source.error(offset, problem)
        entries[word], offsets[word] = " ".join(spelling.split()), offset
    if circle := Spellings(entries).circle():
        raise source.error(offsets[circle[0]], _circle_problem(circle))
    return entries


def check_pronunciations(entries: Any, place: str = "The pronunciations") -> dict[str, str]:
    """A mapping from anybody, or None -> words and spellings, or a ScriptError that begins with the place."""
    if entries is None:
        return {}
    if not isinstance(entries, Mapping):
        raise ScriptError(f"{place} must be a mapping from words to spellings, not {short(entries)}.")
    for word, spelling in entries.items():
        if not isinstance(word, str) or not isinstance(spelling, str):
            raise ScriptError(f"{place}: {short(word)} and its spelling {short(spelling)} must be strings.")
        if problem := _entry_problem(word, spelling):
            raise ScriptError(f"{place}: {problem}.")
    checked = {word: " ".join(spelling.split()) for word, spelling in entries.items()}
    if circle := Spellings(checked).circle():
        raise ScriptError(f"{place}: {_circle_problem(circle)}.")
    return checked


def _entry_problem(word: str, spelling: str) -> str | None:
    if word != "".join(word.split()) or not any(map(str.isalnum, word)):
        return f"{short(word)} is not one word; write single words with a letter or digit before their spellings"
    for kind, text in (("word", word), ("spelling", spelling)):
        if len(text) > MAX_SPELLING:
            return (
                f"the {kind} {short(text)} has {len(text)} characters, but at most {MAX_SPELLING} are taken; shorten it"
            )
        if wrong := FORBIDDEN.search(text):
            return f"in the {kind} {short(text)}, {forbidden_problem(wrong[0])}"
        if wrong := re.search(r"[\[\](){}<>]", text):
            return (
                f"the {kind} {short(text)} holds {wrong[0]!r}, but brackets and tags have no place in it; remove them"
            )
    if not any(map(str.isalnum, spelling)):
        return f"the spelling {short(spelling)} of {short(word)} has nothing to say; write it as it sounds"
    return None


def _circle_problem(circle: Sequence[str]) -> str:
    shown = [*circle[:5], *(["…"] if len(circle) > 5 else []), circle[0]]
    return f"{' -> '.join(shown)} goes in a circle, but spellings are not looked up again; write how each word sounds"
