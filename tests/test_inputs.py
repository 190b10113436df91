"""The small rooms: scripts, configs, the delay pattern, sound files."""

import json
import os
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.dia.tokenization_dia import DiaTokenizer

from dia_jax import NONVERBAL_TAGS, AudioError, ConfigError, DacConfig, DiaConfig, SamplingSettings, TextError
from dia_jax.audio import FORMATS, check_writable, growing_wav, prepare_audio, read_audio, write_audio
from dia_jax.checkpoint.schemas import (
    dac_from_json,
    dac_to_json,
    dac_to_kwargs,
    dia_from_json,
    dia_to_json,
    dia_to_nested_json,
)
from dia_jax.delay import FREE, apply_delay, revert_delay
from dia_jax.picture import COLUMNS, PictureError, check_drawable, spectrogram
from dia_jax.text import encode_text

from conftest import reference_config

# --- Scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[S1] Hi. [S2] Ho! [S1]", "[S2]naïve 東京 [S1](laughs)", "[S1] [S3] [s1] \n tab\t"])
def test_tokens_are_those_of_transformers(text: str):
    expected = DiaTokenizer()(text, add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(encode_text(text, max_length=1024), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("Hello.", "not with a speaker tag"),
        ("[S3] Hello.", "not with a speaker tag"),
        ("[S1] [S2]", "no words"),
        ("[S1] a\x00b", "padding"),
        ("[S1] a\x01b", r"the tag \[S1\]"),
        ("[S1] a\udcffb", "not valid Unicode"),
        ("[S1] " + "x" * 1023, "1025 bytes long, but the model takes 1024"),
        (b"[S1] bytes", "must be a string"),
    ],
)
def test_scripts_that_are_refused(text, words: str):
    with pytest.raises(TextError, match=words):
        encode_text(text, max_length=1024)


def test_a_long_script_is_cut_only_when_asked_and_between_characters():
    tokens = encode_text("[S1] " + "é" * 600, max_length=1024, truncate=True)
    assert len(tokens) == 1024
    assert bytes(tokens) == b"\x01 " + "é".encode() * 511
    tokens = encode_text("[S1]  " + "é" * 600, max_length=1024, truncate=True)
    assert len(tokens) == 1023
    assert len(encode_text("[S1] " + "x" * 1022, max_length=1024)) == 1024


def test_the_sounds():
    assert len(NONVERBAL_TAGS) == 21
    assert all(tag.startswith("(") and tag.endswith(")") for tag in NONVERBAL_TAGS)


# --- Configs ---------------------------------------------------------------------------------------------------------

NESTED = {
    "version": "0.1",
    "model": {
        "encoder": {"n_layer": 12, "n_embd": 1024, "n_hidden": 4096, "n_head": 16, "head_dim": 128},
        "decoder": {
            "n_layer": 18,
            "n_embd": 2048,
            "n_hidden": 8192,
            "gqa_query_heads": 16,
            "kv_heads": 4,
            "gqa_head_dim": 128,
            "cross_query_heads": 16,
            "cross_head_dim": 128,
        },
        "src_vocab_size": 256,
        "tgt_vocab_size": 1028,
        "dropout": 0.0,
        "some_key_nobody_knows": 1,
    },
    "training": {},
    "data": {
        "text_length": 1000,
        "audio_length": 3072,
        "channels": 9,
        "text_pad_value": 0,
        "audio_eos_value": 1024,
        "audio_bos_value": 1026,
        "audio_pad_value": 1025,
        "delay_pattern": [0, 8, 9, 10, 11, 12, 13, 14, 15],
    },
}


def test_three_schemas_of_the_same_model():
    nested = dia_from_json(NESTED)
    assert nested.variant == "v0.1"
    assert nested.encoder.max_length == 1024
    flat = dia_from_json(transformers.DiaConfig().to_dict())
    old = transformers.DiaConfig().to_dict()
    for part in ("encoder_config", "decoder_config"):
        old[part]["rope_theta"] = old[part].pop("rope_parameters")["rope_theta"]
        old[part]["rope_scaling"] = None
    old |= {"eos_token_id": 1024, "pad_token_id": 1025, "bos_token_id": 1026}
    assert dia_from_json(old) == flat == DiaConfig()
    assert dia_from_json(NESTED, variant="0626") == flat
    assert dia_from_json(transformers.DiaConfig().to_dict(), variant="v0.1") == nested


