"""From visits to figures: quantiles, throughput, processor time, power and energy of each operating point.

Energy above idle subtracts the idle power of the idle cells before and after, interpolated in time. Where the meter
gives bounds, low minus low and high minus high are taken: both readings come from the same machine and the same
meter, whose error (a wrong gain, or where this machine lies within the population behind a model) is the same in both.
Bounds are put in order afterwards, and the spread over rounds is added on top.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration import disturbance
from calibration.rounds import IDLE, Metered, Visit
from calibration.statistics import Interval, metered_interval, positive_interval

Triple = tuple[float, float, float]  # value, low, high


class Figures(NamedTuple):
    """What the visits of one operating point come to; energies are per image, None where there is no meter."""

    p50_ms: Interval
    p90_ms: float
    p99_ms: Interval
    throughput_per_s: float
    cpu_s: float
    rounds: int
    samples: int
    power_w: Interval | None
    energy_j: Interval | None
    net_energy_j: Interval | None


def kept(visits: Sequence[Visit]) -> tuple[list[Visit], Counter[str]]:
    """The visits that nothing disturbed, and why the others are left out."""
    reasons = disturbance.reasons([visit.disturbance for visit in visits])
    good = [visit for visit, reason in zip(visits, reasons, strict=True) if reason is None]
    return good, Counter(reason for reason in reasons if reason is not None)


def median_interval(visits: Sequence[Visit]) -> Interval:
    """The pooled median latency in ms with its interval over rounds."""
    return _quantile(visits, 50)


def idle_power(visits: Sequence[Visit], source: str) -> Interval | None:
    """Watts that one meter told while nothing was asked of the machine; None where it told none."""
    rates = [_watts(visit.energies[source]) for visit in visits if visit.subject == IDLE and source in visit.energies]
    return metered_interval(rates) if rates else None


def figures(visits: Sequence[Visit], idle: Sequence[Visit], batch_size: int, source: str) -> Figures:
    """Sums up one operating point.

    Args:
        visits: its own, at least one.
        idle: the idle visits of the whole run.
        batch_size: images per inference.
        source: of the meter whose figures count for it.
    """
    images = [len(visit.latencies_ms) * batch_size for visit in visits]
    told = [
        (visit.middle_s, visit.energies[source], count)
        for visit, count in zip(visits, images, strict=True)
        if source in visit.energies
    ]
    if not sum(energy.joules for _, energy, _ in told) > 0:  # a counter that never moved has measured nothing
        told = []
    idle_watts = _interpolated(idle, source, [middle_s for middle_s, _, _ in told])
    power = gross = net = None
    if told:
        power = metered_interval([_watts(energy) for _, energy, _ in told])
        gross = metered_interval([_scaled(energy[:3], 1 / count) for _, energy, count in told])
    if told and idle_watts is not None:
        net = metered_interval(
            [
                _above(energy[:3], _scaled(watts, energy.seconds), count)
                for (_, energy, count), watts in zip(told, idle_watts, strict=True)
            ],
            positive=False,
        )
    return Figures(
        p50_ms=_quantile(visits, 50),
        p90_ms=_quantile(visits, 90).value,
        p99_ms=_quantile(visits, 99),
        throughput_per_s=float(np.median([n / visit.wall_s for visit, n in zip(visits, images, strict=True)])),
        cpu_s=float(np.median([visit.cpu_s / n for visit, n in zip(visits, images, strict=True)])),
        rounds=len(visits),
        samples=sum(len(visit.latencies_ms) for visit in visits),
        power_w=power,
        energy_j=gross,
        net_energy_j=net,
    )


def _quantile(visits: Sequence[Visit], percent: float) -> Interval:
    pooled: NDArray[np.float64] = np.concatenate([visit.latencies_ms for visit in visits])
    rounds = [float(np.percentile(visit.latencies_ms, percent)) for visit in visits]
    return positive_interval(float(np.percentile(pooled, percent)), rounds)


def _watts(energy: Metered) -> Triple:
    return _scaled(energy[:3], 1 / energy.seconds)


def _scaled(triple: Triple, factor: float) -> Triple:
    return triple[0] * factor, triple[1] * factor, triple[2] * factor


def _above(gross: Triple, idle: Triple, images: int) -> Triple:
    value, low, high = ((g - i) / images for g, i in zip(gross, idle, strict=True))
    return value, min(value, low, high), max(value, low, high)


def _interpolated(idle: Sequence[Visit], source: str, times: Sequence[float]) -> list[Triple] | None:
    """Idle watts at ``times``, between the idle cells before and after; None where no idle cell was metered."""
    known = sorted((visit.middle_s, _watts(visit.energies[source])) for visit in idle if source in visit.energies)
    if not known:
        return None
    at = [time for time, _ in known]
    columns = [np.interp(times, at, [watts[k] for _, watts in known]) for k in range(3)]
    return [(float(a), float(b), float(c)) for a, b, c in zip(*columns, strict=True)]
