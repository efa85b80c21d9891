"""Whether goals can be kept at all with a table: what contradicts what, in sentences.

Policies never refuse: they give the best effort and their reason says so. This is for whoever wants to know beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibration.table import Row, Table
from policies.base import Goals
from policies.queueing import quantile
from policies.rungs import Where, net_energy_j
from policies.wording import duration, energy


def contradictions(
    goals: Goals,
    table: Table,
    where: Where | None = None,
    *,
    battery_energy_j: float | None = None,
    now_s: float = 0.0,
    arrival_rate_hz: float | None = None,
) -> tuple[str, ...]:
    """One sentence for each wish, or pair of wishes, that no row of the table keeps.

    Args:
        goals: checked here.
        table: latencies, accuracies, powers.
        where: which rows count.
        battery_energy_j: what the battery holds at ``now_s``; without it, "last until" is not looked at.
        now_s: on the clock of ``last_until_s``.
        arrival_rate_hz: expected load; without it, only idle power has to last.

    Raises:
        InputError: the goals are impossible by themselves.
    """
    goals.check()
    where = where or Where()
    rows = table.select(backend=where.backend, precision=where.precision, batch_size=where.batch_size)
    found: list[str] = []
    accurate = [row for row in rows if row.accuracy >= (goals.min_accuracy or 0.0)]
    wish = "" if goals.min_accuracy is None else f"min_accuracy {100 * goals.min_accuracy:g} %"
    if not accurate:
        best = max((row.accuracy for row in rows), default=0.0)
        found.append(f"goal {wish} cannot be kept: the most accurate row has {100 * best:.1f} %; lower it")
        accurate = list(rows)
        wish = ""
    deadline_ms, cap_w = goals.deadline_ms, goals.max_power_w
    if deadline_ms is not None and accurate:
        share = goals.deadline_percentile

        def tail(row: Row) -> float:
            return quantile(row.latency_p50_ms, row.latency_p99_ms, share)

        needed = min(map(tail, accurate))
        if needed > deadline_ms:
            found.append(
                _sentence("deadline_ms", f"{deadline_ms:g}", wish, min(map(tail, rows)) <= deadline_ms)
                + f"the quickest row needs {needed:.1f} ms (p{100 * share:g}); allow more time"
            )
    powers = [row.power_w for row in accurate if row.power_w is not None]
    if cap_w is not None and powers and min(powers) > cap_w:
        alone = any(row.power_w is not None and row.power_w <= cap_w for row in rows)
        found.append(
            _sentence("max_power_w", f"{cap_w:g}", wish, alone)
            + f"the thriftiest row draws {min(powers):.1f} W; allow more power"
        )
    elif cap_w is not None and deadline_ms is not None and powers and len(found) == 0:
        both = [
            row
            for row in accurate
            if (row.power_w or 0.0) <= cap_w
            and quantile(row.latency_p50_ms, row.latency_p99_ms, goals.deadline_percentile) <= deadline_ms
        ]
        if not both:
            found.append(
                f"goals deadline_ms {deadline_ms:g} and max_power_w {cap_w:g} contradict each other: no row keeps both"
            )
    lasting = _lasting(goals, table, accurate, battery_energy_j, now_s, arrival_rate_hz)
    return (*found, lasting) if lasting else tuple(found)


def _sentence(name: str, value: str, wish: str, without_wish: bool) -> str:
    if wish and without_wish:
        return f"goals {wish} and {name} {value} contradict each other: of the rows that are accurate enough, "
    return f"goal {name} {value} cannot be kept: "


def _lasting(
    goals: Goals,
    table: Table,
    rows: Sequence[Row],
    left_j: float | None,
    now_s: float,
    rate_hz: float | None,
) -> str:
    """Why the battery cannot last, or nothing."""
    if goals.last_until_s is None or left_j is None:
        return ""
    remaining_s = goals.last_until_s - now_s
    if remaining_s <= 0:
        return f"goal last_until_s {goals.last_until_s:g} is over: it is {now_s:g} s already; give a later time"
    capacity_j = goals.battery_capacity_j or left_j
    usable_j = left_j - goals.reserve * capacity_j
    costs = [cost for row in rows if (cost := net_energy_j(row, table.idle_power_w)) is not None]
    inference_w = min(costs) * rate_hz if costs and rate_hz is not None else 0.0
    needs_w = (table.idle_power_w or 0.0) + inference_w
    if needs_w * remaining_s <= usable_j:
        return ""
    return (
        f"goal last_until_s cannot be kept: {energy(max(0.0, usable_j))} above the reserve for {duration(remaining_s)} "
        f"is {max(0.0, usable_j) / remaining_s:.2f} W, the thriftiest row needs {needs_w:.2f} W; "
        "give an earlier time or a smaller reserve"
    )
