"""What the small voice can say: its words, and a grammar that makes sentences of them.

Half of the training text is sentences, half is strings of words without sense, so that a word must be read and cannot
be guessed from the one before. Sentences for judging are drawn by the same grammar; those in the training set are
left out.
"""

import random
from collections.abc import Sequence


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


PEOPLE = _words("brother sister mother father teacher doctor farmer queen baby child woman friend")
ANIMALS = _words("horse rabbit tiger spider monkey")
THINGS = _words(
    "table chair window door box letter lamp knife clock camera picture basket pencil pillow machine computer mirror",
    "bottle",
)
FOOD = _words("bread butter apple orange banana sugar coffee water honey potato")
PLACES = _words(
    "house garden kitchen hospital city village river mountain forest market station office island bridge park library",
    "theater",
)
COLORS = _words("red yellow green purple")
ADJECTIVES = _words(
    "young big small hungry quiet beautiful strange heavy clever gentle famous cold simple dangerous wonderful empty",
)
TRANSITIVE = _words("found wanted carried painted sold watched loved lost followed finished cleaned counted")
MOTION = _words("went came traveled returned climbed")
SPEECH = _words("said thought believed")
ADVERBS = _words("slowly quickly quietly always never together again")
NAMES = _words("Peter Daniel Oliver Victor Robert Laura Emma")
MODALS = _words("can will must should")
VERBS = _words("find carry paint close watch take need clean count remember")
FUNCTION = _words(
    "the in to from behind near under was is it they we you I my your his her this very not that because please",
    "there where why how did",
)
TIMES = ["today", "yesterday", "every morning", "every evening", "after breakfast", "before dinner", "last week"]
GREETINGS = ["Good morning", "Hello", "Thank you", "Welcome", "Excuse me"]


def words() -> list[str]:
    """Every word, as it stands inside a sentence."""
    groups = [
        PEOPLE, ANIMALS, THINGS, FOOD, PLACES, COLORS, ADJECTIVES, TRANSITIVE, MOTION, SPEECH, ADVERBS, NAMES, MODALS,
        VERBS, FUNCTION, *(phrase.split() for phrase in TIMES), *(phrase.split() for phrase in GREETINGS),
    ]  # fmt: skip
    return sorted({word if word in NAMES or word == "I" else word.lower() for group in groups for word in group})


class Grammar:
    """Draws sentences."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.words = words()

    def sentence(self) -> str:
        """One with sense."""
        templates = [
            (4, self._plain), (2, self._question), (2, self._motion), (2, self._modal),
            (1, self._there), (1, self._speech), (1, self._request), (1, self._is), (0.5, self._greeting),
            (1, self._because),
        ]  # fmt: skip
        make = self.random.choices([t for _, t in templates], [w for w, _ in templates])[0]
        text = make()
        return text[0].upper() + text[1:]

    def string(self, fewest: int, most: int, words: Sequence[str] = ()) -> str:
        """So many words without, of these if any are given."""
        text = " ".join(self.random.choices(words or self.words, k=self.random.randint(fewest, most)))
        return text[0].upper() + text[1:] + self.random.choice("...?!")

    def _pick(self, *groups: list[str]) -> str:
        return self.random.choice(self.random.choice(groups))

    def _noun(self, *groups: list[str]) -> str:
        noun = self._pick(*groups)
        if self.random.random() < 0.5:
            noun = f"{self._pick(ADJECTIVES, COLORS)} {noun}"
        return f"{self._pick(['the', 'the', 'my', 'your', 'his', 'her', 'this'])} {noun}"

    def _subject(self) -> str:
        chance = self.random.random()
        if chance < 0.25:
            return self._pick(["we", "they", "I", "you"])
        return self._pick(NAMES) if chance < 0.45 else self._noun(PEOPLE, PEOPLE, ANIMALS)

    def _object(self) -> str:
        return self._noun(THINGS, THINGS, FOOD, ANIMALS)

    def _place(self) -> str:
        return f"{self._pick(['in', 'near', 'behind', 'from'])} {self._noun(PLACES)}"

    def _maybe(self, text: str, chance: float = 0.4) -> str:
        return f" {text}" if self.random.random() < chance else ""

    def _plain(self) -> str:
        tail = self._maybe(self._pick([self._place(), self._pick(TIMES), self._pick(ADVERBS)]), 0.6)
        return f"{self._subject()} {self._pick(TRANSITIVE)} {self._object()}{tail}."

    def _motion(self) -> str:
        verb = self._pick(MOTION)
        how, when = self._maybe(self._pick(ADVERBS)), self._maybe(self._pick(TIMES))
        return f"{self._subject()} {verb}{how} to {self._noun(PLACES)}{when}."

    def _question(self) -> str:
        start = self._pick(["did", "where did", "why did", "how did"])
        return f"{start} {self._subject()} {self._pick(VERBS)} {self._object()}{self._maybe(self._pick(TIMES), 0.3)}?"

    def _modal(self) -> str:
        modal = self._pick(MODALS) + self._pick([" not", "", ""])
        return f"{self._subject()} {modal} {self._pick(VERBS)} {self._object()}{self._maybe(self._pick(TIMES))}."

    def _there(self) -> str:
        what = f"{self._pick(['my', 'the'])} {self._pick(COLORS)} {self._pick(THINGS, ANIMALS)}"
        return f"there is {what} {self._pick(['under', 'behind', 'near'])} the {self._pick(THINGS, PLACES)}."

    def _speech(self) -> str:
        who, how = self._noun(PEOPLE, ANIMALS), self._pick(["very ", ""])
        return f"{self._pick(NAMES)} {self._pick(SPEECH)} that {who} was {how}{self._pick(ADJECTIVES)}."

    def _request(self) -> str:
        tail = self._pick([self._place(), self._pick(TIMES), self._pick(ADVERBS)])
        return f"please {self._pick(VERBS)} {self._object()} {tail}."

    def _is(self) -> str:
        what, how = self._noun(PEOPLE, ANIMALS, THINGS, PLACES), self._pick(["very ", "not ", ""])
        return f"{what} {self._pick(['is', 'was'])} {how}{self._pick(ADJECTIVES)}."

    def _greeting(self) -> str:
        return f"{self._pick(GREETINGS).lower()}, {self._pick(NAMES)}{self._pick(['.', '!'])}"

    def _because(self) -> str:
        why = self._pick(ADJECTIVES, COLORS)
        return f"{self._pick(NAMES)} {self._pick(TRANSITIVE)} {self._object()} because it was {why}."
