"""The waiting room: requests in order of their deadlines, bounded, the newest of each stream.

* :class:`Request`: one request from its arrival to its answer.
* :class:`Waiting`: those whose turn has not come, earliest deadline first; requests without a deadline come last, and
  whoever came first is first among equals. A request may step aside while its engine is being loaded, and keeps its
  place in the order.

Not safe for several threads: whoever holds it brings the lock. Knows nothing of engines, threads or time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from agent.values import Answer
from backends.base import Batch

_LOOK_AHEAD = 256  # requests looked at for a batch; further ones wait for the next

OUTSIDE, IN_LINE, ASIDE = range(3)


class Request:
    """One request.

    Attributes:
        batch: float32 [N, C, H, W].
        images: N.
        arrived_s: on the agent's clock.
        deadline_ms: from arrival to answer; None = none.
        due_s: when it is due, infinite without a deadline.
        key: the engine it is pinned to, or None.
        floor: least accuracy of the subnet that may answer, 0 without a wish.
        stream: the camera it comes from, or None.
        future: told the outcome, where the caller does not wait in :meth:`outcome`.
    """

    __slots__ = (
        "answer",
        "arrived_s",
        "batch",
        "begun",
        "deadline_ms",
        "done",
        "due_s",
        "error",
        "floor",
        "future",
        "images",
        "key",
        "lease",
        "least_ms",
        "number",
        "place",
        "stream",
        "tries",
    )

    def __init__(
        self,
        batch: Batch,
        arrived_s: float,
        deadline_ms: float | None,
        key: Any = None,
        floor: float = 0.0,
        stream: str | None = None,
        future: Future[Answer] | None = None,
    ) -> None:
        self.batch, self.images = batch, len(batch)
        self.arrived_s, self.deadline_ms = arrived_s, deadline_ms
        self.due_s = math.inf if deadline_ms is None else arrived_s + deadline_ms / 1000.0
        self.key, self.floor, self.stream, self.future = key, floor, stream, future
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.done: Any = None  # a lock that :meth:`finish` releases
        self.lease: Callable[[], None] | None = None  # keeps the engine it waits for in memory
        self.begun = False
        self.least_ms = 0.0  # what it adds to the work at least, where somebody asked
        self.number = 0  # order of arrival among equal deadlines
        self.place = OUTSIDE
        self.tries = 0  # how often it stepped aside

    @property
    def own(self) -> bool:
        """Whether its caller's own thread computes it, so that nobody waits elsewhere."""
        return self.future is None and self.done is None

    def begin(self) -> bool:
        """Whether it still wants its answer; from here on it cannot be cancelled."""
        if not self.begun and self.future is not None:
            if not self.future.set_running_or_notify_cancel():
                self._free()
                return False
            self.begun = True
        return True

    def finish(self, answer: Answer | None, error: BaseException | None = None) -> None:
        """Gives the outcome to whoever waits for it; once only."""
        self._free()
        self.answer, self.error = answer, error
        if self.future is not None:
            if not self.begin():
                return
            if error is not None:
                self.future.set_exception(error)
            else:
                assert answer is not None
                self.future.set_result(answer)
        elif self.done is not None:
            self.done.release()

    def outcome(self) -> Answer:
        """The answer, once there is one; raises what went wrong."""
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer

    def _free(self) -> None:
        if self.lease is not None:
            self.lease()
            self.lease = None


class Waiting:
    """Requests whose turn has not come.

    Args:
        limit: how many there may be at most.

    Attributes:
        line: (due, order of arrival, request), ascending; to be looked at only.
        images: how many all requests hold, in line or aside.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.images = 0
        self.line: list[tuple[float, int, Request]] = []
        self._aside: set[Request] = set()
        self._streams: dict[str, Request] = {}
        self._numbers = 0

    def __len__(self) -> int:
        return len(self.line) + len(self._aside)

    def __iter__(self) -> Iterator[Request]:
        """Those in line, in order."""
        return (request for _, _, request in self.line)

    def older(self, stream: str | None) -> Request | None:
        """The request of this stream that waits, or None."""
        return self._streams.get(stream) if stream is not None else None

    def full(self, extra: int = 0) -> bool:
        """Whether nobody else may come, even after those who were cancelled have left.

        Args:
            extra: places beyond the limit.
        """
        if len(self) < self.limit + extra:
            return False
        for request in [*self, *self._aside]:
            if request.future is not None and request.future.cancelled():
                self.remove(request)
                request.begin()
        return len(self) >= self.limit + extra

    def add(self, request: Request) -> None:
        """Puts a newcomer in its place; whether there is room is the caller's question."""
        self._numbers += 1
        request.number = self._numbers
        if request.stream is not None:
            self._streams[request.stream] = request
        self.images += request.images
        self._put(request)

    def pop(self) -> Request | None:
        """The one due first, taken out."""
        if not self.line:
            return None
        request = self.line.pop(0)[2]
        self._left(request)
        return request

    def join(self, fits: Callable[[Request], bool], room: int) -> list[Request]:
        """Takes out those who may go together with the one popped last, in order, up to ``room`` images.

        Stops at the first who fits and has no room, so that nobody is overtaken for being large.
        """
        found: list[Request] = []
        for _, _, request in self.line[:_LOOK_AHEAD]:
            if not fits(request):
                continue
            if request.images > room:
                break
            room -= request.images
            found.append(request)
            if not room:
                break
        for request in found:
            self.remove(request)
        return found

    def step_aside(self, request: Request) -> None:
        """Keeps one that was popped until its engine is there."""
        request.place, request.tries = ASIDE, request.tries + 1
        self._aside.add(request)
        self.images += request.images
        if request.stream is not None:
            self._streams.setdefault(request.stream, request)

    def step_back(self, request: Request) -> bool:
        """Puts it back in line, in its old place; False when it has left meanwhile."""
        if request.place != ASIDE:
            return False
        self._aside.remove(request)
        self._put(request)
        return True

    def remove(self, request: Request) -> bool:
        """Takes it out, wherever it waits; False when it does not."""
        if request.place == IN_LINE:
            index = bisect_left(self.line, (request.due_s, request.number))
            assert self.line[index][2] is request
            del self.line[index]
        elif request.place == ASIDE:
            self._aside.remove(request)
        else:
            return False
        self._left(request)
        return True

    def clear(self) -> list[Request]:
        """Takes everybody out."""
        found = [*self, *self._aside]
        for request in found:
            self.remove(request)
        return found

    def _put(self, request: Request) -> None:
        request.place = IN_LINE
        insort(self.line, (request.due_s, request.number, request))

    def _left(self, request: Request) -> None:
        request.place = OUTSIDE
        self.images -= request.images
        if request.stream is not None and self._streams.get(request.stream) is request:
            del self._streams[request.stream]
