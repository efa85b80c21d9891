"""Choosing: which engine and batch size a request is answered with, and who may go along.

In this order: the subnet a request is pinned to; else what the slow loop made current, or below it what the decision's
slack plan says for the time that is left; above that, the least accurate engine that keeps the request's own minimum.
Steps and batch sizes are applied exactly as :func:`simulation.kernel.advance` does, so that a simulation predicts the
agent.

* :class:`Choice`: the answer, with the images the engine is run on.
* :class:`Chooser`: makes it; safe to ask from several threads.

Knows nothing of queues or threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from agent.guard import Guard
from agent.limits import Reached
from agent.pool import Active, EnginePool
from agent.resident import EngineKey, Resident, engine_key
from agent.waiting import Request
from calibration.table import Row, Table
from subnets.errors import Busy, EngineError

ASKED_FOR = "asked for by the request"


class Choice(NamedTuple):
    """Who answers. ``above`` is the accuracy that was chosen before the request's own minimum raised it, else -1."""

    active: Active
    above: float


class _View:
    """What was worked out from one active point: its slack plan, and itself at other batch sizes."""

    def __init__(self, active: Active | None, steps: list[tuple[float, Row]]) -> None:
        self.active, self.steps = active, steps  # steps: (least slack in seconds, row), most slack first
        self.sized: dict[int, Active] = {}
        self.free_ms = -math.inf  # with so much slack the plan says what is current anyway
        if active is not None and steps:
            self.free_ms = 1000 * steps[0][0] if steps[0][1].point == active.point else math.inf


