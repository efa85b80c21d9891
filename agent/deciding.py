"""Asking the policy: what raises, takes too long or names a point that is not there yields to the safe choice.

The policy runs in a thread of its own, so that one that never returns does not hold up the control loop. A replay must
be able to follow, so every decision says in ``asked`` what became of the policy's state, see
:class:`agent.journal.DecisionLine`. Knows nothing of engines or sensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from agent.errand import Errand, Late
from calibration.table import Row, Table
from policies.base import Conditions, Decision, Policy

LEAST_LIMIT_S = 0.25
FIRST_LIMIT_S = 30.0  # plans are made for a new table


class Asked(NamedTuple):
    """A decision, and how it came about."""

    decision: Decision
    state: dict[str, Any] | None  # the policy's before it; None while it is still at an earlier decision
    asked: str  # as in DecisionLine


class Deciding:
    """Asks a policy for decisions.

    Args:
        policy: used in no other thread while :meth:`decide` runs.
        limit_s: how long a decision may take; half the control period.
        safe_choice: what is used instead.
        on_event: called with (name, detail) for ``policy_failed`` and ``policy_late``.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        limit_s: float,
        safe_choice: Callable[[], Row],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.failures = 0
        self._limit_s = max(LEAST_LIMIT_S, limit_s)
        self._safe_choice, self._on_event = safe_choice, on_event
        self._told = ""
        self._table: Table | None = None
        self._before: dict[str, Any] | None = None  # the state before a decision that is late
        self._errand: Errand[Decision] = Errand("gearshift-policy")
        self.policy = policy

    def replace(self, policy: Policy) -> None:
        """Asks another policy from now on; a thread that is still in the old one is left behind."""
        if self._errand.busy:
            self._errand.dismiss()
            self._errand = Errand("gearshift-policy")
        self.policy, self._table, self._before, self._told = policy, None, None, ""

    def close(self) -> None:
        """Ends the thread once it is free."""
        self._errand.dismiss()

    def state(self) -> dict[str, Any] | None:
        """The policy's state, or None while it is still at a decision or cannot tell."""
        if self._errand.busy:
            return None
        self._after_late()
        try:
            return self.policy.state()
        except Exception:  # the policy's fault; told when deciding fails too
            return None

    def decide(self, conditions: Conditions, table: Table, current: str | None, faults: list[str]) -> Asked:
        """The policy's decision, or the safe choice.

        Args:
            conditions: what is known.
            table: the rows to choose from.
            current: the operating point in use.
            faults: what went wrong is appended here.
        """
        if self._errand.busy:
            return self._instead("late", "is still at an earlier decision", None, "busy", faults)
        state = self.state()
        limit_s = self._limit_s if table is self._table else FIRST_LIMIT_S
        self._table = table
        try:
            decision = self._errand.run(lambda: _checked(self.policy, conditions, table, current), limit_s)
        except Late:
            self._before = state
            return self._instead("late", f"has not decided within {limit_s:g} s", state, "late", faults)
        except Exception as error:  # whatever it is, it must not stop the answers
            asked = self._give_back(state)
            return self._instead("failed", f"failed: {str(error) or type(error).__name__}", state, asked, faults)
        self._told = ""
        return Asked(decision, state, "")

    def _give_back(self, state: dict[str, Any] | None) -> str:
        """Brings the policy that has raised into the state before; where that cannot be, it begins anew."""
        try:
            if state is not None:
                self.policy.restore(state)
                return "failed"
        except Exception:  # then it has nothing that could be trusted
            pass
        with contextlib.suppress(Exception):
            self.policy.reset()
        return "forgot"

    def _after_late(self) -> None:
        """Once a late decision is over: where it raised, the policy gets its state back, as in a replay."""
        if self._before is not None and self._errand.failed:
            self._give_back(self._before)
        self._before = None

    def _instead(self, kind: str, what: str, state: dict[str, Any] | None, asked: str, faults: list[str]) -> Asked:
        self.failures += 1
        fault = f"policy '{self.policy.name}' {what}"
        faults.append(fault)
        if self._told != what:
            self._told = what
            self._on_event(f"policy_{kind}", {"policy": self.policy.name, "error": what})
        decision = Decision(
            point=self._safe_choice().point, reason=f"{fault}; this is the safe choice", bound="fallback"
        )
        return Asked(decision, state, asked)


def _checked(policy: Policy, conditions: Conditions, table: Table, current: str | None) -> Decision:
    """A decision whose points are all in the table."""
    decision = policy.decide(conditions, table, current)
    table.row(decision.point)
    for step in decision.slack_plan:
        table.row(step.point)
    return decision
