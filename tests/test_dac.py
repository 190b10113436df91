"""The codec against `transformers`, and windows against the whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from dia_jax import Codec, codec, dac
from dia_jax.config import DacConfig
from dia_jax.untrained import SMALL_DAC, random_params

from conftest import load_module

SIZES = {
    "dia's strides": {"downsampling_ratios": [2, 4, 8, 8]},
    "other strides": {"downsampling_ratios": [4, 2, 6], "n_codebooks": 3, "codebook_size": 64, "codebook_dim": 5},
}


def reference_codec(sizes: dict, folder: Path) -> transformers.DacModel:
    torch.manual_seed(0)
    config = transformers.DacConfig(encoder_hidden_size=8, decoder_hidden_size=64, sampling_rate=44100, **sizes)
    model = transformers.DacModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.01)
            elif name.endswith("alpha"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.6 * np.prod(parameter.shape[1:]) ** -0.5)
        for quantizer in model.quantizer.quantizers:
            quantizer.codebook.weight.normal_(0, 1)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=SIZES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("dac") / "dac"
    return reference_codec(SIZES[request.param], folder), *load_module(folder)


def test_decoding_equals_the_reference(pair):
    reference, config, graphdef, params = pair
    codes = np.random.default_rng(0).integers(0, config.codebook_size, (61, config.num_codebooks))
    with torch.no_grad():
        expected = reference.decode(audio_codes=torch.tensor(codes.T[None])).audio_values[0].numpy()
    actual = Codec(config, graphdef, params).decode(codes)
    assert actual.shape == expected.shape == (61 * config.hop,)
    assert expected.std() > 0.01
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_encoding_equals_the_reference_save_ties(pair):
    reference, config, graphdef, params = pair
    rng = np.random.default_rng(1)
    missing = config.hop // 5
    time = np.arange(70 * config.hop - missing)
    samples = 0.5 * np.sin(1e-5 * time**2) + rng.standard_normal(len(time))  # a rising tone in noise
    padded = np.pad(samples.astype(np.float32), (0, missing))
    with torch.no_grad():
        expected = reference.encode(torch.tensor(padded)[None, None]).audio_codes[0].T.numpy()
    actual = Codec(config, graphdef, params).encode(samples.astype(np.float32))
    assert actual.shape == expected.shape == (70, config.num_codebooks)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(actual, expected)


FRAMES = 300


@pytest.fixture(scope="module")
def small_codec() -> Codec:
    return Codec(SMALL_DAC, *random_params(SMALL_DAC, seed=4))


@pytest.fixture(scope="module")
def whole(small_codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """A recording of three windows, decoded in one piece."""
    codes = np.random.default_rng(2).integers(0, 1024, (FRAMES, 9)).astype(np.int32)
    samples = codec._decode(small_codec.graphdef, small_codec.params, codes[None], np.array([FRAMES], np.int32))
    return codes, np.asarray(samples)[0]


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.tuples(st.integers(0, FRAMES - 1), st.integers(1, codec.WINDOW)), min_size=1, max_size=6))
def test_windows_of_any_place_and_size_equal_the_whole(small_codec: Codec, whole, cuts: list[tuple[int, int]]):
    codes, samples = whole
    windows = [(codes, start, min(start + size, FRAMES)) for start, size in cuts]
    for (_, start, stop), part in zip(windows, small_codec.decode_windows(windows), strict=True):
        assert part.shape == ((stop - start) * 512,)
        assert np.abs(part - samples[start * 512 : stop * 512]).max() <= 1e-6


def test_windows_need_no_more_than_their_context(small_codec: Codec, whole):
    codes, samples = whole
    context = dac.decoder_context(SMALL_DAC)
    for size in (1, 8, 40):
        (part,) = small_codec.decode_windows([(codes[: 60 + size + context], 60, 60 + size)])
        np.testing.assert_array_equal(part, samples[60 * 512 : (60 + size) * 512])


def test_recordings_in_a_batch_equal_the_whole(small_codec: Codec, whole):
    codes, samples = whole
    np.testing.assert_allclose(small_codec.decode(codes), samples, atol=1e-6, rtol=0)
    lengths = [FRAMES * 512, 1, 95 * 512 - 100, 128 * 512, 129 * 512]
    for length, encoded in zip(lengths, small_codec.encode_all([samples[:n] for n in lengths]), strict=True):
        padded = np.pad(samples[:length], (0, -length % 512))[None]
        valid = np.array([padded.shape[1] // 512], np.int32)
        expected = np.asarray(codec._encode(small_codec.graphdef, small_codec.params, padded, valid))[0]
        np.testing.assert_array_equal(encoded, expected)


@pytest.mark.parametrize("config", [SMALL_DAC, DacConfig(strides=(4, 2), encoder_size=4, decoder_size=16)])
def test_context_is_as_far_as_a_frame_is_felt_and_no_further(config: DacConfig):
    graphdef, params = random_params(config, seed=5)
    frames, middle = 101, 50
    codes = np.random.default_rng(3).integers(0, config.codebook_size, (frames, config.num_codebooks)).astype(np.int32)
    changed = codes.copy()
    changed[middle] = (changed[middle] + 7) % config.codebook_size
    valid = np.array([frames], np.int32)
    one, other = (np.asarray(codec._decode(graphdef, params, c[None], valid)[0]) for c in (codes, changed))
    felt = np.flatnonzero((one != other).reshape(frames, -1).any(axis=1)) - middle
    assert max(-felt.min(), felt.max()) <= dac.decoder_context(config)
    assert max(-felt.min(), felt.max()) >= dac.decoder_context(config) - 1  # the edge itself may round to nothing


def test_no_frames_give_no_samples(small_codec: Codec):
    assert small_codec.decode(np.zeros((0, 9), np.int32)).shape == (0,)


@pytest.mark.slow
def test_full_size_equals_the_reference(tmp_path: Path):
    from dia_jax import save_params

    config = DacConfig()
    codec = Codec(config, *random_params(config, seed=3))
    save_params(tmp_path / "dac", config, codec.params, layout="transformers")
    reference = transformers.DacModel.from_pretrained(tmp_path / "dac").eval()
    codes = np.random.default_rng(0).integers(0, 1024, (200, 9))
    with torch.no_grad():
        expected = reference.decode(audio_codes=torch.tensor(codes.T[None])).audio_values[0].numpy()
        expected_codes = reference.encode(torch.tensor(expected)[None, None]).audio_codes[0].T.numpy()
    actual = codec.decode(codes)
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(codec.encode(expected), expected_codes)
