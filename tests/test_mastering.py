"""Levels, edges, tempo, loudness and tags: by signals with known answers, and by what the tiny voice's teacher said."""

import math
import sys
from pathlib import Path

import mutagen
import numpy as np
import pytest
from mutagen.flac import FLAC
from mutagen.mp3 import MP3
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from dia_jax import Dia
from dia_jax.audio import AudioError, read_audio
from dia_jax.longform.mastering import (
    MasteringError,
    check_mastering,
    edges,
    fade,
    level,
    normalise,
    stretch,
    true_peak,
    write_recording,
)
from dia_jax.longform.speech import SpokenChapter

RATE = 44_100
CLICKS = (0.5, 1.5, 2.5, 3.5, 4.5)


def tone(seconds: float, *, decibels: float = -20.0, hertz: float = 1000.0) -> np.ndarray:
    """A sine whose RMS is this many dBFS."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (math.sqrt(2) * 10 ** (decibels / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def voices() -> list[tuple[np.ndarray, float]]:
    """Two vowels like the tiny voices': pulses at 172 and at 86 Hz through the same resonances, louder and quieter."""
    found = []
    for hertz in (172.3, 86.1):
        pulses = silence(2.0)
        pulses[(np.arange(0, 2.0, 1 / hertz) * RATE).astype(int)] = 1.0
        spectrum, frequency = np.fft.rfft(pulses), np.fft.rfftfreq(len(pulses), 1 / RATE)
        formants = sum(1 / (1 + ((frequency - centre) / 80) ** 2) for centre in (660, 1700, 2400))
        envelope = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * np.arange(len(pulses)) / RATE)
        voiced = np.fft.irfft(spectrum * formants, len(pulses)) * envelope
        found.append(((0.3 * voiced / np.abs(voiced).max()).astype(np.float32), hertz))
    return found


def said_by_tiny() -> np.ndarray:
    """A sentence of the tiny voice, decoded from codes that the tests keep."""
    with np.load(Path(__file__).with_name("tiny_said.npz")) as said:
        codes = next(iter(said.values()))
    return np.asarray(Dia.from_pretrained("tiny").decode_codes(codes), np.float32)


