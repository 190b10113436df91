"""A stream is `generate` in pieces, and a batch of any size is its clips alone."""

import itertools

import numpy as np
import pytest

from dia_jax import ClipErrors, Dia, DiaError, Interrupted, SettingError, TextError, loop

from conftest import drained

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


def test_a_chunk_comes_before_the_rest_is_drawn_and_closing_stops(dia: Dia, calls: list[int]):
    stream = dia.stream(TEXT, seed=1, **LONG)
    assert calls == []
    next(stream)
    # The first chunk, the ten frames on which it depends, and the delay: 33 steps are two calls. A third may be under
    # way when the second one is read, and more while the codec works.
    stream.close()
    made = len(calls)
    assert 2 <= made < 300 // 17
    assert list(stream) == []
    assert drained(dia)
    assert len(calls) <= made + 1  # the call that was about to be dispatched


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


def test_a_cache_that_grows_and_shrinks_changes_nothing(
    dia: Dia, long_seed: int, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
):
    prompt = np.random.default_rng(1).integers(0, 1024, (200, 9))
    expected = [dia.generate_codes(TEXT, seed=long_seed, audio_prompt=p, **LONG) for p in (None, prompt)]
    monkeypatch.setattr(loop, "FIRST_SIZE", 100)
    sizes.clear()
    actual = [dia.generate_codes(TEXT, seed=long_seed, audio_prompt=p, **LONG) for p in (None, prompt)]
    assert sizes == [512, 512]
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    # Beside a clip with a long prompt the cache is long, and when that one ends it shrinks.
    sizes.clear()
    long = np.random.default_rng(1).integers(0, 1024, (700, 9))
    requests = [
        next(dia._requests(dia._drafts(TEXT, {"audio_prompt": each, "max_tokens": frames, "seed": long_seed})))
        for each, frames in ((long, 20), (None, 300))
    ]
    jobs = [dia.engine.submit(each, sound=False) for each in requests]
    assert len(jobs[0].result()) <= 20
    np.testing.assert_array_equal(jobs[1].result(), dia.generate_codes(TEXT, seed=long_seed, max_tokens=300))
    assert sizes[:2] == [512, 256]


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


def test_what_is_wrong_with_a_list_is_raised_before_anything_is_made(dia: Dia, calls: list[int]):
    texts = ["[S1] One.", "no tag", "[S1] Two.", "[S1] " + "x" * 2000]
    with pytest.raises(ClipErrors, match=r"2 of 4 clips.* 0 are finished.*\[1\].*speaker tag.*\[3\]") as raised:
        dia.generate_codes(texts, seed=3, max_tokens=20)
    assert calls == []
    assert sorted(raised.value.errors) == [1, 3]
    assert raised.value.results == [None] * 4
    made = dia.generate_codes(texts, seed=3, max_tokens=20, return_errors=True)
    assert [isinstance(each, TextError) for each in made] == [False, True, False, True]
    for i in (0, 2):
        np.testing.assert_array_equal(made[i], dia.generate_codes(texts[i], seed=3, max_tokens=20))


def test_an_interruption_keeps_what_is_finished(dia: Dia):
    def on_clip(index: int, codes: np.ndarray) -> None:
        if len(finished := seen) == 1:
            raise KeyboardInterrupt
        finished.append(index)

    seen: list[int] = []
    with pytest.raises(Interrupted, match=r"[23] of 4 clips") as raised:
        dia.generate_codes(["[S1] One."] * 4, seed=[1, 2, 3, 4], max_tokens=20, batch_size=1, on_clip=on_clip)
    assert [clip is not None for clip in raised.value.results[:2]] == [True, True]
    assert raised.value.results[3] is None
