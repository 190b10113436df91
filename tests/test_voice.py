"""Voices: files, checks, and what they do before a script."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dia_jax import Dia, SettingError, Voice, VoiceError
from dia_jax.cli import run
from dia_jax.voice import load_voices, voice_prompt


@pytest.fixture(scope="module")
def tiny() -> Dia:
    return Dia.from_pretrained("tiny")


def a_voice(dia: Dia, **changed: object) -> Voice:
    assert dia.codec is not None
    codes = np.random.default_rng(0).integers(0, 1024, (40, 9))
    values = {"name": "Anna", "codes": codes, "text": "Hello there.", "rate": 15.0, "rate_spread": 0.1}
    more = {"pitch": 180.0, "level": -20.0, "floor": -50.0, "longest_pause": 0.3, "confidence": 0.8}
    return Voice(**(values | more | {"codec": dia.codec.digest} | changed))  # pyrefly: ignore


def test_a_voice_is_kept_in_a_file(dia: Dia, tmp_path: Path):
    voice = a_voice(dia, pitch=float("nan"))
    voice.save(tmp_path / "anna.voice")
    read = load_voices(tmp_path)["anna"]
    for field in dataclasses.fields(Voice):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(voice, field.name))
    assert [path.name for path in tmp_path.iterdir()] == ["anna.voice"]


def test_damaged_files_are_refused_in_a_sentence(dia: Dia, tmp_path: Path):
    path = tmp_path / "anna.voice"
    with pytest.raises(VoiceError, match=r"Cannot read the voice .*anna\.voice: No such file"):
        Voice.load(path)
    a_voice(dia).save(path)
    data = path.read_bytes()
    for damaged in (b"", data[:40], b"x" * 100, data.replace(b"dia_jax voice 1", b"dia_jax voice 2")):
        path.write_bytes(damaged)
        with pytest.raises(VoiceError, match=r"no voice"):
            Voice.load(path)
    path.write_bytes(data.replace(b'\\"rate\\": 15.0', b'\\"rate\\": -1.0'))
    with pytest.raises(VoiceError, match=r"its rate is -1; it must be above 0"):
        Voice.load(path)
    with pytest.raises(VoiceError, match="is no folder of voices"):
        load_voices(path)


def test_a_voice_is_its_transcript_and_codes_before_the_script(dia: Dia, tmp_path: Path):
    anna, ben = a_voice(dia), a_voice(dia, name="Ben", text="Hi.", codes=np.ones((20, 9), np.int32))
    anna.save(tmp_path / "anna.voice")
    text, codes = voice_prompt({"S1": anna, "S2": ben})
    assert text == "[S1] Hello there. [S2] Hi."
    script, settings = "[S1] And this?", {"seed": 1, "max_tokens": 12}
    expected = dia.generate_codes(f"{text} {script}", audio_prompt=codes, **settings)
    both = {"S1": tmp_path / "anna.voice", "S2": ben}
    np.testing.assert_array_equal(dia.generate_codes(script, voice=both, **settings), expected)
    alone = dia.generate_codes("[S2] Hello there. [S2] And this?", audio_prompt=anna.codes, **settings)
    first, second = dia.generate_codes([script, "[S2] And this?"], voice=[both, anna], **settings)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, alone)


def test_voices_that_do_not_go_are_refused(dia: Dia):
    voice = a_voice(dia)
    other = dataclasses.replace(voice, codec="0123456789abcdef")
    with pytest.raises(VoiceError, match="'Anna' was made with the codec 0123456789abcdef, but this model's is"):
        dia.generate("[S1] Hello.", voice=other)
    with pytest.raises(SettingError, match="exclude each other"):
        dia.generate("[S1] Hello.", voice=voice, audio_prompt=voice.codes)
    with pytest.raises(SettingError, match="2 scripts but 1 voices"):
        dia.generate(["[S1] Hello.", "[S1] Hi."], voice=[voice])
    with pytest.raises(VoiceError, match="must be given for the tags S1 and S2"):
        dia.generate("[S1] Hello.", voice={"Anna": voice})


def test_a_voice_is_made_from_a_recording_and_checked(tiny: Dia, tmp_path: Path, capsys: pytest.CaptureFixture):
    """tiny_teacher.flac: what tiny's first voice was made from, in frames of its codec."""
    given = tiny.voices["S1"]
    samples = soundfile.read(Path(__file__).parent / "tiny_teacher.flac", dtype="float32")[0]
    quiet = np.zeros(40 * 512, np.float32)  # whole frames: tiny's sound is locked to them
    soundfile.write(tmp_path / "me.wav", np.concatenate([quiet, samples, quiet]), 44_100)
    command = ["voice", str(tmp_path / "me.wav"), "--output", str(tmp_path / "me.voice"), "--quiet"]
    assert run([*command, "--text", f"[S1] {given.text}"]) == 0
    assert "pitch" in capsys.readouterr().out
    voice = Voice.load(tmp_path / "me.voice")
    speak = ["generate", "[S1] Hello.", "--output", str(tmp_path / "out.wav"), "--max-tokens", "60", "--quiet"]
    assert run([*speak, "--voice", str(tmp_path / "me.voice")]) == 0
    assert run([*speak, "--voice", str(tmp_path / "me.wav")]) == 2
    assert "is no voice" in capsys.readouterr().err
    assert abs(len(voice.codes) - len(given.codes)) < 20  # the silence at the ends is gone
    assert voice.pitch == pytest.approx(given.pitch, rel=0.02)
    assert voice.rate == pytest.approx(given.rate, rel=0.05)
    for audio, text, message in (
        (samples, given.text + " " + given.text, "do not go|differ|bytes for"),
        (samples, "The spider carried seven mirrors over old bridges. Nobody counted them twice.", "do not go"),
        (samples[:100_000], given.text, r"holds 2\.\d s of sound; a voice needs 5 to 15 s"),
        (np.clip(20 * samples, -1, 1), given.text, "of the recording's samples are clipped"),
        (samples, "Hm.", r"has 3 bytes for 5\.\d s of sound"),
        (samples, "One. [S2] Two.", "several speaker tags"),
        (samples, " ", "transcript is empty"),
    ):
        with pytest.raises(VoiceError, match=message):
            tiny.make_voice((audio, 44_100), text)
