"""The loss against that of `transformers`, and the trainer's forward pass against the model's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from dia_jax.checkpoint import load_params, open_checkpoint
from dia_jax.training.batches import Dataset, make_batch
from dia_jax.training.loss import forward, loss
from dia_jax.training.prepare import Writer
from dia_jax.training.settings import LossSettings
from dia_jax.untrained import SMALL_DAC, SMALL_DIA, random_params

from conftest import reference_config, reference_model


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A model of `transformers`, and ours with its weights."""
    folder = tmp_path_factory.mktemp("reference")
    theirs = reference_model(reference_config(), seed=0)
    theirs.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    return theirs, nnx.merge(*load_params(checkpoint)), checkpoint.config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "data"
    with Writer(folder, SMALL_DAC) as writer:
        for i, frames in enumerate((30, 17, 41)):
            codes = rng.integers(0, 1024, (frames, 9))
            writer.add(codes, "[S1] Clip." + "!" * i, starts=tuple(range(0, 16, 2)))
    return Dataset(folder, SMALL_DIA)


def test_loss_is_that_of_transformers(reference, dataset):
    theirs, ours, config = reference
    batch = make_batch(dataset, dataset.items)
    labels = np.where(batch["loss_mask"], batch["grid"][:, 1:], -100)
    channels = config.decoder.num_channels
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(batch["text"]),
            attention_mask=torch.tensor(batch["text_mask"]),
            decoder_input_ids=torch.tensor(batch["grid"][:, :-1]),
            labels=torch.tensor(labels).transpose(1, 2).reshape(len(labels) * channels, -1).long(),
        ).loss.item()
    value, parts = jax.jit(loss, static_argnums=(2,))(ours, batch, LossSettings(first_channel_weight=1.0))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    weighted, _ = loss(ours, batch, LossSettings(first_channel_weight=4.0))
    each = np.asarray(parts["channels"])  # as many targets in each
    assert float(weighted) == pytest.approx((4 * each[0] + each[1:].sum()) / 12, rel=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_the_trainers_forward_pass_is_the_models(dataset, remat):
    model = nnx.merge(*random_params(SMALL_DIA))
    batch = make_batch(dataset, dataset.items)
    logits, attention = forward(model, batch, LossSettings(remat=remat, alignment_layers=(1,)))
    np.testing.assert_array_equal(logits, model(batch["text"], batch["grid"][:, :-1]))
    np.testing.assert_allclose(attention[1].sum(axis=-1), 1.0, rtol=1e-5)


def test_a_hidden_script_is_what_guidance_sees(dataset):
    """Zeros under the script's mask: the unconditional branch of the decode loop's prefill."""
    model = nnx.merge(*random_params(SMALL_DIA))
    batch = make_batch(dataset, dataset.items)
    hidden = batch | {"text": np.zeros_like(batch["text"])}
    logits, _ = forward(model, hidden, LossSettings())
    mask = jnp.asarray(batch["text_mask"])
    cross = model.decoder.cross_cache(model.encoder(jnp.asarray(hidden["text"]), mask))
    start = jnp.zeros(len(mask), jnp.int32)
    expected = model.decoder.logits(model.decoder(batch["grid"][:, :-1], start, cross, mask)[0])
    np.testing.assert_array_equal(logits, expected)


def test_a_hidden_position_is_padding(dataset):
    model = nnx.merge(*random_params(SMALL_DIA))
    batch = make_batch(dataset, dataset.items)
    batch["history_mask"][:, 7:19] = False
    tokens = batch["grid"][:, :-1].copy()
    tokens[:, 7:19] = SMALL_DIA.pad_token_id
    logits, _ = forward(model, batch, LossSettings())
    np.testing.assert_array_equal(logits, model(batch["text"], tokens))


def test_targets_outside_the_loss_mask_do_not_count(dataset):
    model = nnx.merge(*random_params(SMALL_DIA))
    batch = make_batch(dataset, dataset.items, prompts=[10, 5, 20])
    value, _ = loss(model, batch, LossSettings())
    logits, _ = forward(model, batch, LossSettings())
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["grid"][:, 1:, :, None], axis=-1)[..., 0]
    expected, count = 0.0, 0
    for i, (item, prompt) in enumerate(zip(dataset.items, (10, 5, 20), strict=True)):
        for channel, delay in enumerate(SMALL_DIA.delay_pattern):
            weight = 4 if channel == 0 else 1
            expected += weight * float(nats[i, delay + prompt : delay + item.frames + 1, channel].sum())
            count += weight * (item.frames + 1 - prompt)
    assert float(value) == pytest.approx(expected / count, rel=1e-5)
    assert batch["loss_mask"].sum() < make_batch(dataset, dataset.items)["loss_mask"].sum()


def test_alignment_loss_is_that_of_the_attention_to_the_spoken_byte(dataset):
    model = nnx.merge(*random_params(SMALL_DIA))
    batch = make_batch(dataset, dataset.items)
    settings = LossSettings(alignment_weight=1.0, alignment_layers=(0, 1), alignment_width=0)
    _, attention = forward(model, batch, settings)
    known, index = batch["spoken_byte"] >= 0, np.maximum(batch["spoken_byte"], 0)[..., None]
    given, other = (np.take_along_axis(np.asarray(attention[i]), index, axis=-1)[..., 0] for i in (0, 1))
    expected = np.mean([-np.log(part[known] + 1e-6).mean() for part in (given, other)])
    with_it, parts = loss(model, batch, settings)
    without, _ = loss(model, batch, dataclasses.replace(settings, alignment_layers=()))
    assert float(parts["alignment"]) == pytest.approx(expected, rel=1e-4)
    assert float(with_it) == pytest.approx(float(without) + expected, rel=1e-4)
    half, _ = loss(model, batch, settings, 0.5)
    assert float(half) == pytest.approx(float(without) + expected / 2, rel=1e-4)
    hidden = batch | {"text": np.zeros_like(batch["text"])}
    assert float(loss(model, hidden, settings)[1]["alignment"]) == 0
