"""The words of the small voice: the commonest of English, how often each is said, and those kept from it for judging.

Frequencies are wordfreq's (code Apache-2.0, data CC BY-SA 4.0). Needs wordfreq (requirements.txt); knows no speech.
"""

import functools
import random
import re

import wordfreq

COUNT = 20_000
HELD_OUT = 1 / 33
"""Share of the words that no script in the training set holds: what spelling alone teaches is measured on them."""
COMMONEST = 1500
"""Words that are never held out: without them there are no sentences."""
LONGEST = 14
QUIETEST = 50
"""Words, the commonest, that are said less loud than others, as people do."""
SHAPE = re.compile(r"[a-z]+('[a-z]+)?")
LETTERS = frozenset("ai")


@functools.cache
def frequencies() -> dict[str, float]:
    """Every word in lower case, the commonest first, and its share of all that is said."""
    found: dict[str, float] = {}
    for word in wordfreq.iter_wordlist("en"):
        usable = SHAPE.fullmatch(word) and len(word) <= LONGEST and (len(word) > 1 or word in LETTERS)
        if usable and re.search("[aeiouy]", word):
            found[word] = wordfreq.word_frequency(word, "en")
        if len(found) == COUNT:
            break
    return found


@functools.cache
def held_out() -> frozenset[str]:
    """Words for judging; not among the commonest, and none a form of another by an ending alone."""
    rare = [word for word in list(frequencies())[COMMONEST:] if "'" not in word]
    return frozenset(random.Random(0).sample(rare, int(HELD_OUT * COUNT)))


@functools.cache
def quiet() -> frozenset[str]:
    """The words that are said less loud."""
    return frozenset(list(frequencies())[:QUIETEST])
