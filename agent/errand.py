"""An errand: a call in a thread of its own, for which its caller waits only so long.

What a driver or a policy does may block or take very long, and no thread can be ended from outside. So whoever must go
on sends another thread and leaves it behind. Knows nothing of what is called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Late(Exception):
    """The call has not returned in time and goes on in its thread."""


class _Done(Generic[T]):
    """How a call ended."""

    def __init__(self, value: T | None, error: Exception | None) -> None:
        self.value, self.error = value, error


class Errand(Generic[T]):
    """One daemon thread for one call at a time; to be used by one caller.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._ends: SimpleQueue[_Done[T]] = SimpleQueue()
        self._under_way = False
        self.failed = False  # whether the last call that has ended raised
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a call that was late is still going on. What it gives, once it does, is forgotten."""
        if self._under_way:
            try:
                self.failed = self._ends.get_nowait().error is not None
            except Empty:
                return True
            self._under_way = False
        return False

    def run(self, call: Callable[[], T], limit_s: float) -> T:
        """What ``call`` gives.

        Raises:
            Late: not within ``limit_s``, or an earlier call is still going on.
            Exception: whatever ``call`` raises.
        """
        if self.busy:
            raise Late
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._under_way = True
        self._calls.put(call)
        try:
            done = self._ends.get(timeout=limit_s)
        except Empty:
            raise Late from None
        self._under_way, self.failed = False, done.error is not None
        if done.error is not None:
            raise done.error
        return done.value  # type: ignore[return-value]  # without an error there is one

    def dismiss(self) -> None:
        """Ends the thread once its call is over."""
        self._calls.put(None)
        self._thread = None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                done = _Done(call(), None)
            except Exception as error:  # handed to whoever asked
                done = _Done[T](None, error)
            self._ends.put(done)
