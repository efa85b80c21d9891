"""What each operating point would have cost under given conditions, and what spoke against it.

A decision is explained by what was not chosen. The figures are worked out afresh from table, goals and conditions with
the policies' own models (:mod:`policies.load`, :mod:`policies.watts`, :mod:`policies.budget`), without their memory: a
policy that forecasts heat or a long-run load may have known more, and then its own word, ``bound``, is repeated here.

Knows nothing of engines, sensors or files: a past decision from a journal is explained like the last one.
"""

from __future__ import annotations

import math

import msgspec

from calibration.table import Row, Table, frontier
from policies.base import Conditions, Goals
from policies.budget import BudgetMemory, budget
from policies.load import load_model
from policies.rungs import Rungs
from policies.watts import power_model

_SAME = 5e-5  # accuracies nearer than this are equal: they are told in hundredths of a percent
_BROKEN = {
    "thermal": "heat is what binds",
    "battery": "the battery is what binds",
    "power": "power is what binds",
}


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """One operating point under the conditions of a decision; figures that cannot be told are None.

    Attributes:
        role: ``applied`` (it answers), ``decided`` (the policy wanted it, something else was applied) or empty.
        accuracy: expected, share 0..1.
        latency_ms: the goals' percentile from arrival to answer: service at the present rate and slowdown, plus the
            mean wait in the queue; None from full load on, where the queue never ends.
        wait_ms: of which so much is waiting.
        busy: share of the time that it works at the present rate.
        work_w: power of the measured domain while it computes; this is what a power cap is held against.
        mean_w: power at the present arrival rate, idle time included.
        energy_j: gross, per image, back to back; ``energy_source`` says from where.
        lasts_s: how long the battery would last above its reserve; only where it has to last until a time.
        verdict: what spoke against it: a word as in ``Decision.bound``, ``less accurate``, ``no better``, or empty for
            the one in use.
        why: the same as a sentence.
    """

    point: str
    subnet: str
    role: str
    accuracy: float
    latency_ms: float | None
    wait_ms: float | None
    deadline_ms: float | None
    busy: float | None
    work_w: float | None
    mean_w: float | None
    energy_j: float | None
    energy_source: str
    lasts_s: float | None
    verdict: str
    why: str


class _Point(msgspec.Struct, frozen=True, kw_only=True):
    """A row with what it would do."""

    row: Row
    latency_ms: float | None
    wait_ms: float | None
    busy: float | None
    mean_w: float | None
    lasts_s: float | None
    faults: tuple[tuple[str, str], ...]  # (verdict, sentence)


def alternatives(
    table: Table, goals: Goals, conditions: Conditions, decided: str, applied: str | None, bound: str
) -> tuple[Alternative, ...]:
    """The operating points beside which a decision stands, most accurate first: those of its batch size.

    Args:
        table: whose rows could be chosen.
        goals: what was to be kept.
        conditions: under which was decided.
        decided: the point that the policy wanted.
        applied: the point that answered, or None.
        bound: the constraint that the policy named.
    """
    rows = {row.point: row for row in table.rows}
    reference = rows.get(applied or decided) or rows.get(decided)
    own = rows.get(decided)
    size = own.batch_size if own is not None else min((row.batch_size for row in table.rows), default=1)
    beside = [row for row in table.rows if row.batch_size == size or row.point in (decided, applied)]
    points = [_looked_at(row, reference or row, table, goals, conditions) for row in beside]
    useful = {row.point for row in frontier(beside)}
    told = []
    for point in sorted(points, key=lambda one: (-one.row.accuracy, one.row.latency_p50_ms, one.row.point)):
        row, name = point.row, point.row.point
        role = "applied" if name == applied else "decided" if name == decided else ""
        verdict, why = _verdict(point, own, goals, bound, name in useful)
        if name == decided:
            verdict, why = "", "what the policy chose"
        if role == "applied":
            why = "in use" if name == decided else f"in use instead; {why}"
        told.append(
            Alternative(
                point=name,
                subnet=row.subnet,
                role=role,
                accuracy=row.accuracy,
                latency_ms=point.latency_ms,
                wait_ms=point.wait_ms,
                deadline_ms=goals.deadline_ms,
                busy=point.busy,
                work_w=row.power_w,
                mean_w=point.mean_w,
                energy_j=row.energy_j,
                energy_source=row.energy_source,
                lasts_s=point.lasts_s,
                verdict=verdict,
                why=why,
            )
        )
    return tuple(told)


