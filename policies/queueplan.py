"""Slack plans from the solved queue (:mod:`policies.lindley`), by load, slowdown and ceiling; solved when first met."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import msgspec

from calibration.table import Row, Table
from policies.base import Goals, SlackStep
from policies.fitting import plan_of, shelves
from policies.rungs import PerTable, Rungs, Where, same_engine

if TYPE_CHECKING:
    from policies.lindley import Action, Solution

_STEP = 1.15  # ratio between neighbouring bins of load and of slowdown
_STICK = 0.25  # of a bin, by which a value must leave its bin before the next one is taken
_IDLE = 0.3  # of what the most accurate rows can answer: plans for less would be caught out by the first burst
_RESTED = 0.05  # requests in the time that an engine takes to settle, below which it counts as quite rested
_LONGEST_QUEUE = 32  # waiting requests beside a batch; a longer deadline is not used up for queueing
_LONGEST_SERVICES = 40.0  # so many services of the slowest row, for the same reason


class Planned(msgspec.Struct, frozen=True):
    """A plan, the row it never goes above, and what it earns."""

    steps: tuple[SlackStep, ...]
    ceiling: Row
    gain: float  # accuracy times share on time, in the long run
    first: Row  # the row for a request that has not waited


class QueuePlans:
    """Plans for one set of goals; what was solved is kept for as long as the same table comes.

    Args:
        goals: deadline, minimum accuracy and what to maximise count.
        where: the rows to choose from; all batch sizes unless it names one.
    """

    def __init__(self, goals: Goals, where: Where) -> None:
        self.goals, self.where = goals, where
        self.shelves: PerTable[tuple[Rungs, ...]] = PerTable(lambda table: shelves(table, where, goals))
        self._solved: PerTable[dict[tuple[int, int, float], Planned]] = PerTable(lambda _: {})
        self._busy_hz: PerTable[float] = PerTable(self._least_busy)
        self._floor_hz: PerTable[float] = PerTable(self._least_told)

    def bins(self, table: Table, rate_hz: float, slowdown: float, before: tuple[int, int] | None) -> tuple[int, int]:
        """The bins of load and slowdown; those of before as long as the values have not clearly left them."""
        rate_hz, slowdown = max(rate_hz, self._floor_hz(table)), max(slowdown, 0.01)
        if before is not None:
            (low_hz, high_hz), (low, high) = _stretch(before[0]), _stretch(before[1])
            if low_hz < rate_hz <= high_hz and low < slowdown <= high:  # nearly always, and every replay passes here
                return before
        last_rate, last_slow = before if before is not None else (None, None)
        return _bin(rate_hz, last_rate), _bin(slowdown, last_slow)

    def plan(self, table: Table, bins: tuple[int, int], most_accuracy: float) -> Planned:
        """The plan for these bins over rows up to this accuracy (the least accurate rows where none is)."""
        solved = self._solved(table)
        key = (*bins, most_accuracy)
        if key not in solved:
            solved[key] = self._solve(table, _edge(bins[0]), _edge(bins[1]), most_accuracy)
        return solved[key]

    def _solve(self, table: Table, rate_hz: float, slowdown: float, most_accuracy: float) -> Planned:
        from policies.lindley import Action, Size

        assert self.goals.deadline_ms is not None
        rests_hz, rate_hz = rate_hz, max(rate_hz, self._busy_hz(table))
        rows = [row for ladder in self.shelves(table) for row in ladder.rows]
        least = min(row.accuracy for row in rows)
        rows = [row for row in rows if row.accuracy <= max(most_accuracy, least)]
        cap_w = self.goals.max_power_w or math.inf
        cool = [row for row in rows if row.power_w is None or row.power_w <= cap_w]  # large batches may draw more
        rows = cool or [min(rows, key=lambda row: row.power_w or 0.0)]
        rows.sort(key=lambda row: (-row.accuracy, row.batch_size))
        biggest = max(row.batch_size for row in rows)
        slowest_s = max(row.latency_p99_ms for row in rows) / 1000 * slowdown
        deadline_s = self.goals.deadline_ms / 1000
        used_s = min(
            deadline_s, _LONGEST_SERVICES * slowest_s, max(2 * slowest_s, (_LONGEST_QUEUE + biggest) / rate_hz)
        )
        actions = [
            Action(
                row.accuracy,
                row.batch_size,
                row.latency_p50_ms / 1000 * slowdown,
                row.latency_p99_ms / 1000 * slowdown,
                row.latency_ms_by_chance(rests_hz) / row.latency_p50_ms,
                tuple(
                    Size(one.batch_size, one.latency_p50_ms / 1000 * slowdown, one.latency_p99_ms / 1000 * slowdown)
                    for one in _family(table, row)
                    if one.batch_size < row.batch_size
                ),
            )
            for row in rows
        ]
        solution = _solution(tuple(actions), rate_hz, used_s)
        choices: list[tuple[float, Row]] = []
        last = len(solution.waits_s) - 1
        for place in range(last, -1, -1):  # from the longest wait to none
            longer_s = solution.waits_s[min(place + 1, last)]
            slack_ms = 1000 * (deadline_s - (solution.waits_s[place] + longer_s) / 2)
            if slack_ms > 0:
                choices.append((slack_ms, rows[solution.actions[place]]))
        # A burst may come at any rate: whoever is late must not keep others waiting. A large batch does no harm to few,
        # for they run on the smaller engine.
        quickest = min(rows, key=lambda row: row.latency_p50_ms)
        late = max((row for row in _family(table, quickest) if row in rows), key=lambda row: row.throughput_per_s)
        steps, ceiling = plan_of([(0.0, late), *choices])
        return Planned(steps, ceiling, solution.gain, choices[-1][1])

    def _least_busy(self, table: Table) -> float:
        """The least load that a plan is made for."""
        rows = [row for ladder in self.shelves(table) for row in ladder.rows]
        most = max(row.accuracy for row in rows)
        return _IDLE * max(row.throughput_per_s for row in rows if row.accuracy == most)

    def _least_told(self, table: Table) -> float:
        """The least rate that makes a difference: where rests cost something, that at which all of them are long."""
        settles = [row.duty.settle_ms / 1000 for ladder in self.shelves(table) for row in ladder.rows if row.duty]
        return min([self._busy_hz(table), *(_RESTED / settle_s for settle_s in settles)])


@lru_cache(maxsize=1024)
def _solution(actions: tuple[Action, ...], rate_hz: float, deadline_s: float) -> Solution:
    """Solved once a process: an arena meets the same queue again in every run."""
    from policies.lindley import solve

    return solve(actions, rate_hz, deadline_s)


def _family(table: Table, row: Row) -> list[Row]:
    """The same engine at all batch sizes, smallest first."""
    return sorted((one for one in table.rows if same_engine(one, row)), key=lambda one: one.batch_size)


def _bin(value: float, before: int | None) -> int:
    """The bin whose upper edge is the least power of the step at or above the value."""
    if before is not None:
        low, high = _stretch(before)
        if low < value <= high:
            return before
    return math.ceil(math.log(value) / math.log(_STEP) - 1e-9)


@cache
def _stretch(place: int) -> tuple[float, float]:
    """The values that stay in a bin: those of it, and a little beyond."""
    return _edge(place - 1 - _STICK), _edge(place + _STICK)


def _edge(place: float) -> float:
    return float(_STEP**place)
