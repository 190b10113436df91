"""The loop: a clip's codes depend on nothing but itself, nothing recompiles, and clips end as they must."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from dia_jax import Dia
from dia_jax.config import SamplingSettings
from dia_jax.decode import (
    DecodeState,
    Request,
    bucket,
    decode_chunk,
    prefill,
    step_bytes,
    steps_per_call,
    unconditional,
)
from dia_jax.slots import empty_state, insert, release, resize
from dia_jax.text import encode_text
from dia_jax.untrained import SMALL_DIA, random_params

TEXTS = ["[S1] One. [S2] Two.", "[S2] " + "A much longer script. " * 12, "[S1] Three? [S2] (laughs)"]
SETTINGS = {"max_tokens": 60, "temperature": 1.1, "top_p": 0.9}


def prompt(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (frames, 9))


def test_a_clip_alone_and_among_others(dia: Dia):
    prompts = [prompt(20), None, prompt(270, 1)]
    together = dia.generate_codes(TEXTS, audio_prompt=prompts, seed=[5, 6, 7], **SETTINGS)
    for i, text in enumerate(TEXTS):
        alone = dia.generate_codes(text, audio_prompt=prompts[i], seed=5 + i, **SETTINGS)
        np.testing.assert_array_equal(together[i], alone)


def test_one_seed_serves_each_clip_as_if_alone(dia: Dia):
    together = dia.generate_codes(TEXTS, seed=9, **SETTINGS)
    for text, codes in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(codes, dia.generate_codes(text, seed=9, **SETTINGS))


def test_a_budget_or_bucket_does_not_change_what_is_drawn(dia: Dia):
    short = dia.generate_codes(TEXTS[0], seed=3, temperature=1.1, max_tokens=60)
    long = dia.generate_codes(TEXTS[0], seed=3, temperature=1.1, max_tokens=600)
    # Channel 0 up to the end; the others up to where they begin to see that channel 0 has ended.
    np.testing.assert_array_equal(short[:, 0], long[:60, 0])
    np.testing.assert_array_equal(short[:-15], long[:45])


SAMPLING = SamplingSettings(temperature=1.0, top_p=0.9)


def weights(dia: Dia, params: Any = None) -> tuple:
    params = dia.params if params is None else params
    return dia.graphdef, params, unconditional(dia.graphdef, params)


def start(dia: Dia, settings: Sequence[SamplingSettings] = (SAMPLING,) * 3) -> DecodeState:
    """The three scripts in a batch of four slots."""
    state = empty_state(dia.config, slots=4, cache=256, text=512, dtype=np.dtype("float32"))
    for slot, (text, each) in enumerate(zip(TEXTS, settings, strict=True)):
        tokens = encode_text(text, max_length=1024)
        request = Request(tokens, np.zeros((0, 9), np.int32), 40, jax.random.key(slot), each)
        prefilled = prefill(*weights(dia), dia.config, request, size=512)
        state = insert(state, prefilled, request, slot, config=dia.config)
    return state


def run(dia: Dia, state: DecodeState, steps: int) -> DecodeState:
    for done in range(0, steps, longest := steps_per_call(dia.config)):
        state = decode_chunk(*weights(dia), state, np.int32(min(steps - done, longest)))[0]
    return state


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_the_size_of_a_chunk_does_not_matter(dia: Dia, steps: int):
    whole, state = run(dia, start(dia), 99), start(dia)
    while not np.asarray(state.slots.done).all():
        state = run(dia, state, steps)
    np.testing.assert_array_equal(state.slots.grid[:3], whole.slots.grid[:3])


def test_clips_of_a_batch_have_settings_of_their_own(dia: Dia):
    each = [SamplingSettings(temperature=0.0), SamplingSettings(cfg_scale=1.0, top_p=0.5), SAMPLING]
    mixed = run(dia, start(dia, each), 99).slots.grid
    for slot, settings in enumerate(each):
        np.testing.assert_array_equal(mixed[slot], run(dia, start(dia, [settings] * 3), 99).slots.grid[slot])


def test_progress_is_what_the_call_has_made(dia: Dia):
    state, progress = decode_chunk(*weights(dia), start(dia), np.int32(17))
    slots = state.slots
    np.testing.assert_array_equal(progress.numbers, np.stack([slots.position, slots.end, slots.done, slots.failed]))
    np.testing.assert_array_equal(progress.tokens[:3], slots.grid[:3, 1:18])
    run(dia, state, 1)  # donates the state
    assert np.asarray(progress.tokens).shape == (4, steps_per_call(dia.config), 9)


def test_a_released_slot_runs_no_more_and_leaves_the_others_alone(dia: Dia):
    whole = run(dia, start(dia), 99)
    state = release(run(dia, start(dia), 5), 1)
    state = run(dia, state, 99)
    assert list(np.asarray(state.slots.position)) == [55, 5, 55, 0]
    for slot in (0, 2):
        np.testing.assert_array_equal(state.slots.grid[slot], whole.slots.grid[slot])


def test_clips_move_to_a_batch_of_other_sizes(dia: Dia):
    whole = run(dia, start(dia), 99)
    state = resize(resize(run(dia, start(dia), 5), [2, 0]), cache=512)
    state = resize(resize(run(dia, state, 5), [-1, 0, 1, -1]), cache=256)
    state = resize(run(dia, resize(state, text=1024), 5), text=512)
    assert list(np.asarray(state.slots.done)) == [True, False, False, True]
    state = run(dia, state, 99)
    for slot, old in ((1, 2), (2, 0)):
        np.testing.assert_array_equal(state.slots.grid[slot], whole.slots.grid[old])


def test_logits_that_are_not_finite_end_the_clip(dia: Dia):
    params = jax.tree.map(lambda x: x, dia.params)
    params["decoder"]["norm"]["scale"] = params["decoder"]["norm"]["scale"].replace(np.full(96, np.nan, np.float32))
    state, progress = decode_chunk(*weights(dia, params), start(dia), np.int32(17))
    np.testing.assert_array_equal(progress.numbers[3], [1, 1, 1, 0])
    assert np.asarray(state.slots.done).all()
    assert np.asarray(state.slots.position).max() == 1


def test_what_a_step_must_read(dia: Dia):
    counted = step_bytes(dia.params, start(dia))
    dec, item = dia.config.decoder, 4
    assert counted["self cache"] == 2 * 8 * dec.num_kv_heads * 256 * dec.head_dim * dec.num_layers * item
    assert counted["cross cache"] == 2 * 4 * dec.cross_num_kv_heads * 512 * dec.cross_head_dim * dec.num_layers * item
    size, heads = dec.hidden_size, (dec.num_heads + dec.num_kv_heads) * dec.head_dim
    layer = 2 * size * heads + 2 * size * dec.cross_num_heads * dec.cross_head_dim + 3 * size * dec.mlp_size + 3 * size
    assert counted["weights"] == item * (dec.num_layers * layer + size + size * dec.num_channels * dec.vocab_size)


def test_settings_do_not_recompile(dia: Dia):
    dia.generate_codes(TEXTS[0], seed=0, max_tokens=20)
    before = decode_chunk._cache_size()
    for options in (
        {"cfg_scale": 1.5, "temperature": 0.0, "top_p": 1.0, "cfg_filter_top_k": 1000},
        {"cfg_scale": 0, "temperature": 2, "top_p": 0.25, "cfg_filter_top_k": 5},
        {"max_tokens": 50, "seed": jax.random.key(3)},
    ):
        dia.generate_codes(TEXTS[2], **({"seed": 1, "max_tokens": 30} | options))
    assert decode_chunk._cache_size() == before


def test_the_state_is_donated(dia: Dia):
    state = start(dia)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a buffer that could not be donated warns
        run(dia, state, 2)
    assert all(kv.k.is_deleted() for kv in state.cache)


def test_every_channel_of_a_clip_ends_by_its_delay(dia: Dia):
    slots = run(dia, start(dia), 1000).slots
    grid, end, position = np.asarray(slots.grid), np.asarray(slots.end), np.asarray(slots.position)
    for i in range(len(TEXTS)):
        assert end[i] == 41
        for channel, delay in enumerate(dia.config.delay_pattern):
            column = grid[i, :, channel]
            assert (column[: 1 + delay] == dia.config.bos_token_id).all()
            assert (column[1 + delay : 41 + delay] < 1024).all()
            if 41 + delay <= position[i]:
                assert column[41 + delay] == dia.config.eos_token_id
                assert (column[42 + delay : position[i] + 1] == dia.config.pad_token_id).all()
    assert position.max() == 41 + dia.config.max_delay - 1  # the last code of the last channel, and no step more


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_stays_near_float32(small, dtype: str):
    """Teacher-forced logits: weights and products in 16 bit, all that is sensitive in float32."""
    from flax import nnx

    grid = np.random.default_rng(0).integers(0, 1024, (1, 50, 9))
    text = encode_text(TEXTS[0], max_length=1024)[None].astype(np.int32)
    logits = {}
    for name in ("float32", dtype):
        model = Dia.from_pretrained(small, load_codec=False, dtype=name)
        module = nnx.merge(model.graphdef, model.params)
        assert module.decoder.norm.scale[...].dtype == np.float32
        assert module.decoder.layers[0].mlp.wo.weight.dtype == name
        logits[name] = np.asarray(jax.jit(module)(text, grid))
        assert logits[name].dtype == np.float32
    error = np.abs(logits[dtype] - logits["float32"]).mean() / logits["float32"].std()
    assert error < {"bfloat16": 0.1, "float16": 0.02}[dtype]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_generating_in_sixteen_bit(dtype: str):
    """At the real head size, with prefill: some backends lack some 16-bit products, and only running them tells."""
    config = dataclasses.replace(
        SMALL_DIA,
        encoder=dataclasses.replace(SMALL_DIA.encoder, head_dim=128),
        decoder=dataclasses.replace(SMALL_DIA.decoder, head_dim=128, cross_head_dim=128),
    )
    dia = Dia(config, *random_params(config, dtype=dtype))
    prompts = [prompt(30), None, None]
    codes = dia.generate_codes(TEXTS, audio_prompt=prompts, max_tokens=5, seed=0)
    assert [clip.shape for clip in codes] == [(5, 9)] * 3
    np.testing.assert_array_equal(codes, dia.generate_codes(TEXTS, audio_prompt=prompts, max_tokens=5, seed=0))


@pytest.mark.parametrize(
    ("size", "expected"), [(1, 256), (256, 256), (257, 512), (1025, 2048), (2049, 3072), (3072, 3072)]
)
def test_buckets(size: int, expected: int):
    assert bucket(size, 256, 3072) == expected
