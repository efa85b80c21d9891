"""The way of a request: check it, take the engine or wait in line, run.

:class:`Answering` puts the parts together: :mod:`agent.waiting` (who waits), :mod:`agent.choosing` and
:mod:`agent.forming` (whose turn it is, with which engine), :mod:`agent.dispatch` (threads), :mod:`agent.running`
(engines and answers), :mod:`agent.hopeless`.

After a switch the new engine's weights are not in the processor's caches, which makes its first answer slower than the
others. So if nobody wants the engine just then it is *touched*: asked for one blank image. That costs the energy of one
inference a switch and nothing between switches; touching engines regularly would cost power all day, and their weights
would be gone from the caches again before they are needed. While requests keep the engine busy for more than a quarter
of the time there is no touch: one of them would too likely have to wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from agent.choosing import Chooser
from agent.control import ControlLoop
from agent.dispatch import Dispatcher
from agent.figures import LoadFigures
from agent.forming import Former
from agent.guard import Guard
from agent.hopeless import Hopeless
from agent.journal import Journal
from agent.pool import Active, EnginePool
from agent.rescue import Rescue
from agent.resident import EngineKey, Resident, engine_key
from agent.running import Runner, UnderWay
from agent.tallies import Tallies
from agent.values import Answer
from agent.waiting import Request
from backends.base import Batch
from calibration.table import Table
from subnets.errors import Busy, EngineError, Expired, InputError

_BUSY_SHARE = 0.25  # of the time; above it an engine is not touched
_F32 = np.dtype(np.float32)


class Answering:
    """Answers requests, one batch at a time, earliest deadline first.

    Args:
        shape: (channels, height, width) of an image.
        table: the operating points.
        pool: where the current engine is.
        guard: which engines may answer.
        control: told when an engine has failed.
        figures: fed with every request.
        journal: or None.
        clock: monotonic seconds.
        deadline_ms: of requests that bring none.
        queue_limit: how many may wait.
        admission: refuse requests that cannot be in time.
        drop_late: give up requests whose deadline passes before their turn.
        touch: touch an engine after a switch to it.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        table: Table,
        pool: EnginePool,
        guard: Guard,
        control: ControlLoop,
        figures: LoadFigures,
        *,
        journal: Journal | None,
        clock: Callable[[], float],
        deadline_ms: float | None,
        queue_limit: int,
        admission: bool,
        drop_late: bool,
        touch: bool,
    ) -> None:
        self.deadline_ms = deadline_ms
        self._shape, self._table, self._pool, self._guard = shape, table, pool, guard
        self._control, self._figures, self._clock = control, figures, clock
        self._most_accurate = max(row.accuracy for row in table.rows)
        chooser = Chooser(table, pool, guard)
        self._rescue = Rescue(pool, guard, control.apply)
        self._runner = Runner(pool, chooser, self._rescue, figures, journal=journal, clock=clock)
        self._former = Former(chooser, drop_late=drop_late, clock=clock)
        self._dispatcher = Dispatcher(
            queue_limit,
            self._former,
            run=self._runner.run,
            fail=self._fail,
            bring=self._bring,
            refusal=Hopeless(chooser, figures, self._busy_ms, clock).why if admission else None,
        )
        if touch:
            pool.on_current = self._touch

    @property
    def rescued(self) -> int:
        """Requests answered by another engine than the one asked first."""
        return self._rescue.rescued

    @property
    def failed(self) -> int:
        """Requests that no engine could answer."""
        return self._runner.failed

    @property
    def superseded(self) -> int:
        """Requests whose place a newer one of their stream took."""
        return self._dispatcher.superseded

    @property
    def tallies(self) -> Tallies:
        """What was answered so far, per operating point."""
        return self._runner.tallies

    @property
    def depth(self) -> int:
        """How many requests wait."""
        return self._dispatcher.depth

    @property
    def waiting_images(self) -> int:
        """How many images they hold: a policy counts requests of one image."""
        return self._dispatcher.images

    def close(self, drain_s: float) -> bool:
        """Refuses newcomers and answers those who wait; whether all were answered in time."""
        return self._dispatcher.close(drain_s)

    def infer(
        self,
        batch: Batch,
        *,
        deadline_ms: float | None = None,
        subnet: str | None = None,
        min_accuracy: float | None = None,
        stream: str | None = None,
    ) -> Answer:
        """See :meth:`agent.core.Agent.infer`."""
        request = self._request(batch, deadline_ms, subnet, min_accuracy, stream, None)
        try:
            if self._dispatcher.take(request):
                ours = True
                try:
                    turn = self._former.alone(request)
                    if turn is not None:
                        ours = self._runner.run(turn)
                        return request.outcome()
                finally:
                    if ours:
                        self._dispatcher.leave()
            request.done = threading.Lock()
            request.done.acquire()
            self._dispatcher.enter(request)
        except Busy:
            self._figures.refused()
            raise
        try:
            request.done.acquire()
        except BaseException:  # Ctrl-C while waiting
            self._dispatcher.withdraw(request)
            raise
        return request.outcome()

    def submit(
        self,
        batch: Batch,
        *,
        deadline_ms: float | None = None,
        subnet: str | None = None,
        min_accuracy: float | None = None,
        stream: str | None = None,
    ) -> Future[Answer]:
        """See :meth:`agent.core.Agent.submit`."""
        future: Future[Answer] = Future()
        request = self._request(batch, deadline_ms, subnet, min_accuracy, stream, future)
        try:
            self._dispatcher.enter(request)
        except Busy:
            self._figures.refused()
            raise
        return future

    def under_way(self) -> UnderWay | None:
        """What is being computed now."""
        return self._runner.under_way

    def abandon(self, under_way: UnderWay, error: Exception) -> bool:
        """Gives up an inference that does not end: its engine is never asked again, the next ones answer its requests.

        A caller whose own thread is in it stays there; everybody else is answered. Quarantine the engine before, or the
        rescue tries to load it again.

        Returns:
            False when it has ended meanwhile; nothing has happened then.
        """
        if not self._runner.abandon(under_way):
            return False
        under_way.active.resident.abandon()
        self._pool.drop(under_way.active.resident.key)
        left = [request for request in under_way.requests if not request.own]
        self._dispatcher.replace_worker(lambda: self._runner.rescue(left, under_way.active, error))
        return True

    def _request(
        self,
        batch: Batch,
        deadline_ms: float | None,
        subnet: str | None,
        min_accuracy: float | None,
        stream: str | None,
        future: Future[Answer] | None,
    ) -> Request:
        if not isinstance(batch, np.ndarray) or batch.dtype != _F32 or batch.ndim != 4:
            found = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, np.ndarray) else type(batch).__name__
            raise InputError(f"a batch must be float32 [N, {', '.join(map(str, self._shape))}], this is {found}")
        if batch.shape[1:] != self._shape or not len(batch):
            raise InputError(
                f"a batch must have shape [N, {', '.join(map(str, self._shape))}] with N at least 1, "
                f"this has {list(batch.shape)}"
            )
        key = None
        if subnet is not None or min_accuracy is not None:
            key = self._wish(subnet, min_accuracy)
        if deadline_ms is None:
            deadline_ms = self.deadline_ms
        request = Request(batch, self._clock(), deadline_ms, key, min_accuracy or 0.0, stream, future)
        self._figures.arrived(request.images)
        return request

    def _wish(self, subnet: str | None, min_accuracy: float | None) -> EngineKey | None:
        """The engine that a request asks for, whose loading begins now; checks that it can have what it wants."""
        row = None if subnet is None else self._control.point_of(subnet)
        if min_accuracy is not None:
            if not 0 <= min_accuracy <= 1:
                raise InputError(f"min_accuracy is {min_accuracy}; give a share from 0 to 1 (0.9 for 90 %)")
            best = self._most_accurate if row is None else row.accuracy
            if min_accuracy > best:
                whose = "the best subnet" if subnet is None else f"subnet '{subnet}'"
                raise InputError(
                    f"min_accuracy is {100 * min_accuracy:g} %, and {whose} has {100 * best:.1f} %; ask for less"
                )
        if row is None:
            return None
        key = engine_key(row)
        if (left_s := self._guard.quarantined_s(key)) > 0:
            raise EngineError(f"subnet '{subnet}' failed ({self._guard.history(key)[1]}); try again in {left_s:.0f} s")
        if self._pool.resident(key) is None:
            self._pool.request(key)
        return key

    def _bring(self, request: Request, key: EngineKey) -> None:
        """Loads the engine that a request waits for, and keeps it until the request is answered."""

        def brought(loaded: Future[Resident]) -> None:
            error: BaseException | None
            if loaded.cancelled():
                error = Busy("the agent has closed before this request's engine was loaded")
            elif (error := loaded.exception()) is None:
                request.lease = self._pool.lease(loaded.result())
            self._dispatcher.step_back(request, error)

        self._pool.request(key).add_done_callback(brought)

    def _fail(self, request: Request, error: BaseException) -> None:
        if isinstance(error, Expired):
            self._figures.expired(self._clock())
            self._runner.give_up(request)
        request.finish(None, error)

    def _busy_ms(self) -> float:
        """What is left of the batch under way, by the table."""
        under_way = self._runner.under_way
        if under_way is None:
            return 0.0
        return max(0.0, under_way.expected_ms - (self._clock() - under_way.began_s) * 1000)

    def _touch(self, active: Active) -> None:
        share = (self._figures.rate_hz or 0.0) * active.row.latency_p50_ms / 1000 / active.row.batch_size
        if share <= _BUSY_SHARE:
            self._dispatcher.spare(lambda: self._runner.touch(active))
