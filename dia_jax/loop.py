"""The host's half of decoding on one device. The only loop over calls of a device in this package.

Knows `decode.py`, the codec and threads; knows no other device, text, files or arguments of callers. One thread owns
the batches on the device; a second one turns codes into samples beside it. Both end when nothing is left to do, and
what was on the device is freed.

A turn of the loop:
    1. drop what was cancelled, and put waiting jobs into free slots;
    2. dispatch the next call of every batch;
    3. read what the call before made, while this one runs, and hand it to the jobs.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dia_jax.codec import BATCH, WINDOW, Codec
from dia_jax.config import DiaConfig, DiaError
from dia_jax.decode import (
    FIRST_SIZE,
    DecodeState,
    Prefilled,
    Progress,
    Request,
    bucket,
    cache_size,
    decode_chunk,
    decoder_weights,
    last_position,
    prefill,
    steps_per_call,
    text_size,
    unconditional,
)
from dia_jax.job import Job
from dia_jax.slots import empty_state, insert, release, resize
from dia_jax.worker import Worker

CALL_SECONDS = 1.0
"""How long a call lasts at most, on machines so slow that `steps_per_call` steps would take longer."""


class DecodeError(DiaError):
    """A clip that the model cannot make; the message says why."""


@dataclasses.dataclass
class _Batch:
    """Clips that are decoded together.

    Attributes:
        state: on the device.
        jobs: what each slot holds; None where it is free.
        seconds: what a step took; 0 before one was seen.
    """

    state: DecodeState
    jobs: list[Job | None]
    seconds: float = 0.0

    @property
    def live(self) -> list[Job]:
        return [job for job in self.jobs if job is not None]

    @property
    def cache(self) -> int:
        return self.state.cache[0].k.shape[2]

    @property
    def text(self) -> int:
        return self.state.cross[0].k.shape[2]


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of the loop that was dispatched: what its slots held, and where its results will be."""

    batch: _Batch
    jobs: list[Job | None]
    progress: Progress
    steps: int
    dispatched: float