def pitch(samples: np.ndarray, near: float) -> float:
    """The median of the strongest period, within 15 % of one, of frames of 60 ms that repeat themselves; in Hz."""
    size = round(0.06 * RATE)
    lags = np.arange(round(RATE / near / 1.15), round(RATE / near * 1.15))
    found = []
    for start in range(0, len(samples) - size, size // 2):
        frame = samples[start : start + size] - samples[start : start + size].mean()
        if np.sqrt((frame**2).mean()) < 0.02:
            continue
        likeness = np.array([np.dot(frame[:-lag], frame[lag:]) / (size - lag) for lag in lags]) / (frame**2).mean()
        if likeness.max() > 0.5:
            found.append(RATE / lags[likeness.argmax()])
    assert len(found) > 10
    return float(np.median(found))


# --- Levels and edges ------------------------------------------------------------------------------------------------


def test_level_is_that_of_the_sound_alone():
    assert level(tone(1.0, decibels=-20), rate=RATE) == pytest.approx(-20, abs=0.05)
    padded = np.concatenate([silence(3.0), tone(1.0, decibels=-20), silence(7.0)])
    assert level(padded, rate=RATE) == pytest.approx(-20, abs=0.05)
    noisy = padded + np.random.default_rng(0).normal(0, 10 ** (-60 / 20), len(padded)).astype(np.float32)
    assert level(noisy, rate=RATE) == pytest.approx(-20, abs=0.1)
    assert level(silence(1.0), rate=RATE) == level(silence(0.0), rate=RATE) == -math.inf


@pytest.mark.parametrize("gain", [1.0, 0.05])
def test_edges_are_found_at_any_level(gain: float):
    clip = gain * np.concatenate([silence(0.3), tone(1.0, decibels=-20), silence(0.7)])
    noise = np.random.default_rng(0).normal(0, gain * 10 ** (-75 / 20), len(clip)).astype(np.float32)
    first, last = edges(clip + noise, rate=RATE)
    assert first / RATE == pytest.approx(0.3, abs=0.006)
    assert last / RATE == pytest.approx(1.3, abs=0.006)


def test_edges_of_silence_and_of_sound_throughout():
    assert edges(silence(1.0), rate=RATE) == edges(silence(0.0), rate=RATE) == (0, 0)
    assert edges(np.full(RATE, 1e-4, np.float32), rate=RATE) == (0, 0)
    assert edges(tone(0.999), rate=RATE) == (0, len(tone(0.999)))


def test_fade_is_smooth_and_leaves_the_middle():
    ones = np.ones(RATE, np.float32)
    faded = fade(ones, rate=RATE, milliseconds=10)
    assert ones.all()
    assert faded[0] < 1e-4
    assert faded[-1] < 1e-4
    np.testing.assert_array_equal(faded[441:-441], 1)
    np.testing.assert_allclose(faded[:441] + faded[:441][::-1], 1, atol=1e-6)
    assert np.abs(np.diff(faded)).max() < 4e-3
    np.testing.assert_array_equal(fade(ones[:3], rate=RATE, milliseconds=10), [0.5, 1, 0.5])
    assert len(fade(ones[:0], rate=RATE, milliseconds=10)) == 0


# --- Tempo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.7, 0.8, 1.25, 1.4])
def test_tempo_keeps_pitch_and_maps_times(speed: float, voices: list[tuple[np.ndarray, float]]):
    for samples, hertz in voices:
        stretched = stretch(samples, rate=RATE, speed=speed)
        assert stretched.dtype == np.float32
        assert len(stretched) == round(len(samples) / speed)
        assert pitch(stretched, hertz) == pytest.approx(hertz, rel=0.02)
        assert level(stretched, rate=RATE) == pytest.approx(level(samples, rate=RATE), abs=0.5)
    clicks = silence(5.0)
    for time in CLICKS:
        clicks[round(time * RATE) :][:20] = np.hanning(20)
    stretched = np.abs(stretch(clicks, rate=RATE, speed=speed))
    for time in CLICKS:
        around = round((time - 0.2) / speed * RATE)
        heard = around + stretched[around : around + round(0.4 / speed * RATE)].argmax()
        assert heard / RATE == pytest.approx(time / speed, abs=0.002)


def test_tempo_of_the_tiny_voice():
    samples = said_by_tiny()
    for speed in (0.8, 1.4):
        assert pitch(stretch(samples, rate=RATE, speed=speed), 172.3) == pytest.approx(172.3, rel=0.02)


def test_tempo_is_exact_where_it_must_be(voices: list[tuple[np.ndarray, float]]):
    samples = voices[0][0]
    assert stretch(samples, rate=RATE, speed=1.0) is samples
    slower = stretch(samples, rate=RATE, speed=0.8)
    np.testing.assert_array_equal(slower, stretch(samples, rate=RATE, speed=0.8))
    for length in (0, 1, 10):
        for speed in (0.25, 0.8, 4.0):
            assert len(stretch(samples[:length], rate=RATE, speed=speed)) == round(length / speed)
    assert not stretch(silence(0.2), rate=RATE, speed=0.8).any()


@pytest.mark.parametrize("speed", [0.24, 4.01, 0, -1, math.nan, "fast", True, None])
def test_tempo_out_of_range(speed: float):
    with pytest.raises(MasteringError, match=r"speed=.* must be from 0.25 to 4 "):
        stretch(tone(0.1), rate=RATE, speed=speed)


# --- Loudness --------------------------------------------------------------------------------------------------------


def test_loudness_reaches_its_target():
    # By BS.1770 a sine of 997 Hz at full scale in one channel has -3.01 LUFS.
    samples, achieved = normalise(tone(3.0, decibels=-30, hertz=997), rate=RATE, loudness=-16)
    assert achieved == pytest.approx(-16, abs=1e-6)
    assert level(samples, rate=RATE) == pytest.approx(-16, abs=0.05)
    assert samples.dtype == np.float32
    # Pauses do not count.
    _, achieved = normalise(np.concatenate([samples, silence(10)]), rate=RATE, loudness=-20)
    assert achieved == pytest.approx(-20, abs=1e-6)


def test_loudness_yields_to_the_peak():
    loud = tone(3.0, decibels=-40)
    loud[::RATE] = 0.5
    samples, achieved = normalise(loud, rate=RATE, loudness=-10)
    assert achieved < -20
    assert true_peak(samples, rate=RATE) == pytest.approx(-1.0, abs=0.01)
    again, unchanged = normalise(samples, rate=RATE, loudness=-10)
    assert unchanged == pytest.approx(achieved, abs=0.05)
    np.testing.assert_allclose(again, samples, rtol=2e-3)


def test_true_peak_lies_between_the_samples():
    # A quarter of the rate, sampled 45 degrees off its peaks: samples of 0.707, a wave of 1.
    between = np.sin(np.pi / 2 * np.arange(3 * RATE + 17) + np.pi / 4).astype(np.float32)
    between *= np.hanning(len(between)).astype(np.float32)
    assert np.abs(between).max() < 0.71
    assert true_peak(between, rate=RATE) == pytest.approx(0.0, abs=0.1)
    assert true_peak(silence(0.1), rate=RATE) == true_peak(silence(0), rate=RATE) == -math.inf


def test_loudness_of_short_clips_and_of_silence():
    samples, achieved = normalise(tone(0.1, decibels=-30, hertz=1000), rate=RATE, loudness=-16)
    assert len(samples) == len(tone(0.1))
    assert achieved == pytest.approx(-16, abs=1e-6)
    assert level(samples, rate=RATE) == pytest.approx(-16, abs=0.2)
    for quiet in (silence(1.0), silence(0.1), silence(0), tone(1.0, decibels=-80)):
        samples, achieved = normalise(quiet, rate=RATE, loudness=-16)
        assert samples is quiet
        assert achieved == -math.inf


@pytest.mark.parametrize("loudness", [-61, 0, math.nan, "loud"])
def test_loudness_out_of_range(loudness: float):
    with pytest.raises(MasteringError, match=r"loudness=.* must be from -60 to -5 "):
        normalise(tone(1.0), rate=RATE, loudness=loudness)


# --- The sound file --------------------------------------------------------------------------------------------------

CHAPTERS = (SpokenChapter("", 0.0), SpokenChapter("Der Hase\nund der Igel ✓", 1.25), SpokenChapter("End", 61.5))
NAMES = ["Chapter 1", "Der Hase und der Igel ✓", "End"]


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ".flac", ".ogg"])
def test_recordings_have_title_and_chapters(tmp_path: Path, suffix: str):
    rate, path, plain = 8000, tmp_path / f"recording{suffix}", tmp_path / f"plain{suffix}"
    samples = np.resize(tone(1.0), 62 * rate)
    write_recording(path, samples, rate=rate, title="A — title", chapters=CHAPTERS, artist="Anna & Ben")
    write_recording(plain, samples, rate=rate)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, plain.name}
    np.testing.assert_array_equal(read_audio(path, rate=rate), read_audio(plain, rate=rate))
    if suffix in (".mp3", ".wav"):
        tags = (MP3 if suffix == ".mp3" else WAVE)(path).tags
        assert tags["TIT2"].text == ["A — title"]
        assert tags["TPE1"].text == ["Anna & Ben"]
        assert tags["CTOC:toc"].child_element_ids == ["chp0", "chp1", "chp2"]
        found = [tags[f"CHAP:chp{number}"] for number in range(3)]
        assert [frame.sub_frames["TIT2"].text[0] for frame in found] == NAMES
        assert [(frame.start_time, frame.end_time) for frame in found] == [(0, 1250), (1250, 61_500), (61_500, 62_000)]
    else:
        tags = (FLAC if suffix == ".flac" else OggVorbis)(path)
        assert tags["title"] == ["A — title"]
        assert tags["artist"] == ["Anna & Ben"]
        assert [tags[f"chapter00{number}name"][0] for number in (1, 2, 3)] == NAMES
        assert [tags[f"chapter00{number}"][0] for number in (1, 2, 3)] == [
            "00:00:00.000",
            "00:00:01.250",
            "00:01:01.500",
        ]


