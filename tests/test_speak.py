"""Long scripts on the voice in the box: takes, verdicts, the recording, and project folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dia_jax import Dia, DiaError
from dia_jax.cli import run
from dia_jax.longform.judge import Verdict
from dia_jax.longform.mastering import edges
from dia_jax.longform.recording import Gaps
from dia_jax.longform.speak import SpeakError
from dia_jax.longform.takes import KeptTakes, Take, seed_of

SCRIPT = """# A test

[Anna] Please close the door. (pause 1.1) Good morning, Laura!

[Ben] The woman watched the spider.
"""
RATE = 44_100


@pytest.fixture(scope="module")
def tiny() -> Dia:
    return Dia.from_pretrained("tiny")


def test_a_script_is_spoken_timed_and_judged(tiny: Dia):
    speech = tiny.speak(SCRIPT, seed=3, candidates=2, gaps=Gaps(turn=0.5))
    assert speech.title == "A test"
    assert [turn.speaker for turn in speech.turns] == ["Anna", "Anna", "Ben"]
    assert [turn.text for turn in speech.turns][1] == "Good morning, Laura!"
    assert all(chunk.verdict["passed"] and chunk.takes == 2 for chunk in speech.chunks)
    times = [time for word in speech.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert speech.words[0].text == "Please"
    assert speech.seconds >= times[-1]
    # The silence of the pause is as long as it says, and that between chunks too.
    loud = np.flatnonzero(np.abs(speech.samples) > 1e-3) / RATE
    for before, after, silence in ((0, 1, 1.1), (1, 2, 0.5)):
        middle = (speech.turns[before].end + speech.turns[after].start) / 2
        if before == 0 or speech.turns[before].chunks != speech.turns[after].chunks:
            assert loud[loud > middle].min() - loud[loud < middle].max() == pytest.approx(silence, abs=0.01)
    again = tiny.speak(SCRIPT, seed=3, candidates=2, gaps=Gaps(turn=0.5))
    np.testing.assert_array_equal(again.samples, speech.samples)
    faster = tiny.speak(SCRIPT, seed=3, candidates=2, gaps=Gaps(turn=0.5), speed=1.25)
    assert len(faster.samples) == pytest.approx(len(speech.samples) / 1.25, rel=0.001)
    assert faster.words[-1].end == pytest.approx(speech.words[-1].end / 1.25)


def test_spoilt_clips_are_refused_and_good_ones_are_not(tiny: Dia):
    voice = tiny.voices["S1"]
    good, text = soundfile.read(Path(__file__).parent / "tiny_teacher.flac", dtype="float32")[0], voice.text
    first, last = edges(good, rate=RATE)
    clip, middle = good[first:last], (last - first) // 2
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(good)).astype(np.float32)
    for name, samples, problem in (
        ("good", good, None),
        ("cut", good[: last - 8000], "It ends at"),
        ("skipped", np.concatenate([clip[: middle // 2], clip[-middle // 2 :]]), "left out"),
        ("doubled", np.concatenate([clip[:middle], clip]), "said twice|It takes"),
        ("silence", np.concatenate([clip[:middle], np.zeros(2 * RATE, np.float32), good[first + middle :]]), "silent"),
        ("noise", good + noise, "noisy"),
    ):
        verdict = tiny.judge([("S1", text)], (samples, RATE))
        assert verdict.passed == (problem is None), (name, verdict.problems)
        if problem:
            assert any(part in " ".join(verdict.problems) for part in problem.split("|")), (name, verdict.problems)
    wrong = tiny.judge([("S2", text)], (good, RATE))
    assert any("nearer to 'S1'" in problem for problem in wrong.problems)


def test_a_project_goes_on_and_makes_only_what_is_new(tiny: Dia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Dia, "from_pretrained", classmethod(lambda cls, *_, **__: tiny))
    script, folder = tmp_path / "script.txt", tmp_path / "podcast"
    script.write_text("[Anna] Please close the door. [Ben] The woman watched the spider. [Anna] Good morning, Laura!")
    command = ["speak", str(script), str(folder), "--format", "flac", "--seed", "3", "--quiet"]
    assert run([*command, "--plan"]) == 0
    assert not folder.exists()
    assert run(command) == 0
    for name in ("recording.flac", "recording.srt", "recording.vtt", "recording.json", "index.html", "plan.txt"):
        assert (folder / name).stat().st_size > 0
    before = {file.relative_to(folder): file.read_bytes() for file in (folder / "chunks").rglob("*.safetensors")}
    sound = soundfile.read(folder / "recording.flac")[0]

    asked: list[str] = []
    submit = Dia.submit
    monkeypatch.setattr(Dia, "submit", lambda self, text, **more: asked.append(text) or submit(self, text, **more))
    assert run(command) == 0  # all is there
    assert asked == []
    np.testing.assert_array_equal(soundfile.read(folder / "recording.flac")[0], sound)

    keys = json.loads((folder / "project.json").read_text())["keys"]
    (folder / "chunks" / keys["0"] / "0-0.safetensors").unlink()  # as if it had been killed before
    assert run(command) == 0
    assert len(asked) >= 1
    after = {file.relative_to(folder): file.read_bytes() for file in (folder / "chunks").rglob("*.safetensors")}
    assert after == before

    asked.clear()
    assert run([*command, "--remake", "0"]) == 0
    assert asked
    assert all(Path("chunks") / keys["0"] / "0-0.safetensors" in before for _ in asked)
    told = json.loads((folder / "recording.json").read_text())
    assert told["turns"][0]["speaker"] == "Anna"


def test_takes_are_kept_whole_and_seeds_do_not_depend_on_others(tmp_path: Path):
    takes = KeptTakes(tmp_path)
    take = Take(1, 2, 7, np.arange(18, dtype=np.int32).reshape(2, 9), True, Verdict(("Bad.",), 1.5, {"x": np.nan}), ())
    takes.add("key", take)
    (read,) = KeptTakes(tmp_path).of("key").values()
    assert (read.attempt, read.candidate, read.seed, read.ended) == (1, 2, 7, True)
    np.testing.assert_array_equal(read.codes, take.codes)
    assert read.verdict.as_json() == take.verdict.as_json()
    takes.make_anew("key")
    assert KeptTakes(tmp_path).first_attempt("key") == 2
    (tmp_path / "key" / "0-0.safetensors").write_bytes(b"broken")
    with pytest.raises(DiaError, match=r"is no take .* remove it, and it is made again"):
        KeptTakes(tmp_path).of("key")
    assert len({seed_of(1, key, i, j) for key in "ab" for i in range(4) for j in range(3)}) == 24


def test_casts_and_options_that_do_not_go_are_refused(tiny: Dia):
    voice = tiny.voices["S1"]
    for script, options, message in (
        ("[A] One. [B] Two. [C] Three.", {}, r"At line 1, column \d+, 'C' is the third speaker"),
        ("[A] One.\n[B] Two.", {"voices": {"A": voice}}, r"At line 2, column 1, 'B' is not in the cast, which has 'A'"),
        ("[A] One.", {"voices": {"A": voice, "X": voice}}, "has a voice for 'X', who does not speak"),
        ("[A] One.", {"voices": {}}, "The cast is empty"),
        ("[A] One.", {"candidates": 0}, "candidates is 0"),
        ("[A] One.", {"carry": "loose"}, 'must be "fixed" or "context"'),
        ("[A] One.", {"speed": 5.0}, "speed=5.0 must be from 0.25 to 4"),
        ("[A] One.", {"louder": True}, "There is no option 'louder'"),
        ("[A] One.", {"retries": -1}, "retries is -1"),
    ):
        with pytest.raises(DiaError, match=message):
            tiny.speak(script, **options)
    with pytest.raises(SpeakError, match="loaded without"):
        Dia.from_pretrained("tiny", load_codec=False).speak("[A] One.")


def test_voices_come_from_prompts_or_from_the_first_chunk(tiny: Dia):
    """With prompts, in sequence, and without voices on a model that has none of its own."""
    import dataclasses

    given = tiny.speak("[A] Good morning, Laura!", voices={"A": tiny.voices["S2"]}, seed=1, candidates=2)
    assert given.chunks[0].verdict["measures"]["octaves_off"] is not None
    other = Dia(tiny.config, tiny.graphdef, tiny.params, codec=tiny.codec)
    other.config = dataclasses.replace(
        tiny.config, speech=dataclasses.replace(tiny.config.speech, tag_voices=False, chunk_seconds=(2.0, 3.0))
    )
    noted: list[str] = []
    from dia_jax.longform.speak import Direction, speak

    direction = Direction(seed=1, carry="context", retries=0)
    script = "[A] Please close the door. [A] Good morning, Laura! [A] The woman watched the spider."
    speech = speak(other, script, direction=direction, on_voice=lambda name, voice: noted.append(name))
    assert noted == ["A"]
    assert len(speech.turns) == 3
