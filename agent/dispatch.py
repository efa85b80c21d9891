"""The dispatcher: one batch at a time reaches an engine; whose turn it is, :mod:`agent.forming` says.

The engine is *taken* by one thread at a time. A caller who finds it free takes it and runs in its own thread: that
costs no change of threads. Whoever finds it taken waits in line; once the line is not empty a worker thread keeps the
engine and works the line off, batch after batch. If an inference hangs, its worker is left to itself and another goes
on (:meth:`Dispatcher.replace_worker`).

Knows nothing of engines; time is asked only through the former.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from agent.forming import Former, Turn
from agent.resident import EngineKey
from agent.running import UnderWay
from agent.waiting import Request, Waiting
from subnets.errors import Busy, Superseded


class Dispatcher:
    """Hands out the engine.

    Args:
        limit: how many may wait at most, those that are being answered not counted.
        former: forms batches of those who wait.
        run: answers one turn, and never raises.
        fail: finishes a request whose turn brings it an error.
        bring: called with a request that has stepped aside and the engine it waits for; :meth:`step_back` ends that.
        refusal: why a newcomer is refused although there is room, given those who wait; "" = it is not.
        mutex: under which all of it happens.

    Attributes:
        arrived: how many images have come, refused ones included.
    """

    def __init__(
        self,
        limit: int,
        former: Former,
        *,
        run: Callable[[Turn], object],
        fail: Callable[[Request, BaseException], None],
        bring: Callable[[Request, EngineKey], None],
        mutex: threading.Lock,
        refusal: Callable[[Request, Waiting], str] | None = None,
    ) -> None:
        self._former, self._run, self._fail, self._bring, self._refusal = former, run, fail, bring, refusal
        self.arrived = self.superseded = 0
        self._mutex = mutex
        self._idle = threading.Condition(self._mutex)
        self._waiting = Waiting(limit)
        self._line = self._waiting.line
        self._taken = self._closed = False
        self._handed = 0  # places beyond the limit: of the request that a worker was woken for
        self._wake: SimpleQueue[Callable[[], object] | None] = SimpleQueue()  # what to do first; None = no more
        self._worker: threading.Thread | None = None

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def images(self) -> int:
        """How many images they hold."""
        return self._waiting.images

    def take(self, images: int) -> bool:
        """Takes the engine for a request of the caller's that need not wait; who gets it must :meth:`leave`.

        Not for engines that have to be loaded, nor where newcomers may be refused.
        """
        with self._mutex:
            if self._taken or self._closed or self._refusal is not None:
                return False
            self._taken = True
            self.arrived += images
            return True

    def leave(self, under_way: UnderWay | None) -> None:
        """Gives the engine back, to the worker if anybody waits; unless what was under way was abandoned."""
        with self._mutex:
            if under_way is not None and under_way.abandoned:
                return
            if self._line:
                self._wake_worker()
                return
            self._taken = False
            if self._closed:
                self._idle.notify_all()

    def enter(self, request: Request) -> None:
        """Puts a request in line; it will be run, or finished with an error.

        Raises:
            Busy: too many wait, the deadline cannot be kept, or the agent is closing.
        """
        with self._mutex:
            self.arrived += request.images
            older = self._waiting.older(request.stream)
            if self._closed:
                raise Busy("the agent is closing; send the request to another one, or again after its restart")
            if older is None and self._waiting.full(self._handed if self._taken else 1):
                raise Busy(f"{self._waiting.limit} requests wait already (queue_limit); try again later")
            if self._refusal is not None and (why := self._refusal(request, self._waiting)):
                raise Busy(why)
            if older is not None:
                self._waiting.remove(older)
                self.superseded += 1
            self._waiting.add(request)
            if not self._taken:
                self._taken, self._handed = True, 1
                self._wake_worker()
        if older is not None:
            older.finish(None, Superseded(f"a newer request of stream '{request.stream}' has come; it is answered"))

    def withdraw(self, request: Request) -> bool:
        """Takes a request out of the line; False when its turn has come."""
        with self._mutex:
            return self._waiting.remove(request)

    def step_back(self, request: Request, error: BaseException | None) -> None:
        """The engine that a request stepped aside for is there, or cannot be had."""
        with self._mutex:
            if error is not None:
                ours = self._waiting.remove(request)
            else:
                ours = self._waiting.step_back(request)
                if ours and not self._taken:
                    self._taken = True
                    self._wake_worker()
            if self._closed and not self._taken:
                self._idle.notify_all()
        if error is not None and ours:
            request.finish(None, error)
        elif not ours and request.lease is not None:  # superseded or closed meanwhile
            request.lease()
            request.lease = None

    def spare(self, job: Callable[[], object]) -> bool:
        """Has a job done with the engine, if nobody wants it now; whether it will be."""
        with self._mutex:
            if self._taken or self._closed:
                return False
            self._taken = True
            self._wake_worker(job)
        return True

    def replace_worker(self, first: Callable[[], object]) -> None:
        """The thread that has the engine hangs: another one takes it, does ``first`` and goes on with the line.

        If the other ever comes back, it must not :meth:`leave`; a worker then ends by itself.
        """
        with self._mutex:
            self._wake.put(None)  # a worker that does not hang has nothing to do here any more
            self._worker, self._wake = None, SimpleQueue()
            self._wake_worker(first)

    def close(self, timeout_s: float | None = None) -> bool:
        """Lets nobody in any more and waits for those inside.

        Returns:
            Whether all were answered in time; those that were not get an error.
        """
        with self._mutex:
            self._closed = True
            empty = self._idle.wait_for(lambda: not self._taken and not len(self._waiting), timeout_s)
            left = self._waiting.clear()
            worker = self._worker
        for request in left:
            request.finish(None, Busy("the agent has closed before this request's turn came"))
        self._wake.put(None)
        if worker is not None and empty and worker is not threading.current_thread():
            worker.join()
        return empty

    def _wake_worker(self, first: Callable[[], object] = int) -> None:
        """Makes the worker, who has the engine from now on, do ``first`` and form turns until nobody waits."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, args=(self._wake,), name="gearshift-infer", daemon=True)
            self._worker.start()
        self._wake.put(first)

    def _work(self, wake: SimpleQueue[Callable[[], object] | None]) -> None:
        while (first := wake.get()) is not None:
            first()
            while True:
                with self._mutex:
                    if self._wake is not wake:
                        return  # replaced
                    self._handed = 0
                    turn = self._former.next(self._waiting)
                    if turn.active is None:
                        self._taken = False
                        if self._closed:
                            self._idle.notify_all()
                for request, error in turn.failed:
                    self._fail(request, error)
                for request, key in turn.missing:
                    self._bring(request, key)
                if turn.active is None:
                    break
                self._run(turn)
