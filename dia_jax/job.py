"""What `Engine.submit` gives: a clip that was asked for, as a future and as the parts that come in the meantime.

Knows a clip's own progress: its grid, its frames, which parts can be made. Knows no device and no other clips.
"""

import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np

from dia_jax.codec import WINDOW
from dia_jax.config import DiaConfig, DiaError, one_line
from dia_jax.decode import NOT_ENDED, Request, last_position, read_codes


class Job(concurrent.futures.Future):
    """A clip that was asked for: a `concurrent.futures.Future` whose value is all of it.

    The value is codes int32 [n, C], or samples float32 [n * hop]. `cancel` works until the clip is finished, and frees
    its slot within one call of the loop.

    Attributes:
        request: what the clip is made from.
        codes: int32 [n, C], the frames that are complete so far; those of a clip that failed stay.
        parts: of its value, as far as they are made.
        owner: whose clip it is. Where slots are short, owners take turns.
        has_slot: whether it was put into a slot; before, it waits.
    """

    def __init__(
        self,
        request: Request,
        config: DiaConfig,
        *,
        batch_size: int,
        is_stream: bool,
        context: int | None,
        owner: object = None,
    ):
        super().__init__()
        channels = config.decoder.num_channels
        self.request = request
        self.codes = np.zeros((0, channels), np.int32)
        self.batch_size, self.is_stream = batch_size, is_stream
        self.owner = self if owner is None else owner
        self.parts: list[np.ndarray] = []
        self.has_slot = False
        self.is_closed = False  # all frames are there and were handed on
        self._config, self._context = config, context  # None where codes are wanted
        self.chunk_sizes: Iterator[int] = itertools.repeat(WINDOW)
        self._grid = np.zeros((config.decoder.max_length + config.max_delay + 1, channels), np.int32)
        self._position = self.planned = len(request.prompt)
        self._end, self._limit = NOT_ENDED, 1 + len(request.prompt) + request.max_frames
        self._sent, self._next_size = 0, 0
        self._listeners: list[Callable[[], object]] = []
        self._cancelling = threading.Lock()
        # A function of the job: one that holds it would keep its samples alive.
        self.add_done_callback(Job._tell)  # pyrefly: ignore[bad-argument-type]

    def cancel(self) -> bool:
        """Stops the clip; False if it is finished already."""
        with self._cancelling:
            if not self.cancelled() and super().cancel():
                self.set_running_or_notify_cancel()
        return self.cancelled()

    def chunks(self) -> Iterator[np.ndarray]:
        """Yields the parts of the clip as soon as they can exist; joined, they are its value. For one reader.

        Raises:
            DiaError, RuntimeError: the clip failed; after the parts that were made before.
            concurrent.futures.CancelledError: it was cancelled.
        """
        read, news = 0, threading.Event()
        self.listen(news.set)
        while not self.done() or read < len(self.parts):
            news.wait(timeout=0.5)  # a wait without an end cannot be interrupted everywhere
            news.clear()
            while read < len(self.parts):
                if len(part := self.parts[read]):
                    yield part
                read += 1
        if error := self.exception():
            raise error

    def listen(self, listener: Callable[[], object]) -> None:
        """Has a function called when the clip gets its slot, with each part and at the end, and once right away.

        Args:
            listener: called by the engine's threads; it must be quick and may not raise.
        """
        self._listeners.append(listener)
        listener()

    # What follows is called by the engine's threads.

    def begin(self) -> None:
        """Notes that the clip is in a slot."""
        self.has_slot = True
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    @property
    def wants_sound(self) -> bool:
        return self._context is not None

    @property
    def last_position(self) -> int:
        """The position at which the clip is done, as far as it is known."""
        return last_position(min(self._end, self._limit), self._config)

    def read(self, position: int, end: int, tokens: np.ndarray) -> None:
        """Takes over the grid up to `position`; `tokens` follow what was taken before."""
        begin, stop = self._position + 1, position + 1
        self._grid[begin:stop] = tokens[: stop - begin]
        self._position, self._end = position, end
        # A frame is complete when its last channel is drawn.
        start, stop = len(self.request.prompt) + len(self.codes), min(position - self._config.max_delay, end - 1)
        if stop > start:
            codes = read_codes(self._grid, start=start, stop=stop, config=self._config)
            self.codes = np.concatenate([self.codes, codes])
        self.is_closed = self._position >= last_position(end, self._config)

    def cuts(self) -> Iterator[tuple[int, int, bool]]:
        """The next parts whose samples can be made: first frame, frame after the last, and whether it ends the clip."""
        assert self._context is not None
        while True:
            self._next_size = self._next_size or next(self.chunk_sizes)
            left = len(self.codes) - self._sent
            if not self.is_closed and left < self._next_size + self._context:
                return
            start, self._sent = self._sent, self._sent + min(self._next_size, left)
            self._next_size = 0
            is_last = self.is_closed and self._sent == len(self.codes)
            yield start, self._sent, is_last
            if is_last:
                return

    def give(self, part: np.ndarray, *, is_last: bool) -> None:
        """Hands a part on to whoever reads, and ends the job with the last one."""
        self.parts.append(part)
        self._tell()
        if is_last:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled meanwhile
                self.set_result(np.concatenate(self.parts))

    def give_codes(self) -> None:
        """Hands on the codes that are new."""
        start, self._sent = self._sent, len(self.codes)
        self.give(self.codes[start:], is_last=self.is_closed)

    def fail(self, error: Exception) -> None:
        if not isinstance(error, DiaError):
            # Each job has an exception of its own: several threads may raise them at the same time.
            cause, error = error, RuntimeError(f"{type(error).__name__}: {one_line(error)}")
            error.__cause__ = cause
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self.set_exception(error)
