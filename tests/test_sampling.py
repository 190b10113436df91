"""The candidates' probabilities against the filters of `transformers` for 0626, plain numpy for v0.1."""

import jax
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    DiaClassifierFreeGuidanceLogitsProcessor,
    DiaEOSChannelFilterLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from dia_jax.config import SamplingSettings
from dia_jax.sampling import candidate_logits, sample

CHANNELS, VOCAB, EOS = 9, 1028, 1024


@jax.jit
def probabilities_0626(uncond, cond, options):
    return jax.nn.softmax(candidate_logits(uncond, cond, options, eos_token_id=EOS, variant="0626"))


@jax.jit
def probabilities_v01(uncond, cond, options):
    return jax.nn.softmax(candidate_logits(uncond, cond, options, eos_token_id=EOS, variant="v0.1"))


def random_logits(seed: int, scale: float, eos_boost: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    uncond, cond = rng.normal(0, scale, (2, CHANNELS, VOCAB)).astype(np.float32)
    cond[0, EOS] += np.float32(eos_boost * scale)
    return uncond, cond


settings_strategy = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "scale": st.sampled_from([0.3, 1.0, 4.0, 12.0]),
        "eos_boost": st.sampled_from([0.0, 2.0, 6.0]),
        "cfg_scale": st.floats(0.125, 6.0, width=32),
        "temperature": st.floats(0.25, 2.5, width=32),
        "top_p": st.floats(0.0625, 1.0, width=32),
        "top_k": st.integers(5, VOCAB),
    }
)


def near_an_edge(probs_before_top_p: np.ndarray, top_p: float) -> bool:
    """Whether a cumulative probability comes so near to top_p that float32 rounding decides."""
    cumulative = np.cumsum(-np.sort(-probs_before_top_p.astype(np.float64), axis=-1), axis=-1)
    return bool((np.abs(cumulative - top_p) < 3e-6).any())


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@settings(max_examples=150, deadline=None)
@given(case=settings_strategy)
def test_0626_equals_the_filters_of_transformers(case: dict):
    uncond, cond = random_logits(case["seed"], case["scale"], case["eos_boost"])
    ids = torch.zeros((CHANNELS, 1), dtype=torch.long)
    scores = torch.tensor(np.concatenate([cond, uncond]))
    guidance = DiaClassifierFreeGuidanceLogitsProcessor(2.0, case["top_k"])
    guidance.guidance_scale = case["cfg_scale"]  # its constructor refuses scales up to 1; its formula does not
    scores = guidance(ids, scores)
    scores = TemperatureLogitsWarper(case["temperature"])(ids, scores)
    scores = DiaEOSChannelFilterLogitsProcessor(CHANNELS, EOS)(ids, scores)
    assume(not near_an_edge(torch.softmax(scores, -1).numpy(), case["top_p"]))
    if case["top_p"] < 1.0:
        scores = TopPLogitsWarper(case["top_p"])(ids, scores)
    expected = torch.softmax(scores, -1).numpy()
    options = SamplingSettings(
        np.float32(case["cfg_scale"]),
        np.float32(case["temperature"]),
        np.float32(case["top_p"]),
        np.int32(case["top_k"]),
    )
    np.testing.assert_allclose(np.asarray(probabilities_0626(uncond, cond, options)), expected, atol=1e-6, rtol=0)


