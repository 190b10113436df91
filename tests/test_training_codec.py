"""Training the codec: its losses, the straight-through gradient, codebooks that revive, and a run."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from dia_jax import load_params, open_checkpoint, save_params
from dia_jax.config import DacConfig
from dia_jax.training.codec import (
    MEL_SCALES,
    CodecState,
    excerpts,
    find_recordings,
    magnitudes,
    make_transform,
    mel_bands,
    quantize,
    spectral_losses,
    train_codec,
    update,
)
from dia_jax.training.settings import CodecSettings, DataError, TrainingError
from dia_jax.untrained import random_params

CONFIG = DacConfig(strides=(2, 4), encoder_size=4, decoder_size=16, num_codebooks=3, codebook_size=32, codebook_dim=4)
SETTINGS = CodecSettings(steps=4, clips=2, frames=256, log_every=2, save_every=2)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i, rate in enumerate((44_100, 22_050)):
        time = np.arange(rate) / rate
        soundfile.write(
            folder / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 300 * time) + 0.01 * rng.standard_normal(rate), rate
        )
    return folder


def test_mel_bands_cover_the_spectrum():
    weights = mel_bands(80, 2048, 44_100)
    assert weights.shape == (1025, 80)
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-3)
    peaks = weights.argmax(axis=0) * 44_100 / 2048
    mel = 2595 * np.log10(1 + peaks / 700)
    assert np.abs(np.diff(mel) - np.diff(mel).mean())[10:].max() < 15  # equally spaced, to a bin


def test_magnitudes_are_numpys():
    samples = np.random.default_rng(0).standard_normal((1, 4096)).astype(np.float32)
    frame = samples[0, 1024 : 1024 + 2048] * np.hanning(2049)[:-1]  # its middle is at 2048 = 4 hops
    np.testing.assert_allclose(magnitudes(samples, 2048)[0, 4], np.abs(np.fft.rfft(frame)), rtol=1e-3, atol=1e-3)


def test_spectral_losses_are_zero_for_the_same_and_grow_with_the_difference():
    samples = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8192)), jnp.float32)
    assert all(float(part) == 0 for part in spectral_losses(samples, samples, 44_100))
    near, far = (spectral_losses(samples * gain, samples, 44_100) for gain in (1.1, 2.0))
    # A gain is the same distance in every band (that is as wide as a bin: others hold nothing) and in every bin.
    held = sum(float((mel_bands(bands, window, 44_100).sum(axis=0) > 0).mean()) for window, bands in MEL_SCALES)
    assert float(far[0]) == pytest.approx(held * np.log10(2), rel=1e-2)
    assert float(far[1]) == pytest.approx(2 * np.log10(2), rel=1e-2)
    assert near[0] < far[0]
    silent = jax.grad(lambda x: sum(spectral_losses(x, samples, 44_100)))(jnp.zeros_like(samples))
    assert np.isfinite(silent).all()


def test_quantize_gives_what_decoding_its_codes_gives_and_passes_the_gradient_by():
    module = nnx.merge(*random_params(CONFIG))
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, CONFIG.latent_size)), jnp.float32)
    out = quantize(module.quantizer, latents, jnp.array([3, 3]))
    expected = module.quantizer.decode(module.quantizer.encode(latents))
    np.testing.assert_allclose(out.latents, expected, atol=1e-5)
    assert out.counts.sum() == 2 * 5 * 3

    fewer = quantize(module.quantizer, latents, jnp.array([1, 3]))
    first = module.quantizer.quantizers[0](module.quantizer.encode(latents)[..., 0])
    np.testing.assert_allclose(fewer.latents[0], first[0], atol=1e-5)
    np.testing.assert_allclose(fewer.latents[1], expected[1], atol=1e-5)

    # Straight through: the gradient is that of the projections alone.
    of = jax.grad(lambda x: quantize(module.quantizer, x, jnp.array([1, 1])).latents.sum())(latents)
    each = module.quantizer.quantizers[0]
    alone = jax.grad(lambda x: each.out_proj(each.in_proj(x)).sum())(latents)
    np.testing.assert_allclose(of, alone, atol=1e-5)


def test_dead_entries_move_to_where_the_data_is():
    graphdef, params = random_params(CONFIG)
    params["quantizer"]["quantizers"][0]["codebook"][...] = jnp.concatenate(
        [jnp.ones((1, 4)), -jnp.ones((31, 4)) * 1e3 + jnp.arange(31)[:, None]]
    )
    transform = make_transform(SETTINGS)
    usage = jnp.ones((3, 32)).at[0, 1:].set(1e-9)
    state = CodecState(jnp.int32(0), params, transform.init(params), usage)
    samples = np.random.default_rng(0).standard_normal((2, 2048)).astype(np.float32) * 0.1
    state, parts = update(graphdef, transform, SETTINGS, state, samples)
    moved = state.params["quantizer"]["quantizers"][0]["codebook"][...]
    # All but the few of the far ones that happened to be chosen.
    assert (np.abs(moved[1:]).max(axis=1) < 100).sum() == parts["revived"] >= 25


def test_a_run_learns_resumes_and_its_result_loads(recordings, tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=40, learning_rate=2e-3, log_every=5, save_every=20)
    made = train_codec(tmp_path / "whole", recordings, settings, base=CONFIG)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["mel"] < 0.8 * lines[0]["mel"]
    assert (tmp_path / "whole" / "loss.png").exists()
    assert len(list((tmp_path / "whole" / "samples").iterdir())) == 2
    # Half of it, and the rest in a second run: the same to the bit.
    train_codec(tmp_path / "parts", recordings, dataclasses.replace(settings, steps=20), base=CONFIG)
    again = train_codec(tmp_path / "parts", recordings, settings, base=CONFIG)
    (_, one), (_, two) = (load_params(open_checkpoint(folder)) for folder in (made, again))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    with pytest.raises(TrainingError, match="clips was 2 and is 3"):
        train_codec(tmp_path / "parts", recordings, dataclasses.replace(settings, clips=3), base=CONFIG)
    (tmp_path / "others").mkdir()
    shutil.copy(recordings / "0.wav", tmp_path / "others")
    with pytest.raises(TrainingError, match="recordings was"):
        train_codec(tmp_path / "parts", tmp_path / "others", settings, base=CONFIG)
    with pytest.raises(TrainingError, match="taken for recordings"):
        train_codec(tmp_path / "others" / "run", tmp_path / "others", settings, base=CONFIG)


def test_a_sample_is_an_excerpt_and_then_its_reconstruction(recordings, tmp_path):
    settings = dataclasses.replace(SETTINGS, steps=1)
    made = train_codec(tmp_path / "run", recordings, settings, base=CONFIG)
    samples, rate = soundfile.read(tmp_path / "run" / "samples" / "0000001.wav", dtype="float32")
    assert rate == CONFIG.sample_rate
    excerpt, reconstruction = np.split(samples, 2)
    original = next(excerpts(find_recordings(recordings), CONFIG, settings))[0]
    np.testing.assert_allclose(excerpt, original, atol=1e-4)  # 16 bits
    module, valid = nnx.merge(*load_params(open_checkpoint(made))), jnp.array([settings.frames])
    expected = module.decode(module.encode(original[None], valid), valid)[0]
    np.testing.assert_allclose(reconstruction, expected, atol=1e-4)


def test_decoder_only_leaves_the_codes_as_they_are(recordings, tmp_path):
    save_params(tmp_path / "base", CONFIG, random_params(CONFIG)[1])
    settings = dataclasses.replace(SETTINGS, decoder_only=True, learning_rate=1e-2)
    made = train_codec(tmp_path / "run", recordings, settings, base=tmp_path / "base")
    (_, before), (_, after) = (load_params(open_checkpoint(folder)) for folder in (tmp_path / "base", made))
    for part in ("encoder", "quantizer"):
        jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
    assert not np.array_equal(before["decoder"]["conv1"]["kernel"][...], after["decoder"]["conv1"]["kernel"][...])


def test_recordings_that_cannot_be_read_are_refused(recordings, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"x\.wav is not a readable"):
        find_recordings(tmp_path)
    soundfile.write(tmp_path / "x.wav", np.zeros(0), 44_100)
    with pytest.raises(DataError, match="holds no sample"):
        find_recordings(tmp_path)
    with pytest.raises(TrainingError, match="seed is -1"):
        dataclasses.replace(SETTINGS, seed=-1)
    one = next(excerpts(find_recordings(recordings), CONFIG, SETTINGS, start=3))
    assert one.shape == (2, 256 * 8)
