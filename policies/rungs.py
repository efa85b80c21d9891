"""The rungs a policy chooses among: the useful rows of a table, fastest and least accurate first.

* :class:`Where`: which rows count (backend, precision, batch size).
* :class:`Rungs`, :func:`rungs_of`: the accuracy-latency frontier of those rows, above the wished accuracy.
* :class:`RungPolicy`: base of the policies that choose a rung.
* :class:`PerTable`: keeps what was derived from a table for as long as the same table comes.
* :class:`Order`, :func:`order_of`: an order over *all* rows, for wrappers, which do not know the inner policy's rungs.
* :func:`same_engine`: whether two rows differ in batch size alone.
* :func:`require`: checks an option in a constructor.

Knows nothing of conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from calibration.table import Row, Table, frontier
from policies.base import Decision, Goals, Maximise, Policy, SlackStep
from subnets.errors import InputError

T = TypeVar("T")


class Where(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which rows of the table a policy may choose from.

    Args:
        backend: only this backend's rows; all when left out.
        precision: only rows of this precision; all when left out.
        batch_size: only rows of this batch size; the smallest in the table when left out.
    """

    backend: str | None = None
    precision: str | None = None
    batch_size: int | None = None


class Rungs(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in ascending accuracy *and* ascending median latency; parallel tuples, never empty.

    ``labels`` are the subnets' names where these are unique, else the points'. ``short`` says that no row reaches the
    wished accuracy (then the most accurate row is the only rung); ``floor`` that the wish took rungs away below;
    ``thrifty`` that rungs above were left out, as they give fewer right answers for a joule.
    """

    rows: tuple[Row, ...]
    points: tuple[str, ...]
    labels: tuple[str, ...]
    position: dict[str, int]  # point -> index
    short: str = ""
    floor: str = ""
    thrifty: str = ""

    def choose(
        self,
        index: int,
        reason: str,
        bound: str = "none",
        *,
        urgent: bool = False,
        slack_plan: tuple[SlackStep, ...] = (),
    ) -> Decision:
        """A decision for a rung, with the word on the wished accuracy where it mattered."""
        if self.short:
            reason = f"{reason}; {self.short}"
            bound = "accuracy" if bound == "none" else bound
        elif self.floor and index == 0 and bound != "none":
            reason = f"{reason}; {self.floor}"
        if self.thrifty and index == len(self.points) - 1 and bound == "none":
            reason = f"{reason}; {self.thrifty}"
        return Decision(point=self.points[index], reason=reason, bound=bound, urgent=urgent, slack_plan=slack_plan)


def rungs_of(table: Table, where: Where, min_accuracy: float | None = None, maximise: Maximise = "accuracy") -> Rungs:
    """The frontier of the rows that ``where`` selects, without those below ``min_accuracy``.

    With ``answers_per_joule`` also without those above the thriftiest: the rung with the most right answers for a joule
    above idle (for a processor second where no energies are known; for a second where these are not either).

    Raises:
        InputError: no row of the table matches ``where``.
    """
    rows = table.select(backend=where.backend, precision=where.precision)
    sizes = sorted({row.batch_size for row in rows})
    size = where.batch_size if where.batch_size is not None else min(sizes, default=0)
    ladder = frontier(row for row in rows if row.batch_size == size)
    if not ladder:
        asked = ", ".join(
            f"{name} {value}" for name, value in msgspec.structs.asdict(where).items() if value is not None
        )
        found = ", ".join(sorted({f"{row.backend}:{row.precision}:b{row.batch_size}" for row in table.rows}))
        raise InputError(f"the table has no rows with {asked}; it has {found or 'none at all'}")
    short = floor = ""
    if min_accuracy is not None:
        kept = tuple(row for row in ladder if row.accuracy >= min_accuracy)
        if not kept:
            kept = ladder[-1:]
            short = f"nothing reaches {100 * min_accuracy:.1f} % accuracy, the best has {100 * kept[0].accuracy:.1f} %"
        elif len(kept) < len(ladder):
            floor = f"nothing smaller reaches {100 * min_accuracy:.1f} % accuracy"
        ladder = kept
    thrifty = ""
    if maximise == "answers_per_joule":
        per_cost, unit = _right_answers(ladder, table.idle_power_w)
        best = max(range(len(ladder)), key=lambda index: (per_cost[index], -index))
        if best < len(ladder) - 1:
            thrifty = f"{ladder[best].subnet} gives most right answers a {unit}"
            ladder = ladder[: best + 1]
    points = tuple(row.point for row in ladder)
    subnets = tuple(row.subnet for row in ladder)
    return Rungs(
        rows=ladder,
        points=points,
        labels=subnets if len(set(subnets)) == len(subnets) else points,
        position={point: index for index, point in enumerate(points)},
        short=short,
        floor=floor,
        thrifty=thrifty,
    )


def net_energy_j(row: Row, idle_w: float | None) -> float | None:
    """Net energy per image: measured, else gross minus idle over the time of one image, else gross."""
    if row.net_energy_j is not None:
        return max(0.0, row.net_energy_j)  # a difference of two measurements may fall below zero by noise
    gross = row.energy_j
    if gross is None and row.power_w is not None:
        gross = row.power_w / row.throughput_per_s
    if gross is None:
        return None
    return max(0.0, gross - (idle_w or 0.0) / row.throughput_per_s)


def _right_answers(ladder: tuple[Row, ...], idle_w: float | None) -> tuple[list[float], str]:
    """Right answers per unit of cost, rung by rung, and the unit."""
    joules = [net_energy_j(row, idle_w) for row in ladder]
    cores = [row.cpu_s for row in ladder]
    for costs, unit in ((joules, "joule"), (cores, "processor second")):
        known = [cost for cost in costs if cost]
        if len(known) == len(ladder):
            return [row.accuracy / cost for row, cost in zip(ladder, known, strict=True)], unit
    return [row.accuracy * row.throughput_per_s for row in ladder], "second"


class PerTable(Generic[T]):
    """Calls ``derive`` once for each new table object and remembers the last result; decisions must be cheap."""

    def __init__(self, derive: Callable[[Table], T]) -> None:
        self._derive = derive
        self._table: Table | None = None
        self._value: T

    def __call__(self, table: Table) -> T:
        """What ``derive`` makes of this table."""
        if table is not self._table:
            self._value = self._derive(table)
            self._table = table
        return self._value


class RungPolicy(Policy):
    """Base of policies that choose a rung: checks the goals, finds the rungs.

    Subclasses read ``self.goals`` and call ``self._rungs(table)``.
    """

    def __init__(self, goals: Goals, *, where: Where | None = None) -> None:
        self.goals = goals.check()
        self.where = where or Where()
        self._rungs: PerTable[Rungs] = PerTable(self._find)

    def _find(self, table: Table) -> Rungs:
        return rungs_of(table, self.where, self.goals.min_accuracy, self.goals.maximise)


class Order(msgspec.Struct, frozen=True):
    """All rows by point, and each one's rank: larger is more to carry."""

    row: dict[str, Row]
    rank: dict[str, int]


def order_of(table: Table) -> Order:
    """All rows sorted by accuracy, then by median latency per image."""
    ordered = sorted(table.rows, key=lambda row: (row.accuracy, row.latency_p50_ms / row.batch_size, row.point))
    return Order({row.point: row for row in ordered}, {row.point: rank for rank, row in enumerate(ordered)})


def same_engine(one: Row, other: Row) -> bool:
    """Whether two rows differ in their batch size alone: a dispatcher takes the smallest that holds all who wait."""
    return (one.subnet, one.backend, one.device, one.precision, one.threads) == (
        other.subnet,
        other.backend,
        other.device,
        other.precision,
        other.threads,
    )


def require(holds: bool, policy: str, option: str, value: Any, expected: str) -> None:
    """Checks an option in a constructor; write comparisons so that a NaN fails them.

    Raises:
        InputError: with the offending value and what was expected.
    """
    if not holds:
        raise InputError(f"policy {policy}: option {option} is {value!r}; give {expected}")
