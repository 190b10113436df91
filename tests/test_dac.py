"""The codec against `transformers`, and windows against the whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from dia_jax import dac
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
    actual = dac.decode_codes((graphdef, params), codes, config=config, window=40)
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
    actual = dac.encode_samples((graphdef, params), samples.astype(np.float32), config=config, window=32)
    assert actual.shape == expected.shape == (70, config.num_codebooks)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(actual, expected)


@pytest.fixture(scope="module")
def small_codec():
    return random_params(SMALL_DAC, seed=4)


@pytest.fixture(scope="module")
def whole(small_codec):
    codes = np.random.default_rng(2).integers(0, 1024, (95, 9)).astype(np.int32)
    samples = np.asarray(dac._decode(*small_codec, codes[None], np.array([95], np.int32))[0])
    return codes, samples


@settings(max_examples=12, deadline=None)
@given(window=st.integers(1, 120))
def test_windowed_decoding_equals_the_whole(small_codec, whole, window: int):
    codes, samples = whole
    actual = dac.decode_codes(small_codec, codes, config=SMALL_DAC, window=window)
    assert np.abs(actual - samples).max() <= 1e-6


@pytest.mark.parametrize("window", [1, 7, 33, 94, 200])
def test_windowed_encoding_equals_the_whole(small_codec, whole, window: int):
    _, samples = whole
    expected = np.asarray(dac._encode(*small_codec, samples[None], np.array([95], np.int32))[0])
    np.testing.assert_array_equal(dac.encode_samples(small_codec, samples, config=SMALL_DAC, window=window), expected)


@pytest.mark.parametrize("config", [SMALL_DAC, DacConfig(strides=(4, 2), encoder_size=4, decoder_size=16)])
def test_context_is_as_far_as_a_frame_is_felt_and_no_further(config: DacConfig):
    codec = random_params(config, seed=5)
    frames, middle = 101, 50
    codes = np.random.default_rng(3).integers(0, config.codebook_size, (frames, config.num_codebooks)).astype(np.int32)
    changed = codes.copy()
    changed[middle] = (changed[middle] + 7) % config.codebook_size
    valid = np.array([frames], np.int32)
    one, other = (np.asarray(dac._decode(*codec, c[None], valid)[0]) for c in (codes, changed))
    felt = np.flatnonzero((one != other).reshape(frames, -1).any(axis=1)) - middle
    assert max(-felt.min(), felt.max()) <= dac.decoder_context(config)
    assert max(-felt.min(), felt.max()) >= dac.decoder_context(config) - 1  # the edge itself may round to nothing


def test_no_frames_give_no_samples(small_codec):
    assert dac.decode_codes(small_codec, np.zeros((0, 9), np.int32), config=SMALL_DAC).shape == (0,)


@pytest.mark.slow
def test_full_size_equals_the_reference(tmp_path: Path):
    from dia_jax import save_params

    config = DacConfig()
    codec = random_params(config, seed=3)
    save_params(tmp_path / "dac", config, codec[1], layout="transformers")
    reference = transformers.DacModel.from_pretrained(tmp_path / "dac").eval()
    codes = np.random.default_rng(0).integers(0, 1024, (200, 9))
    with torch.no_grad():
        expected = reference.decode(audio_codes=torch.tensor(codes.T[None])).audio_values[0].numpy()
        expected_codes = reference.encode(torch.tensor(expected)[None, None]).audio_codes[0].T.numpy()
    actual = dac.decode_codes(codec, codes, config=config)
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(dac.encode_samples(codec, expected, config=config), expected_codes)
