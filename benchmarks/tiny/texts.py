"""The texts of the small voice: sentences that it learns from, and scripts by which it is judged.

Scripts for judging are written by hand, and lie in open.txt (open English) and known.txt (few and common words), two
turns a line; by those of choose.txt settings and weights are chosen, so that the others are new to them. Nothing is
trained on them, but nothing was done either to keep their words out of the lexicon. Knows no speech.
"""

import importlib.util
import re
from pathlib import Path

MOST_WORDS = 20  # of a sentence


def training(wordnet: Path) -> list[str]:
    """Sentences and parts of such, in plain letters and marks: WordNet's examples and chatterbot-corpus's dialogues.

    Args:
        wordnet: folder of WordNet's files data.*.
    """
    found = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part}").read_text("latin-1").splitlines():
            if not line.startswith("  "):
                found += re.findall(r'"([^"]+)"', line.split(" | ", 1)[1])
    spec = importlib.util.find_spec("chatterbot_corpus")
    assert spec is not None
    for path in sorted(Path(str(spec.origin)).parent.joinpath("data", "english").glob("*.yml")):
        for line in path.read_text("utf-8").splitlines():
            if match := re.match(r"\s*-\s+(?:-\s+)?(.+)", line):
                found += re.split(r"(?<=[.?!])\s+", match[1].strip("'\" "))
    plain = (text.replace("\u2019", "'").strip(" .?!") for text in found)
    usable = (text for text in plain if re.fullmatch(r"[A-Za-z][A-Za-z',;: -]*", text) and "--" not in text)
    return sorted({re.sub(r"\s+", " ", text) for text in usable if 2 <= text.count(" ") + 1 <= MOST_WORDS})


def scripts(name: str = "open") -> list[str]:
    """Scripts for judging, of open.txt, known.txt or choose.txt."""
    return (Path(__file__).parent / f"{name}.txt").read_text().splitlines()


def turns(script: str) -> list[tuple[int, str]]:
    """Tag and text of each turn."""
    return [(int(tag), text.strip()) for tag, text in re.findall(r"\[S(\d)\] ([^\[]+)", script)]


def sentences(name: str = "open") -> list[str]:
    """What the turns of the scripts for judging say, without their tags."""
    return [text for script in scripts(name) for _, text in turns(script)]