OWN_SAMPLING = SamplingSettings(temperature=0.3, cfg_filter_top_k=20)
OWN_CONFIGS = [DiaConfig(variant=v, sampling=s) for v in ("0626", "v0.1") for s in (SamplingSettings(), OWN_SAMPLING)]


@pytest.mark.parametrize("config", OWN_CONFIGS)
def test_written_configs_are_read_back(config: DiaConfig):
    assert dia_from_json(json.loads(json.dumps(dia_to_json(config)))) == config
    if config.variant == "v0.1":
        assert dia_from_json(json.loads(json.dumps(dia_to_nested_json(config)))) == config
    assert dia_from_json(reference_config().to_dict()) != config


@pytest.mark.parametrize("sampling", [{"temperature": -1}, {"top_p": "x"}, {"heat": 1}, None, [0.3]])
def test_sampling_that_cannot_be_used_is_refused(sampling):
    with pytest.raises(ConfigError, match=r"temperature|top_p|heat|mapping"):
        dia_from_json(dia_to_json(DiaConfig()) | {"sampling": sampling})


def test_src_vocab_size_is_128_if_absent():
    data = json.loads(json.dumps(NESTED))
    del data["model"]["src_vocab_size"]
    assert dia_from_json(data).encoder.vocab_size == 128


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["model"]["decoder"].pop("kv_heads"), "lacks the key 'kv_heads'"),
        (lambda d: d["model"]["decoder"].update(kv_heads=5), "not a multiple of its 5"),
        (lambda d: d["model"]["decoder"].update(n_layer="many"), "num_layers is 'many'"),
        (lambda d: d["data"].update(delay_pattern=[0, 1]), "must hold 9 numbers"),
        (lambda d: d["data"].update(delay_pattern=[1] * 9), "must start with 0"),
        (lambda d: d["data"].update(audio_eos_value=1027), "token ids"),
        (lambda d: d["data"].update(text_length=None), "wrong kind"),
        (lambda d: d["model"].update(rope_max_timescale="x"), "wrong kind"),
        (lambda d: d["data"].update(delay_pattern=[0, 8.5, 9, 10, 11, 12, 13, 14, 15]), "whole numbers"),
        (lambda d: d["model"].update(normalization_layer_epsilon=float("inf")), "norm_eps is inf"),
        (lambda d: d["model"]["decoder"].update(cross_head_dim=7), "cross-attention head_dim 7 is odd"),
        (lambda d: d.pop("data"), "neither `model` and `data`"),
    ],
)
def test_unusable_configs(change, words: str):
    data = json.loads(json.dumps(NESTED))
    change(data)
    with pytest.raises(ConfigError, match=words):
        dia_from_json(data)


def test_dac_configs():
    assert dac_from_json(transformers.DacConfig(sampling_rate=44100).to_dict()) == DacConfig()
    assert dac_from_json(dac_to_kwargs(DacConfig())) == DacConfig() == dac_from_json(dac_to_json(DacConfig()))
    with pytest.raises(ConfigError, match="even whole numbers"):
        DacConfig(strides=(2, 4, 5, 8))
    with pytest.raises(ConfigError, match="lacks the key"):
        dac_from_json({})
    with pytest.raises(ConfigError, match="is a list"):
        dac_from_json([])
    with pytest.raises(ConfigError, match="wrong kind"):
        dac_from_json(dac_to_json(DacConfig()) | {"upsampling_ratios": 5})


# --- The delay pattern -----------------------------------------------------------------------------------------------


@given(
    delays=st.lists(st.integers(0, 9), min_size=1, max_size=6).map(lambda rest: (0, *rest)),
    frames=st.integers(0, 20),
    spare=st.integers(0, 5),
)
def test_delay_and_back(delays: tuple[int, ...], frames: int, spare: int):
    codes = np.random.default_rng(0).integers(0, 50, (frames, len(delays)))
    length = frames + max(delays) + 1 + spare
    grid = apply_delay(codes, length=length, delay_pattern=delays, bos_token_id=99)
    np.testing.assert_array_equal(revert_delay(grid, start=0, stop=frames, delay_pattern=delays), codes)
    for channel, delay in enumerate(delays):
        assert (grid[: delay + 1, channel] == 99).all()
        assert (grid[delay + 1 + frames :, channel] == FREE).all()


def test_a_grid_too_short_is_an_error():
    with pytest.raises(ValueError, match="need 6 positions, not 5"):
        apply_delay(np.zeros((2, 2)), length=5, delay_pattern=(0, 3), bos_token_id=9)


