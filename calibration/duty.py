"""How much slower an answer is after a rest: measured at a few rests, and fitted.

Back to back an engine keeps clocks high and caches warm. At ten answers a second it is up to four times slower, so a
table of the tight loop alone would promise too much. The curve rises from the latency back to back and levels off:
``p50 + extra * (1 - exp(-rest / settle))``, two numbers.

* :func:`plan`: what fits into the time. :func:`fit`: from visits to a :class:`calibration.table.Duty`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.rounds import Visit
from calibration.statistics import metered_interval
from calibration.table import Duty

NetEnergies = Sequence[float | None]
Values = NDArray[np.float64]

LEAST_ROUNDS, MOST_ROUNDS = 4, 8
_MOST_ANSWERS, _LEAST_ANSWERS = 8, 3  # a cell
WARMUP = 1  # answers at the same rest before those that count
_SETTLES = 61  # candidates, evenly spaced on a logarithmic scale


class Plan(NamedTuple):
    """The rests and the answers of one cell at each of them."""

    rests_ms: tuple[float, ...]
    answers: int


def plan(rests_ms: Sequence[float], latencies_ms: Sequence[float], budget_s: float) -> Plan | None:
    """The most rests, then the most answers a cell, of which the least rounds fit into the budget.

    None where not even two rests fit: one alone would not tell how fast the latency rises.

    Args:
        rests_ms: those wished for, shortest first; the longest, being the dearest, is left out first.
        latencies_ms: of the operating points, back to back.
        budget_s: seconds.
    """
    for count in range(len(rests_ms), 1, -1):
        for answers in range(_MOST_ANSWERS, _LEAST_ANSWERS - 1, -1):
            one_ms = sum(2 * latency + rest for latency in latencies_ms for rest in rests_ms[:count])
            if LEAST_ROUNDS * (answers + WARMUP) * one_ms <= 1e3 * budget_s:
                return Plan(tuple(rests_ms[:count]), answers)
    return None


def fit(visits: Sequence[Visit], p50_ms: float, images: int, net_j: float | None, net_energies: NetEnergies) -> Duty:
    """The curve through one operating point's visits.

    Args:
        visits: with their rests, at least one.
        p50_ms: the median back to back, where the curve begins.
        images: per answer.
        net_j: joules per image above idle, back to back.
        net_energies: joules per answer above idle of each visit, in their order; None where no meter told.
    """
    by_rest: dict[float, list[float]] = defaultdict(list)
    for visit in visits:
        by_rest[visit.rest_ms] += visit.latencies_ms.tolist()
    rests = np.array(sorted(by_rest))
    medians = np.array([np.median(by_rest[rest]) for rest in rests])
    settle_ms = _settle_ms(rests, medians - p50_ms)
    extra_ms = _amplitude(rests, medians - p50_ms, settle_ms)
    rounds: dict[int, list[Visit]] = defaultdict(list)
    for visit in visits:
        rounds[visit.round].append(visit)
    each = [
        _amplitude(
            np.array([visit.rest_ms for visit in of_one]),
            np.array([np.median(visit.latencies_ms) for visit in of_one]) - p50_ms,
            settle_ms,
        )
        for of_one in rounds.values()
    ]
    interval = metered_interval([(value, value, value) for value in each], positive=False)
    spread = (interval.high - interval.low) / 2
    joules = None
    told = [(visit.rest_ms, net / images) for visit, net in zip(visits, net_energies, strict=True) if net is not None]
    if net_j is not None and told:
        joules = _amplitude(np.array([rest for rest, _ in told]), np.array([j for _, j in told]) - net_j, settle_ms)
    return Duty(
        rests_ms=tuple(float(rest) for rest in rests),
        latency_ms=tuple(float(median) for median in medians),
        settle_ms=settle_ms,
        extra_ms=extra_ms,
        extra_low_ms=max(0.0, extra_ms - spread),
        extra_high_ms=extra_ms + spread,
        rounds=len(rounds),
        samples=sum(len(visit.latencies_ms) for visit in visits),
        extra_net_energy_j=joules,
    )


def _settle_ms(rests_ms: Values, extras_ms: Values) -> float:
    """The time constant whose curve leaves the least squares; within what the rests can tell."""
    candidates = np.geomspace(rests_ms.min() / 4, 2 * rests_ms.max(), _SETTLES)

    def left(settle_ms: float) -> float:
        risen = -np.expm1(-rests_ms / settle_ms)
        return float(np.sum((extras_ms - _amplitude(rests_ms, extras_ms, settle_ms) * risen) ** 2))

    return float(min(candidates, key=left))


def _amplitude(rests_ms: Values, extras: Values, settle_ms: float) -> float:
    """The least squares' factor before 1 - exp(-rest / settle), at least 0."""
    risen = -np.expm1(-rests_ms / settle_ms)
    return max(0.0, float(risen @ extras / (risen @ risen)))
