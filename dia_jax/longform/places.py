"""A text that somebody wrote, and the places in it.

Knows files, line ends, the characters that no script may hold, and how to name a place in a message. Knows nothing of
what a text means.
"""

import bisect
import json
import os
import re
from pathlib import Path
from typing import Any

from dia_jax.config import DiaError, short
from dia_jax.files import FileError, read_text_file

MAX_FILE_BYTES = 16 * 2**20

# What is taken out of a text leaves this character in its place, so that positions stay. No script may hold it.
GONE = "\0"
FORBIDDEN = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_LINE_END = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")
_ZERO_WIDTH_SPACES = str.maketrans("\u200b\ufeff", "  ")


class ScriptError(DiaError):
    """A script, or a list of pronunciations, that cannot be used; the message says where and what to change."""


class Source:
    """A text, and how to name a place in it.

    Args:
        name: of the text, as messages begin with it.
        text: as it was handed in.
        turn: the turn's number, where the text is that of one turn.

    Attributes:
        text: without a byte order mark, with line ends that are all \\n; as long as what the user sees.

    Raises:
        ScriptError: it holds a character that no script may hold.
    """

    def __init__(self, name: str, text: str, *, turn: int = 0):
        text = text.removeprefix("\ufeff")
        self.name, self.turn = name, turn
        self.starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        if found := FORBIDDEN.search(text):
            raise self.error(found.start(), forbidden_problem(found[0]))
        self.text = _LINE_END.sub(lambda match: "\n".rjust(len(match[0])), text).translate(_ZERO_WIDTH_SPACES)

    def locate(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1."""
        line = bisect.bisect_right(self.starts, offset)
        return line, offset - self.starts[line - 1] + 1

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a turn; its number and 0, where the text is that of one turn."""
        return (self.turn, 0) if self.turn else self.locate(offset)

    def error(self, offset: int, problem: str) -> ScriptError:
        line, column = self.locate(offset)
        return ScriptError(f"{self.name}, line {line}, column {column}: {problem}.")


def forbidden_problem(char: str) -> str:
    """What is wrong with a character that `FORBIDDEN` finds."""
    if "\ud800" <= char <= "\udfff":
        return f"{char!r} is not valid Unicode (often from a file that is not UTF-8); save the text as UTF-8"
    return f"{char!r} is a control character, which the model cannot read; remove it"


def clean(text: str) -> str:
    """A text without what was taken out of it, and with single spaces."""
    return " ".join(text.replace(GONE, "").split())


def excerpt(text: str) -> str:
    """The beginning of a text, for a message."""
    cleaned = clean(text[:200])
    return repr(cleaned if len(cleaned) <= 30 else f"{cleaned[:29]}…")


def read_text(path: str | os.PathLike) -> str:
    """Reads a UTF-8 file of at most `MAX_FILE_BYTES`."""
    try:
        return read_text_file(path, limit=MAX_FILE_BYTES)
    except FileError as error:
        raise ScriptError(str(error)) from None


def is_json(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower() == ".json"


def parse_json(text: str, name: str) -> Any:
    """Parses JSON without losing a key that stands twice; `name` is that of the file."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise ScriptError(f"{name}: the key {short(key)} stands twice in one mapping; remove one of them.")
            values[key] = value
        return values

    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ScriptError(
            f"{name}, line {error.lineno}, column {error.colno}: this is not JSON ({error.msg}); correct it there."
        ) from None
    except RecursionError:
        raise ScriptError(f"{name} is nested too deeply; a script needs no more than five levels.") from None
    except ScriptError:
        raise
    except ValueError:  # Python reads no integers of more than 4300 digits
        raise ScriptError(f"{name} holds a number that is too long to be read; shorten it.") from None
