"""Runs the application until it is told to stop, and then lets it finish what it began.

Knows sockets and signals. Uvicorn does the work; what it lacks is a time in which headers have to arrive, and an end
that first refuses new requests and then waits.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dia_jax.serving.app import create_app
from dia_jax.serving.gate import SEND_SECONDS
from dia_jax.serving.service import Service
from dia_jax.serving.settings import ServingError

HEADER_SECONDS = 10.0
"""In which the headers of a request have to arrive."""
MAX_CONNECTIONS = 4000
"""Further ones are answered with 503; each costs memory, whatever it asks for."""
TICK = 0.1
"""Seconds between two looks at whether the server is to stop."""


def serve(service: Service, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT comes; then drains, and returns.

    Args:
        service: what is served; it is loaded while /health answers already.
        host, port: where; port 0 takes a free one.
        on_ready: called with the server's address when requests are served.

    Raises:
        ServingError: the port cannot be used.
        Exception: what the model's loading failed with.
    """
    with _listen(host, port) as listener:
        config = uvicorn.Config(
            create_app(service),
            http=_Protocol,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=32_768,
        )
        server = _Server(config)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        asyncio.run(_run(server, service, listener, lambda: on_ready(address)))
    if service.failure is not None:
        raise service.failure


async def _run(server: "_Server", service: Service, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    running = asyncio.create_task(server.serve([listener]))
    draining: asyncio.Task[bool] | None = None
    is_told = False
    while not running.done():
        if service.opened.is_set() and not is_told:
            is_told = True
            if service.failure is None:
                on_ready()
            else:
                server.should_exit = True
        if server.signals and draining is None:
            # While it drains, requests are still answered: with 503.
            draining = asyncio.create_task(service.drain())
            draining.add_done_callback(lambda _: server.stop())
        await asyncio.wait({running}, timeout=TICK)
    await running
    is_drained = draining is None or (draining.done() and draining.result())
    if service.is_opening or not is_drained:  # what still compiles or computes cannot be interrupted
        sys.stderr.flush()
        os._exit(0)


class _Server(uvicorn.Server):
    """Leaves to its caller what a signal means; a second one ends it at once.

    Attributes:
        signals: that came.
    """

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.signals: list[int] = []

    def stop(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = {kind: signal.signal(kind, self.handle_exit) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.signals.append(sig)
        if len(self.signals) > 1:
            self.should_exit = self.force_exit = True


class _Protocol(H11Protocol):
    """Closes a connection whose next request does not arrive in time, or whose client does not read."""

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._is_busy:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)
        super().data_received(data)
        if self._deadline is not None and self._is_busy:
            self._deadline.cancel()
            self._deadline = None

    def pause_writing(self) -> None:
        super().pause_writing()
        # Closing would wait for what is not read.
        self._unread = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self) -> None:
        self._deadline = None
        if not self._is_busy:
            self.transport.close()


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(f"Cannot listen on {host} port {port}: {reason}. Choose another --port.") from None
    with listener:
        yield listener