def _looked_at(row: Row, reference: Row, table: Table, goals: Goals, conditions: Conditions) -> _Point:
    """The figures of one row, and every limit of the goals that it would not keep."""
    rate, slowdown = conditions.arrival_rate_hz, 1.0 if conditions.slowdown is None else conditions.slowdown
    load = load_model(_ladder(row), goals)
    tail_ms = load.tail_ms(0, rate, slowdown)
    wait_ms = 0.0 if rate is None else load.wait_ms(0, rate, slowdown)
    busy = None if rate is None else load.busy(0, rate, slowdown)
    pair = power_model(_ladder(reference, row), table.idle_power_w)
    above_idle_w = None if rate is None else pair.inference_w(1, rate)
    mean_w = None if above_idle_w is None or table.idle_power_w is None else table.idle_power_w + above_idle_w
    faults: list[tuple[str, str]] = []
    if goals.min_accuracy is not None and row.accuracy < goals.min_accuracy:
        faults.append(("accuracy", f"below the {100 * goals.min_accuracy:g} % asked for"))
    if busy is not None and busy >= 1:
        faults.append(("throughput", f"would be {100 * busy:.0f} % busy at {rate:.4g}/s"))
    elif goals.deadline_ms is not None and tail_ms + wait_ms > goals.deadline_ms:
        waiting = f" + {wait_ms:.3g} ms wait" if wait_ms >= 0.05 else ""
        faults.append(("deadline", f"needs {tail_ms:.3g} ms{waiting} of {goals.deadline_ms:g} ms"))
    if goals.max_power_w is not None and row.power_w is not None and row.power_w > goals.max_power_w:
        faults.append(("power", f"draws {row.power_w:.2f} W at work, {goals.max_power_w:g} W allowed"))
    plan = budget(BudgetMemory(), goals, conditions, pair, 0)
    lasts_s = None
    if plan.gone and row.point != reference.point:
        faults.append(("battery", plan.why))
    elif not plan.why:
        lasts_s = plan.mean_w * plan.remaining_s / plan.watts[1] if plan.watts[1] > 0 else None
        if plan.watts[1] > plan.mean_w:
            faults.append(("battery", f"draws {plan.watts[1]:.2f} W, {plan.allows_ahead}"))
    endless = not math.isfinite(wait_ms)
    return _Point(
        row=row,
        latency_ms=None if endless else tail_ms + wait_ms,
        wait_ms=None if endless else wait_ms,
        busy=busy,
        mean_w=mean_w,
        lasts_s=lasts_s,
        faults=tuple(faults),
    )


def _ladder(*rows: Row) -> Rungs:
    """Rows as the policies' models want them."""
    points = tuple(row.point for row in rows)
    return Rungs(rows=rows, points=points, labels=points, position={point: k for k, point in enumerate(points)})


def _verdict(point: _Point, decided: Row | None, goals: Goals, bound: str, useful: bool) -> tuple[str, str]:
    """What spoke against a point, as a word and a sentence."""
    if point.faults:
        verdict, why = point.faults[0]
        return verdict, "; ".join([why, *(other for _, other in point.faults[1:])])
    if decided is None:
        return "", "keeps every goal"
    row = point.row
    lead = row.accuracy - decided.accuracy
    if abs(lead) < _SAME:
        if row.latency_p50_ms < decided.latency_p50_ms:
            return "no better", f"as accurate as {decided.subnet}, and quicker"
        return "no better", f"as accurate as {decided.subnet}, and slower"
    if lead < 0:
        return "less accurate", f"{-100 * lead:.2f} points less accurate{_saves(row, decided)}"
    if not useful:
        return "no better", "another point is as accurate and quicker"
    more_w = None if row.power_w is None or decided.power_w is None else row.power_w - decided.power_w
    if bound in _BROKEN:
        dearer = f"draws {more_w:.2f} W more at work; " if more_w is not None and more_w > 0 else ""
        return bound, f"{dearer}{_BROKEN[bound]}"
    if goals.maximise == "answers_per_joule" and bound == "none":
        return "thrift", "gives fewer right answers for its energy"
    if bound == "none":
        return "", "nothing spoke against it by itself; the policy's reason says why"
    return bound, f"the policy named '{bound}'; nothing else spoke against it"


def _saves(row: Row, decided: Row) -> str:
    """What a less accurate point would have saved."""
    saved = []
    if (ms := decided.latency_p50_ms - row.latency_p50_ms) > 0:
        saved.append(f"{ms:.2g} ms")
    if row.energy_j is not None and decided.energy_j is not None and (joules := decided.energy_j - row.energy_j) > 0:
        saved.append(f"{1e3 * joules:.2g} mJ")
    return f", would save {' and '.join(saved)}" if saved else ""
