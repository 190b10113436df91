"""The host's side of the loop: which clips stand on the device, how far they are, when a call of it ends.

Knows `decode.py` and numpy; knows no text, audio or files. One look at the device a call, none in between.
"""

import dataclasses
import time
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx

from dia_jax.config import DiaConfig, SamplingSettings
from dia_jax.decode import (
    Clip,
    bucket,
    cache_rows,
    decode_chunk,
    grow,
    insert,
    prefill,
    read_codes,
    select,
    text_bucket,
)

CALL_SECONDS = 0.5
"""What a call of the loop should last: an interruption waits that long, and so does a clip that could take a slot."""


class Batch:
    """Clips that are decoded together, each in a slot.

    Args:
        model: graphdef, params and config.
        settings: how tokens are drawn, the same for all.
        clips: the first ones.
        text_size: to which scripts are padded; by default what these clips need. Those that come later must fit too.

    Attributes:
        clips: what stands in each slot; None where nothing does.
    """

    def __init__(
        self,
        model: tuple[nnx.GraphDef, nnx.State, DiaConfig],
        settings: SamplingSettings,
        clips: list[Clip],
        *,
        text_size: int | None = None,
    ):
        self._model, self._settings = model, settings
        self._state = prefill(*model, clips, text_size=text_size)
        self.clips: list[Clip | None] = clips + [None] * (len(self._state.row) - len(clips))
        self._steps = 8
        self._look()

    def _look(self) -> None:
        """Fetches how far the clips are: a few bytes."""
        state = self._state
        self._row, self._end_row, self._done = jax.device_get((state.row, state.end_row, state.done))

    def advance(self, most: int) -> None:
        """Runs at most `most` rows of every clip that is not done, and no more than `CALL_SECONDS` are good for."""
        began = time.monotonic()
        top = max(int(self._row[slot]) for slot, clip in enumerate(self.clips) if clip and not self._done[slot])
        graphdef, params, config = self._model
        size = self._state.cache[0].k.shape[2]
        if top >= size:
            # When it grows depends on the row alone, not on how calls were cut, so that the rounding does not either.
            size = self._grow(cache_rows(top, config))
        steps = min(most, self._steps, size - top)
        self._state = decode_chunk(graphdef, params, self._state, self._settings, np.int32(steps))
        self._look()
        # Doubled at most, since a short call says little; halved at most, since one that compiled says nothing.
        wanted = int(steps * CALL_SECONDS / (time.monotonic() - began))
        self._steps = min(max(wanted, self._steps // 2, 1), 2 * self._steps)

    def compile(self, last_row: int) -> None:
        """Runs every program that clips up to this row need, for no step; the batch is of no use afterwards."""
        graphdef, params, config = self._model
        clip = self.clips[0]
        while True:
            self._state = decode_chunk(graphdef, params, self._state, self._settings, np.int32(0))
            self.replace(0, clip)
            size = self._state.cache[0].k.shape[2]
            if last_row < size:
                break
            self._grow(cache_rows(size, config))

    def is_done(self, slot: int) -> bool:
        return bool(self._done[slot])

    def frames(self, slot: int) -> int:
        """New frames of which all channels are drawn; below 0 while the first one's delay lasts."""
        clip = self.clips[slot]
        assert clip is not None
        complete = min(self._row[slot] - self._model[2].max_delay, self._end_row[slot] - 1)
        return int(complete) - len(clip.prompt)

    def codes(self, slot: int) -> np.ndarray:
        """All `frames` of a clip so far, int32 [frames, C]."""
        clip = self.clips[slot]
        assert clip is not None
        start = len(clip.prompt)
        grid = np.asarray(self._state.grid)[slot]
        return read_codes(grid, start=start, stop=start + max(self.frames(slot), 0), config=self._model[2])

    def replace(self, slot: int, clip: Clip | None) -> None:
        """Gives a slot to another clip, or to none."""
        self.clips[slot] = clip
        if clip is not None:
            rows = self._grow(cache_rows(len(clip.prompt), self._model[2]))
            one = prefill(*self._model, [clip], rows=rows, text_size=self._state.text_mask.shape[1])
            self._state = insert(self._state, one, np.int32(slot))
            self._look()

    def _grow(self, rows: int) -> int:
        """Makes the caches hold at least `rows` rows, and says how many they do."""
        size = self._state.cache[0].k.shape[2]
        if rows > size:
            self._state = dataclasses.replace(self._state, cache=grow(self._state.cache, rows))
        return max(rows, size)

    def shrink(self) -> None:
        """Moves the clips to a smaller batch if they all fit into one."""
        slots = [slot for slot, clip in enumerate(self.clips) if clip]
        size = bucket(len(slots), 1, len(self.clips))
        if 0 < size < len(self.clips):
            slots += [slot for slot, clip in enumerate(self.clips) if clip is None][: size - len(slots)]
            self._state = select(self._state, np.array(slots, np.int32))
            self.clips = [self.clips[slot] for slot in slots]
            self._look()


def run(
    model: tuple[nnx.GraphDef, nnx.State, DiaConfig],
    settings: SamplingSettings,
    clips: list[Clip],
    *,
    batch_size: int,
) -> Iterator[tuple[list[tuple[Clip, np.ndarray]], int]]:
    """Decodes any number of clips, `batch_size` at a time, the longest scripts first.

    A clip that ends leaves its slot to the next one; when there is none, the batch shrinks.

    Yields:
        After every call of the loop, the clips that have ended since with their codes, int32 [frames, C]; and how many
        frames there are of those that go on.
    """
    waiting = sorted(clips, key=lambda clip: len(clip.text), reverse=True)
    first, waiting = waiting[:batch_size], waiting[batch_size:]
    batch = Batch(model, settings, first, text_size=text_bucket(clips, model[2]))
    while any(batch.clips):
        batch.advance(model[2].decoder.max_length)
        ended = []
        for slot, clip in enumerate(batch.clips):
            if clip and batch.is_done(slot):
                ended.append((clip, batch.codes(slot)))
                batch.replace(slot, waiting.pop(0) if waiting else None)
        yield ended, sum(max(batch.frames(slot), 0) for slot, clip in enumerate(batch.clips) if clip)
        batch.shrink()
