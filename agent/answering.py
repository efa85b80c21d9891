"""The way of a request: check it, take the engine or wait in line, run.

:class:`Answering` puts the parts together: :mod:`agent.waiting` (who waits), :mod:`agent.choosing` and
:mod:`agent.forming` (whose turn it is, with which engine), :mod:`agent.dispatch` (threads), :mod:`agent.running`
(engines and answers), :mod:`agent.accounts` (what was answered), :mod:`agent.hopeless` (admission).

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
from queue import Empty, SimpleQueue

import numpy as np

from agent.accounts import Accounts
from agent.choosing import Chooser
from agent.control import ControlLoop
from agent.dispatch import Dispatcher
from agent.figures import LoadFigures
from agent.forming import Former
from agent.guard import Guard
from agent.hopeless import Hopeless
from agent.journal import Journal
from agent.pool import Active, EnginePool
from agent.rescue import Abandoned, Rescue
from agent.resident import EngineKey, Resident, engine_key
from agent.running import Runner, UnderWay
from agent.values import Answer
from agent.waiting import Request
from backends.base import Batch
from calibration.table import Row, Table
from subnets.errors import Busy, EngineError, Expired, InputError

_BUSY_SHARE = 0.25  # of the time; above it an engine is not touched
_LONGEST_MEASURE_S = 600.0
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
        self._chooser = chooser = Chooser(table, pool, guard)
        mutex = threading.Lock()
        self.accounts = Accounts(figures, journal)
        self._rescue = Rescue(pool, guard, control.apply)
        self._runner = Runner(pool, chooser, self._rescue, self.accounts, mutex=mutex, clock=clock)
        self._former = Former(chooser, drop_late=drop_late, clock=clock)
        self._dispatcher = Dispatcher(
            queue_limit,
            self._former,
            run=self._runner.run,
            fail=self._fail,
            bring=self._bring,
            mutex=mutex,
            refusal=Hopeless(chooser, figures, self._busy_ms, clock).why if admission else None,
        )
        figures.arrived = lambda: self._dispatcher.arrived
        figures.retable(table)
        if touch:
            pool.on_current = self._touch

    @property
    def rescued(self) -> int:
        """Requests answered by another engine than the one asked first."""
        return self._rescue.rescued

    @property
    def superseded(self) -> int:
        """Requests whose place a newer one of their stream took."""
        return self._dispatcher.superseded

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
        drained = self._dispatcher.close(drain_s)
        self.accounts.close()
        return drained

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
        images = self._checked(batch)
        if deadline_ms is None:
            deadline_ms = self.deadline_ms
        plain, key = subnet is None and min_accuracy is None, None
        if not plain:
            key = self._wish(subnet, min_accuracy)
        arrived_s = self._clock()
        at_hand = key is None or self._pool.resident(key) is not None
        if at_hand and self._dispatcher.take(images):
            ours, under_way = True, None
            try:
                active = self._chooser.idle(images, deadline_ms) if plain else None
                if active is not None:
                    try:
                        under_way, answer = self._runner.quick(active, batch, arrived_s, deadline_ms)
                        return answer
                    except Abandoned:
                        ours = False
                        raise EngineError(f"{active.point} hung and was given up; ask again") from None
                    except Exception as error:
                        request = Request(batch, arrived_s, deadline_ms)
                        ours = self._runner.failed(active, request, error, arrived_s)
                        return request.outcome()
                request = Request(batch, arrived_s, deadline_ms, key, min_accuracy or 0.0)
                active = self._former.alone(request)
                if active is not None:
                    ours = self._runner.alone(active, request)
                    return request.outcome()
            finally:
                if ours:
                    self._dispatcher.leave(under_way)
        return self._wait(Request(batch, arrived_s, deadline_ms, key, min_accuracy or 0.0, stream))

    def _wait(self, request: Request) -> Answer:
        """The answer, once the worker has come to it."""
        request.done = threading.Lock()
        request.done.acquire()
        self._enter(request)
        try:
            request.done.acquire()
        except BaseException:  # Ctrl-C
            self._dispatcher.withdraw(request)
            raise
        return request.outcome()

    def _enter(self, request: Request) -> None:
        try:
            self._dispatcher.enter(request)
        except Busy:
            self._figures.refused()
            raise

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
        self._checked(batch)
        if deadline_ms is None:
            deadline_ms = self.deadline_ms
        key = None
        if subnet is not None or min_accuracy is not None:
            key = self._wish(subnet, min_accuracy)
        future: Future[Answer] = Future()
        self._enter(Request(batch, self._clock(), deadline_ms, key, min_accuracy or 0.0, stream, future))
        return future

    def measure(self, row: Row, count: int) -> list[float] | None:
        """Has an engine answer random images ``count`` times, back to back, while nobody wants it.

        Returns:
            The milliseconds of each; fewer when somebody came, and None where the engine is not in memory.
        """
        resident = self._pool.resident(engine_key(row))
        if resident is None or self._guard.quarantined_s(resident.key):
            return None
        active = Active(resident=resident, row=row, point=row.point, reason="measured again", bound="none")
        random = np.random.Generator(np.random.PCG64(0))
        batch = random.standard_normal((row.batch_size, *self._shape), np.float32)
        told: SimpleQueue[list[float]] = SimpleQueue()

        def job() -> None:
            told.put(self._runner.timed(active, batch, count, lambda: self._dispatcher.depth > 0))

        if not self._dispatcher.spare(job):
            return []
        try:
            return told.get(timeout=_LONGEST_MEASURE_S)
        except Empty:  # it hangs, or was abandoned
            return []

    def retable(self, table: Table) -> None:
        """Other figures for the same operating points."""
        self._chooser.retable(table)
        self._figures.retable(table)

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

    def _checked(self, batch: Batch) -> int:
        """How many images a batch holds, after a look at its type and shape."""
        if not isinstance(batch, np.ndarray) or batch.dtype != _F32 or batch.ndim != 4:
            found = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, np.ndarray) else type(batch).__name__
            raise InputError(f"a batch must be float32 [N, {', '.join(map(str, self._shape))}], this is {found}")
        shape: tuple[int, ...] = batch.shape
        if shape[1:] != self._shape or not shape[0]:
            raise InputError(
                f"a batch must have shape [N, {', '.join(map(str, self._shape))}] with N at least 1, "
                f"this has {list(batch.shape)}"
            )
        return shape[0]

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
            self._runner.expire(request, error)
            return
        if isinstance(error, Busy):  # at a hard limit
            self._figures.refused()
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
