"""Who may come in: counts requests before any work is done for them, and measures how fast they leave.

Knows numbers and times. Lives in one thread, that of the event loop.
"""

import asyncio
import collections
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from dia_jax.serving.errors import ApiError
from dia_jax.serving.settings import Settings

DEPARTURES = 32
"""Over how many of the last requests the speed of the queue is measured."""

State = Literal["loading", "ready", "draining"]


class Ticket:
    """A request that was let in.

    Attributes:
        admitted: when, by `time.perf_counter`.
        began: when its first clip got a slot; None while it waits.
        on_begin: called at that moment.
        is_served: whether it got what it asked for; only such requests show how fast the queue is.
    """

    def __init__(self) -> None:
        self.admitted = time.perf_counter()
        self.began: float | None = None
        self.is_served = False
        self.on_begin: Callable[[], object] = lambda: None

    def begin(self) -> None:
        """Notes that the first clip got its slot."""
        if self.began is None:
            self.began = time.perf_counter()
            self.on_begin()


class Desk:
    """Lets requests in.

    429 means that there is capacity, but it is taken; 503 that there is none now, while the server loads or drains.

    Attributes:
        state: "loading", "ready" or "draining".
    """

    def __init__(self, settings: Settings):
        self.state: State = "loading"
        self.idle = asyncio.Event()
        self.idle.set()
        self._settings = settings
        self._tickets: dict[Ticket, None] = {}
        self._departures: collections.deque[float] = collections.deque(maxlen=DEPARTURES)
        self._speed = 0.0

    @contextmanager
    def admit(self) -> Iterator[Ticket]:
        """Counts a request in, and out at the end.

        Raises:
            ApiError: 429 where all places are taken, 503 where the server is not ready.
        """
        self.check_state()
        if len(self._tickets) >= self._settings.slots + self._settings.queue:
            seconds = self.retry_after
            raise ApiError(
                429,
                f"The server is full: {self.busy} requests are served and {self.queued} wait. Try again in {seconds} "
                f"second{'s' * (seconds != 1)}.",
                code="queue_full",
                retry_after=seconds,
            )
        ticket = Ticket()
        self._tickets[ticket] = None
        self.idle.clear()
        try:
            yield ticket
        finally:
            del self._tickets[ticket]
            if ticket.is_served:
                self._depart()
            if not self._tickets:
                self._departures.clear()  # the time without work is no part of the speed
                self.idle.set()

    def _depart(self) -> None:
        self._departures.append(time.perf_counter())
        if len(self._departures) > 1:
            seconds = self._departures[-1] - self._departures[0]
            self._speed = (len(self._departures) - 1) / max(seconds, 1e-3)

    def too_late(self) -> ApiError:
        """What is said to a request that has waited for too long."""
        message = f"No slot became free in {self._settings.queue_seconds:g} seconds. Try again later."
        return ApiError(429, message, code="queue_timeout", retry_after=self.retry_after)

    def check_state(self) -> None:
        """Raises ApiError 503 unless the server is ready."""
        if self.state != "ready":
            is_loading = self.state == "loading"
            why = "still loads its model" if is_loading else "is about to stop and takes no new requests"
            raise ApiError(503, f"The server {why}. Try again in 5 seconds.", code=self.state, retry_after=5)

    def ahead_of(self, ticket: Ticket) -> int:
        """Requests that wait and came before this one."""
        waiting = [other for other in self._tickets if other.began is None]
        return waiting.index(ticket) if ticket in waiting else 0

    @property
    def busy(self) -> int:
        """Requests that have a slot."""
        return sum(ticket.began is not None for ticket in self._tickets)

    @property
    def queued(self) -> int:
        """Requests that wait for a slot."""
        return len(self._tickets) - self.busy

    @property
    def retry_after(self) -> int:
        """Whole seconds after which those that wait now should have a slot, by the measured speed of the queue."""
        if not self._speed:  # nothing has been measured yet
            return 1 + self.queued
        return min(max(math.ceil(self.queued / self._speed), 1), 600)