def numpy_v01(uncond: np.ndarray, cond: np.ndarray, case: dict) -> tuple[np.ndarray, np.ndarray]:
    """v0.1 in so many words, token by token: probabilities before and after top-p."""
    guided = cond + np.float32(case["cfg_scale"]) * (cond - uncond)
    before, after = np.zeros((CHANNELS, VOCAB)), np.zeros((CHANNELS, VOCAB))
    for channel in range(CHANNELS):
        row = guided[channel].copy()
        row[EOS + 1 :] = -np.inf
        row[EOS] = row[EOS] * np.float32(0.8) if channel == 0 else -np.inf
        row = row / np.float32(case["temperature"])
        if row.argmax() != EOS:
            row[EOS] = -np.inf
        best = sorted(range(VOCAB), key=lambda i: -row[i])[: case["top_k"]]
        filtered = np.full(VOCAB, -np.inf, np.float64)
        filtered[best] = row[best]
        before[channel] = softmax(filtered)
        total = 0.0
        for token in sorted(range(VOCAB), key=lambda i: -before[channel, i]):
            if total > case["top_p"] and case["top_p"] < 1.0:
                break
            after[channel, token] = before[channel, token]
            total += before[channel, token]
    return before, after / after.sum(axis=-1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(case=settings_strategy)
def test_v01_equals_plain_numpy(case: dict):
    uncond, cond = random_logits(case["seed"], case["scale"], case["eos_boost"])
    before, expected = numpy_v01(uncond, cond, case)
    assume(not near_an_edge(before, case["top_p"]))
    options = SamplingSettings(
        np.float32(case["cfg_scale"]),
        np.float32(case["temperature"]),
        np.float32(case["top_p"]),
        np.int32(case["top_k"]),
    )
    # XLA may fuse the guidance's product and sum and round once where numpy rounds twice: a step of the largest logit,
    # which can be more than 1e-6 of probability above 8.
    largest = np.abs(cond + case["cfg_scale"] * (cond - uncond)).max() / case["temperature"]
    step = float(np.spacing(np.float32(largest)))
    actual = np.asarray(probabilities_v01(uncond, cond, options))
    np.testing.assert_allclose(actual, expected, atol=max(1e-6, step), rtol=0)


@pytest.mark.parametrize("variant", ["0626", "v0.1"])
def test_eos_rule(variant: str):
    """EOS is drawn when it is the likeliest of channel 0, never by chance, and never in another channel."""
    options = SamplingSettings(temperature=1.0, top_p=1.0, cfg_filter_top_k=VOCAB)
    logits = np.zeros((CHANNELS, VOCAB), np.float32)
    logits[:, 5] = 1.0
    logits[:, EOS] = 0.9
    logits[:, EOS + 1 :] = 50.0
    probs = jax.nn.softmax(candidate_logits(logits, logits, options, eos_token_id=EOS, variant=variant))
    assert not np.asarray(probs[:, EOS:]).any()
    logits[:, EOS] = 2.0
    probs = jax.nn.softmax(candidate_logits(logits, logits, options, eos_token_id=EOS, variant=variant))
    assert not np.asarray(probs[1:, EOS:]).any()
    if variant == "0626":
        assert probs[0, EOS] == 1.0
    else:
        assert 0 < probs[0, EOS] < 1


def test_draws_follow_the_probabilities():
    uncond, cond = random_logits(0, 1.0, 0.0)
    options = SamplingSettings(3.0, 1.2, 0.95, 12)
    expected = np.asarray(probabilities_0626(uncond, cond, options))
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda key: sample(uncond, cond, key, options, eos_token_id=EOS, variant="0626")))
    tokens = np.asarray(draw(keys))
    for channel in range(CHANNELS):
        counts = np.bincount(tokens[:, channel], minlength=VOCAB)
        assert not counts[expected[channel] == 0].any()
        candidates = expected[channel] > 0
        mean = 20_000 * expected[channel][candidates]
        chi_square = ((counts[candidates] - mean) ** 2 / mean).sum()
        assert chi_square < 45  # 11 degrees of freedom at most: passed by chance in all but 1 of 200,000 runs


def test_temperature_zero_takes_the_likeliest_candidate():
    uncond, cond = random_logits(3, 1.0, 0.0)
    options = SamplingSettings(3.0, 0.0, 0.95, 45)
    tokens = sample(uncond, cond, jax.random.key(0), options, eos_token_id=EOS, variant="0626")
    guided = cond + 3.0 * (cond - uncond)
    for channel in range(CHANNELS):
        best = [i for i in np.argsort(-guided[channel])[:45] if i < EOS]
        assert tokens[channel] == max(best, key=lambda i: cond[channel, i])


def test_no_candidate_left_gives_zero_and_not_nan():
    logits = np.zeros((CHANNELS, VOCAB), np.float32)
    logits[:, EOS + 1] = 9.0
    options = SamplingSettings(3.0, 1.0, 0.9, 1)
    tokens = sample(logits, logits, jax.random.key(0), options, eos_token_id=EOS, variant="0626")
    np.testing.assert_array_equal(tokens, 0)
