"""The way of a request: check, wait for the turn, ask the engine, fall back when it fails, count, journal.

Holds no logging, no JSON and no disk: what is journaled is appended to a queue. Knows nothing of policies; who is
current it finds in the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from agent.control import ControlLoop
from agent.figures import LoadFigures
from agent.gate import Gate
from agent.guard import Guard
from agent.journal import BatchLine, Journal
from agent.pool import Active, EngineKey, EnginePool, Resident, Retired, engine_key
from agent.rescue import Rescue
from agent.tallies import Tallies
from agent.values import Answer
from backends.base import Batch
from calibration.table import Table
from subnets.errors import Busy, EngineError, InputError


class Answering:
    """Answers requests, one at a time in order of arrival.

    Args:
        shape: (channels, height, width) of an image.
        table: the operating points.
        pool: where the current engine is.
        guard: which engines may answer.
        control: told when an engine has failed.
        figures: fed with every request.
        gate: who may go next.
        journal: or None.
        clock: monotonic seconds.
        deadline_ms: of requests that bring none.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        table: Table,
        pool: EnginePool,
        guard: Guard,
        control: ControlLoop,
        figures: LoadFigures,
        gate: Gate,
        *,
        journal: Journal | None,
        clock: Callable[[], float],
        deadline_ms: float | None,
    ) -> None:
        self.deadline_ms = deadline_ms
        self.failed = 0
        self.tallies = Tallies()
        self._shape, self._table, self._pool, self._guard = shape, table, pool, guard
        self._control, self._figures, self._gate, self._journal, self._clock = control, figures, gate, journal, clock
        self._rescue = Rescue(pool, guard, control.apply)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="gearshift-infer")

    @property
    def rescued(self) -> int:
        """Requests answered by another engine than the one asked first."""
        return self._rescue.rescued

    def close(self, drain_s: float) -> bool:
        """Refuses newcomers and answers those who wait; whether all were answered in time."""
        drained = self._gate.close(drain_s)
        self._worker.shutdown(wait=drained, cancel_futures=True)
        return drained

    def infer(self, batch: Batch, *, deadline_ms: float | None = None, subnet: str | None = None) -> Answer:
        """See :meth:`agent.core.Agent.infer`."""
        self._check(batch)
        arrived_s = self._clock()
        self._figures.arrived(len(batch))
        key = None
        if subnet is not None:
            key, future = self._pinned(subnet)
            future.result()
        try:
            self._gate.enter()
        except Busy:
            self._figures.refused()
            raise
        try:
            return self._answer(batch, arrived_s, deadline_ms, key)
        finally:
            self._gate.leave()

    def submit(self, batch: Batch, *, deadline_ms: float | None = None, subnet: str | None = None) -> Future[Answer]:
        """See :meth:`agent.core.Agent.submit`."""
        self._check(batch)
        arrived_s = self._clock()
        self._figures.arrived(len(batch))
        answer: Future[Answer] = Future()
        key: EngineKey | None = None

        def run() -> None:
            try:
                if not answer.set_running_or_notify_cancel():
                    self._gate.leave()
                    return
                made = self._answer(batch, arrived_s, deadline_ms, key)
            except BaseException as error:
                self._gate.leave()
                answer.set_exception(error)
            else:
                self._gate.leave()
                answer.set_result(made)

        def turn() -> None:
            try:
                self._worker.submit(run)
            except RuntimeError:  # shut down without waiting for the last ones
                self._gate.leave()
                answer.set_exception(Busy("the agent has closed before this request's turn came"))

        def queue() -> None:
            try:
                self._gate.submit(turn)
            except Busy:
                self._figures.refused()
                raise

        def queue_when_loaded(loaded: Future[Resident]) -> None:
            try:
                loaded.result()
                queue()
            except Exception as error:
                answer.set_exception(error)

        if subnet is None:
            queue()
        else:
            key, future = self._pinned(subnet)
            future.add_done_callback(queue_when_loaded)
        return answer

    def _check(self, batch: Batch) -> None:
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32 or batch.ndim != 4:
            found = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, np.ndarray) else type(batch).__name__
            raise InputError(f"a batch must be float32 [N, {', '.join(map(str, self._shape))}], this is {found}")
        if batch.shape[1:] != self._shape or not len(batch):
            raise InputError(
                f"a batch must have shape [N, {', '.join(map(str, self._shape))}] with N at least 1, "
                f"this has {list(batch.shape)}"
            )

    def _pinned(self, subnet: str) -> tuple[EngineKey, Future[Resident]]:
        key = engine_key(self._control.point_of(subnet))
        if (left_s := self._guard.quarantined_s(key)) > 0:
            raise EngineError(f"subnet '{subnet}' failed ({self._guard.history(key)[1]}); try again in {left_s:.0f} s")
        return key, self._pool.request(key)

    def _answer(self, batch: Batch, arrived_s: float, deadline_ms: float | None, key: EngineKey | None) -> Answer:
        """One turn: asks the engine, and the next ones when it fails. Only one thread is ever here."""
        began_s = self._clock()
        deadline_ms = self.deadline_ms if deadline_ms is None else deadline_ms
        active = chosen = self._choose(key, began_s - arrived_s, deadline_ms)
        try:
            try:
                logits = chosen.resident.infer(batch)
            except Retired:  # between choosing and asking; whoever took its place is current by now
                active = chosen = self._choose(key, began_s - arrived_s, deadline_ms)
                logits = chosen.resident.infer(batch)
        except InputError:
            raise  # the caller's fault, not a failure of ours
        except Exception as error:
            active, logits = self._rescue_or_count(batch, chosen, error, arrived_s, began_s, deadline_ms, key)
        done_s = self._clock()
        active.resident.used_at_s = done_s
        infer_ms = (done_s - began_s) * 1000
        on_time = None if deadline_ms is None else (done_s - arrived_s) * 1000 <= deadline_ms
        # A rescued answer's time holds the failed attempt: it says nothing of the engine that answered.
        expected_ms = active.resident.plan(len(batch)).expected_ms if active is chosen else 0.0
        self._figures.answered(done_s, active.point, len(batch), infer_ms, expected_ms, on_time)
        self.tallies.answered(active.point, len(batch), (began_s - arrived_s) * 1000, infer_ms)
        self._journal_batch(active, batch, arrived_s, began_s, done_s, deadline_ms, ok=True)
        return Answer(
            logits=logits,
            subnet=active.row.subnet,
            point=active.point,
            queue_ms=(began_s - arrived_s) * 1000,
            infer_ms=infer_ms,
            reason=active.reason,
            bound=active.bound,
            accuracy=active.row.accuracy,
            energy_j=None if active.row.energy_j is None else active.row.energy_j * len(batch),
            energy_source=active.row.energy_source,
        )

    def _rescue_or_count(
        self,
        batch: Batch,
        failed: Active,
        error: Exception,
        arrived_s: float,
        began_s: float,
        deadline_ms: float | None,
        key: EngineKey | None,
    ) -> tuple[Active, Batch]:
        """Another engine's answer; where there is none, the failure is counted and journaled."""
        try:
            return self._rescue.answer(batch, failed, error, pinned=key is not None)
        except InputError:
            raise
        except Exception:
            self.failed += 1
            self._journal_batch(failed, batch, arrived_s, began_s, self._clock(), deadline_ms, ok=False)
            raise

    def _choose(self, key: EngineKey | None, waited_s: float, deadline_ms: float | None) -> Active:
        """Who answers this request: the pinned subnet, the slack plan's choice for a late one, or the current one."""
        active = self._pool.current
        if key is not None:
            # Another request may have pushed it out of a small memory budget while this one waited.
            resident = self._pool.resident(key) or self._pool.request(key).result()
            row = self._control.point_of(key.subnet)
            return Active(resident=resident, row=row, point=row.point, reason="asked for by the request", bound="none")
        if active is None:
            raise EngineError("the agent has not been started, or is closed")
        if active.slack_plan and deadline_ms is not None:
            slack_ms = deadline_ms - waited_s * 1000
            step = active.slack_plan[0]
            for other in active.slack_plan:
                if other.slack_ms <= slack_ms:
                    step = other
            if step.point != active.point:
                row = self._table.row(step.point)
                ready = self._pool.resident(engine_key(row))
                if ready is not None and not self._guard.quarantined_s(ready.key):
                    reason = f"{slack_ms:.1f} ms left to the deadline"
                    return Active(resident=ready, row=row, point=row.point, reason=reason, bound="deadline")
        return active

    def _journal_batch(
        self,
        active: Active,
        batch: Batch,
        arrived_s: float,
        began_s: float,
        done_s: float,
        deadline_ms: float | None,
        *,
        ok: bool,
    ) -> None:
        if self._journal is not None:
            line = BatchLine(
                arrived_ns=int(arrived_s * 1e9),
                n=len(batch),
                point=active.point,
                queue_ms=(began_s - arrived_s) * 1000,
                infer_ms=(done_s - began_s) * 1000,
                deadline_ms=deadline_ms,
                ok=ok,
            )
            self._journal.write(line)
