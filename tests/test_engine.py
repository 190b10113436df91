"""The engine: latecomers, cancels, failures and threads, and that a clip is what it is alone through all of them."""

import concurrent.futures
import gc
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from dia_jax import ClipErrors, DecodeError, Dia, DiaError, Interrupted, Job, loop
from dia_jax.decode import Request, steps_per_call
from dia_jax.loop import slot_sizes
from dia_jax.requests import Draft
from dia_jax.worker import Worker

from conftest import drained

TEXT = "[S1] Hello there. [S2] Hi! (laughs) [S1]"
LONG_TEXT = "[S1] " + "A very long script. " * 40
HOT = {"temperature": 1.3}  # at which few clips end by themselves


def request(dia: Dia, text: str = TEXT, **options) -> Request:
    (draft,) = dia._drafts(text, {"max_tokens": 300, "seed": 0} | HOT | options)
    assert isinstance(draft, Draft)
    assert isinstance(draft.prompt, np.ndarray)
    return draft.with_codes(draft.prompt)


def submit(dia: Dia, text: str = TEXT, *, batch_size: int = 16, **options) -> Job:
    return dia.engine.submit(request(dia, text, **options), sound=False, batch_size=batch_size)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def stepping(monkeypatch: pytest.MonkeyPatch):
    """Runs the loop turn by turn, in the test's own thread: a function that runs one and gives the number of calls."""
    dispatched = []
    monkeypatch.setattr(Worker, "wake", lambda self: None)
    monkeypatch.setattr(
        loop, "decode_chunk", lambda *args, run=loop.decode_chunk: dispatched.append(args[3]) or run(*args)
    )

    def turn(dia: Dia) -> int:
        dia.engine.loops[0].turn()
        while dia.engine.loops[0].make_sound():
            pass
        return len(dispatched)

    return turn


@pytest.fixture
def fresh(dia: Dia) -> Dia:
    """The same model with an engine of its own."""
    return Dia(dia.config, dia.graphdef, dia.params, codec=dia.codec)


# --- Latecomers, cancels, streams ------------------------------------------------------------------------------------


def test_a_latecomer_joins_with_the_next_call_and_is_what_it_is_alone(fresh: Dia, stepping):
    early = [submit(fresh, seed=i) for i in range(3)]
    for _ in range(4):
        stepping(fresh)
    late = submit(fresh, seed=7, temperature=0.9, cfg_scale=2.0, audio_prompt=np.ones((30, 9), int))
    before = stepping(fresh)
    (call,) = fresh.engine.loops[0]._calls
    assert late in call.jobs
    while not late.done():
        stepping(fresh)
    # 316 positions from its start are 19 calls; one more to read the last.
    assert stepping(fresh) - before <= 20
    for job in early:
        job.cancel()
    while fresh.engine.loops[0].turn():
        pass
    alone = request(fresh, seed=7, temperature=0.9, cfg_scale=2.0, audio_prompt=np.ones((30, 9), int))
    again = fresh.engine.submit(alone, sound=False)
    while not again.done():
        stepping(fresh)
    np.testing.assert_array_equal(late.result(), again.result())


def test_a_cancel_frees_the_slot_with_the_next_call(fresh: Dia, stepping):
    jobs = [submit(fresh, seed=i, batch_size=2) for i in range(3)]
    for _ in range(3):
        stepping(fresh)
    assert jobs[2] not in fresh.engine.loops[0]._calls[0].jobs
    assert jobs[0].cancel()
    stepping(fresh)
    (call,) = fresh.engine.loops[0]._calls
    assert set(call.jobs) == {jobs[1], jobs[2]}
    with pytest.raises(concurrent.futures.CancelledError):
        jobs[0].result()
    while fresh.engine.loops[0].turn():
        pass
    for i in (1, 2):
        alone = submit(fresh, seed=i)
        while fresh.engine.loops[0].turn():
            pass
        np.testing.assert_array_equal(jobs[i].result(), alone.result())
    assert not jobs[1].cancel()


