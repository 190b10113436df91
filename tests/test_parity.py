"""Dia against `transformers`: teacher-forced logits, and whole greedy generations token for token."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from dia_jax.text import encode_text

from conftest import load_reference, reference_config, reference_generate, reference_model

TEXTS = (
    "[S1] Dia says this in one breath. [S2] Does it? (laughs) [S1] It does.",
    "[S1] Naïve façade, 東京! [S2] (coughs) Pardon? [S1] Never mind. [S2]",
    "[S2] Short.",
)
CONFIGS = {
    "grouped": {},
    "multi-head": {"num_key_value_heads": 4, "hidden_size": 80},
    "one-key-head": {"num_key_value_heads": 1, "cross_num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 32},
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    seed = list(CONFIGS).index(request.param)
    reference = reference_model(reference_config(**CONFIGS[request.param]), seed=seed)
    return reference, load_reference(reference, tmp_path_factory.mktemp("reference") / "dia")


def random_prompt(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (frames, 9))


def tokens(text: str) -> np.ndarray:
    return encode_text(text, max_length=1024)


def test_logits_equal_the_reference(pair):
    reference, dia = pair
    rng = np.random.default_rng(0)
    text = rng.integers(1, 255, (2, 60))
    text[1, 33:] = 0
    grid = rng.integers(0, 1028, (2, 90, 9))
    with torch.no_grad():
        expected = reference(
            input_ids=torch.tensor(text),
            attention_mask=torch.tensor(text != 0).long(),
            decoder_input_ids=torch.tensor(grid),
        ).logits
    expected = expected.reshape(2, 9, 90, -1).transpose(1, 2).numpy()
    actual = np.asarray(jax.jit(nnx.merge(dia.graphdef, dia.params))(text, grid))
    assert actual.dtype == np.float32
    assert np.abs(actual - expected).max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_generation_equals_the_reference(pair, text: str):
    reference, dia = pair
    expected = reference_generate(reference, tokens(text), frames=310, guidance_scale=3.0, top_k=45)
    actual = dia.generate_codes(text, max_tokens=310, temperature=0.0)
    np.testing.assert_array_equal(actual, expected)


def test_greedy_batch_of_unlike_clips_equals_the_reference_one_by_one(pair):
    reference, dia = pair
    prompts = [random_prompt(40, 1), None, random_prompt(300, 2)]
    expected = [
        reference_generate(reference, tokens(text), frames=300, prompt=prompt, guidance_scale=2.0, top_k=30)
        for text, prompt in zip(TEXTS, prompts, strict=True)
    ]
    settings = {"max_tokens": 300, "temperature": 0.0, "cfg_scale": 2.0, "cfg_filter_top_k": 30}
    actual = dia.generate_codes(list(TEXTS), audio_prompt=prompts, **settings)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_greedy_generation_ends_where_the_reference_ends(tmp_path: Path):
    """With a louder EOS row, clips end by themselves, each at its own step."""
    reference = reference_model(reference_config(), seed=7)
    with torch.no_grad():
        reference.logits_dense.weight[1024] *= 1.6
    dia = load_reference(reference, tmp_path / "dia")
    texts = [f"[S1] Clip number {i}. [S2] Yes." for i in range(5)]
    expected = [reference_generate(reference, tokens(t), frames=400, guidance_scale=3.0, top_k=45) for t in texts]
    actual = dia.generate_codes(texts, max_tokens=400, temperature=0.0)
    assert len({len(clip) for clip in expected}) > 2
    assert min(len(clip) for clip in expected) < 400
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
