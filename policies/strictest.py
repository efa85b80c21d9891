"""Several policies at once: the lowest of their ceilings holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibration.table import Table
from policies.base import Conditions, Decision, Policy
from policies.rungs import Order, PerTable, order_of
from policies.slack import fit_plan
from subnets.errors import InputError


class Strictest(Policy):
    """Asks every member and takes the lowest ceiling, with that member's reason; the first member's where equal.

    Among equals a member that is bound goes before one that is not. The decision is urgent when any member's is. The
    slack plan is the first that a member gives, cut at the ceiling. Members should choose from the same rows (same
    goals, same ``where``), for only then are their ceilings comparable.

    Args:
        members: the policies, at least one, with different names.
    """

    name = "strictest"

    def __init__(self, members: Sequence[Policy]) -> None:
        self.members = tuple(members)
        names = [member.name for member in self.members]
        if not names or len(set(names)) != len(names):
            raise InputError(f"policy {self.name}: members are {names}; give at least one, none of them twice")
        self.looks_at = tuple(dict.fromkeys(field for member in self.members for field in member.looks_at))
        self._order: PerTable[Order] = PerTable(order_of)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The lowest ceiling."""
        order = self._order(table)
        decisions = [member.decide(conditions, table, current) for member in self.members]
        lowest, planned, urgent = decisions[0], None, False
        least = (order.rank[lowest.point], lowest.bound == "none")
        for decision in decisions:  # one pass, for this is the hot path of every replay
            height = (order.rank[decision.point], decision.bound == "none")
            if height < least:
                lowest, least = decision, height
            if planned is None and decision.slack_plan:
                planned = decision
            urgent = urgent or decision.urgent
        planned = planned or lowest
        plan = planned.slack_plan
        if planned.point != lowest.point:
            plan = fit_plan(plan, order, lowest.point, conditions.slowdown)
        if urgent == lowest.urgent and plan == lowest.slack_plan:
            return lowest
        return Decision(
            point=lowest.point,
            reason=lowest.reason,
            bound=lowest.bound,
            urgent=urgent,
            slack_plan=plan,
        )

    def reset(self) -> None:
        """Every member forgets."""
        for member in self.members:
            member.reset()

    def state(self) -> dict[str, Any]:
        """Each member's state under its name."""
        return {member.name: member.state() for member in self.members}

    def restore(self, state: dict[str, Any]) -> None:
        """Each member takes up its own."""
        names = [member.name for member in self.members]
        if sorted(state) != sorted(names):
            raise InputError(
                f"the saved state is of policies {sorted(state)}, not of {sorted(names)}; start without it"
            )
        for member in self.members:
            member.restore(state[member.name])
