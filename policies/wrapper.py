"""Base of the wrappers: a policy round any policy, which may hold still but never invents a point."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from policies.base import Conditions, Decision, Policy
from policies.memory import dump, load
from policies.rungs import Order, PerTable, order_of
from policies.slack import fit_plan
from subnets.errors import InputError

M = TypeVar("M", bound=msgspec.Struct)


class Wrapper(Policy, Generic[M]):
    """Holds the inner policy and joins the two states. Subclasses decide, and remember in ``self._memory``.

    Up and down are in the order of :func:`policies.rungs.order_of`: by accuracy over all rows of the table.
    """

    def __init__(self, inner: Policy, memory: type[M]) -> None:
        self.inner = inner
        self.looks_at = inner.looks_at
        self._order: PerTable[Order] = PerTable(order_of)
        self._kind = memory
        self._memory = memory()

    def reset(self) -> None:
        """Forgets its own state and all that the inner policy knows."""
        self.inner.reset()
        self._memory = self._kind()

    def state(self) -> dict[str, Any]:
        """``{"own": ..., "inner": ...}``."""
        return {"own": dump(self._memory), "inner": self.inner.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up both states."""
        if state.keys() != {"own", "inner"}:
            raise InputError(f"the saved state of policy {self.name} has keys {sorted(state)}, not 'own' and 'inner'")
        memory = load(self._kind, state["own"], self.name)
        self.inner.restore(state["inner"])
        self._memory = memory


def at(decision: Decision, point: str, order: Order, conditions: Conditions, why: str, bound: str) -> Decision:
    """The decision moved to another point, for this reason; its slack plan is made to end there."""
    return Decision(
        point=point,
        reason=f"{why}; {decision.reason}",
        bound=bound,
        urgent=decision.urgent,
        slack_plan=fit_plan(decision.slack_plan, order, point, conditions.slowdown),
    )
