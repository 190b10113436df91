"""Both behaviours against the plain numpy statement of the model, and that statement against `transformers`."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from plain_dia import PlainDia

from dia_jax import Dia, DiaConfig
from dia_jax.checkpoint import dia_from_json, open_checkpoint, save_params
from dia_jax.text import encode_text
from dia_jax.untrained import random_params

from conftest import reference_config, reference_model

TEXT = "[S1] Ay. [S2] Bee?"
SEED = 12  # weights that do not end the clip at once


def tiny_config(variant: str) -> DiaConfig:
    config = dia_from_json(reference_config(num_hidden_layers=2).to_dict())
    encoder = dataclasses.replace(config.encoder, num_layers=1)
    return dataclasses.replace(config, variant=variant, encoder=encoder)


def plain(folder: Path, config: DiaConfig) -> PlainDia:
    tensors = open_checkpoint(folder).tensors
    return PlainDia({name: t.read() for name, t in tensors.items()}, config, v01=config.variant == "v0.1")


@pytest.fixture(scope="module", params=["0626", "v0.1"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    config = tiny_config(request.param)
    graphdef, params = random_params(config, seed=SEED)
    folder = tmp_path_factory.mktemp("plain") / "reference"
    save_params(folder, config, params, layout="reference")
    return Dia(config, graphdef, params), plain(folder, config)


def test_logits(both):
    dia, judge = both
    rng = np.random.default_rng(0)
    text = encode_text(TEXT, max_length=1024)
    grid = rng.integers(0, 1028, (40, 9))
    expected = judge.logits(text, grid)
    padded = np.pad(text, (0, 9))[None].astype(np.int32)
    actual = np.asarray(jax.jit(nnx.merge(dia.graphdef, dia.params))(padded, grid[None]))[0]
    assert np.abs(actual - expected).max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("prompt_frames", [0, 5])
def test_greedy_generation(both, prompt_frames: int):
    dia, judge = both
    prompt = np.random.default_rng(1).integers(0, 1024, (prompt_frames, 9))
    text = encode_text(TEXT, max_length=1024)
    expected = judge.greedy(text, frames=30, prompt=prompt, cfg_scale=3.0, top_k=45)
    actual = dia.generate_codes(
        TEXT, audio_prompt=prompt if prompt_frames else None, max_tokens=30, temperature=0.0, cfg_scale=3.0
    )
    assert len(expected) > 20
    np.testing.assert_array_equal(actual, expected)


def test_the_variants_differ():
    """With the same weights; otherwise the tests above could not tell them apart."""
    _, params = random_params(tiny_config("0626"), seed=SEED)
    codes = [
        Dia(tiny_config(v), random_params(tiny_config(v), seed=SEED)[0], params).generate_codes(
            TEXT, max_tokens=30, temperature=0.0
        )
        for v in ("0626", "v0.1")
    ]
    assert not np.array_equal(*codes)


def test_the_judge_agrees_with_transformers(tmp_path: Path):
    model = reference_model(reference_config(), seed=3)
    model.save_pretrained(tmp_path / "transformers")
    dia = Dia.from_pretrained(tmp_path / "transformers", load_codec=False)
    save_params(tmp_path / "reference", dia.config, dia.params, layout="reference")
    text = encode_text(TEXT, max_length=1024).astype(np.int64)
    grid = np.random.default_rng(0).integers(0, 1028, (30, 9))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(text)[None], decoder_input_ids=torch.tensor(grid)[None]).logits
    expected = plain(tmp_path / "reference", dia.config).logits(text, grid)
    np.testing.assert_allclose(logits.transpose(0, 1).numpy(), expected, atol=3e-4 * expected.std())