class Chooser:
    """Chooses among the engines in memory.

    Args:
        table: the operating points.
        pool: where engines and the current one are.
        guard: which may answer.
    """

    def __init__(self, table: Table, pool: EnginePool, guard: Guard) -> None:
        self._pool, self._guard = pool, guard
        self.retable(table)

    def retable(self, table: Table) -> None:
        """Chooses by another table from now on; the operating points are the same."""
        self._rows = table.rows
        sizes: dict[EngineKey, list[Row]] = {}
        for row in sorted(table.rows, key=lambda row: row.batch_size):
            sizes.setdefault(engine_key(row), []).append(row)
        self._sizes = sizes
        self._by_point = {row.point: row for row in table.rows}
        self._view = _View(None, [])

    def choose(self, request: Request, now_s: float) -> Choice | EngineKey:
        """Who answers a request whose turn it is, or which engine has to be loaded first.

        Raises:
            EngineError: nobody can.
            Busy: it wants more than a hard limit allows now.
        """
        active = self._pool.current
        if (request.key is not None or request.floor) and self._guard.limit is not None:
            self._check_limit(request, self._guard.limit)
        if request.key is not None:
            return self._pinned(request.key, active)
        if active is None:
            raise EngineError("the agent has not been started, or is closed")
        steps = self._view_of(active).steps
        chosen = active
        if steps and request.due_s < math.inf:
            chosen = self._by_slack(active, steps, request.due_s - now_s)
        if request.floor > chosen.row.accuracy:
            return self._raised(request.floor, chosen)
        return Choice(chosen, -1.0)

    def idle(self, images: int, deadline_ms: float | None) -> Active | None:
        """The short way for a request without wishes that need not wait: the current point, if it is what
        :meth:`choose` and :meth:`sized` would come to and its batch is exactly so many images; else None."""
        active = self._pool.current
        if active is None:
            return None
        view = self._view
        if view.active is not active:
            view = self._view_of(active)
        if deadline_ms is not None and deadline_ms < view.free_ms:
            return None
        size = active.row.batch_size
        if images == size:
            return active
        active = self.sized(active, images)
        return active if active.row.batch_size == images else None

    def _check_limit(self, request: Request, limit: Reached) -> None:
        """Refuses what is above the safe choice, which a hard limit allows and nothing else."""
        most = self._guard.safe_choice().accuracy
        wanted = request.floor if request.key is None else self._sizes[request.key][0].accuracy
        if wanted > most:
            what = (
                f"subnet '{request.key.subnet}'" if request.key is not None else f"{100 * request.floor:g} % accuracy"
            )
            raise Busy(f"{what} cannot be had at a hard limit: {limit.reason}; ask for less, or again later")

    def may_join(self, request: Request, head: Request, choice: Choice) -> bool:
        """Whether a request may be answered together with ``head``, by the same engine."""
        if request.key is not None:
            return bool(request.key == choice.active.resident.key)
        return head.key is None and choice.above < request.floor <= choice.active.row.accuracy

    def sized(self, active: Active, images: int) -> Active:
        """The same engine with the smallest batch size that holds so many images, where the point's own does.

        More images than that are only ever one request's; it is cut into whatever sizes cost least.
        """
        size = active.row.batch_size
        if images >= size:
            return active
        row = next(row for row in self._sizes[active.resident.key] if row.batch_size >= images)
        if row.batch_size == size:
            return active
        sized = self._view.sized if self._view.active is active else {}
        found = sized.get(row.batch_size)
        if found is None:
            found = sized[row.batch_size] = msgspec.structs.replace(active, row=row, point=row.point)
        return found

    def chunks(self, active: Active, images: int) -> tuple[tuple[int, ...], float, float | None]:
        """The engine's batch sizes to run, what the table says they take in ms, and their energy in J, None unknown."""
        row = active.row
        if images <= row.batch_size:
            return (row.batch_size,), row.latency_p50_ms, _times(row.energy_j, row.batch_size)
        plan = active.resident.plan(images)
        joules = 0.0
        sizes = {row.batch_size: row for row in self._sizes[active.resident.key]}
        for size in plan.chunks:
            energy_j = _times(sizes[size].energy_j, size)
            if energy_j is None:
                return plan.chunks, plan.expected_ms, None
            joules += energy_j
        return plan.chunks, plan.expected_ms, joules

    def candidates(self, request: Request) -> list[Resident]:
        """The engines in memory that could answer a request if it were its turn, whatever its slack."""
        active = self._pool.current
        if request.key is not None:
            found = [self._ready(request.key)]
        elif active is None:
            return []
        else:
            rows = [active.row, *(row for _, row in self._view_of(active).steps)]
            found = [self._ready(engine_key(row)) for row in rows if row.accuracy >= request.floor]
            if not found:
                raised = self._raised(request.floor, active)
                found = [raised.active.resident] if isinstance(raised, Choice) else []
        return list({id(resident): resident for resident in found if resident is not None}.values())

    def _view_of(self, active: Active) -> _View:
        view = self._view
        if view.active is not active:
            steps = [(step.slack_ms / 1000.0, self._by_point[step.point]) for step in active.slack_plan]
            steps.sort(key=lambda step: step[0], reverse=True)
            most = active.row.accuracy
            view = _View(active, [(least_s, row if row.accuracy <= most else active.row) for least_s, row in steps])
            self._view = view
        return view

    def _by_slack(self, active: Active, steps: list[tuple[float, Row]], slack_s: float) -> Active:
        """The plan's choice; where its engine is not at hand, that of a step for less slack; else the current one."""
        first = next((k for k, (least_s, _) in enumerate(steps) if slack_s >= least_s), len(steps) - 1)
        for _, row in steps[first:]:
            if row.point == active.point:
                return active
            resident = self._ready(engine_key(row))
            if resident is not None:
                reason = f"{slack_s * 1000:.1f} ms left to the deadline"
                return Active(resident=resident, row=row, point=row.point, reason=reason, bound="deadline")
        return active

    def _pinned(self, key: EngineKey, active: Active | None) -> Choice | EngineKey:
        resident = self._pool.resident(key)
        if resident is None:
            if (left_s := self._guard.quarantined_s(key)) > 0:
                error = self._guard.history(key)[1]
                raise EngineError(f"subnet '{key.subnet}' failed ({error}); try again in {left_s:.0f} s")
            return key
        rows = self._sizes[key]
        size = active.row.batch_size if active is not None else rows[0].batch_size
        row = next((row for row in rows if row.batch_size == size), rows[0])
        return Choice(Active(resident=resident, row=row, point=row.point, reason=ASKED_FOR, bound="none"), -1.0)

    def _raised(self, floor: float, chosen: Active) -> Choice | EngineKey:
        """The least accurate engine that is accurate enough: one in memory, else the one to load."""
        here, missing = chosen.resident.key, None

        def order(row: Row) -> tuple[bool, float, bool, float]:
            other = engine_key(row)[1:] != here[1:]
            return other, row.accuracy, row.batch_size != chosen.row.batch_size, row.latency_p50_ms

        for row in sorted((row for row in self._rows if row.accuracy >= floor), key=order):
            key = engine_key(row)
            if self._guard.quarantined_s(key):
                continue
            resident = self._pool.resident(key)
            if resident is not None:
                reason = f"the request asks for {100 * floor:g} % accuracy"
                active = Active(resident=resident, row=row, point=row.point, reason=reason, bound="none")
                return Choice(active, chosen.row.accuracy)
            missing = missing or key
        if missing is None:
            raise EngineError(f"no engine with {100 * floor:g} % accuracy can answer now; ask for less, or later")
        return missing

    def _ready(self, key: EngineKey) -> Resident | None:
        resident = self._pool.resident(key)
        return resident if resident is not None and not self._guard.quarantined_s(key) else None


def _times(energy_j: float | None, images: int) -> float | None:
    return None if energy_j is None else energy_j * images
