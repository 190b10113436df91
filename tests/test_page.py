"""The page of a recording: its structure, and that no text of a script can break out of it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dia_jax.longform.page import page
from dia_jax.longform.speech import Speech, SpokenChapter, SpokenChunk, SpokenTurn, Word

HOSTILE = "</script><script>alert(1)</script><!-- \"'&amp; $title ${audio}"
VOID = {"meta", "link", "input", "br"}


class Tree(HTMLParser):
    """Checks that elements nest, and keeps each as (tag, attributes, text within)."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, dict, list[str]]] = []
        self.elements: list[tuple[str, dict, list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        element = (tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def find(self, tag: str, **wanted: str) -> list[tuple[dict, str]]:
        """Attributes and text of elements that have these attributes; of "kind", one of its classes."""
        kind = wanted.pop("kind", None)
        return [
            (attributes, "".join(texts))
            for name, attributes, texts in self.elements
            if name == tag
            and all(attributes.get(key) == value for key, value in wanted.items())
            and (kind is None or kind in attributes.get("class", "").split())
        ]


def turn(number: int, speaker: str, text: str, start: float, chunks: tuple[int, ...]) -> SpokenTurn:
    words = tuple(Word(word, start + 0.3 * i, start + 0.3 * i + 0.25, 0.9) for i, word in enumerate(text.split()))
    return SpokenTurn(number, speaker, text, start, start + 0.3 * len(words), words, chunks)


def chunk(number: int, *problems: str, rejected: tuple = ()) -> SpokenChunk:
    verdict = {"passed": not problems, "problems": list(problems), "score": 1.0, "measures": {}}
    return SpokenChunk(number, 10.0 * number, 10.0 * number + 9, verdict, 1 + len(rejected), rejected)


@pytest.fixture
def speech() -> Speech:
    turns = (
        turn(0, "Anna", "Good morning, Ben.", 0.2, (0,)),
        turn(1, "Ben", "Is it? I had not seen.", 2.0, (0,)),
        turn(2, "Anna", "It is, by the clock.", 10.0, (1, 2)),
        turn(3, "Carl", "Late as ever.", 3661.0, (2,)),
    )
    rejected = ({"seed": 77, "problems": ["It stops before the end.", "Too fast."]},)
    chunks = (chunk(0), chunk(1, "The last word is cut."), chunk(2, rejected=rejected))
    chapters = (SpokenChapter("", 0.0), SpokenChapter("The clock", 10.02))
    return Speech(np.zeros(36_700), 10, turns, chapters, chunks, "Time & tide")


def test_what_is_on_the_page(speech: Speech):
    tree = Tree(page(speech, audio="recording.mp3"))
    assert tree.find("html", lang="en")
    assert [text for _, text in tree.find("h1")] == ["Time & tide"]
    assert [attributes["src"] for attributes, _ in tree.find("audio")] == ["./recording.mp3"]
    assert tree.find("p", kind="facts")[0][1] == "1:01:10 · Anna, Ben, Carl · 2 of 3 chunks passed, 4 takes"
    lines = tree.find("li", kind="turn")
    assert [attributes["id"] for attributes, _ in lines] == ["turn-0", "turn-1", "turn-2", "turn-3"]
    assert [attributes["class"] for attributes, _ in lines] == ["turn s0", "turn s1", "turn s0 problem", "turn s2"]
    assert [text for _, text in tree.find("p", kind="text")] == [turn.text for turn in speech.turns]
    assert [text for _, text in tree.find("span", kind="speaker")] == ["Anna", "Ben", "Anna", "Carl"]
    assert [text for _, text in tree.find("span", kind="w")] == [word.text for word in speech.words]
    assert [attributes["data-start"] for attributes, _ in tree.find("button")][-1] == "3661.000"
    assert tree.find("button")[-1][0]["aria-label"] == "Play Carl from 1:01:01"
    assert [(attributes["href"], text) for attributes, text in tree.find("a") if "data-start" in attributes] == [
        ("#chapter-1", "0:00 Chapter 1"),
        ("#chapter-2", "0:10 The clock"),
    ]
    assert [(attributes["id"], text) for attributes, text in tree.find("h2")] == [
        ("chapter-1", "Chapter 1"),
        ("chapter-2", "The clock"),
    ]
    ids = [attributes["id"] for _, attributes, _ in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_each_line_has_its_verdict(speech: Speech):
    tree = Tree(page(speech, audio="recording.mp3"))
    assert [text for _, text in tree.find("summary")] == [
        "Chunk 0: passed",
        "Chunk 0: passed",
        "Chunk 1: The last word is cut.",
        "Chunk 2: passed",
        "Chunk 2: passed",
    ]
    assert "Only lines with problems (1)" in "".join(text for _, text in tree.find("label"))
    assert "Seed 77: It stops before the end. Too fast." in tree.find("details")[-1][1]


def test_times_are_those_of_the_words_and_never_fall(speech: Speech):
    times = json.loads(Tree(page(speech, audio="recording.mp3")).find("script", id="times")[0][1])
    assert times["starts"] == [round(word.start, 3) for word in speech.words]
    assert times["ends"] == [round(word.end, 3) for word in speech.words]
    late = SpokenTurn(0, "Anna", "a b", 0.0, 1.0, (Word("a", 0.5, 0.6, 1.0), Word("b", 0.4, 0.7, 1.0)), ())
    plain = page(Speech(np.zeros(10), 10, (late,), (), ()), audio="a.wav")
    assert json.loads(Tree(plain).find("script", id="times")[0][1])["starts"] == [0.5, 0.5]
    assert not Tree(plain).find("input", id="only")
    assert not Tree(plain).find("nav")


def test_no_text_breaks_out():
    turns = (turn(0, HOSTILE, f"{HOSTILE} -->", 0.0, (0,)), SpokenTurn(1, "B", HOSTILE, 9.0, 9.5, (), ()))
    rejected = ({"seed": HOSTILE, "problems": [HOSTILE]},)
    chunks = (chunk(0, HOSTILE, rejected=rejected),)
    chapters = (SpokenChapter(HOSTILE, 0.0),)
    text = page(Speech(np.zeros(100), 10, turns, chapters, chunks, HOSTILE), audio=f"{HOSTILE}.mp3")
    tree = Tree(text)
    assert len(tree.find("script")) == 2
    assert "<!--" not in text
    assert tree.find("h1")[0][1] == HOSTILE
    assert tree.find("h2")[0][1] == HOSTILE
    assert tree.find("span", kind="speaker")[0][1] == HOSTILE
    assert tree.find("p", kind="text")[1][1] == HOSTILE
    assert HOSTILE in tree.find("details")[0][1]


@pytest.mark.parametrize(
    ("audio", "source"),
    [
        ("my talk #1?.mp3", "./my%20talk%20%231%3F.mp3"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("https://example.org/x.mp3", "./https%3A//example.org/x.mp3"),
    ],
)
def test_the_sound_lies_beside_the_page(speech: Speech, audio: str, source: str):
    assert Tree(page(speech, audio=audio)).find("audio")[0][0]["src"] == source


def test_nothing_is_asked_of_other_hosts(speech: Speech):
    text = page(speech, audio="recording.mp3")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttpRequest|integrity", text)
    for tag, attributes, _ in Tree(text).elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "./", "data:,")), (tag, attributes)


def test_a_recording_of_nothing():
    tree = Tree(page(Speech(np.zeros(0), 10, (), (), ()), audio="a.wav"))
    assert tree.find("h1")[0][1] == "Recording"
    assert tree.find("p", kind="facts")[0][1] == "0:00"
