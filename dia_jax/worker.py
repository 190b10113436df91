"""A thread that exists while it has work. Knows nothing of what the work is."""

import atexit
import threading
import weakref
from collections.abc import Callable


class Worker:
    """A thread that calls a function as long as it has work, and ends then; `wake` starts another one.

    A daemon, so that an abandoned clip does not keep the interpreter alive; stopped before JAX is torn down.
    """

    def __init__(self, name: str, work: Callable[[], bool]):
        self._name, self._work = name, work
        self._lock = threading.Lock()
        self._is_wanted = self._is_stopping = False
        self._thread: threading.Thread | None = None
        _workers.add(self)

    def wake(self) -> None:
        """Makes sure that the function is called once more."""
        with self._lock:
            self._is_wanted = True
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            with self._lock:
                # Not this thread, if an interruption fell into its start and `wake` started another one.
                if self._thread is not threading.current_thread():
                    return
                if self._is_stopping or not self._is_wanted:
                    self._thread = None
                    return
                self._is_wanted = False
            while not self._is_stopping and self._work():
                pass

    @property
    def is_idle(self) -> bool:
        return self._thread is None

    def stop(self) -> None:
        """Waits for the call of the function that is under way."""
        self._is_stopping = True
        if thread := self._thread:
            thread.join()


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for worker in list(_workers):
        worker.stop()
