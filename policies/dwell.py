"""Dwell: a wrapper that stays at a point for a while before it leaves, and limits the switches per hour."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Policy
from policies.rungs import require
from policies.wording import duration
from policies.wrapper import Wrapper, at

_HOUR_S = 3600.0


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    held: str | None = None
    since_s: float | None = None  # when the point held was taken up
    switched_s: list[float] = []  # the switches of the last hour, where they are limited


class Dwell(Wrapper[_Memory]):
    """Stays at a point for ``up_s`` before going up and for ``down_s`` before going down.

    With ``switches_per_hour``, going up also waits until the last hour has seen fewer switches, in either direction;
    going down is never limited in number, and an urgent decision goes down at once. A new wrapper starts from the
    point in use, or from the inner policy's first decision where there is none; its time there counts from then.

    Args:
        up_s: shortest stay before going up, in seconds.
        down_s: shortest stay before going down, in seconds.
        switches_per_hour: most switches in any hour before ups are held back, from 1; no limit when left out.
    """

    name = "dwell"

    def __init__(
        self, inner: Policy, *, up_s: float = 10.0, down_s: float = 0.0, switches_per_hour: int | None = None
    ) -> None:
        super().__init__(inner, _Memory)
        require(0 <= up_s < math.inf, self.name, "up_s", up_s, "a time from 0 seconds")
        require(0 <= down_s < math.inf, self.name, "down_s", down_s, "a time from 0 seconds")
        limited = switches_per_hour is None or switches_per_hour >= 1
        require(limited, self.name, "switches_per_hour", switches_per_hour, "a whole number from 1, or leave it out")
        self.up_s, self.down_s, self.switches_per_hour = up_s, down_s, switches_per_hour

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The inner policy's decision, or the point held and how long it has been."""
        decision = self.inner.decide(conditions, table, current)
        memory, order, now = self._memory, self._order(table), conditions.time_s
        if memory.held not in order.rank:
            memory.held = current if current in order.rank else decision.point
            memory.since_s, memory.switched_s = now, []
        held = memory.held
        if memory.since_s is None or now < memory.since_s:  # time has started anew
            memory.since_s, memory.switched_s = now, []
        if held is None or decision.point == held:
            return decision
        stay_s = now - memory.since_s
        if order.rank[decision.point] < order.rank[held]:
            if decision.urgent or stay_s >= self.down_s:
                return self._switch(decision, now)
            wanted_s, bound = self.down_s, decision.bound
        else:
            if stay_s >= self.up_s and not self._spent(now):
                return self._switch(decision, now)
            wanted_s, bound = self.up_s, "dwell"
        if stay_s < wanted_s:
            why = f"dwell: {held} for {duration(stay_s)} of at least {duration(wanted_s)}"
        else:
            recent, most = len(memory.switched_s), self.switches_per_hour
            why = f"dwell: {held}, {recent} switches in the last hour, up again below {most}"
        return at(decision, held, order, conditions, why, bound)

    def _spent(self, now: float) -> bool:
        """Whether the switches of the last hour are used up."""
        if self.switches_per_hour is None:
            return False
        self._memory.switched_s = [then for then in self._memory.switched_s if now - then < _HOUR_S]
        return len(self._memory.switched_s) >= self.switches_per_hour

    def _switch(self, decision: Decision, now: float) -> Decision:
        memory = self._memory
        memory.held, memory.since_s = decision.point, now
        if self.switches_per_hour is not None:
            memory.switched_s = [*(then for then in memory.switched_s if now - then < _HOUR_S), now]
        return decision
