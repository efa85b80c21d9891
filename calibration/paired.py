"""How much slower one operating point is than another, by the rounds that both were measured in.

Both points of a round share its heat, clocks and neighbours, so the ratio within a round is known far better than the
two medians are: their intervals may overlap while every single round says the same. The interval is Student's t over
the logarithms of the rounds' ratios.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable

from calibration.statistics import half_width
from calibration.table import Row, Table
from subnets.bundle import Strict

_WIDEST = 50.0  # of a logarithm
_LEAST_ROUNDS = 3


class Paired(Strict, frozen=True, kw_only=True):
    """The ratio of two points' median latencies, second over first, with its 95 % interval."""

    first: str
    second: str
    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def differs(self) -> bool:
        """Whether noise alone does not explain the difference."""
        return not self.low <= 1 <= self.high


def paired(first: Row, second: Row, widening: float = 1.0) -> Paired | None:
    """The ratio second / first over the rounds they have in common; None with fewer than three."""
    logs = [
        math.log(b / a)
        for a, b in zip(first.round_p50_ms, second.round_p50_ms, strict=False)
        if a is not None and b is not None
    ]
    if len(logs) < _LEAST_ROUNDS:
        return None
    middle, width = sum(logs) / len(logs), min(widening * half_width(logs), _WIDEST)
    return Paired(
        first=first.point,
        second=second.point,
        ratio=math.exp(middle),
        low=math.exp(middle - width),
        high=math.exp(middle + width),
        rounds=len(logs),
    )


def neighbours(table: Table) -> tuple[Paired, ...]:
    """Each point against the next on its ladder, and against the next slower one of the same batch size."""
    ladders = sorted(table.rows, key=lambda row: (row.backend, row.precision, row.batch_size, row.macs))
    by_latency = sorted(table.rows, key=lambda row: (row.batch_size, row.latency_p50_ms))
    pairs = [
        *_next_ones(ladders, lambda row: (row.backend, row.precision, row.batch_size)),
        *_next_ones(by_latency, lambda row: row.batch_size),
    ]
    once = {frozenset((a.point, b.point)): (a, b) for a, b in reversed(pairs)}
    found = [paired(a, b, table.protocol.widening) for a, b in reversed(once.values())]
    return tuple(one for one in found if one is not None)


def _next_ones(rows: Iterable[Row], group: Callable[[Row], Hashable]) -> Iterable[tuple[Row, Row]]:
    for _, members in itertools.groupby(rows, key=group):
        yield from itertools.pairwise(members)
