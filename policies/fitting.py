"""Base of the policies that fit (subnet, batch size) into the slack of the oldest request.

The choice for each slack is worked out beforehand and handed to the dispatcher as a slack plan; the policy itself looks
at no queue. Knows all batch sizes of the table, unlike the policies that walk a ladder of one.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from calibration.table import Row, Table
from policies.base import Conditions, Decision, Goals, Policy, SlackStep
from policies.queueing import quantile
from policies.rested import Rested
from policies.rungs import PerTable, Rungs, Where, rungs_of

Need = Callable[[Row], float]


def shelves(table: Table, where: Where, goals: Goals) -> tuple[Rungs, ...]:
    """One ladder for each batch size that ``where`` allows, smallest batch first."""
    sizes = sorted({row.batch_size for row in table.select(backend=where.backend, precision=where.precision)})
    if where.batch_size is not None or not sizes:
        return (rungs_of(table, where, goals.min_accuracy, goals.maximise),)
    narrowed = [Where(backend=where.backend, precision=where.precision, batch_size=size) for size in sizes]
    return tuple(rungs_of(table, one, goals.min_accuracy, goals.maximise) for one in narrowed)


def plan_of(choices: Sequence[tuple[float, Row]]) -> tuple[tuple[SlackStep, ...], Row]:
    """Ascending (slack in ms, row) as a plan without repetitions, and the ceiling: its most accurate row.

    The first step asks for nothing. Of equally accurate rows the one for the most slack is the ceiling.
    """
    steps: list[SlackStep] = []
    ceiling = choices[0][1]
    for slack_ms, row in choices:
        ceiling = row if row.accuracy >= ceiling.accuracy else ceiling
        if not steps or steps[-1].point != row.point:
            steps.append(SlackStep(slack_ms if steps else 0.0, row.point))
    return (tuple(steps) if len(steps) > 1 else ()), ceiling


class Fitting(Policy):
    """Base: from the rows that a deadline leaves, a choice for every slack. Subclasses say which."""

    looks_at = ("arrival_rate_hz", "slowdown")  # the rate only where the table knows what a rest costs

    def __init__(self, goals: Goals, *, where: Where | None = None) -> None:
        self.goals = goals.check()
        self.where = where or Where()
        self._shelves: PerTable[tuple[Rungs, ...]] = PerTable(lambda table: shelves(table, self.where, goals))
        self._rested: PerTable[Rested] = PerTable(
            lambda t: Rested([row for one in self._shelves(t) for row in one.rows])
        )

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The plan for the load and slowdown of now; its most accurate row is the ceiling."""
        found = self._shelves(table)
        slowdown = 1.0 if conditions.slowdown is None else conditions.slowdown
        deadline_ms, single = self.goals.deadline_ms, found[0]
        if deadline_ms is None:
            best = len(single.points) - 1
            return single.choose(best, f"{self.name}: no deadline, so no slack to fit: {single.labels[best]}")
        share = self.goals.deadline_percentile

        rows = [row for ladder in found for row in ladder.rows]
        slower = self._rested(table).slower(conditions.arrival_rate_hz)
        needs = {
            row.point: quantile(row.latency_p50_ms, row.latency_p99_ms, share) * slowdown * factor
            for row, factor in zip(rows, slower, strict=True)
        }

        def need(row: Row) -> float:
            return needs[row.point]

        fitting = [row for row in rows if need(row) <= deadline_ms]
        top = single.rows[-1]
        if not fitting:
            quickest = single.labels[0]
            words = f"{self.name}: best effort with {quickest}, which needs {need(single.rows[0]):.1f} ms"
            return single.choose(0, f"{words} of {deadline_ms:g} ms", "deadline", urgent=True)
        plan, ceiling = plan_of(self._choices(fitting, need, deadline_ms))
        reason = f"{self.name}: {max(1, len(plan))} choices for up to {deadline_ms:g} ms of slack"
        bound = "none" if ceiling.accuracy >= top.accuracy else "deadline"
        if single.short:
            reason, bound = f"{reason}; {single.short}", "accuracy" if bound == "none" else bound
        return Decision(point=ceiling.point, reason=reason, bound=bound, slack_plan=plan)

    @abc.abstractmethod
    def _choices(self, rows: Sequence[Row], need: Need, deadline_ms: float) -> list[tuple[float, Row]]:
        """(least slack in ms, row), ascending in slack; never empty. ``rows`` all fit in the deadline."""
