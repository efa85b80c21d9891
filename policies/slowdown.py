"""Slowdown: a wrapper that corrects the whole table for any policy by one filtered factor."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Policy
from policies.kalman import SlowdownFilter
from policies.rungs import require
from policies.wrapper import Wrapper


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    filter: SlowdownFilter = msgspec.field(default_factory=SlowdownFilter)
    known: bool = False


class Slowdown(Wrapper[_Memory]):
    """Shows the inner policy a slowdown that ALERT's Kalman filter has been over, plus some standard deviations.

    One factor for all rows is why a table need not be measured again on a throttled processor. The observation is
    ``Conditions.slowdown`` (latency over the table's at the point in use); what the inner policy sees is
    ``mu + caution * sigma`` of :mod:`policies.kalman`. Unknown stays unknown until the first observation.

    Args:
        caution: standard deviations added to the mean, from 0.
    """

    name = "slowdown"

    def __init__(self, inner: Policy, *, caution: float = 0.0) -> None:
        super().__init__(inner, _Memory)
        require(0 <= caution < math.inf, self.name, "caution", caution, "a number from 0")
        self.caution = caution
        self.looks_at = tuple(dict.fromkeys((*inner.looks_at, "slowdown")))

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The inner policy's decision under the filtered slowdown."""
        memory = self._memory
        if conditions.slowdown is not None:
            memory.filter.update(conditions.slowdown)
            memory.known = True
        if memory.known:
            factor = memory.filter.mean + self.caution * memory.filter.deviation
            conditions = msgspec.structs.replace(conditions, slowdown=factor)
        return self.inner.decide(conditions, table, current)
