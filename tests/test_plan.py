"""Plans: which turns become which chunk, before anything is spoken."""

import dataclasses

import pytest

from dia_jax import DiaConfig
from dia_jax.config import SpeechSettings
from dia_jax.longform.plan import FRAME_RATE, ROOM, Pace, PlanError, part_seconds, plan, whole
from dia_jax.longform.script import Script

CONFIG = DiaConfig()
TURN = "This is a turn of about four seconds, which is what people say."  # 63 bytes


def paces(script: Script, **more: int) -> dict[str, Pace]:
    return {name: Pace(15.0, **more) for name in script.speakers}


def test_chunks_have_the_wanted_length_and_hold_every_turn_once():
    script = Script.of([("Anna" if i % 2 else "Ben", f"{TURN} Number {i}.") for i in range(41)])
    chunks = plan(script, paces(script), CONFIG)
    assert [part.turn for chunk in chunks for part in chunk.parts] == list(range(41))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    shortest, longest = CONFIG.speech.chunk_seconds
    assert all(shortest <= chunk.seconds <= longest for chunk in chunks)
    for chunk in chunks:
        assert chunk.seconds == pytest.approx(sum(part_seconds(part.piece, Pace(15.0)) for part in chunk.parts))
        assert chunk.most_frames >= chunk.seconds * ROOM * FRAME_RATE


def test_a_chunk_is_a_script_with_its_closing_tag():
    script = Script.of("[Anna] One. [Ben] Two. [Anna] Three.")
    (chunk,) = plan(script, paces(script), CONFIG)
    assert chunk.text == "[S1] One. [S2] Two. [S1] Three. [S2]"
    assert chunk.cast == {"S1": "Anna", "S2": "Ben"}
    for part in chunk.parts:
        assert chunk.text[part.begin :].startswith(part.piece.spoken)
    plain = dataclasses.replace(CONFIG, speech=SpeechSettings(closing_tag=False))
    assert plan(script, paces(script), plain)[0].text == "[S1] One. [S2] Two. [S1] Three."
    # Where a speaker goes on, as behind a pause, the tag is not repeated.
    script = Script.of("[S2] One. (pause 1) Two.")
    assert plan(script, paces(script), plain)[0].text == "[S2] One. Two."


def test_two_speakers_and_one_chapter_at_most():
    names = ["A", "B", "C", "A", "C", "B", "B", "A"]
    text = "# T\n" + "\n".join(f"{'## Next' if i == 4 else ''}\n[{name}] {TURN}" for i, name in enumerate(names))
    script = Script.of(text)
    chunks = plan(script, paces(script), CONFIG)
    assert all(len({part.piece.speaker for part in chunk.parts}) <= 2 for chunk in chunks)
    assert [part.turn for chunk in chunks for part in chunk.parts] == list(range(8))
    assert all(len({part.turn >= 4 for part in chunk.parts}) == 1 for chunk in chunks)
    assert {chunk.chapter for chunk in chunks} == {0, 1}
    with pytest.raises(PlanError, match="There are 3 speakers; a clip has at most two"):
        whole(script, paces(script), CONFIG)


def test_a_long_turn_is_cut_between_sentences_then_clauses_then_words():
    for text, marks in (
        (" ".join(f"{TURN}" for _ in range(9)), "."),
        ("and so it went on for a while, " * 20 + "and on.", ",."),
        ("word " * 150 + "end.", None),
    ):
        script = Script.of([("Anna", text)])
        chunks = plan(script, paces(script), CONFIG)
        assert len(chunks) > 2
        assert " ".join(part.piece.text for chunk in chunks for part in chunk.parts) == script.turns[0].text
        assert [chunk.parts[0].is_first for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        if marks:
            assert all(chunk.parts[-1].piece.text[-1] in marks for chunk in chunks)


def test_a_changed_line_changes_only_its_chunk():
    turns = [("Anna" if i % 2 else "Ben", f"{TURN} Number {i}.") for i in range(40)]
    before = plan(Script.of(turns), paces(Script.of(turns)), CONFIG)
    kept = [[part.piece for part in chunk.parts] for chunk in before]
    turns[17] = ("Anna", "Short now.")
    after = plan(Script.of(turns), paces(Script.of(turns)), CONFIG, kept=kept)
    old, new = {chunk.text for chunk in before}, {chunk.text for chunk in after}
    assert len(old - new) == 1
    assert [part.turn for chunk in after for part in chunk.parts] == list(range(40))
    # Lines that come and go elsewhere leave the others alone too.
    del turns[3:5]
    turns.insert(30, ("Carl", TURN))
    again = plan(Script.of(turns), paces(Script.of(turns)), CONFIG, kept=[[p.piece for p in c.parts] for c in after])
    assert len(new - {chunk.text for chunk in again}) <= 3
    assert [part.turn for chunk in again for part in chunk.parts] == list(range(len(turns)))


def test_prompts_and_chunk_fit_into_the_positions():
    script = Script.of([("Anna" if i % 2 else "Ben", TURN) for i in range(30)])
    given = paces(script, prompt_frames=860, prompt_bytes=150)
    for chunk in plan(script, given, CONFIG):
        assert 860 * len(chunk.cast) + chunk.seconds * ROOM * FRAME_RATE <= CONFIG.frame_budget
    with pytest.raises(PlanError, match=r"The prompt of 'Ben' takes 3000 of the model's 3056 frames"):
        plan(script, paces(script, prompt_frames=3000), CONFIG)
    with pytest.raises(PlanError, match=r"At turn 1, a word of 2000 bytes takes 134 s; at most 18 s fit"):
        plan(Script.of([("Anna", "x" * 2000)]), {"Anna": Pace(15.0)}, CONFIG)


def test_where_each_tag_is_a_voice_names_keep_their_tags():
    config = dataclasses.replace(CONFIG, speech=SpeechSettings((1.0, 3.0), tag_voices=True, closing_tag=False))
    script = Script.of([("Anna", TURN), ("Ben", TURN)])
    tags = {chunk.parts[0].piece.speaker: chunk.text[:4] for chunk in plan(script, paces(script), config)}
    assert tags == {"Anna": "[S1]", "Ben": "[S2]"}