class Loop:
    """Decodes clips on one device, or on several that share each clip; used by `Engine` alone.

    Clips are in one batch as long as padding their scripts to one size costs less than a batch more, see `_place`; the
    calls of several batches take turns.

    Args:
        graphdef, params, config: the model, on the devices of `mesh`.
        codec: turns codes into samples, on one of these devices; None for codes alone.
        mesh: see `mesh.groups`.
        take: given a loop and the jobs that it holds, takes further ones from the queue; gives these, and how many
            clips the loop may hold.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: nnx.State,
        config: DiaConfig,
        *,
        codec: Codec | None,
        mesh: Mesh,
        take: Callable[["Loop", Sequence[Job]], tuple[list[Job], int]],
    ):
        self._graphdef, self._params, self._config = graphdef, params, config
        self._codec, self._mesh, self._take = codec, mesh, take
        dec = config.decoder
        embeddings: Any = params["decoder"]["embeddings"]["embedding"]
        self._dtype = np.dtype(embeddings.dtype)
        self._weight_bytes = sum(w.size * w.dtype.itemsize for w in decoder_weights(params))
        # Keys and values of the conditional lane.
        self._bytes_of_text = 2 * dec.num_layers * dec.cross_num_kv_heads * dec.cross_head_dim * self._dtype.itemsize
        self._cache_sizes, self._text_sizes = cache_sizes(config), text_sizes(config)
        self._taken: list[Job] = []  # of this turn
        self._batches: list[_Batch] = []
        self._calls: list[_Call] = []
        self._collected = 0.0
        self._prefilled: tuple[tuple[bytes, bytes, int], Prefilled] | None = None
        # Parts of streams are made before those of whole clips.
        self._cuts: tuple[collections.deque[tuple[Job, int, int, bool]], ...] = (
            collections.deque(),
            collections.deque(),
        )
        self._worker = Worker("dia_jax loop", self.turn)
        self._sound = Worker("dia_jax codec", self.make_sound)

    def wake(self) -> None:
        """Makes sure that the queue is looked at."""
        self._worker.wake()

    @functools.cached_property
    def _model(self) -> tuple[nnx.GraphDef, nnx.State, list[jax.Array]]:
        """The model and its `unconditional`: made by the first clip, so that loops compile it side by side."""
        return self._graphdef, self._params, unconditional(self._graphdef, self._params)

    @property
    def is_idle(self) -> bool:
        return self._worker.is_idle and self._sound.is_idle

    # --- The loop ----------------------------------------------------------------------------------------------------

    def turn(self) -> bool:
        """One turn; False if there is nothing left to do."""
        with jax.set_mesh(self._mesh):
            return self._turn()

    def _turn(self) -> bool:
        before, self._calls = self._calls, []
        try:
            self._release_cancelled()
            self._admit()
            for batch in self._batches:
                self._dispatch(batch)
            for call in before:
                self._collect(call)
        except Exception as error:
            self._recover(before, error)
            return True  # nothing is left here, but jobs may wait in the queue, which only a turn looks at
        busy = bool(self._taken or self._batches or self._calls)
        if not busy:
            self._prefilled = None
        return busy

    def _release_cancelled(self) -> None:
        for batch in self._batches:
            for slot, job in enumerate(batch.jobs):
                if job is not None and job.done():
                    batch.jobs[slot] = None
                    batch.state = release(batch.state, slot)

    def _admit(self) -> None:
        """Gives free slots to waiting jobs, and fits the sizes of the batches to what they hold."""
        self._taken = []
        self._taken, capacity = self._take(self, [job for batch in self._batches for job in batch.live])
        groups = [batch.live for batch in self._batches]
        for job in self._taken:
            self._place(job, groups, capacity)
        for i, jobs in enumerate(groups):
            if i == len(self._batches):
                self._batches.append(self._new_batch(jobs, capacity))
            if jobs:
                self._fit(self._batches[i], jobs, capacity)
                for job in jobs:
                    if job not in self._batches[i].jobs:
                        self._insert(self._batches[i], job)
        self._batches = [batch for batch in self._batches if batch.live]

    def _place(self, job: Job, groups: list[list[Job]], capacity: int) -> None:
        """Adds a job to the group that becomes one batch with it, or starts a group.

        A job takes a slot that is computed anyway, or joins where padding all scripts to one size costs fewer bytes a
        step than half of the weights: a batch of its own would read all of them once more.
        """
        own = self._text_size(job)
        best, least = None, 0
        for jobs in groups:
            before = max(map(self._text_size, jobs), default=0)
            size = max(own, before)
            padding = sum(size - self._text_size(each) for each in (*jobs, job))
            is_free = own == before or (own < before and len(jobs) < bucket(len(jobs), 1, capacity))
            is_cheap = 2 * padding * self._bytes_of_text <= self._weight_bytes
            if jobs and (is_free or is_cheap) and (best is None or padding < least):
                best, least = jobs, padding
        if best is None:
            groups.append([job])
        else:
            best.append(job)

    def _text_size(self, job: Job) -> int:
        return text_size(len(job.request.text), self._config)

    def _sizes(self, jobs: Sequence[Job], capacity: int) -> tuple[int, int, int, int]:
        """What a batch of these jobs needs: slots, the shortest and the longest useful cache, and the scripts' size.

        The caches are as long as the furthest clip needs, so what a clip costs, and in 16 bits how its sums are
        rounded, depends on its neighbours. They shrink when half their length would do for twice what is needed.
        """
        need = max(job.planned for job in jobs) + steps_per_call(self._config)
        first = min(FIRST_SIZE, max(job.last_position for job in jobs) + 1)
        shortest, longest = (cache_size(max(each, first), self._config) for each in (need, 2 * need))
        # More clips than the capacity run where the caller who asked for the larger one has all of its clips.
        slots = bucket(len(jobs), 1, capacity if len(jobs) <= capacity else 1 << 30)
        return slots, shortest, longest, max(map(self._text_size, jobs))

    def _new_batch(self, jobs: Sequence[Job], capacity: int) -> _Batch:
        slots, cache, _, text = self._sizes(jobs, capacity)
        state = empty_state(self._config, slots=slots, cache=cache, text=text, dtype=self._dtype)
        return _Batch(state, [None] * slots)

    def _fit(self, batch: _Batch, jobs: Sequence[Job], capacity: int) -> None:
        """Gives a batch the sizes that these jobs need, through all sizes between: so few programs do."""
        slots, shortest, longest, text = self._sizes(jobs, capacity)
        if slots < len(batch.jobs):  # first, so that less has to be moved
            self._move(batch, slots, capacity)
        cache = min(max(batch.cache, shortest), longest)
        for size in _path(batch.cache, cache, self._cache_sizes):
            batch.state = resize(batch.state, cache=size)
        for size in _path(batch.text, text, self._text_sizes):
            batch.state = resize(batch.state, text=size)
        if slots > len(batch.jobs):
            self._move(batch, slots, capacity)

    def _move(self, batch: _Batch, slots: int, capacity: int) -> None:
        for size in _path(len(batch.jobs), slots, slot_sizes(capacity)):
            kept = [slot for slot, job in enumerate(batch.jobs) if job is not None or size > len(batch.jobs)]
            kept += [-1] * (size - len(kept))
            batch.state = resize(batch.state, kept)
            batch.jobs = [batch.jobs[slot] if slot >= 0 else None for slot in kept]

    def _insert(self, batch: _Batch, job: Job) -> None:
        slot = batch.jobs.index(None)
        request = job.request
        key = (request.text.tobytes(), request.prompt.tobytes(), batch.text)
        try:
            if self._prefilled is None or self._prefilled[0] != key:
                self._prefilled = None  # freed before the next one is made
                self._prefilled = key, self._prefill(request, batch.text)
        except Exception as error:  # touches nothing of those that run
            job.fail(error)
            return
        batch.state = insert(batch.state, self._prefilled[1], request, slot, config=self._config)
        batch.jobs[slot] = job
        job.begin()

    def _prefill(self, request: Request, size: int) -> Prefilled:
        prefilled = prefill(*self._model, self._config, request, size=size)
        _wait_on_cpus((prefilled.cache, prefilled.cross))
        return prefilled

    def _decode_chunk(self, state: DecodeState, steps: int) -> tuple[DecodeState, Progress]:
        made = decode_chunk(*self._model, state, np.int32(steps))
        _wait_on_cpus(made)
        return made

    def _dispatch(self, batch: _Batch) -> None:
        steps = steps_per_call(self._config)
        if batch.seconds * steps > CALL_SECONDS:
            steps = max(int(CALL_SECONDS / batch.seconds), 1)
        batch.state, progress = self._decode_chunk(batch.state, steps)
        progress.numbers.copy_to_host_async()
        progress.tokens.copy_to_host_async()
        self._calls.append(_Call(batch, list(batch.jobs), progress, steps, time.perf_counter()))
        for job in batch.live:
            job.planned += steps
        self._vacate(batch)

    def _vacate(self, batch: _Batch) -> None:
        """Frees the slots of clips that the calls dispatched so far finish."""
        batch.jobs = [
            None if job is not None and (job.is_closed or job.planned >= job.last_position) else job
            for job in batch.jobs
        ]

    def _collect(self, call: _Call) -> None:
        """Waits for a call, and hands what it made to its jobs."""
        numbers, tokens = np.asarray(call.progress.numbers), np.asarray(call.progress.tokens)
        now = time.perf_counter()
        call.batch.seconds = (now - max(call.dispatched, self._collected)) / call.steps
        self._collected = now
        for slot, job in enumerate(call.jobs):
            if job is None or job.done() or job.is_closed:
                continue
            position, end, _, failed = map(int, numbers[:, slot])
            if failed:
                job.fail(
                    DecodeError(
                        f"The logits are not finite after {len(job.codes)} frames, computed in {self._dtype}; "
                        "float16 overflows where bfloat16 and float32 do not, so load the model with one of these."
                    )
                )
                continue
            job.read(position, end, tokens[slot])
            if job.wants_sound:
                self._cuts[not job.is_stream].extend((job, *cut) for cut in job.cuts())
                self._sound.wake()
            else:
                job.give_codes()
        self._vacate(call.batch)

    def _recover(self, before: list[_Call], error: Exception) -> None:
        """After a call that failed, whose donated arrays are gone: what ran has failed, and the rest waits on."""
        for call in before:
            with contextlib.suppress(Exception):  # it may have ended well
                self._collect(call)
        jobs = [*self._taken, *(job for call in (*before, *self._calls) for job in call.jobs)]
        jobs += [job for batch in self._batches for job in batch.jobs]
        self._batches, self._calls, self._prefilled = [], [], None
        for job in jobs:
            if job is not None and not job.is_closed:
                job.fail(error)

    # --- Sound -------------------------------------------------------------------------------------------------------

    def make_sound(self) -> bool:
        """Decodes the parts that are ready, several in a call; False if there are none."""
        cuts: list[tuple[Job, int, int, bool]] = []
        for ready in self._cuts:
            while ready and len(cuts) < BATCH:
                cuts.append(ready.popleft())
        if not cuts:
            return False
        cuts = [cut for cut in cuts if not cut[0].done()]
        windows = [
            [(job.codes, begin, min(begin + WINDOW, stop)) for begin in range(start, stop, WINDOW)]
            for job, start, stop, _ in cuts
        ]
        assert self._codec is not None
        try:
            samples = iter(self._codec.decode_windows(list(itertools.chain(*windows))))
        except Exception as error:
            for job, *_ in cuts:
                job.fail(error)
            return True
        for (job, _, _, is_last), parts in zip(cuts, windows, strict=True):
            job.give(np.concatenate([np.zeros(0, np.float32), *(next(samples) for _ in parts)]), is_last=is_last)
        return True

    # --- Compiling ---------------------------------------------------------------------------------------------------

    def compile(self, request: Request, batch_size: int) -> int:
        """Compiles, and keeps, every program that up to `batch_size` clips like this one can need.

        For each number of slots in `slot_sizes(batch_size)` and each cache in `cache_sizes` up to the clip's end: the
        decode call, `insert`, `release` and `resize` to the next sizes. For the clip: its prefill. For the codec: each
        window size, alone and in a batch. Scripts of another size, see `text_sizes`, need a call of their own.

        Returns:
            the number of programs of `decode_chunk` among them.
        """
        with jax.set_mesh(self._mesh):
            return self._compile(request, batch_size)

    def _compile(self, request: Request, batch_size: int) -> int:
        text = text_size(len(request.text), self._config)
        last = last_position(1 + len(request.prompt) + request.max_frames, self._config) + 1
        caches = [size for size in self._cache_sizes if size <= cache_size(last, self._config)]
        slots = slot_sizes(batch_size)
        prefilled = self._prefill(request, text)
        for cache, count in itertools.product(caches, slots):

            def state(count: int = count, cache: int = cache) -> DecodeState:
                return empty_state(self._config, slots=count, cache=cache, text=text, dtype=self._dtype)

            if cache >= cache_size(len(request.prompt), self._config):
                insert(state(), prefilled, request, 0, config=self._config)
            release(self._decode_chunk(state(), 0)[0], 0)
            for size in _next_to(count, slots):
                resize(state(), [*range(count), *[-1] * size][:size])
            for size in _next_to(cache, caches):
                resize(state(), cache=size)
            for size in _next_to(text, self._text_sizes):
                resize(state(), text=size)
        if self._codec is not None:
            self._codec.compile(encoder=len(request.prompt) > 0)
        return len(caches) * len(slots)


def _wait_on_cpus(arrays: Any) -> None:
    """Waits for arrays that several CPU devices compute together; returns at once for all others.

    XLA runs the devices of a CPU in one pool of threads. A device that has 32 calls in flight blocks a thread with each
    further one, until none is left for a device that the others of its group wait for: the process stops forever.
    """
    devices = jax.tree.leaves(arrays)[0].devices()
    if len(devices) > 1 and next(iter(devices)).platform == "cpu":
        jax.block_until_ready(arrays)


def slot_sizes(capacity: int) -> list[int]:
    """The numbers of slots that batches of up to `capacity` clips have: powers of two, and `capacity` itself."""
    return [*itertools.takewhile(lambda size: size < capacity, (1 << i for i in itertools.count())), capacity]


def cache_sizes(config: DiaConfig) -> list[int]:
    """The lengths that caches have."""
    return sorted({cache_size(positions, config) for positions in range(1, config.decoder.max_length + 1)})


def text_sizes(config: DiaConfig) -> list[int]:
    """The sizes that scripts are padded to."""
    return sorted({text_size(length, config) for length in range(1, config.encoder.max_length + 1)})


def _next_to(size: int, sizes: list[int]) -> list[int]:
    i = sizes.index(size)
    return [*sizes[max(i - 1, 0) : i], *sizes[i + 1 : i + 2]]


def _path(start: int, stop: int, sizes: list[int]) -> list[int]:
    """From one size to another through all that lie between."""
    if start < stop:
        return [size for size in sizes if start < size < stop] + [stop]
    return [size for size in reversed(sizes) if stop < size < start] + ([stop] if stop < start else [])