def test_the_first_chunk_of_a_stream_takes_two_calls_while_fifteen_run(fresh: Dia, stepping):
    assert fresh.codec is not None
    others = [submit(fresh, seed=i) for i in range(15)]
    waiting = [submit(fresh, seed=i) for i in range(20, 25)]
    for _ in range(3):
        stepping(fresh)
    stream = fresh.engine.stream(request(fresh, seed=5), first_frames=8, max_frames=128)
    others[3].cancel()  # all slots are taken, so it waits for one, but before those that were there first
    before = stepping(fresh)
    assert stream in fresh.engine.loops[0]._calls[0].jobs
    while not stream.parts:
        after = stepping(fresh)
    # Two calls for its frames; the third was dispatched before the second one was read.
    assert after - before <= 2
    assert len(stream.parts[0]) == 8 * 512
    for job in (*others, *waiting, stream):
        job.cancel()
    while fresh.engine.loops[0].turn():
        pass


def test_owners_take_turns_where_slots_are_short(fresh: Dia, stepping):
    def ask(owner: object, seed: int) -> Job:
        wanted = request(fresh, seed=seed, max_tokens=20)
        return fresh.engine.submit(wanted, sound=False, batch_size=2, owner=owner)

    many, few, began = object(), object(), []
    jobs = [ask(many, i) for i in range(8)]
    stepping(fresh)
    assert [job.has_slot for job in jobs] == [True] * 2 + [False] * 6
    late = [ask(few, i) for i in (8, 9)]
    for name, job in enumerate((*jobs, *late)):
        job.listen(lambda name=name, job=job: job.has_slot and name not in began and began.append(name))
    while not all(job.done() for job in (*jobs, *late)):
        stepping(fresh)
    # The two slots become free together: one for each owner, as long as both have something left.
    assert began == [0, 1, 2, 8, 3, 9, 4, 5, 6, 7]


def test_a_slot_changes_hands_without_an_idle_call(fresh: Dia, stepping):
    jobs = [submit(fresh, seed=i, max_tokens=60, batch_size=1) for i in range(3)]
    count = 0
    while not all(job.done() for job in jobs):
        count = stepping(fresh)
    # 76 steps each are five calls.
    assert count == 15


