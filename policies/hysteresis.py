"""Votes: a wrapper that moves only after several decisions in a row ask for it."""

from __future__ import annotations

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Policy
from policies.rungs import require
from policies.wrapper import Wrapper, at


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    held: str | None = None
    votes: int = 0  # in a row; positive for up, negative for down
    lowest: str | None = None  # of the points that the votes for up asked for


class Hysteresis(Wrapper[_Memory]):
    """Follows the inner policy up after ``up_votes`` decisions in a row, down after ``down_votes``.

    The votes up need not agree on a point: the lowest they asked for is taken. An urgent decision goes down at once.
    A new wrapper starts from the point in use, or from the inner policy's first decision where there is none.

    Args:
        up_votes: decisions in a row before going up, from 1.
        down_votes: decisions in a row before going down, from 1.
    """

    name = "hysteresis"

    def __init__(self, inner: Policy, *, up_votes: int = 10, down_votes: int = 1) -> None:
        super().__init__(inner, _Memory)
        require(up_votes >= 1, self.name, "up_votes", up_votes, "a whole number from 1")
        require(down_votes >= 1, self.name, "down_votes", down_votes, "a whole number from 1")
        self.up_votes, self.down_votes = up_votes, down_votes

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The inner policy's decision, or the point held with the votes so far."""
        decision = self.inner.decide(conditions, table, current)
        memory, order = self._memory, self._order(table)
        held = memory.held if memory.held in order.rank else current
        if held is None or held not in order.rank or decision.point == held:
            return self._settle(decision)
        memory.held = held
        if order.rank[decision.point] < order.rank[held]:
            memory.votes = min(memory.votes, 0) - 1
            if decision.urgent or -memory.votes >= self.down_votes:
                return self._settle(decision)
            votes, needed, bound = -memory.votes, self.down_votes, decision.bound
        else:
            if memory.votes <= 0 or memory.lowest not in order.rank:
                memory.votes, memory.lowest = 0, decision.point
            memory.votes += 1
            memory.lowest = min(memory.lowest or decision.point, decision.point, key=order.rank.__getitem__)
            if memory.votes >= self.up_votes:
                lowest = memory.lowest
                if lowest != decision.point:
                    why = f"hysteresis: {lowest} is the lowest of the last {memory.votes} votes"
                    decision = at(decision, lowest, order, conditions, why, "dwell")
                return self._settle(decision)
            votes, needed, bound = memory.votes, self.up_votes, "dwell"
        why = f"hysteresis: {held}, vote {votes} of {needed} for {decision.point}"
        return at(decision, held, order, conditions, why, bound)

    def _settle(self, decision: Decision) -> Decision:
        self._memory.held, self._memory.votes, self._memory.lowest = decision.point, 0, None
        return decision