def test_a_recording_without_its_tags_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object, **settings: object) -> None:
        raise mutagen.MutagenError("no room")

    path = tmp_path / "recording.flac"
    path.write_bytes(b"what was there")
    monkeypatch.setattr(FLAC, "save", refuse)
    with pytest.raises(AudioError, match=r"Cannot write title and chapters into .*recording.flac: no room."):
        write_recording(path, tone(0.1), rate=RATE, title="A title")
    assert [file.name for file in tmp_path.iterdir()] == ["recording.flac"]
    assert path.read_bytes() == b"what was there"


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_mastering(speed=0.8, loudness=-16, tags=True)
    for library in ("python_stretch", "pyloudnorm", "mutagen"):
        monkeypatch.setitem(sys.modules, library, None)
    remedy = r": pip install 'dia_jax\[long\]'\.$"
    with pytest.raises(MasteringError, match=rf"^speed= needs python-stretch{remedy}"):
        check_mastering(speed=0.8)
    with pytest.raises(MasteringError, match=rf"^loudness= needs pyloudnorm{remedy}"):
        check_mastering(loudness=-16)
    with pytest.raises(MasteringError, match=rf"^A sound file with title and chapters needs mutagen{remedy}"):
        check_mastering(tags=True)
    with pytest.raises(MasteringError, match="mutagen"):
        write_recording(tmp_path / "x.wav", tone(0.1), rate=RATE, title="A title")
    check_mastering()
    write_recording(tmp_path / "x.wav", tone(0.1), rate=RATE)
    assert len(stretch(tone(0.1), rate=RATE, speed=1)) == len(tone(0.1))
