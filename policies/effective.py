"""Effective accuracy: a table, computed beforehand, of the best rung for every load."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.load import LoadModel, load_model
from policies.memory import Smoothed
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Where, require

_STEP = 1.1  # ratio between neighbouring bins of load and of slowdown


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    rate_hz: Smoothed = msgspec.field(default_factory=Smoothed)


class Effective(RungPolicy, Remembering[_Memory]):
    """The rung with the best accuracy times share of answers on time, looked up by load.

    ::

        i(lambda) = argmax a_i Pr(wait + service_i <= deadline | lambda)

    with an M/G/1 queue (:func:`policies.queueing.on_time`) at the upper edge of each bin of load, 10 % wide, and the
    rate smoothed once more. A higher load never gets a more accurate rung. The table is filled as loads are met.
    Without a deadline, the most accurate rung that keeps up.

    Source: Zhang et al., Model-Switching, HotCloud 2020, who fill the table by simulation.

    Args:
        smooth_s: time constant of the arrival rate, in seconds.
    """

    name = "effective"
    looks_at = ("arrival_rate_hz", "slowdown")

    def __init__(self, goals: Goals, *, smooth_s: float = 5.0, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        require(0 < smooth_s < math.inf, self.name, "smooth_s", smooth_s, "a time above 0 seconds")
        self.smooth_s = smooth_s
        self._load: PerTable[LoadModel] = PerTable(lambda table: load_model(self._rungs(table), goals))
        self._best: PerTable[dict[tuple[int, int], tuple[int, float]]] = PerTable(lambda _: {})
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The rung of this bin."""
        rungs = self._rungs(table)
        top = len(rungs.points) - 1
        if conditions.arrival_rate_hz is None:
            rate = self._memory.rate_hz.value or 0.0
        else:
            rate = self._memory.rate_hz.update(conditions.arrival_rate_hz, conditions.time_s, self.smooth_s)
        slowdown = 1.0 if conditions.slowdown is None else conditions.slowdown
        chosen, worth = self._look_up(table, _bin(rate), _bin(slowdown))
        words = f"{rungs.labels[chosen]} has {100 * worth:.2f} % right and on time at {rate:.1f}/s"
        if slowdown != 1.0:
            words += f", slowdown {slowdown:.2f}"
        hopeless = worth == 0.0
        if hopeless:
            words = f"best effort with {rungs.labels[chosen]}, nothing is on time at {rate:.1f}/s"
        bound = "none"
        if chosen < top:
            bound = "throughput" if self.goals.deadline_ms is None else "deadline"
        return rungs.choose(chosen, f"effective: {words}", bound, urgent=hopeless)

    def _look_up(self, table: Table, rate_bin: int, slow_bin: int) -> tuple[int, float]:
        """Rung and effective accuracy of a bin; worked out once."""
        known = self._best(table)
        found = known.get((rate_bin, slow_bin))
        if found is None:
            found = known[rate_bin, slow_bin] = self._work_out(table, _edge(rate_bin), _edge(slow_bin))
        return found

    def _work_out(self, table: Table, rate: float, slowdown: float) -> tuple[int, float]:
        rows, model, deadline_ms = self._rungs(table).rows, self._load(table), self.goals.deadline_ms

        def worth(index: int) -> float:
            if deadline_ms is None:
                return rows[index].accuracy if model.busy(index, rate, slowdown) < 1 else 0.0
            return rows[index].accuracy * model.on_time(index, rate, slowdown, deadline_ms)

        values = [worth(index) for index in range(len(rows))]
        best = max(range(len(rows)), key=lambda index: (values[index], -index))
        return best, values[best]


def _bin(value: float) -> int:
    """The bin whose upper edge is the least power of the step at or above the value; nothing falls below 0.01."""
    return math.ceil(math.log(max(value, 0.01)) / math.log(_STEP) - 1e-9)


def _edge(place: int) -> float:
    return float(_STEP**place)
