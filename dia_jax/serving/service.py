"""The server's state: its model, its voices and its desk, from loading to the end.

Knows when requests may be served. Knows no routes and no sockets.
"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import threading
import time
from collections.abc import Callable

from dia_jax.config import one_line
from dia_jax.pipeline import SAMPLE_RATE, Dia
from dia_jax.serving.admission import Desk
from dia_jax.serving.metrics import Metrics
from dia_jax.serving.schema import Status
from dia_jax.serving.settings import Settings
from dia_jax.serving.voices import Shelf

WARM_TEXTS = ("[S1] Hello.", "[S1] " + "Hello. " * 20)
"""Scripts of the two sizes that most requests have."""
WARM_FRAMES = 1000
"""Of the longest clips for which everything is compiled ahead: 11.6 s, all that a cache of 1024 positions holds."""

TIDY_SECONDS = 10.0
"""After which memory that is free again is given back to the system."""


class Service:
    """A model that is served.

    Args:
        load: gives the model; called once, in a thread.
        settings: limits and permissions.

    Attributes:
        desk, metrics: of this server.
        opened: set when the model is loaded, or cannot be.
        failure: why it could not be loaded; None as long as nothing went wrong.
        threads: for long scripts, which are made by a thread each.
    """

    def __init__(self, load: Callable[[], Dia], settings: Settings):
        settings.check()
        self.settings = settings
        self.desk = Desk(settings)
        self.metrics = Metrics(settings, self.desk)
        self.threads = concurrent.futures.ThreadPoolExecutor(settings.slots, thread_name_prefix="dia_jax speak")
        self.opened = asyncio.Event()
        self.failure: Exception | None = None
        self._load = load
        self._dia: Dia | None = None
        self._shelf: Shelf | None = None
        self._opening: threading.Thread | None = None
        self._began = time.monotonic()
        self._doing = "Loading the model"

    @property
    def dia(self) -> Dia:
        assert self._dia is not None, "requests are admitted when the model is loaded"
        return self._dia

    @property
    def shelf(self) -> Shelf:
        assert self._shelf is not None, "requests are admitted when the model is loaded"
        return self._shelf

    async def open(self) -> None:
        """Loads and warms up the model; then requests are admitted. What goes wrong is kept as `failure`."""
        loop, loaded = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            try:
                self._open()
            except Exception as error:
                self.failure = error
                self._doing = f"Failed ({one_line(error)})"
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(loaded.set)

        # A daemon: a compilation cannot be interrupted, and whoever stops the server would have to wait for it.
        self._opening = threading.Thread(target=work, name="dia_jax load", daemon=True)
        self._opening.start()
        await loaded.wait()
        if self.failure is None and self.desk.state == "loading":
            self.desk.state = "ready"
        self.opened.set()

    @property
    def is_opening(self) -> bool:
        """Whether a thread still loads or compiles."""
        return self._opening is not None and self._opening.is_alive()

    def _open(self) -> None:
        dia = self._load()
        shelf = Shelf(dia, self.settings)
        if self.settings.warmup:
            self._doing = f"Compiling for {self.settings.slots} clips, which is kept for the next start"
            frames = min(WARM_FRAMES, dia.config.frame_budget)
            for text in WARM_TEXTS:
                dia.warmup(text, batch_size=self.settings.slots, max_tokens=frames)
            dia.align("[S1] Hello.", dia.generate_codes("[S1] Hello.", max_tokens=16, seed=0))
            _return_memory()
        self._dia, self._shelf = dia, shelf

    async def drain(self) -> bool:
        """Admits nobody any more, and waits for those that are served.

        Returns:
            whether all of them were finished in time.
        """
        self.desk.state = "draining"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.desk.idle.wait(), self.settings.drain_seconds)
        return self.desk.idle.is_set()

    async def tidy(self) -> None:
        """Gives memory back now and then, until it is cancelled."""
        while True:
            await asyncio.sleep(TIDY_SECONDS)
            await asyncio.to_thread(_return_memory)

    def close(self) -> None:
        """Ends the threads, whose work is cancelled."""
        self.threads.shutdown(wait=False, cancel_futures=True)

    @property
    def status(self) -> Status:
        """For people and load balancers."""
        desk, settings = self.desk, self.settings
        if desk.state == "ready":
            message = (
                f"Ready: {settings.name}, {desk.busy} of {settings.slots} slots busy, {desk.queued} requests wait."
            )
        elif desk.state == "loading":
            message = f"{self._doing}: {time.monotonic() - self._began:.0f} s so far."
        else:
            message = "Stopping: what runs is finished, and nothing new is taken."
        return Status(
            status=desk.state,
            message=message,
            model=settings.name,
            slots=settings.slots,
            busy=desk.busy,
            queued=desk.queued,
            queue_limit=settings.queue,
            uploads=settings.allow_uploads,
            rate=SAMPLE_RATE,
            tag_voices=self._dia is not None and self._dia.config.speech.tag_voices,
        )


def _return_memory() -> None:
    """Gives the system back what is free: half of what compiling takes, and megabytes of samples with each clip."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc keeps it, and has this function
        ctypes.CDLL("libc.so.6").malloc_trim(0)
