"""A stream is `generate` in pieces, and a batch of any size is its clips alone."""

import itertools

import numpy as np
import pytest

from dia_jax import ClipErrors, Dia, DiaError, Interrupted, SettingError, dac, decode
from dia_jax.decode import decode_chunk
from dia_jax.untrained import SMALL_DAC, random_params

TEXT = "[S1] Hello there. [S2] Hi! (laughs) [S1]"
LONG = {"max_tokens": 300, "temperature": 1.3}


def a_long_clip(dia: Dia) -> int:
    """A seed whose clip uses all its frames."""
    return next(seed for seed in itertools.count() if len(dia.generate_codes(TEXT, seed=seed, **LONG)) == 300)


@pytest.fixture(scope="module")
def long_seed(dia: Dia) -> int:
    return a_long_clip(dia)


@pytest.mark.parametrize("sizes", [{}, {"first_frames": 1, "max_frames": 50}, {"first_frames": 400}])
def test_the_chunks_joined_are_the_whole_to_the_bit(dia: Dia, long_seed: int, sizes: dict):
    whole = dia.generate(TEXT, seed=long_seed, **LONG)
    chunks = list(dia.stream(TEXT, seed=long_seed, **LONG, **sizes))
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    assert all(chunk.dtype == np.float32 for chunk in chunks)
    first = sizes.get("first_frames", 8)
    expected, size = [], first
    while sum(expected) < 300:
        expected.append(min(size, 300 - sum(expected)))
        size = min(2 * size, max(first, sizes.get("max_frames", 128)))
    assert [len(chunk) // 512 for chunk in chunks] == expected


def test_a_stream_behind_a_prompt_and_one_that_ends_by_itself(dia: Dia):
    prompt = np.random.default_rng(0).integers(0, 1024, (30, 9))
    short = next(seed for seed in range(100) if 0 < len(dia.generate_codes(TEXT, seed=seed, **LONG)) < 200)
    for options in ({"audio_prompt": prompt, "seed": 5}, {"seed": short}):
        whole = dia.generate(TEXT, **LONG, **options)
        np.testing.assert_array_equal(np.concatenate(list(dia.stream(TEXT, **LONG, **options))), whole)


def test_a_chunk_comes_before_the_rest_is_drawn_and_closing_stops(dia: Dia, monkeypatch: pytest.MonkeyPatch):
    rows = []
    run = decode_chunk

    def counted(graphdef, params, state, settings, steps):
        rows.append(int(steps))
        return run(graphdef, params, state, settings, steps)

    monkeypatch.setattr("dia_jax.batch.decode_chunk", counted)
    stream = dia.stream(TEXT, seed=1, **LONG)
    assert rows == []
    next(stream)
    context = dac.decoder_context(SMALL_DAC)
    assert sum(rows) <= 8 + context + 15  # the first chunk, what it depends on, and the delay
    stream.close()
    assert sum(rows) <= 8 + context + 15
    assert list(stream) == []


def test_bad_arguments_are_told_at_once(dia: Dia, small):
    for arguments, words in (
        ({"text": [TEXT]}, "one script"),
        ({"text": TEXT, "first_frames": 0}, "first_frames is 0"),
        ({"text": TEXT, "top_p": 2}, "top_p is 2"),
        ({"text": "no tag"}, "speaker tag"),
    ):
        with pytest.raises(DiaError, match=words):
            dia.stream(**arguments)
    with pytest.raises(SettingError, match="codec"):
        Dia.from_pretrained(small, load_codec=False).stream(TEXT)


@pytest.mark.parametrize("window", [1, 8, 40])
def test_a_window_of_any_size_gives_the_same_bits(window: int):
    codec = random_params(SMALL_DAC)
    codes = np.random.default_rng(0).integers(0, 1024, (150, 9))
    whole = dac.decode_codes(codec, codes, config=SMALL_DAC)
    part = dac.decode_window(codec, codes, 60, 60 + window, config=SMALL_DAC, window=window)
    np.testing.assert_array_equal(part, whole[60 * 512 : (60 + window) * 512])


def test_a_cache_that_grows_changes_nothing(dia: Dia, long_seed: int, monkeypatch: pytest.MonkeyPatch):
    prompt = np.random.default_rng(1).integers(0, 1024, (200, 9))
    expected = [dia.generate_codes(TEXT, seed=long_seed, audio_prompt=p, **LONG) for p in (None, prompt)]
    monkeypatch.setattr(decode, "FIRST_ROWS", 100)
    grown = []
    grow = decode.grow
    monkeypatch.setattr("dia_jax.batch.grow", lambda cache, rows: grown.append(rows) or grow(cache, rows))
    actual = [dia.generate_codes(TEXT, seed=long_seed, audio_prompt=p, **LONG) for p in (None, prompt)]
    assert grown == [512, 512]
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_long_list_is_its_clips_alone_in_order(dia: Dia):
    """Slots are refilled and the batch shrinks; the clips end at different times and have prompts of their own."""
    rng = np.random.default_rng(0)
    texts = [f"[S1] {'word ' * int(n)}" for n in rng.integers(1, 40, 7)]
    prompts = [rng.integers(0, 1024, (n, 9)) if n else None for n in (0, 120, 0, 300, 0, 7, 0)]
    seen = {}
    together = dia.generate_codes(
        texts, audio_prompt=prompts, seed=list(range(7)), max_tokens=90, batch_size=3, on_clip=seen.__setitem__
    )
    assert sorted(seen) == list(range(7))
    for i, text in enumerate(texts):
        alone = dia.generate_codes(text, audio_prompt=prompts[i], seed=i, max_tokens=90)
        np.testing.assert_array_equal(together[i], alone)
        np.testing.assert_array_equal(seen[i], alone)


def test_a_clip_that_fails_does_not_lose_the_others(dia: Dia):
    texts = ["[S1] One.", "no tag", "[S1] Two.", "[S1] " + "x" * 2000]
    with pytest.raises(ClipErrors, match=r"2 of 4 clips.*\[1\].*speaker tag.*\[3\]") as raised:
        dia.generate_codes(texts, seed=3, max_tokens=20)
    assert sorted(raised.value.errors) == [1, 3]
    results = raised.value.results
    assert results[1] is None
    assert results[3] is None
    for i in (0, 2):
        np.testing.assert_array_equal(results[i], dia.generate_codes(texts[i], seed=3, max_tokens=20))


def test_an_interruption_keeps_what_is_finished(dia: Dia):
    def on_clip(index: int, codes: np.ndarray) -> None:
        if len(finished := seen) == 1:
            raise KeyboardInterrupt
        finished.append(index)

    seen: list[int] = []
    with pytest.raises(Interrupted, match="2 of 3 clips") as raised:
        dia.generate_codes(["[S1] One."] * 3, seed=[1, 2, 3], max_tokens=20, batch_size=1, on_clip=on_clip)
    assert [clip is not None for clip in raised.value.results] == [True, True, False]


def test_after_warmup_nothing_compiles(dia: Dia):
    dia.warmup(TEXT, max_tokens=100)
    before = decode_chunk._cache_size(), decode._prefill._cache_size(), dac._decode._cache_size()
    list(dia.stream(TEXT, max_tokens=100, seed=0))
    dia.generate(TEXT, max_tokens=90, seed=0)
    assert (decode_chunk._cache_size(), decode._prefill._cache_size(), dac._decode._cache_size()) == before
