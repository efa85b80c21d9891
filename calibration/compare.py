"""Two tables side by side: what changed, and whether more than noise did.

Tables of different bundles or hosts may be compared on purpose; the caller says what differs.
"""

from __future__ import annotations

from statistics import geometric_mean

from calibration.table import Row, Table
from subnets.bundle import Strict


class Change(Strict, frozen=True, kw_only=True):
    """One operating point in both tables. Ratios are B over A; None where either side is unknown."""

    point: str
    a_p50_ms: float
    b_p50_ms: float
    latency_ratio: float
    latency_overlaps: bool  # the 95 % intervals of the medians share a value: no difference is shown
    a_energy_j: float | None
    b_energy_j: float | None
    energy_ratio: float | None
    energy_overlaps: bool | None
    a_energy_source: str
    b_energy_source: str
    a_accuracy: float
    b_accuracy: float
    accuracy_overlaps: bool


class Difference(Strict, frozen=True, kw_only=True):
    """Everything that differs between tables A and B."""

    changes: tuple[Change, ...]  # in the order of A's rows
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    same_bundle: bool
    host: tuple[str, ...]  # sentences, see Host.differences
    overlapping: int  # of the changes: the intervals of the medians overlap
    common_ratio: float | None  # geometric mean of the latency ratios; the whole machine, where all share it


def compare(a: Table, b: Table) -> Difference:
    """Pairs the rows of two tables by operating point."""
    of_b = {row.point: row for row in b.rows}
    of_a = {row.point for row in a.rows}
    changes = tuple(_change(row, of_b[row.point]) for row in a.rows if row.point in of_b)
    return Difference(
        changes=changes,
        only_a=tuple(row.point for row in a.rows if row.point not in of_b),
        only_b=tuple(row.point for row in b.rows if row.point not in of_a),
        same_bundle=a.bundle_key == b.bundle_key,
        host=tuple(a.host.differences(b.host)),
        overlapping=sum(change.latency_overlaps for change in changes),
        common_ratio=geometric_mean(change.latency_ratio for change in changes) if changes else None,
    )


def _change(a: Row, b: Row) -> Change:
    same_source = a.energy_source == b.energy_source  # joules of different meters cannot be compared
    a_joules, b_joules = _joules(a), _joules(b)
    return Change(
        point=a.point,
        a_p50_ms=a.latency_p50_ms,
        b_p50_ms=b.latency_p50_ms,
        latency_ratio=b.latency_p50_ms / a.latency_p50_ms,
        latency_overlaps=_overlap(
            (a.latency_p50_low_ms, a.latency_p50_high_ms), (b.latency_p50_low_ms, b.latency_p50_high_ms)
        ),
        a_energy_j=a.energy_j,
        b_energy_j=b.energy_j,
        energy_ratio=b.energy_j / a.energy_j if same_source and a.energy_j and b.energy_j else None,
        energy_overlaps=_overlap(a_joules, b_joules) if same_source and a_joules and b_joules else None,
        a_energy_source=a.energy_source,
        b_energy_source=b.energy_source,
        a_accuracy=a.accuracy,
        b_accuracy=b.accuracy,
        accuracy_overlaps=_overlap((a.accuracy_low, a.accuracy_high), (b.accuracy_low, b.accuracy_high)),
    )


def _joules(row: Row) -> tuple[float, float] | None:
    return None if row.energy_low_j is None or row.energy_high_j is None else (row.energy_low_j, row.energy_high_j)


def _overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]
