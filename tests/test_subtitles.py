"""Subtitles: what they must be for any words at any times, and how they read for a dialogue."""

import html
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dia_jax.longform.speech import Speech, SpokenChapter, SpokenChunk, SpokenTurn, Word
from dia_jax.longform.subtitles import chapters_text, srt, vtt, words_json

RATE = 1000
LETTERS = st.sampled_from("abz.,?!&<>-'\"é✓)")
TEXTS = st.one_of(st.text(LETTERS, min_size=1, max_size=12), st.sampled_from(["-->", "</v>", "<b>", "x" * 60, "Hm."]))


def said(text: str, *, start: float = 0.0, speaker: str = "Anna", number: int = 0, step: float = 0.3) -> SpokenTurn:
    """A turn whose words last equally long."""
    texts = text.split()
    words = tuple(Word(word, start + i * step, start + (i + 1) * step, 0.9) for i, word in enumerate(texts))
    return SpokenTurn(number, speaker, text, start, start + len(texts) * step, words, (number,))


def recording(*turns: SpokenTurn, seconds: float = 60.0, **fields: object) -> Speech:
    return Speech(np.zeros(round(seconds * RATE), np.float32), RATE, turns, fields.pop("chapters", ()), (), **fields)


@st.composite
def recordings(draw: st.DrawFn) -> Speech:
    """Turns of any words. Most times go forward; some are wrong, as those of an aligner can be."""
    time, turns = 0.0, []
    for number in range(draw(st.integers(0, 4))):
        words = []
        for text in draw(st.lists(TEXTS, max_size=30)):
            time += draw(st.sampled_from([0.0, 0.0, 0.1, 0.7, 9.0]))
            start = time + draw(st.sampled_from([0.0, 0.0, 0.0, -0.5]))
            time += draw(st.sampled_from([0.0, 0.07, 0.31, 0.5, 2.0, 12.0]))
            words.append(Word(text, start, time, 0.5))
        text = " ".join(word.text for word in words)
        turns.append(SpokenTurn(number, draw(st.sampled_from(["Anna", "B & <C>"])), text, 0.0, time, tuple(words), ()))
    return recording(*turns, seconds=time + draw(st.sampled_from([0.0, 0.4, 3.0])))


def parsed(text: str, mark: str) -> list[tuple[float, float, list[str]]]:
    """Start, end and lines of each cue; an SRT cue's number comes before."""
    stamp = rf"(\d\d+):(\d\d):(\d\d)\{mark}(\d\d\d)"
    found = []
    for block in [block for block in text.split("\n\n") if block.strip()]:
        lines = block.strip("\n").split("\n")
        at = next((i for i, line in enumerate(lines) if re.fullmatch(f"{stamp} --> {stamp}", line)), None)
        if at is None:
            assert lines == ["WEBVTT"]
            continue
        parts = [int(part) for part in re.fullmatch(f"{stamp} --> {stamp}", lines[at]).groups()]
        start, end = (h * 3600 + m * 60 + s + ms / 1000 for h, m, s, ms in (parts[:4], parts[4:]))
        found.append((start, end, lines[at + 1 :]))
    return found


@settings(max_examples=100, deadline=None)
@given(recordings())
def test_cues_hold_all_words_and_fit(speech: Speech):
    cues = parsed(srt(speech), ",")
    texts = [turn.text for turn in speech.turns if turn.text]
    assert " ".join(" ".join(lines) for _, _, lines in cues) == " ".join(texts)
    last, remaining = 0.0, list(speech.words)
    for start, end, lines in cues:
        assert last <= start < end
        assert end - start <= 7.0005
        assert 1 <= len(lines) <= 2
        assert all(len(line) <= 42 or " " not in line for line in lines)
        count = sum(len(line.split()) for line in lines)
        assert start >= remaining[0].start - 1e-9
        remaining, last = remaining[count:], end
    numbers = re.findall(r"^(\d+)\n\d\d:", srt(speech), re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(cues) + 1)]


