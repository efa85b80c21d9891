"""Crowd: the ceiling that load sets where a slack plan already answers each batch as well as the queue allows."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.memory import Smoothed
from policies.queueplan import QueuePlans
from policies.remembering import Remembering
from policies.rungs import RungPolicy, Where

_SMOOTH_S = 10.0
_LOOSE = 0.75  # a rung goes only when it has no use at this share of the load either
_HOPELESS = 0.5  # share of the accuracy, below which answers are late whatever is done


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    rate_hz: Smoothed = msgspec.field(default_factory=Smoothed)
    bins: tuple[int, int] | None = None


class Crowd(RungPolicy, Remembering[_Memory]):
    """The most accurate rung that the solved queue has any use for, at three quarters of the load.

    Below it :mod:`policies.queueplan` chooses by slack. The ceiling need not follow the load closely then: it only
    takes away what would never be used, so that an engine in memory is one that answers. Loose on purpose, for every
    move of a ceiling is a switch. An unknown arrival rate counts as idle; without a deadline nothing binds.

    Args:
        plans: shared with whoever hands out the plans.
    """

    name = "crowd"
    looks_at = ("arrival_rate_hz", "slowdown")

    def __init__(self, goals: Goals, plans: QueuePlans, *, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        self._plans = plans
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The ceiling of this load."""
        rungs, memory = self._rungs(table), self._memory
        top = len(rungs.points) - 1
        if self.goals.deadline_ms is None:
            return rungs.choose(top, f"load: no deadline: {rungs.labels[top]}")
        if conditions.arrival_rate_hz is None:
            rate = memory.rate_hz.value or 0.0
        else:
            rate = memory.rate_hz.update(conditions.arrival_rate_hz, conditions.time_s, _SMOOTH_S)
        slowdown = 1.0 if conditions.slowdown is None else conditions.slowdown
        memory.bins = self._plans.bins(table, _LOOSE * rate, slowdown, memory.bins)
        planned = self._plans.plan(table, memory.bins, math.inf)
        best, chosen = planned.ceiling.accuracy, top
        while chosen > 0 and rungs.rows[chosen].accuracy > best:
            chosen -= 1
        hopeless = planned.gain < _HOPELESS * rungs.rows[0].accuracy
        words = f"{rungs.labels[chosen]} is the best of use at {rate:.1f}/s"
        if hopeless:
            words = f"best effort, answers will be late at {rate:.1f}/s"
        return rungs.choose(chosen, f"load: {words}", "throughput" if chosen < top else "none", urgent=hopeless)