# --- Sound -----------------------------------------------------------------------------------------------------------


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_writing_and_reading(tmp_path: Path, suffix: str):
    path, samples = tmp_path / f"tone{suffix}", tone(3.0, 44100)
    write_audio(path, samples, rate=44100)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = read_audio(path, rate=44100)
    assert abs(len(back) - len(samples)) <= 2304  # an mp3 holds whole frames
    middle = slice(5000, 100_000)
    assert np.corrcoef(back[middle], samples[middle])[0, 1] > 0.99
    assert soundfile.info(path).samplerate == 44100


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_stereo(tmp_path: Path, rate: int, channels: int):
    samples = np.stack([tone(1.0, rate)] * channels, axis=1)
    soundfile.write(tmp_path / "x.wav", samples, rate)
    expected = tone(1.0, 44100)
    for actual in (
        read_audio(tmp_path / "x.wav", rate=44100),
        prepare_audio(samples, rate, rate=44100),
        prepare_audio(samples.T, rate, rate=44100),
        prepare_audio((samples * 32767).astype(np.int16), rate, rate=44100),
    ):
        assert abs(len(actual) - 44100) <= 1
        np.testing.assert_allclose(actual[2000:40000], expected[2000:40000], atol=2e-3)


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (np.zeros(0), 44100, "no samples"),
        (np.zeros((0, 2)), 44100, "no samples"),
        (np.zeros(1000), 44100, "silent"),
        (np.full(1000, np.nan), 44100, "NaN"),
        (np.ones((3, 3, 3)), 44100, "give numbers"),
        (np.array(["a"]), 44100, "give numbers"),
        (np.ones((100, 9)), 44100, "9 channels"),
        (np.ones(1000), 0, "sample rate 0"),
        (np.ones(1000), -44100, "sample rate -44100"),
        (np.ones(1000), float("nan"), "sample rate nan"),
        (np.ones(1000), "44100", "sample rate '44100'"),
        (np.ones(1000), 44.1, "sample rate 44.1"),
        (np.ones(1000), np.zeros((2, 2)), r"sample rate array\(\[\[0., 0.\], \[0., 0.\]\]\); give one"),
        ([[1.0], [1.0, 2.0]], 44100, "ragged list or no numbers"),
        (jax.random.split(jax.random.key(0)), 44100, "ragged list or no numbers"),
    ],
)
def test_audio_that_is_refused(samples, rate, words: str):
    with pytest.raises(AudioError, match=words):
        prepare_audio(samples, rate, rate=44100)


def test_files_that_are_refused(tmp_path: Path):
    with pytest.raises(AudioError, match="There is no audio file"):
        read_audio(tmp_path / "missing.wav", rate=44100)
    for name in ("\x00.wav", "\ud800.wav", "x" * 300):
        with pytest.raises(AudioError, match=r"no audio file|not a readable audio file"):
            read_audio(tmp_path / name, rate=44100)
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF\x00nonsense")
    with pytest.raises(AudioError, match="not a readable audio file"):
        read_audio(tmp_path / "corrupt.wav", rate=44100)
    for name, samples, words in (("empty", np.zeros(0), "no samples"), ("silent", np.zeros(999), "silent")):
        soundfile.write(tmp_path / f"{name}.wav", samples, 44100)
        with pytest.raises(AudioError, match=words):
            read_audio(tmp_path / f"{name}.wav", rate=44100)


def test_writes_that_are_refused_leave_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.wav"
    path.write_text("precious")
    with pytest.raises(AudioError, match="not finite floats"):
        write_audio(path, np.array([np.nan]), rate=44100)
    with pytest.raises(AudioError, match=r"suffix must be one of \.wav, \.flac"):
        write_audio(tmp_path / "x.aac", tone(0.1, 44100), rate=44100)
    with pytest.raises(AudioError, match="no directory"):
        write_audio(tmp_path / "no" / "x.wav", tone(0.1, 44100), rate=44100)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(AudioError, match="No space left"):
        write_audio(path, tone(0.1, 44100), rate=44100)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["x.wav"]