def test_a_long_script_is_decoded_beside_short_ones_not_with_them(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    shapes = []
    run = loop.decode_chunk

    def noted(graphdef, params, constants, state, steps):
        shapes.append((len(state.slots.done), state.cross[0].k.shape[2]))
        return run(graphdef, params, constants, state, steps)

    monkeypatch.setattr(loop, "decode_chunk", noted)
    fresh.engine.loops[0]._weight_bytes = 0  # this model is so small that padding would cost as little
    texts = [LONG_TEXT, *[TEXT] * 6]
    together = fresh.generate_codes(texts, seed=2, max_tokens=60, batch_size=4, **HOT)
    assert {size for _, size in shapes} == {128, 1024}
    assert {slots for slots, size in shapes if size == 1024} == {1}
    for i in (0, 1, 6):
        np.testing.assert_array_equal(together[i], fresh.generate_codes(texts[i], seed=2, max_tokens=60, **HOT))


def test_a_short_script_joins_a_long_one_where_padding_is_cheap(fresh: Dia, stepping):
    fresh.engine.loops[0]._weight_bytes = 10**9
    jobs = [submit(fresh, LONG_TEXT), submit(fresh, TEXT)]
    stepping(fresh)
    (call,) = fresh.engine.loops[0]._calls
    assert set(call.jobs) == set(jobs)
    while fresh.engine.loops[0].turn():
        pass
    np.testing.assert_array_equal(jobs[1].result(), fresh_result(fresh, TEXT))


def fresh_result(dia: Dia, text: str) -> np.ndarray:
    job = submit(dia, text)
    while dia.engine.loops[0].turn():
        pass
    return job.result()


def test_seeds_of_one_script_share_a_prefill(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    made = []
    run = loop.prefill
    monkeypatch.setattr(loop, "prefill", lambda *args, **kwargs: made.append(1) or run(*args, **kwargs))
    codes = fresh.generate_codes(
        [TEXT] * 6 + ["[S1] Another."], seed=list(range(7)), max_tokens=20, batch_size=2, **HOT
    )
    assert len(made) == 2
    for i in (0, 5):
        np.testing.assert_array_equal(codes[i], fresh.generate_codes(TEXT, seed=i, max_tokens=20, **HOT))


@pytest.mark.parametrize("batch_size", [5, 9, 12])
def test_every_slot_is_used(fresh: Dia, batch_size: int, monkeypatch: pytest.MonkeyPatch):
    lanes = []
    run = loop.decode_chunk

    def noted(graphdef, params, constants, state, steps):
        lanes.append(len(state.slots.done))
        return run(graphdef, params, constants, state, steps)

    monkeypatch.setattr(loop, "decode_chunk", noted)
    fresh.generate_codes(
        [TEXT] * (2 * batch_size), seed=list(range(2 * batch_size)), max_tokens=20, batch_size=batch_size
    )
    assert max(lanes) == batch_size
    assert set(lanes) <= set(slot_sizes(batch_size))


def test_a_job_is_a_future_whose_parts_come_as_they_are_made(fresh: Dia):
    job, seen = submit(fresh, seed=1), []
    done: list[Job] = []
    job.add_done_callback(done.append)
    job.add_done_callback(lambda job: 1 / 0)  # logged by the standard library, and nobody else's concern
    for chunk in job.chunks():
        seen.append(len(chunk))
    np.testing.assert_array_equal(job.result(timeout=5), fresh.generate_codes(TEXT, seed=1, max_tokens=300, **HOT))
    assert sum(seen) == len(job.result())
    assert max(seen) <= steps_per_call(fresh.config)
    wait_for(lambda: done == [job])
    assert job.exception() is None
    assert drained(fresh)


def test_submit_gives_what_generate_gives(fresh: Dia):
    sound, codes = fresh.submit(TEXT, seed=1, max_tokens=40), fresh.submit(TEXT, seed=1, max_tokens=40, sound=False)
    np.testing.assert_array_equal(codes.result(timeout=60), fresh.generate_codes(TEXT, seed=1, max_tokens=40))
    np.testing.assert_allclose(sound.result(timeout=60), fresh.generate(TEXT, seed=1, max_tokens=40), atol=2e-5)
    with pytest.raises(DiaError, match="speaker tag"):
        fresh.submit("no tag")
    with pytest.raises(DiaError, match="one script"):
        fresh.submit([TEXT])


def test_an_idle_engine_holds_nothing(fresh: Dia):
    fresh.generate([TEXT] * 3, seed=1, max_tokens=40)
    assert drained(fresh)
    assert fresh.engine.loops[0]._batches == []
    assert fresh.engine.loops[0]._calls == []
    assert fresh.engine.loops[0]._prefilled is None
    assert fresh.engine.loops[0]._taken == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dia_jax")]


def test_a_dropped_model_is_freed(dia: Dia):
    one = Dia(dia.config, dia.graphdef, dia.params, codec=dia.codec)
    half_read = one.stream(TEXT, seed=1, max_tokens=200, **HOT)
    next(half_read)
    del half_read
    assert drained(one)
    gc.collect()
    references = [each for each in gc.get_referrers(one) if not isinstance(each, type(threading.current_thread()))]
    assert len(references) <= 2  # this frame, and perhaps pytest's


# --- Failures --------------------------------------------------------------------------------------------------------


class Broken(RuntimeError):
    """As XLA raises when memory is exhausted."""


def test_a_call_that_fails_fails_what_ran_and_nothing_else(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    run, count = loop.decode_chunk, itertools.count()

    def fails(graphdef, params, constants, state, steps):
        if next(count) == 6:
            for leaf in jax.tree.leaves(state.cache):
                leaf.delete()  # what donation does
            raise Broken("RESOURCE_EXHAUSTED: Out of memory\nallocating 1 byte")
        return run(graphdef, params, constants, state, steps)

    expected = fresh.generate_codes([TEXT] * 8, seed=list(range(8)), max_tokens=60, **HOT)
    monkeypatch.setattr(loop, "decode_chunk", fails)
    with pytest.raises(ClipErrors, match=r"RESOURCE_EXHAUSTED: Out of memory allocating") as raised:
        fresh.generate_codes([TEXT] * 8, seed=list(range(8)), max_tokens=60, batch_size=2, **HOT)
    assert "\n" not in str(raised.value)
    assert len(raised.value.errors) == 2
    for i, codes in enumerate(raised.value.results):
        if i in raised.value.errors:
            assert codes is None
        else:
            np.testing.assert_array_equal(codes, expected[i])
    count = iter([6])
    with pytest.raises(RuntimeError, match="Broken"):
        fresh.generate_codes(TEXT, seed=0, max_tokens=60)


def test_what_waits_behind_a_call_that_fails_is_made(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    """Also where the turn of that call has taken nothing from the queue."""
    calls, run, made = itertools.count(), loop.decode_chunk, []

    def second_fails(*args):
        if next(calls) == 1:
            raise Broken("RESOURCE_EXHAUSTED")
        return run(*args)

    monkeypatch.setattr(loop, "decode_chunk", second_fails)
    options = {"seed": 1, "max_tokens": 100, "batch_size": 1, "return_errors": True} | HOT
    caller = threading.Thread(target=lambda: made.extend(fresh.generate_codes([TEXT] * 3, **options)), daemon=True)
    caller.start()
    caller.join(60)
    assert [isinstance(each, np.ndarray) for each in made] == [False, True, True]


def test_a_prefill_that_fails_leaves_those_that_run_alone(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    run = loop.prefill

    def fails(*args, **kwargs):
        if args[4].text.tobytes().endswith(b"heavy."):
            raise Broken("RESOURCE_EXHAUSTED")
        return run(*args, **kwargs)

    monkeypatch.setattr(loop, "prefill", fails)
    made = fresh.generate_codes(
        [TEXT, "[S1] Too heavy.", TEXT], seed=[1, 2, 3], max_tokens=60, return_errors=True, **HOT
    )
    assert isinstance(made[1], RuntimeError)
    for i, seed in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(made[i], fresh.generate_codes(TEXT, seed=seed, max_tokens=60, **HOT))


def test_a_codec_that_fails_fails_its_clips_alone(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    codec = type(fresh.codec)
    run, count = codec.decode_windows, itertools.count()

    def fails(self, windows):
        if next(count) == 0:
            raise Broken("RESOURCE_EXHAUSTED")
        return run(self, windows)

    monkeypatch.setattr(codec, "decode_windows", fails)
    made = fresh.generate([TEXT] * 6, seed=list(range(6)), max_tokens=40, batch_size=2, return_errors=True, **HOT)
    failed = [each for each in made if isinstance(each, Exception)]
    assert 1 <= len(failed) <= 4
    assert drained(fresh)
    assert len(fresh.generate(TEXT, seed=0, max_tokens=40)) > 0


def test_logits_that_are_not_finite_are_an_error_and_not_a_silent_clip(dia: Dia):
    params = jax.tree.map(lambda x: x, dia.params)
    table = np.array(params["encoder"]["embedding"]["embedding"][...])
    table[ord("@")] = np.inf
    params["encoder"]["embedding"]["embedding"] = params["encoder"]["embedding"]["embedding"].replace(table)
    broken = Dia(dia.config, dia.graphdef, params, codec=dia.codec)
    made = broken.generate_codes([TEXT, "[S1] me@home", TEXT], seed=[1, 2, 3], max_tokens=60, return_errors=True, **HOT)
    assert isinstance(made[1], DecodeError)
    assert "not finite after 0 frames" in str(made[1])
    for i, seed in ((0, 1), (2, 3)):
        np.testing.assert_array_equal(made[i], dia.generate_codes(TEXT, seed=seed, max_tokens=60, **HOT))
    with pytest.raises(DecodeError):
        list(broken.stream("[S1] me@home", seed=1))


def test_a_callback_that_raises_ends_its_own_call_alone(fresh: Dia):
    def on_clip(index: int, codes: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    other = submit(fresh, seed=9)
    with pytest.raises(OSError, match="No space left"):
        fresh.generate_codes([TEXT] * 5, seed=1, max_tokens=20, on_clip=on_clip)
    np.testing.assert_array_equal(other.result(timeout=60), fresh.generate_codes(TEXT, seed=9, max_tokens=300, **HOT))
    assert drained(fresh)


def interruptions(dia: Dia, times: int, seed: int) -> None:
    """Ctrl-C at random moments; after each the finished clips are right, and it speaks again."""
    rng = random.Random(seed)
    texts = [f"[S1] {'word ' * n}" for n in (1, 3, 9, 2, 5, 7) * 2]
    seeds = list(range(12))
    expected = dia.generate_codes(texts, seed=seeds, max_tokens=40, **HOT)
    for _ in range(2):  # the first time compiles
        began = time.monotonic()
        dia.generate_codes(texts, seed=seeds, max_tokens=40, batch_size=3, **HOT)
        took = time.monotonic() - began
    kept = 0
    for _ in range(times):
        timer = threading.Timer(rng.uniform(0, took), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            results = dia.generate_codes(texts, seed=seeds, max_tokens=40, batch_size=3, **HOT)
            timer.join()
        except Interrupted as interrupted:
            results = interrupted.results
        except KeyboardInterrupt:  # before the first clip was asked for, or after the last one was returned
            results = [None] * 12
        for made, wanted in zip(results, expected, strict=True):
            if made is not None:
                kept += 1
                np.testing.assert_array_equal(made, wanted)
    assert kept
    np.testing.assert_array_equal(dia.generate_codes(texts[2], seed=2, max_tokens=40, **HOT), expected[2])
    assert drained(dia)


def failures(dia: Dia, times: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in any of the programs, at random calls."""
    rng = random.Random(seed)
    texts = [f"[S1] {'word ' * n}" for n in (1, 3, 9, 2, 5, 40)]
    expected = dia.generate_codes(texts, seed=3, max_tokens=40, **HOT)
    runs = {name: getattr(loop, name) for name in ("decode_chunk", "prefill", "insert", "resize", "empty_state")}
    left = 0

    def maybe(name: str) -> Callable:
        def run(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0:
                raise Broken("RESOURCE_EXHAUSTED")
            return runs[name](*args, **kwargs)

        return run

    for name in runs:
        monkeypatch.setattr(loop, name, maybe(name))
    finished = failed = 0
    for _ in range(times):
        left = rng.randrange(1, 60)
        made = dia.generate_codes(texts, seed=3, max_tokens=40, batch_size=2, return_errors=True, **HOT)
        for each, wanted in zip(made, expected, strict=True):
            if isinstance(each, Exception):
                failed += 1
            else:
                finished += 1
                np.testing.assert_array_equal(each, wanted)
    assert failed
    assert finished > failed
    assert drained(dia)


# Python ignores an interruption that falls into a callback of the garbage collector, and JAX has one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interruptions(fresh: Dia):
    interruptions(fresh, 15, seed=0)


def test_failures(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    failures(fresh, 20, 0, monkeypatch)


# Python ignores an interruption that falls into a callback of the garbage collector, and JAX has one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_two_hundred_interruptions_and_failures(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    interruptions(fresh, 200, seed=1)
    failures(fresh, 200, 1, monkeypatch)


# --- Threads and programs --------------------------------------------------------------------------------------------


def mixed_calls(dia: Dia, *, threads: int, calls: int) -> None:
    """Lists, streams, half-read streams, failing callbacks and cancels from several threads at the same time."""
    prompt = np.random.default_rng(0).integers(0, 1024, (40, 9))
    scripts = [f"[S1] Script number {i}. [S2] {'Yes. ' * i}" for i in range(4)]
    options = {"max_tokens": 50, **HOT}
    codes = {
        (i, j): dia.generate_codes(script, seed=i, audio_prompt=[None, prompt][j], **options)
        for i, script in enumerate(scripts)
        for j in range(2)
    }
    sound = [dia.generate(script, seed=i, **options) for i, script in enumerate(scripts)]

    def close(part: np.ndarray, whole: np.ndarray) -> None:
        np.testing.assert_allclose(part, whole[: len(part)], atol=2e-5, rtol=0)  # windows may share a call

    def one(number: int) -> None:
        rng = random.Random(number)
        kind, i, j = number % 6, rng.randrange(4), rng.randrange(2)
        if kind == 0:
            made = dia.generate_codes(
                scripts, seed=list(range(4)), audio_prompt=prompt if j else None, batch_size=3, **options
            )
            for k, each in enumerate(made):
                np.testing.assert_array_equal(each, codes[k, j])
        elif kind == 1:
            close(np.concatenate(list(dia.stream(scripts[i], seed=i, **options))), sound[i])
        elif kind == 2:
            stream = dia.stream(scripts[i], seed=i, first_frames=4, **options)
            close(next(stream), sound[i])
            time.sleep(rng.uniform(0, 0.1))  # a slow reader
        elif kind == 3:
            with pytest.raises(ZeroDivisionError):
                dia.generate(scripts, seed=list(range(4)), on_clip=lambda index, clip: 1 / 0, **options)
        elif kind == 4:
            job = submit(dia, scripts[i], seed=i, max_tokens=50)
            time.sleep(rng.uniform(0, 0.2))
            if not job.cancel():
                np.testing.assert_array_equal(job.result(), codes[i, 0])
        else:
            made = dia.generate([scripts[i], scripts[j]], seed=[i, j], **options)
            close(made[0], sound[i])
            close(made[1], sound[j])

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for result in [pool.submit(one, number) for number in range(calls)]:
            result.result(timeout=600)
    assert drained(dia)


def test_several_threads(fresh: Dia):
    mixed_calls(fresh, threads=8, calls=36)


@pytest.mark.slow
def test_two_hundred_calls_from_eight_threads(fresh: Dia, monkeypatch: pytest.MonkeyPatch):
    shapes, run = set(), loop.decode_chunk

    def noted(graphdef, params, constants, state, steps):
        shapes.add((len(state.slots.done), state.cache[0].k.shape[2], state.cross[0].k.shape[2]))
        return run(graphdef, params, constants, state, steps)

    monkeypatch.setattr(loop, "decode_chunk", noted)
    mixed_calls(fresh, threads=8, calls=60)
    gc.collect()
    arrays = len(jax.live_arrays())
    mixed_calls(fresh, threads=8, calls=200)
    gc.collect()
    assert len(jax.live_arrays()) <= arrays + 10
    # The programs that can come up: batches of 3, 8 and 16 were asked for, all clips are short, and so are the scripts.
    slots = {size for capacity in (3, 8, 16) for size in slot_sizes(capacity)}
    assert shapes <= {(count, 256, 128) for count in slots}


class Compilations:
    """Counts the programs that XLA compiles."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def test_after_warmup_nothing_compiles(fresh: Dia):
    prompt = np.random.default_rng(0).integers(0, 1024, (30, 9))
    compilations = Compilations()
    fresh.warmup(TEXT, batch_size=3, max_tokens=300)
    fresh.warmup(TEXT, batch_size=3, max_tokens=300, audio_prompt=prompt)
    assert fresh.engine.compile(request(fresh), batch_size=3) == 2 * 3  # caches of 256 and 512, slots 1, 2, 3
    before = compilations.count
    assert before
    list(fresh.stream(TEXT, max_tokens=300, seed=0, **HOT))
    fresh.generate(TEXT, max_tokens=90, seed=0)
    texts = [TEXT, "[S1] One.", "[S1] Two. " + "More. " * 12, "[S2] Three.", "[S1] Four.", "[S1] Five.", "[S1] Six."]
    budgets = [None, prompt, None, None, prompt, None, None]
    fresh.generate(texts, audio_prompt=budgets, seed=list(range(7)), max_tokens=270, batch_size=3, temperature=0.7)
    late = [submit(fresh, seed=i, max_tokens=100 + 60 * i, batch_size=3) for i in range(3)]
    late[1].cancel()
    assert drained(fresh)
    assert compilations.count == before
