"""What the small voice can say: its words, and a grammar that makes sentences of them.

Half of the training text is sentences, half is strings of words without sense, so that a word must be read and cannot
be guessed from the one before. Sentences for judging are drawn by the same grammar; those in the training set are
left out.
"""

import random


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


PEOPLE = _words(
    "man woman boy girl friend brother sister mother father teacher doctor farmer king queen baby child uncle",
)
ANIMALS = _words("cat dog bird horse fish cow mouse lion tiger bear sheep duck rabbit monkey spider")
THINGS = _words(
    "book table chair window door box letter ball lamp cup plate knife clock phone camera picture guitar basket",
    "paper pencil bottle hammer ladder mirror pillow blanket ticket basket bicycle computer machine",
)
FOOD = _words(
    "bread butter cheese apple orange banana soup rice cake sugar coffee tea milk water honey potato chicken",
)
PLACES = _words(
    "house garden kitchen school city village river mountain forest market station office hospital island beach",
    "bridge street room park farm library theater airport",
)
COLORS = _words("red blue green yellow black white brown purple")
ADJECTIVES = _words(
    "old young big small happy angry hungry quiet beautiful strange heavy little clever lazy gentle famous cold",
    "warm dark bright broken empty simple wonderful dangerous",
)
TRANSITIVE = _words(
    "found wanted carried opened painted washed bought sold took moved watched loved lost dropped followed",
    "remembered needed finished cleaned borrowed counted",
)
MOTION = _words("walked ran went came traveled returned climbed wandered hurried")
SPEECH = _words("said believed remembered thought explained answered")
NUMBERS = _words("two three four five six seven eight nine ten twelve twenty hundred")
ADVERBS = _words("slowly quickly quietly carefully suddenly always never often together alone again")
NAMES = _words("Peter Anna Daniel Emma Oliver Sophia Victor Maria Robert Laura")
MODALS = _words("can will must should would could")
VERBS = _words(
    "open close find carry paint wash buy sell take move watch love follow remember need clean borrow count",
)
FUNCTION = _words(
    "the a in on of and with for to is was are were my your his her our their I you he she we they it this that",
    "what where who why when how do did does not very too please because but or from near behind under about",
    "there here yes no",
)
TIMES = [
    "today",
    "yesterday",
    "tonight",
    "every morning",
    "in the evening",
    "before dinner",
    "after breakfast",
    "on Monday",
    "on Friday",
    "in the summer",
    "in the winter",
    "last week",
    "next month",
]
GREETINGS = ["Good morning", "Hello", "Thank you", "Welcome", "Excuse me", "Goodbye"]


def _plural(noun: str) -> str:
    irregular = {
        "man": "men", "woman": "women", "child": "children", "baby": "babies", "fish": "fish", "sheep": "sheep",
        "mouse": "mice", "knife": "knives", "city": "cities", "library": "libraries", "monkey": "monkeys",
    }  # fmt: skip
    if noun in irregular:
        return irregular[noun]
    return noun + ("es" if noun.endswith(("x", "ch", "sh", "s")) else "s")


def words() -> list[str]:
    """Every word, as it stands inside a sentence."""
    groups = [
        PEOPLE, ANIMALS, THINGS, FOOD, PLACES, COLORS, ADJECTIVES, TRANSITIVE, MOTION, SPEECH, NUMBERS, ADVERBS, NAMES,
        MODALS, VERBS, FUNCTION, *(phrase.split() for phrase in TIMES), *(phrase.split() for phrase in GREETINGS),
    ]  # fmt: skip
    found = {word if word in NAMES or word in ("I", "Monday", "Friday") else word.lower() for g in groups for word in g}
    return sorted(found | {_plural(noun) for noun in PEOPLE + ANIMALS + THINGS})


class Grammar:
    """Draws sentences."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.words = words()

    def sentence(self) -> str:
        """One with sense."""
        templates = [
            (4, self._plain), (2, self._question), (2, self._motion), (1, self._counted), (2, self._modal),
            (1, self._there), (1, self._speech), (1, self._request), (1, self._is), (0.5, self._greeting),
            (1, self._because),
        ]  # fmt: skip
        make = self.random.choices([t for _, t in templates], [w for w, _ in templates])[0]
        text = make()
        return text[0].upper() + text[1:]

    def string(self, fewest: int, most: int) -> str:
        """So many words without."""
        text = " ".join(self.random.choices(self.words, k=self.random.randint(fewest, most)))
        return text[0].upper() + text[1:] + self.random.choice("...?!")

    def _pick(self, *groups: list[str]) -> str:
        return self.random.choice(self.random.choice(groups))

    def _article(self, word: str) -> str:
        determiner = self.random.choice(["the", "the", "a", "my", "your", "his", "her", "our", "their", "this"])
        return "the" if determiner == "a" and word[0] in "aeiou" else determiner

    def _noun(self, *groups: list[str]) -> str:
        noun = self._pick(*groups)
        if self.random.random() < 0.5:
            noun = f"{self._pick(ADJECTIVES, COLORS)} {noun}"
        return f"{self._article(noun)} {noun}"

    def _subject(self) -> str:
        chance = self.random.random()
        if chance < 0.25:
            return self._pick(["he", "she", "we", "they", "I", "you"])
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
        start = self._pick(["did", "where did", "why did", "when did", "how did"])
        return f"{start} {self._subject()} {self._pick(VERBS)} {self._object()}{self._maybe(self._pick(TIMES), 0.3)}?"

    def _counted(self) -> str:
        noun = _plural(self._pick(PEOPLE, ANIMALS, THINGS))
        return f"{self._pick(NUMBERS)} {self._pick(ADJECTIVES, COLORS)} {noun} were {self._place()}."

    def _modal(self) -> str:
        modal = self._pick(MODALS) + self._pick([" not", "", ""])
        return f"{self._subject()} {modal} {self._pick(VERBS)} {self._object()}{self._maybe(self._pick(TIMES))}."

    def _there(self) -> str:
        what = f"{self._pick(['a', 'the'])} {self._pick(COLORS)} {self._pick(THINGS, ANIMALS)}"
        return f"there is {what} {self._pick(['on', 'under', 'behind', 'near'])} the {self._pick(THINGS, PLACES)}."

    def _speech(self) -> str:
        how = self._maybe("very", 0.3)[1:] or "too"
        who = self._noun(PEOPLE, ANIMALS)
        return f"{self._pick(NAMES)} {self._pick(SPEECH)} that {who} was {how} {self._pick(ADJECTIVES)}."

    def _request(self) -> str:
        tail = self._pick([self._place(), self._pick(TIMES), self._pick(ADVERBS)])
        return f"please {self._pick(VERBS)} {self._object()} {tail}."

    def _is(self) -> str:
        what, how = self._noun(PEOPLE, ANIMALS, THINGS, PLACES), self._pick(["very ", "not ", "too ", ""])
        return f"{what} {self._pick(['is', 'was'])} {how}{self._pick(ADJECTIVES)}."

    def _greeting(self) -> str:
        return f"{self._pick(GREETINGS).lower()}, {self._pick(NAMES)}{self._pick(['.', '!'])}"

    def _because(self) -> str:
        why = self._pick(ADJECTIVES, COLORS)
        return f"{self._pick(NAMES)} {self._pick(TRANSITIVE)} {self._object()} because it was {why}."
