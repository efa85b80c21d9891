"""Fast: a wrapper that gives any ceiling the slack plan that is best below it."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Policy, SlackStep
from policies.queueplan import QueuePlans
from policies.wrapper import Wrapper

_LEAD_S = 5.0  # a rising rate is taken where it will be then: it comes smoothed over about as long
_LEARN_S = 100.0  # in which caution grows e-fold while twice as many answers are late as may be
_MOST = 4.0  # times the least caution; more would be of no use
_FASTEST = 50.0  # times that speed, at most: a single bad moment must not decide
_LONGEST_S = 10.0  # a longer gap between decisions counts as this


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    bins: tuple[int, int] | None = None
    rate_hz: float | None = None
    seen_s: float = 0.0
    more: float = 1.0  # caution over the least
    deadline_ms: float | None = None  # for which that was learnt


class Fast(Wrapper[_Memory]):
    """The inner policy's ceiling, with the solved queue's plan (:mod:`policies.lindley`) over the rows up to it.

    The ceiling's accuracy bounds the plan, not its batch size: under load, steps with larger batches appear. An unknown
    arrival rate counts as idle. Without a deadline the inner policy's own plan stands.

    The plan supposes that arrivals are independent, as a Poisson process has them. Real ones come in clumps, which a
    plan for a higher rate is ready for. How much higher is learnt from the share of late answers, ``m``, against the
    share ``q`` that the goals allow (one less the deadline's percentile), between ``caution`` and four times that::

        d ln c / dt = (m / q - 1) / 100 s

    What was learnt for one deadline says nothing of another: with other goals learning begins anew.

    Args:
        plans: shared with whoever else needs them.
        caution: least factor on the arrival rate, from 1.
    """

    name = "fast"

    def __init__(self, inner: Policy, plans: QueuePlans, *, caution: float = 1.0) -> None:
        super().__init__(inner, _Memory)
        self._plans, self._caution = plans, caution
        self.looks_at = tuple(dict.fromkeys((*inner.looks_at, "arrival_rate_hz", "slowdown", "miss_rate")))

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The inner decision with another plan."""
        decision = self.inner.decide(conditions, table, current)
        if self._plans.goals.deadline_ms is None:
            return decision
        memory = self._memory
        elapsed = max(0.0, conditions.time_s - memory.seen_s)
        if memory.deadline_ms != self._plans.goals.deadline_ms:
            memory.more, memory.deadline_ms = 1.0, self._plans.goals.deadline_ms
        if conditions.miss_rate is not None:
            late = conditions.miss_rate / (1.0 - self._plans.goals.deadline_percentile)
            growth = min(_FASTEST, late - 1.0) * min(elapsed, _LONGEST_S) / _LEARN_S
            if growth > 0.0 or memory.more > 1.0:
                memory.more = min(_MOST, max(1.0, memory.more * math.exp(growth)))
        rate = self._leading(conditions, elapsed) * self._caution * memory.more
        slowdown = 1.0 if conditions.slowdown is None else conditions.slowdown
        memory.bins = self._plans.bins(table, rate, slowdown, memory.bins)
        accuracy = self._order(table).row[decision.point].accuracy
        planned = self._plans.plan(table, memory.bins, accuracy)
        if planned.ceiling.accuracy > accuracy:
            return decision  # a wrapper holds a point in use that is below all that the goals allow
        steps = planned.steps
        if not steps and planned.ceiling.point != decision.point:
            steps = (SlackStep(0.0, planned.ceiling.point),)
        return decision if steps == decision.slack_plan else msgspec.structs.replace(decision, slack_plan=steps)

    def _leading(self, conditions: Conditions, elapsed: float) -> float:
        """The arrival rate, ahead of its smoothing while it rises; what is unknown counts as idle."""
        memory, rate = self._memory, conditions.arrival_rate_hz
        before, memory.seen_s = memory.rate_hz, conditions.time_s
        if rate is None:
            return 0.0
        memory.rate_hz = rate
        if before is None or elapsed <= 0 or rate <= before:
            return rate
        return rate + (rate - before) * max(1.0, _LEAD_S / elapsed)
