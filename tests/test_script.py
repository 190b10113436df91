"""Scripts as people write them: texts, JSON, pronunciations, and how long turns are divided."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dia_jax import NONVERBAL_TAGS, DiaError
from dia_jax.longform.dividing import clauses, cut, sentences
from dia_jax.longform.places import ScriptError
from dia_jax.longform.script import MAX_BYTES, Chapter, Script
from dia_jax.longform.words import ScriptWord, read_pronunciations

PODCAST = """\
# The title

## One *chapter*

**[Anna]:** Hello, Ben. (pause 1.5) Are you
there (pause .5), *now*?
<!-- This is
[left] out. -->
[Ben] (laughs) I **_am_**. [Anna] (pause 1)...Good (clears
throat), eh? snake_case

---
More of it.
### Another #
(pause 2)
[Carl-O'X. 2] Bye. (pause 2)
"""


def brief(script: Script) -> list[tuple[str, str, float]]:
    return [(turn.speaker, turn.text, turn.pause) for turn in script.turns]


def refusal(script, **options) -> str:
    with pytest.raises(ScriptError) as caught:
        Script.of(script, **options)
    return str(caught.value)


# --- Texts -----------------------------------------------------------------------------------------------------------


def test_a_text():
    script = Script.of(PODCAST)
    assert brief(script) == [
        ("Anna", "Hello, Ben.", 0.0),
        ("Anna", "Are you there,", 1.5),
        ("Anna", "now?", 0.5),
        ("Ben", "(laughs) I am.", 0.0),
        ("Anna", "...Good (clears throat), eh? snake_case More of it.", 1.0),
        ("Carl-O'X. 2", "Bye.", 2.0),
    ]
    assert [turn.place for turn in script.turns] == [
        "line 5, column 3",
        "line 5, column 37",
        "line 6, column 20",
        "line 9, column 1",
        "line 9, column 28",
        "line 16, column 1",
    ]
    assert script.title == "The title"
    assert script.chapters == (Chapter("One chapter", 0), Chapter("Another", 5))
    assert script.speakers == ("Anna", "Ben", "Carl-O'X. 2")
    assert script.final_pause == 2.0
    assert script.cast == {}


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028", "\u2029", "\x85", "\v", "\f"])
def test_line_ends_of_all_kinds(end: str):
    assert Script.of("\ufeff" + PODCAST.replace("\n", end)) == Script.of(PODCAST)


@pytest.mark.parametrize("space", ["\t", "\u00a0", "\u200b", "\u202f", "\ufeff", "  "])
def test_spaces_of_all_kinds(space: str):
    script = Script.of(f"[Anna{space}B]{space}Hello,{space}you. [Ben]Hi.")
    assert brief(script) == [("Anna B", "Hello, you.", 0.0), ("Ben", "Hi.", 0.0)]
    assert script.turns[1].column == 19 + 3 * len(space)


@pytest.mark.parametrize(
    ("text", "title", "chapters"),
    [
        ("[A] a\n[B] b", "", [("", 0)]),
        ("[A] a\n\n[B] b\n\n[A] c", "", [("", 0)]),
        ("[A] a (pause 1) a\n\n[B] b", "", [("", 0)]),
        ("[A] a\n[B] b\n\n[A] c", "", [("", 0), ("", 2)]),
        ("[A] a [B] b\n\n \n***\n(pause 1)\n[A] c\n\nmore\n[B] d", "", [("", 0), ("", 2)]),
        ("[A] a [B] b\n<!-- x -->\n[A] c\n<!--\n\n-->\n[B] d", "", [("", 0)]),
        ("# T\n[A] a\n[B] b\n\n[A] c", "T", [("", 0), ("", 2)]),
        ("# T\n# C\n[A] a\n[B] b\n\n[A] c", "T", [("C", 0)]),
        ("## C\n[A] a\n\n# D\n[B] b", "", [("C", 0), ("D", 1)]),
        ("[A] a [B] b\n# D ##\n[A] c", "", [("", 0), ("D", 2)]),
        ("# T\n## Part\n### Scene\n[A] a\n###### E\n[B] b", "T", [("Part: Scene", 0), ("E", 1)]),
        ("[A] #5 is\n#five\n####### six", "", [("", 0)]),
    ],
)
def test_titles_and_chapters(text: str, title: str, chapters: list[tuple[str, int]]):
    script = Script.of(text)
    assert (script.title, [(chapter.title, chapter.first_turn) for chapter in script.chapters]) == (title, chapters)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("*word* **two words** ***x*** _y_ __z__", "word two words x y z"),
        ("**bold *both*** *over\ntwo lines*", "bold both over two lines"),
        ("2 * 3 * 4, 5*6*7, s***, snake_case_name", "2 * 3 * 4, 5*6*7, s***, snake_case_name"),
        ("*open\n\nclose*", "*open close*"),
        ("(aside) x (Laughs) (pausing) a > b < c", "(aside) x (Laughs) (pausing) a > b < c"),
        ("a<!-- x -->b <!-- [y]\n\n# z --> c", "ab c"),
        ("東京 naïve 😀", "東京 naïve 😀"),
    ],
)
def test_emphasis_and_comments(text: str, said: str):
    assert brief(Script.of(f"[A] {text}")) == [("A", said, 0.0)]


def test_sounds_are_no_words():
    for tag in NONVERBAL_TAGS:
        (turn,) = Script.of(f"[A] {tag}").turns
        assert (turn.text, turn.spoken, turn.words) == (tag, tag, ())
    (turn,) = Script.of("[A] (laughs)so (clears throat), I(sighs)... am – he").turns
    assert [word.text for word in turn.words] == ["so", "I", "am", "–", "he"]
    assert [turn.spoken[word.start : word.stop] for word in turn.words] == ["so", "I", "am", "–", "he"]


def test_a_pause_takes_the_marks_behind_it_along():
    script = Script.of("(pause 1) [A] Wait (Pause 0.5)... what (pause 2) (pause 3.25)")
    assert brief(script) == [("A", "Wait...", 1.0), ("A", "what", 0.5)]
    assert script.final_pause == 5.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: the script has no turn; write one such as [Anna] Hello."),
        ("\n# Title\n", "line 1, column 1: the script has no turn; write one such as [Anna] Hello."),
        ("\nHi there.", "line 2, column 1: 'Hi there.' has no speaker; begin with a tag such as [S1] or [Anna]."),
        (
            "Hi [A] you.",
            "line 1, column 1: 'Hi' stands before the first tag, so it has no speaker; write a tag such as [Anna] "
            "before it.",
        ),
        (
            "[A] a\n# H\n\t b",
            "line 3, column 3: 'b' stands after a heading, so it has no speaker; write a tag such as [Anna] before it.",
        ),
        (
            "[S1] Hello. [S2]",
            "line 1, column 13: the turn of 'S2' is empty; write what it says, or remove it (a script needs no closing "
            "tag).",
        ),
        (
            "[A] (pause 1) [B] b",
            "line 1, column 1: the turn of 'A' is empty; write what it says, or remove it (a script needs no closing "
            "tag).",
        ),
        (
            "[A] a (pause 1) -- [B] b",
            "line 1, column 17: the turn of 'A' says only '--', which is no word and no sound; write words, a sound "
            "such as (sighs), or a pause such as (pause 1.5).",
        ),
        (
            "[A] a\n[Ben b",
            "line 2, column 1: the tag '[Ben b' is not closed before the next [ or the end of the line; write it as "
            "[Anna], and round brackets where none is meant.",
        ),
        (
            "[A [B]] a",
            "line 1, column 1: the tag '[A' is not closed before the next [ or the end of the line; write it as "
            "[Anna], and round brackets where none is meant.",
        ),
        (
            "[A] a] b",
            "line 1, column 6: this ] closes no tag; write a tag as [Anna], and round brackets where none is meant.",
        ),
        (
            f"[{'x' * 41}] a",
            f"line 1, column 1: the name '{'x' * 41}' is 41 characters long, but at most 40 are taken; shorten it.",
        ),
        ("[A] a [...] b", "line 1, column 7: the name '...' has no letter and no digit; write one such as S1 or Anna."),
        (
            "[12:30] a",
            "line 1, column 1: the name '12:30' holds ':', but names are made of letters, digits, spaces, _, -, . and "
            "'; change it, or write round brackets where no tag is meant.",
        ),
        (
            "[A] a [laughs] b",
            "line 1, column 7: [laughs] is no speaker; write it in round brackets, as (laughs) or (pause 1.5).",
        ),
        (
            "[A] a [pause 2] b",
            "line 1, column 7: [pause 2] is no speaker; write it in round brackets, as (laughs) or (pause 1.5).",
        ),
        *(
            (
                f"[A] a {pause} b",
                f"line 1, column 7: '{pause}' is no pause of 0 to 60 seconds; write it as (pause 1.5), and with other "
                "words where none is meant.",
            )
            for pause in ("(pause)", "(pause 60.1)", "(pause -1)", "(pause 1e1)", "(pause for effect)", "(pause ١)")
        ),
        ("[A] a (pause 1.5", "line 1, column 7: the pause '(pause 1.5' is not closed; write it as (pause 1.5)."),
        (
            "[A] a (pause 40) (pause 21) b",
            "line 1, column 18: the pauses before this place add up to 61 seconds, but at most 60 are taken; shorten "
            "them.",
        ),
        *(
            (
                f"[A]\na{char}b",
                f"line 2, column 2: {char!r} is a control character, which the model cannot read; remove it.",
            )
            for char in "\0\1\2\x1c\x7f\x80"
        ),
        (
            "[A] \udcff",
            "line 1, column 5: '\\udcff' is not valid Unicode (often from a file that is not UTF-8); save the text as "
            "UTF-8.",
        ),
        ("[A] a <!-- b", "line 1, column 7: the comment that begins here is never closed; end it with -->."),
        ("[A] a\n##\n[B] b", "line 2, column 1: the heading has no words; write some, or remove it."),
        ("[A] a\n\n## End", "line 3, column 1: no turn follows the heading 'End'; write one, or remove it."),
        (
            "[A] a\n[B] " + "é" * (MAX_BYTES // 2),
            "line 2, column 500000: here the script passes 1,000,000 bytes, the most that one may have, of its "
            "1,000,010; split it into several.",
        ),
    ],
)
def test_texts_that_are_refused(text: str, message: str):
    assert refusal(text) == f"The script, {message}"
    assert issubclass(ScriptError, DiaError)


def test_a_text_of_the_greatest_length():
    text = "[Anna] Hello, *you* there. (laughs) Well?\n"
    script = Script.of(text * 2000)
    assert len(script.turns) == 2000
    assert len(Script.of("[A] " + "x" * (MAX_BYTES - 4)).turns[0].text) == MAX_BYTES - 4


# --- JSON and Python objects -----------------------------------------------------------------------------------------


def test_json_and_objects():
    turns = [
        {"speaker": "Anna", "text": "Hi *there*. (pause 1) You?", "pause": 2},
        {"speaker": "Ben", "text": "Yes (pause 3)"},
    ]
    script = Script.of(turns)
    assert brief(script) == [("Anna", "Hi there.", 2.0), ("Anna", "You?", 1.0), ("Ben", "Yes", 0.0)]
    assert [turn.place for turn in script.turns] == ["turn 1", "turn 1", "turn 2"]
    assert script.chapters == (Chapter("", 0),)
    assert script.final_pause == 3.0
    assert Script.of({"turns": turns}) == script == Script.of(script)
    assert brief(Script.of([("Anna", "Hi."), ("Ben", "Ho.")])) == brief(Script.of("[Anna] Hi. [Ben] Ho."))
    whole = Script.of(
        {
            "title": "T",
            "cast": {"Anna": "anna.voice"},
            "pronunciations": {"JAX": "jacks", "Flax": "flacks"},
            "chapters": [
                {"turns": turns},
                {"title": "Two", "turns": [("Ben", "JAX and Flax. (pause 1)"), ["Anna", "Oh."]]},
            ],
        },
        pronunciations={"JAX": "jaks"},
    )
    assert (whole.title, whole.cast) == ("T", {"Anna": "anna.voice"})
    assert whole.chapters == (Chapter("", 0), Chapter("Two", 3))
    assert [turn.pause for turn in whole.turns] == [2.0, 1.0, 0.0, 3.0, 1.0]
    assert whole.turns[3].spoken == "jaks and flacks."
    anew = Script.of(whole, pronunciations={"oh": "owe"})
    assert [turn.spoken for turn in anew.turns[3:]] == ["jaks and flacks.", "owe."]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (5, " must be a list of turns, or a mapping with turns or chapters, not 5."),
        (b"[A] a", " must be a list of turns, or a mapping with turns or chapters, not b'[A] a'."),
        ([], ", turns: [] must be a list with one item or more."),
        ({}, " must have either turns or chapters; give one of the two."),
        ({"turns": [("A", "a")], "chapters": []}, " must have either turns or chapters; give one of the two."),
        (
            {"turns": [("A", "a")], "Title": "x", 3: 4},
            ": unknown keys 'Title', 3; it may have title, cast, pronunciations, turns and chapters.",
        ),
        (
            {"chapters": [{"turns": [("A", "a")]}, {"turns": [("A", "a"), {"speaker": "A", "txt": "b"}]}]},
            ", chapters[1].turns[1]: unknown key 'txt'; it may have speaker, text and pause.",
        ),
        ({"chapters": [[]]}, ", chapters[0]: [] must be a mapping with turns, and a title if it has one."),
        ({"chapters": [{"turns": []}]}, ", chapters[0].turns: [] must be a list with one item or more."),
        ({"turns": [("A", "a")], "title": 5}, ", title: 5 must be a string."),
        ([("A", "a"), "b"], ", turns[1]: 'b' must be a mapping with speaker and text, or a pair of them."),
        ([("A", 5)], ", turns[0].text: 5 must be a string."),
        (
            [("A:", "a")],
            ", turns[0].speaker: the name 'A:' holds ':', but names are made of letters, digits, spaces, _, -, . and "
            "'; change it, or write round brackets where no tag is meant.",
        ),
        (
            [("A", "a\n [B] b")],
            ", turns[0].text, line 2, column 2: the text of a turn holds the tag [B]; make a turn of its own of what "
            "follows.",
        ),
        (
            [("A", "a"), ("B", " ")],
            ", turns[1].text, line 1, column 1: the turn of 'B' is empty; write what it says, or remove it (a script "
            "needs no closing tag).",
        ),
        (
            [("A", "a\0")],
            ", turns[0].text, line 1, column 2: '\\x00' is a control character, which the model cannot read; "
            "remove it.",
        ),
        *(
            (
                [{"speaker": "A", "text": "a", "pause": pause}],
                f", turns[0].pause: {pause!r} must be a number of seconds from 0 to 60.",
            )
            for pause in ("1", True, -1, 61, float("nan"), None)
        ),
        (
            [("A", "a (pause 59)"), {"speaker": "A", "text": "a", "pause": 2}],
            ", turns[1].pause: the pauses before this place add up to 61 seconds, but at most 60 are taken; "
            "shorten them.",
        ),
        (
            [("A", "x" * 600_000)] * 2,
            ", turns[1].text: here the script passes 1,000,000 bytes, the most that one may have; split it into "
            "several.",
        ),
        ({"turns": [("A", "a")], "cast": []}, ", cast: [] must be a mapping from names to paths of voices."),
        ({"turns": [("A", "a")], "cast": {"A": ""}}, ", cast, 'A': the path is empty; write that of a voice."),
        (
            {"turns": [("A", "a")], "cast": {"": "a"}},
            ", cast: the name '' has no letter and no digit; write one such as S1 or Anna.",
        ),
        (
            {"turns": [("A", "a")], "pronunciations": {"a": "b", "b": "a"}},
            ", pronunciations: a -> b -> a goes in a circle, but spellings are not looked up again; write how each "
            "word sounds.",
        ),
    ],
)
def test_objects_that_are_refused(script, message: str):
    assert refusal(script) == f"The script{message}"


def test_files(tmp_path: Path):
    text, data = tmp_path / "script.md", tmp_path / "script.JSON"
    text.write_bytes(b"\xef\xbb\xbf" + PODCAST.replace("\n", "\r\n").encode())
    assert Script.read(text) == Script.of(PODCAST)
    text.write_text("[Anna] Hi.\n[Ben Ho.")
    data.write_text('\ufeff[["Anna", "Hi"]]', encoding="utf-8")
    assert Script.read(str(data), pronunciations={"hi": "high"}).turns[0].spoken == "high"
    for path, content, message in (
        (
            text,
            b"[A] a [",
            f"{text}, line 1, column 7: the tag '[' is not closed before the next [ or the end of the line; write it "
            "as [Anna], and round brackets where none is meant.",
        ),
        (text, b"\xff", f"Cannot read {text}: it is not UTF-8 text (byte 0xff at 0)."),
        (data, b'{\n "turns": [}', f"{data}, line 2, column 12: this is not JSON (Expecting value); correct it there."),
        (data, b"[" * 100_000, f"{data} is nested too deeply; a script needs no more than five levels."),
        (data, b"[" + b"1" * 5000 + b"]", f"{data} holds a number that is too long to be read; shorten it."),
        (data, b'{"cast": {"A": "a", "A": "b"}}',
            f"{data}: the key 'A' stands twice in one mapping; remove one of them."),
        (data, b'"[A] a"', f"{data} must be a list of turns, or a mapping with turns or chapters, not '[A] a'."),
        (data, b'[["A", ""]]', f"{data}, turns[0].text, line 1, column 1: the turn of 'A' is empty; write what it "
            "says, or remove it (a script needs no closing tag)."),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ScriptError) as caught:
            Script.read(path)
        assert str(caught.value) == message
    with pytest.raises(ScriptError, match=f"^Cannot read {re.escape(str(tmp_path))}: it is not a regular file.$"):
        Script.read(tmp_path)


# --- Pronunciations --------------------------------------------------------------------------------------------------

ENTRIES = {
    "JAX": "jacks",
    "SQL": "ess queue ell",
    "US": "you ess",
    "us": "us",
    "can": "kan",
    "co-op": "coop",
    "C++": "see plus plus",
    "Dr.": "doctor",
    "a": "b",
    "b": "c",
}


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("JAX, jax and “JAX’s” JAX-based pyJAX", "jacks, jacks and “jacks’s” jacks-based pyJAX"),
        ("the US told us", "the you ess told us"),
        ("I can, you can't. CAN'T", "I kan, you can't. CAN'T"),
        ("a co-op, CO-OP's co op", "b coop, coop's co op"),
        ("C++, not C++x or c+", "see plus plus, not C++x or c+"),
        ("Dr. No and Dr.No (SQL)", "doctor No and Dr.No (ess queue ell)"),
        ("a b", "b c"),
    ],
)
def test_pronunciations(text: str, spoken: str):
    (turn,) = Script.of([("A", text)], pronunciations=ENTRIES).turns
    assert (turn.text, turn.spoken) == (text, spoken)


def test_words_and_what_says_them():
    (turn,) = Script.of("[A] Use SQL! (laughs) Do.", pronunciations={"sql": "ess queue ell", "laughs": "x"}).turns
    assert turn.spoken == "Use ess queue ell! (laughs) Do."
    assert turn.words == (ScriptWord("Use", 0, 3), ScriptWord("SQL!", 4, 18), ScriptWord("Do.", 28, 31))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], " must be a mapping from words to spellings, not []."),
        ({5: "x"}, ": 5 and its spelling 'x' must be strings."),
        ({"two words": "x"},
            ": 'two words' is not one word; write single words with a letter or digit before their spellings."),
        ({"": "x"}, ": '' is not one word; write single words with a letter or digit before their spellings."),
        ({"a": " "}, ": the spelling ' ' of 'a' has nothing to say; write it as it sounds."),
        ({"a": "[S1]"}, ": the spelling '[S1]' holds '[', but brackets and tags have no place in it; remove them."),
        ({"a": "(laughs)"},
            ": the spelling '(laughs)' holds '(', but brackets and tags have no place in it; remove them."),
        ({"a": "x\1"},
            ": in the spelling 'x\\x01', '\\x01' is a control character, which the model cannot read; remove it."),
        (
            {"a": "x" * 201},
            f": the spelling '{'x' * 37}...{'x' * 38}' has 201 characters, but at most 200 are taken; shorten it.",
        ),
        (
            {"x": "a", "a": "the b", "b": "c's d", "c": "A"},
            ": a -> b -> c -> a goes in a circle, but spellings are not looked up again; write how each word sounds.",
        ),
    ],
)  # fmt: skip
def test_pronunciations_that_are_refused(entries, message: str):
    assert refusal("[A] a", pronunciations=entries) == f"The pronunciations{message}"


def test_pronunciations_in_files(tmp_path: Path):
    lines, data = tmp_path / "words.txt", tmp_path / "words.json"
    lines.write_bytes("\ufeff# Names\r\nJAX = jacks\r\n\r\n C# =  see   sharp # a comment\r\nus=us".encode())
    assert read_pronunciations(lines) == {"JAX": "jacks", "C#": "see sharp", "us": "us"}
    data.write_text(json.dumps({"JAX": "jacks"}))
    assert read_pronunciations(data) == {"JAX": "jacks"}
    for path, content, message in (
        (lines, "a = b\n  JAX jacks", f"{lines}, line 2, column 3: 'JAX jacks' has no =; write a line as JAX = jacks."),
        (lines, "a = b\na = c", f"{lines}, line 2, column 1: 'a' stands in line 1 already; remove one of them."),
        (lines, "\n = c", f"{lines}, line 2, column 2: '' is not one word; write single words with a letter or digit "
            "before their spellings."),
        (lines, "x = y\nb = a\na = b", f"{lines}, line 2, column 1: b -> a -> b goes in a circle, but spellings are "
            "not looked up again; write how each word sounds."),
        (lines, "a = \1", f"{lines}, line 1, column 5: '\\x01' is a control character, which the model cannot read; "
            "remove it."),
        (data, "{", f"{data}, line 1, column 2: this is not JSON (Expecting property name enclosed in double quotes); "
            "correct it there."),
        (data, '{"a": 5}', f"{data}: 'a' and its spelling 5 must be strings."),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(ScriptError) as caught:
            read_pronunciations(path)
        assert str(caught.value) == message


# --- Dividing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        ["Mr. J. R. Smith left.", "He paid 3.50 vs. 4 in the U.S. today!", "Why?!", "Oh…"],
        ["(clears throat) So...", "x"],
        ["He said “No.”", "“Why?” she asked.", 'And "Well!"', "(It was. It is.)", "Yes."],
        ["It is e.g. red, i.e. not blue etc. so far.", "Ask Smith Jr. today.", "By Acme Inc.", "Then"],
        ["Wait . . .", "what ?", "Yes. (laughs)"],
        ["(laughs). Hello."],
        ["A smiley :( here.", "So."],
        ["(laughs)"],
    ],
)  # fmt: skip
def test_sentences(parts: list[str]):
    text = " ".join(parts)
    assert [text[start:stop] for start, stop in sentences(text)] == parts


@pytest.mark.parametrize(
    "parts",
    [
        ["One,", "two;", "three:", "four —", "five", "–six -", "seven.", "Eight"],
        ["I came", "and saw 1,000 ships,", "but left,", "because,", "which", 'or "so,"', "Or (this, and that) band"],
    ],
)
def test_clauses(parts: list[str]):
    text = " ".join(parts)
    assert [text[start:stop] for start, stop in clauses(text)] == parts


def test_cutting_a_turn():
    (turn,) = Script.of("(pause 1)[A] Use SQL, Ben. (laughs) I do.", pronunciations={"SQL": "ess queue ell"}).turns
    spoken = turn.spoken
    first, second, third = cut(turn, [spoken.index("I do"), spoken.index("queue"), 0, spoken.index("I do")])
    assert (first.text, first.spoken, first.pause, first.words) == ("Use", "Use", 1.0, (ScriptWord("Use", 0, 3),))
    assert (second.text, second.spoken, second.pause) == ("SQL, Ben. (laughs)", "ess queue ell, Ben. (laughs)", 0.0)
    assert second.words == (ScriptWord("SQL,", 0, 14), ScriptWord("Ben.", 15, 19))
    assert (third.text, third.words) == ("I do.", (ScriptWord("I", 0, 1), ScriptWord("do.", 2, 5)))
    assert cut(turn, []) == cut(turn, [0]) == [turn]
    for point in (-1, len(spoken)):
        with pytest.raises(
            ValueError, match=rf"^The points \[{point}\] lie outside of a turn of {len(spoken)} characters.$"
        ):
            cut(turn, [point])


# --- Anything --------------------------------------------------------------------------------------------------------

FRAGMENTS = [
    "[Anna]", "[", "]", "(pause 1)", "(pause", "\n", "\n\n", "# ", "---\n", "*", "**", "_", "<!--", "-->", "(laughs)",
    " ", "JAX's", "word.", "two, ", "and ", "“x!”", "(clears\nthroat)", ")", "…", "\r\n", "\u2028", ":", "Dr. ",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=30).map("".join)
WORDS = ["JAX", "a.", "b,", "and", "(laughs)", "(clears throat)", "“Why?”", "-", "Dr.", "x-JAX's"]
SAID = st.lists(st.sampled_from(WORDS), min_size=1).map(" ".join).filter(lambda said: said.strip("- "))


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_any_text_is_read_or_refused(text: str):
    for script in (text, [("A", text)]):
        try:
            made = Script.of(script, pronunciations={"JAX": "jacks"})
        except ScriptError:
            continue
        assert made.chapters[0].first_turn == 0
        for turn in made.turns:
            assert turn.text == " ".join(turn.text.split())
            assert not set("[]\0") & set(turn.spoken)
            starts = [word.start for word in turn.words]
            assert starts == sorted(set(starts))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["A", "B b"]), SAID, st.booleans()), min_size=1))
def test_no_word_is_lost(turns: list[tuple[str, str, bool]]):
    text = "\n".join(f"[{speaker}] {said}{' (pause 1)' if pause else ''}" for speaker, said, pause in turns)
    script = Script.of(text)
    assert [(turn.speaker, turn.text) for turn in script.turns] == [(speaker, said) for speaker, said, _ in turns]
    assert sum(turn.pause for turn in script.turns) + script.final_pause == sum(pause for *_, pause in turns)
    for turn in script.turns:
        bare = turn.text.replace("(clears throat)", "").replace("(laughs)", "")
        assert [word.text for word in turn.words] == bare.split()


@settings(max_examples=100, deadline=None)
@given(SAID, st.lists(st.integers(0, 30)))
def test_what_is_divided_is_whole(said: str, points: list[int]):
    (turn,) = Script.of([("A", said)], pronunciations={"JAX": "jay, and ax"}).turns
    for find in (sentences, clauses):
        ranges = find(turn.spoken)
        assert " ".join(turn.spoken[start:stop] for start, stop in ranges) == turn.spoken
        assert all(turn.spoken[start - 1] == " " for start, _ in ranges[1:])
        points = [*points, *(start for start, _ in ranges)]
    parts = cut(turn, [point for point in points if point < len(turn.spoken)])
    assert " ".join(part.spoken for part in parts) == turn.spoken
    assert " ".join(part.text for part in parts) == turn.text
    assert [word.text for part in parts for word in part.words] == [word.text for word in turn.words]
    for part in parts:
        remade = Script.of([("A", f"{part.text} x")], pronunciations={"JAX": "jay, and ax"}).turns[0]
        assert (remade.spoken, remade.words[:-1]) == (f"{part.spoken} x", part.words)
