"""Fast: a wrapper that gives any ceiling the slack plan that is best below it."""

from __future__ import annotations

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Policy, SlackStep
from policies.queueplan import QueuePlans
from policies.wrapper import Wrapper

_LEAD_S = 5.0  # a rising rate is taken where it will be then: it comes smoothed over about as long


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    bins: tuple[int, int] | None = None
    rate_hz: float | None = None
    seen_s: float = 0.0


class Fast(Wrapper[_Memory]):
    """The inner policy's ceiling, with the solved queue's plan (:mod:`policies.lindley`) over the rows up to it.

    The ceiling's accuracy bounds the plan, not its batch size: under load, steps with larger batches appear. An unknown
    arrival rate counts as idle. Without a deadline the inner policy's own plan stands.

    Args:
        plans: shared with whoever else needs them.
        caution: factor on the arrival rate, from 1.
    """

    name = "fast"

    def __init__(self, inner: Policy, plans: QueuePlans, *, caution: float = 1.0) -> None:
        super().__init__(inner, _Memory)
        self._plans, self._caution = plans, caution
        self.looks_at = tuple(dict.fromkeys((*inner.looks_at, "arrival_rate_hz", "slowdown")))

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The inner decision with another plan."""
        decision = self.inner.decide(conditions, table, current)
        if self._plans.goals.deadline_ms is None:
            return decision
        rate = self._leading(conditions)
        slowdown = 1.0 if conditions.slowdown is None else conditions.slowdown
        memory = self._memory
        memory.bins = self._plans.bins(table, rate * self._caution, slowdown, memory.bins)
        accuracy = self._order(table).row[decision.point].accuracy
        planned = self._plans.plan(table, memory.bins, accuracy)
        if planned.ceiling.accuracy > accuracy:
            return decision  # a wrapper holds a point in use that is below all that the goals allow
        steps = planned.steps
        if not steps and planned.ceiling.point != decision.point:
            steps = (SlackStep(0.0, planned.ceiling.point),)
        return msgspec.structs.replace(decision, slack_plan=steps)

    def _leading(self, conditions: Conditions) -> float:
        """The arrival rate, ahead of its smoothing while it rises; what is unknown counts as idle."""
        memory, rate, now = self._memory, conditions.arrival_rate_hz, conditions.time_s
        if rate is None:
            return 0.0
        before, elapsed = memory.rate_hz, now - memory.seen_s
        memory.rate_hz, memory.seen_s = rate, now
        if before is None or elapsed <= 0 or rate <= before:
            return rate
        return rate + (rate - before) * max(1.0, _LEAD_S / elapsed)