@pytest.mark.parametrize("suffix", [*FORMATS, ".aiff", ".opus"])
@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_blocks_are_the_same_as_the_whole(tmp_path: Path, suffix: str, rate: int):
    path, noise = tmp_path / f"x{suffix}", np.random.default_rng(0).normal(0, 0.1, (48_000 * 5, 2))
    details = ("OGG", "OPUS") if suffix == ".opus" else (None, None)
    with soundfile.SoundFile(path, "w", 48_000, 2, format=details[0], subtype=details[1]) as file:
        for start in range(0, len(noise), 40_000):
            file.write(noise[start : start + 40_000])
    expected = prepare_audio(*soundfile.read(path, dtype="float32"), rate=rate)
    np.testing.assert_array_equal(read_audio(path, rate=rate), expected)


def flac_of_length(path: Path, claimed: int) -> Path:
    """Rewrites the number of samples in a FLAC's header, where 0 means that it is not known."""
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | claimed >> 32
    data[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("claimed", "words"),
    [
        (8000 * 3, "has 3.0 s of audio according to its header; at most 2 s"),
        (2**36 - 1, "has 8,589,934.6 s of audio according to its header"),
        (0, "has more than 2 s of audio"),
    ],
)
def test_long_recordings_are_refused_whatever_the_header_says(tmp_path: Path, claimed: int, words: str):
    soundfile.write(tmp_path / "x.flac", tone(3.0, 8000), 8000)
    path = flac_of_length(tmp_path / "x.flac", claimed)
    with pytest.raises(AudioError, match=words):
        read_audio(path, rate=8000, max_seconds=2)


def test_a_length_that_is_not_known_is_read_to_the_end(tmp_path: Path):
    soundfile.write(tmp_path / "x.flac", tone(3.0, 8000), 8000)
    expected = read_audio(tmp_path / "x.flac", rate=44_100)
    np.testing.assert_array_equal(read_audio(flac_of_length(tmp_path / "x.flac", 0), rate=44_100), expected)


def test_memory_is_that_of_the_mono_result(tmp_path: Path):
    soundfile.write(tmp_path / "x.flac", np.zeros((48_000 * 60, 8), np.int16) + 100, 48_000)
    tracemalloc.start()
    try:
        samples = read_audio(tmp_path / "x.flac", rate=48_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * samples.nbytes + 8_000_000  # the result of BytesIO may be resized by a copy


def test_links_are_followed_and_other_things_are_not_replaced(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.wav").symlink_to("folder/y.wav")
    write_audio(tmp_path / "x.wav", tone(0.1, 44100), rate=44100)
    assert (tmp_path / "x.wav").is_symlink()
    assert soundfile.info(tmp_path / "folder" / "y.wav").frames == 4410
    (tmp_path / "grown.wav").symlink_to("folder/grown.wav")
    with growing_wav(tmp_path / "grown.wav", rate=44100) as append:
        append(tone(0.1, 44100))
    assert soundfile.info(tmp_path / "folder" / "grown.wav").frames == 4410
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(AudioError, match="not a regular file"):
        check_writable(tmp_path / "pipe.wav")
    for name in ("\x00.wav", "\ud800.wav"):
        with pytest.raises(AudioError, match="no file can have this name"):
            check_writable(tmp_path / name)
    with pytest.raises(PictureError, match="is a directory"):
        check_drawable(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["folder", "grown.wav", "pipe.wav", "x.wav"]


def test_a_check_leaves_what_is_there(tmp_path: Path):
    (tmp_path / "x.wav").write_text("precious")
    check_writable(tmp_path / "x.wav")
    check_drawable(tmp_path / "x.wav")
    assert (tmp_path / "x.wav").read_text() == "precious"
    assert os.listdir(tmp_path) == ["x.wav"]


@pytest.mark.parametrize("size", [1, 511, 512, 5000, 150_000])
def test_spectrograms_are_those_of_all_windows_at_once(size: int):
    samples = np.random.default_rng(0).normal(0, np.linspace(0, 1, size)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(samples, 1024), 2048)[::512]
    power = np.abs(np.fft.rfft(windows * np.hanning(2048))) ** 2
    expected = 10 * np.log10(np.maximum(power / max(power.max(), 1e-12), 1e-8))
    np.testing.assert_array_equal(spectrogram(samples), expected)


def test_columns_of_a_long_recording_are_mean_powers():
    samples = np.zeros(3 * COLUMNS * 512 - 512, np.float32)
    samples[1024::512] = 1.0  # a click in the middle of each window, but for the first two
    levels = spectrogram(samples)
    assert levels.shape == (COLUMNS, 1025)
    np.testing.assert_allclose(levels[5:-5, 100], levels[5, 100])
    assert levels[0, 100] < levels[5, 100]
    assert levels.max() == 0
