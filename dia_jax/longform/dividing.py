"""Where a turn that is too long may be divided.

Knows sentences and clauses of English. Knows no model, and not how long is too long.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence

from dia_jax.longform.script import Turn
from dia_jax.longform.words import RUN, has_word, units

_CLOSING = "\"'”’“‘»«›‹)]}"
_SENTENCE_END = re.compile(rf"[.!?…]([{re.escape(_CLOSING)}]*)$")
_CLAUSE_END = re.compile(rf"(?:[,;:—–][{re.escape(_CLOSING)}]*|^-+)$")
_CLAUSE_BEGIN = re.compile(r"[—–]+\w.*|\W*(?:and|but|or|because|which)\W*", re.IGNORECASE)
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+")
_ABBREVIATIONS = {
    "mr.", "mrs.", "ms.", "mx.", "messrs.", "dr.", "prof.", "st.", "rev.", "hon.", "gen.", "col.", "maj.", "capt.",
    "lt.", "sgt.", "gov.", "sen.", "mt.", "ft.", "vs.", "cf.", "approx.", "ca.", "vol.",
}  # fmt: skip
# These may end sentences too.
_ABBREVIATIONS_AT_ENDS = {"jr.", "sr.", "inc.", "ltd.", "co.", "corp.", "etc."}
_BRACKETS = {")": "(", "]": "[", "}": "{"}


def sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text start and stop, half-open, without the spaces between them.

    A sentence ends before a space, after . ! ? or … and the quotes that follow; not after abbreviations and initials,
    and not inside of brackets. Each has a word, if the text has one.
    """
    return _divide(text, _ends_sentence)


def clauses(text: str) -> list[tuple[int, int]]:
    """As `sentences`, divided after , ; : and dashes and before "and", "but", "or", "because" and "which" as well."""
    return _divide(text, _ends_clause)


def cut(turn: Turn, points: Sequence[int]) -> list[Turn]:
    """Divides a turn.

    Args:
        points: positions in `Turn.spoken`. One inside of a word, or of its spelling, counts as the word's start.

    Returns:
        The parts in order. The first has the turn's pause, the others have none. A point at the turn's start, or the
        same point again, adds no part.

    Raises:
        ValueError: a point lies outside of the turn.
    """
    texts, starts, words, stop, position = [0], [0], iter(turn.words), 0, 0
    for start, after, is_word in units(turn.text):
        position += start - stop
        if start > stop:
            texts.append(start)
            starts.append(position)
        position, stop = next(words).stop if is_word else position + after - start, after
    if outside := [point for point in points if not 0 <= point < len(turn.spoken)]:
        raise ValueError(f"The points {outside} lie outside of a turn of {len(turn.spoken)} characters.")
    chosen = sorted({0, *(bisect.bisect_right(starts, point) - 1 for point in points)})
    # Each part ends at the space before the next; the last, where such a space would be.
    texts, starts, chosen = [*texts, len(turn.text) + 1], [*starts, len(turn.spoken) + 1], [*chosen, len(starts)]
    said = [word.start for word in turn.words]
    parts = []
    for first, after in itertools.pairwise(chosen):
        begin, end = starts[first], starts[after]
        parts.append(
            dataclasses.replace(
                turn,
                text=turn.text[texts[first] : texts[after] - 1],
                spoken=turn.spoken[begin : end - 1],
                words=tuple(
                    dataclasses.replace(word, start=word.start - begin, stop=word.stop - begin)
                    for word in turn.words[bisect.bisect_left(said, begin) : bisect.bisect_left(said, end)]
                ),
                pause=0.0 if parts else turn.pause,
            )
        )
    return parts


def _divide(text: str, ends: Callable[[str, str], bool]) -> list[tuple[int, int]]:
    """Joins the words of a text into parts; `ends` says whether one ends after a word, before another."""
    parts: list[tuple[int, int]] = []
    brackets, words, start = _bracketed(text), list(RUN.finditer(text)), None
    for word, following in itertools.zip_longest(words, words[1:]):
        start = word.start() if start is None else start
        while brackets and brackets[-1][1] < word.end():
            brackets.pop()
        is_inside = bool(brackets) and brackets[-1][0] < word.end()
        if following is None or (not is_inside and ends(word[0], following[0])):
            parts.append((start, word.end()))
            start = None
    joined: list[tuple[int, int]] = []
    for start, stop in parts:
        if joined and not (has_word(text[start:stop]) and has_word(text[slice(*joined[-1])])):
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _bracketed(text: str) -> list[tuple[int, int]]:
    """Where the outermost pairs of brackets open and close, the last first."""
    opened: list[int] = []
    pairs: list[tuple[int, int]] = []
    for match in re.finditer(r"[()\[\]{}]", text):
        if match[0] not in _BRACKETS:
            opened.append(match.start())
        elif opened and text[opened[-1]] == _BRACKETS[match[0]]:
            pairs.append((opened.pop(), match.start()))
            while len(pairs) > 1 and pairs[-2][0] > pairs[-1][0]:
                del pairs[-2]
    return pairs[::-1]


def _ends_sentence(word: str, following: str) -> bool:
    if not (end := _SENTENCE_END.search(word)):
        return False
    goes_on = following.lstrip(_CLOSING + "([{").lstrip()[:1].islower()
    if end[1] and goes_on:  # "Why?" he asked.
        return False
    core = word.strip(_CLOSING + "([{").casefold()
    if core in _ABBREVIATIONS_AT_ENDS:
        return not goes_on
    return core not in _ABBREVIATIONS and not _INITIALS.fullmatch(core)


def _ends_clause(word: str, following: str) -> bool:
    return (
        _ends_sentence(word, following)
        or _CLAUSE_END.search(word) is not None
        or _CLAUSE_BEGIN.fullmatch(following) is not None
    )