@settings(max_examples=100, deadline=None)
@given(recordings())
def test_webvtt_says_the_same_and_is_well_formed(speech: Speech):
    text = vtt(speech)
    assert text.startswith("WEBVTT\n")
    cues, plain = parsed(text, "."), parsed(srt(speech), ",")
    assert [cue[:2] for cue in cues] == [cue[:2] for cue in plain]
    for (start, end, lines), (_, _, expected) in zip(cues, plain, strict=True):
        whole = "\n".join(lines)
        assert "-->" not in whole
        speaker, content = re.fullmatch(r"<v ([^<>\n]+)>(.*)</v>", whole, re.DOTALL).groups()
        assert html.unescape(speaker) in ("Anna", "B & <C>")
        times = [
            int(h) * 3600 + int(m) * 60 + float(s) for h, m, s in re.findall(r"<(\d\d+):(\d\d):(\d\d\.\d{3})>", content)
        ]
        assert all(a < b for a, b in zip([start, *times], [*times, end], strict=True))
        assert html.unescape(re.sub(r"<\d\d+:\d\d:\d\d\.\d{3}>", "", content)).split("\n") == expected


def test_a_dialogue():
    speech = recording(
        said("Good morning, everyone, and welcome to the show that nobody has asked for. Today we talk about rabbits."),
        said("(laughs) Do we?", start=6.0, speaker="Ben"),
        seconds=8.0,
    )
    assert srt(speech) == (
        "1\n00:00:00,000 --> 00:00:03,900\n"
        "Good morning, everyone, and welcome\nto the show that nobody has asked for.\n\n"
        "2\n00:00:03,900 --> 00:00:05,400\nToday we talk about rabbits.\n\n"
        "3\n00:00:06,000 --> 00:00:07,000\n(laughs) Do we?\n"
    )
    assert vtt(speech).endswith(
        "00:00:06.000 --> 00:00:07.000\n<v Ben>(laughs) <00:00:06.300>Do <00:00:06.600>we?</v>\n"
    )


def test_short_cues_stay_while_there_is_room():
    speech = recording(said("Oh."), said("No.", start=0.6), said("Yes.", start=9.0), seconds=9.5)
    assert [cue[:2] for cue in parsed(srt(speech), ",")] == [(0.0, 0.6), (0.6, 1.6), (9.0, 9.5)]


def test_a_turn_without_timed_words_is_not_lost():
    speech = recording(SpokenTurn(0, "Anna", "Who is there?", 2.0, 3.5, (), ()))
    assert parsed(srt(speech), ",") == [(2.0, 3.5, ["Who is there?"])]


def test_times_beyond_an_hour():
    speech = recording(said("Still here.", start=3600 * 11 + 60.0015), seconds=1)
    assert "11:01:00,002 --> " in srt(speech)


def test_nothing_said():
    speech = recording()
    assert srt(speech) == ""
    assert vtt(speech) == "WEBVTT\n"
    assert chapters_text(speech) == ""


def test_words_as_json():
    verdict = {"passed": False, "problems": ["The last word is cut."], "score": 0.25, "measures": {"seconds": 3.5}}
    chunk = SpokenChunk(0, 0.0, 1.2, verdict, 2, [{"seed": 7, "problems": ["Too fast."]}])
    chapters = (SpokenChapter("One", 0.0),)
    speech = Speech(np.zeros(2000, np.float32), RATE, (said("Hé, you."),), chapters, (chunk,), "A title")
    assert json.loads(words_json(speech)) == {
        "title": "A title",
        "seconds": 2.0,
        "rate": RATE,
        "chapters": [{"title": "One", "start": 0.0}],
        "turns": [
            {
                "number": 0,
                "speaker": "Anna",
                "text": "Hé, you.",
                "start": 0.0,
                "end": 0.6,
                "chunks": [0],
                "words": [
                    {"text": "Hé,", "start": 0.0, "end": 0.3, "confidence": 0.9},
                    {"text": "you.", "start": 0.3, "end": 0.6, "confidence": 0.9},
                ],
            }
        ],
        "chunks": [
            {
                "number": 0,
                "start": 0.0,
                "end": 1.2,
                "verdict": verdict,
                "takes": 2,
                "rejected": [{"seed": 7, "problems": ["Too fast."]}],
            }
        ],
    }
    assert "Hé" in words_json(speech)


@pytest.mark.parametrize(
    ("chapters", "text"),
    [
        ((SpokenChapter("", 0.0),), ""),
        ((SpokenChapter("Alone", 0.0),), "00:00:00 Alone\n"),
        (
            (SpokenChapter("", 0.0), SpokenChapter("Two\nlines", 83.9), SpokenChapter("Last", 3600.0)),
            "00:00:00 Chapter 1\n00:01:23 Two lines\n01:00:00 Last\n",
        ),
    ],
)
def test_chapters(chapters: tuple[SpokenChapter, ...], text: str):
    assert chapters_text(recording(chapters=chapters)) == text
