"""The gate: one request at a time reaches an engine, in order of arrival, and only so many may wait.

A waiting request is a callback that is called once, when its turn has come. A caller that blocks waits on a lock that
the callback releases; one that must not block (a server's event loop) passes a callback that starts its work elsewhere.
Knows nothing of engines or time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from subnets.errors import Busy


class Gate:
    """Hands out turns first come, first served.

    Args:
        limit: how many may wait at most, the one whose turn it is not counted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._mutex = threading.Lock()
        self._taken = False
        self._closed = False
        self._idle = threading.Condition(self._mutex)
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def submit(self, turn: Callable[[], None]) -> None:
        """Calls ``turn`` when its time has come, perhaps at once in this thread. It must end in one :meth:`leave`.

        Raises:
            Busy: too many wait already, or the gate is closed.
        """
        with self._mutex:
            if self._closed:
                raise Busy("the agent is closing; send the request to another one, or again after its restart")
            if self._taken:
                if len(self._waiting) >= self._limit:
                    raise Busy(f"{self._limit} requests wait already (queue_limit); try again later")
                self._waiting.append(turn)
                return
            self._taken = True
        turn()

    def enter(self) -> None:
        """Blocks until it is the caller's turn.

        Raises:
            Busy: too many wait already, or the gate is closed.
        """
        turn = threading.Lock()
        turn.acquire()
        release = turn.release
        self.submit(release)
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C while waiting: give the place, or the turn, to the next
            with self._mutex:
                waited = release in self._waiting
                if waited:
                    self._waiting.remove(release)
            if not waited:
                self.leave()
            raise

    def leave(self) -> None:
        """Ends the caller's turn; the next one's begins."""
        with self._mutex:
            if not self._waiting:
                self._taken = False
                self._idle.notify_all()
                return
            turn = self._waiting.popleft()
        turn()

    def close(self, timeout_s: float | None = None) -> bool:
        """Lets nobody in any more and waits for those inside.

        Returns:
            Whether all have left in time.
        """
        with self._mutex:
            self._closed = True
            return self._idle.wait_for(lambda: not self._taken, timeout_s)
