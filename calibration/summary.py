"""From visits to figures: quantiles, throughput, processor time, power and energy of each operating point.

Energy above idle subtracts the idle power of the idle cells before and after, interpolated in time. Where the meter
gives bounds, low minus low and high minus high are taken: both readings come from the same machine and the same
meter, whose error (a wrong gain, or where this machine lies within the population behind a model) is the same in both.
Bounds are put in order afterwards, and the spread over rounds is added on top.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration import disturbance
from calibration.rounds import IDLE, Metered, Visit
from calibration.statistics import Interval, metered_interval, positive_interval
from calibration.table import QUANTILES

SUSPECT = 0.05  # two energy sources that differ by more than this share may contradict each other

Triple = tuple[float, float, float]  # value, low, high


class Energies(NamedTuple):
    """What one meter told of an operating point: its power back to back, and joules per image."""

    power_w: Interval
    energy_j: Interval
    net_energy_j: Interval | None  # None where no idle cell was metered


class Figures(NamedTuple):
    """The latencies of one operating point, summed up."""

    p50_ms: Interval
    p90_ms: float
    p99_ms: Interval
    throughput_per_s: float
    cpu_s: float
    rounds: int
    samples: int
    quantiles_ms: tuple[float, ...]


def kept(visits: Sequence[Visit]) -> tuple[list[Visit], dict[int, Counter[str]]]:
    """The visits that nothing disturbed; and by subject why others are left out, and how many."""
    reasons = disturbance.reasons([visit.disturbance for visit in visits])
    good = [visit for visit, reason in zip(visits, reasons, strict=True) if reason is None]
    left_out: dict[int, Counter[str]] = defaultdict(Counter)
    for visit, reason in zip(visits, reasons, strict=True):
        if reason is not None:
            left_out[visit.subject][reason] += 1
    return good, left_out


def round_medians(visits: Sequence[Visit]) -> list[float]:
    """The median latency in ms of each visit."""
    return [float(np.median(visit.latencies_ms)) for visit in visits]


def median_interval(visits: Sequence[Visit], wider: float) -> Interval:
    """The pooled median latency in ms with its interval over rounds."""
    return _quantile(visits, 50, wider)


def idle_power(visits: Sequence[Visit], source: str, wider: float) -> Interval | None:
    """Watts that one meter told while nothing was asked of the machine; None where it told none."""
    rates = [_watts(visit.energies[source]) for visit in visits if visit.subject == IDLE and source in visit.energies]
    return metered_interval(rates, wider=wider) if rates else None


def figures(visits: Sequence[Visit], batch_size: int, wider: float) -> Figures:
    """Sums up the latencies of one operating point.

    Args:
        visits: its own, at least one.
        batch_size: images per inference.
        wider: of the intervals, see :func:`calibration.statistics.widening`.
    """
    images = [len(visit.latencies_ms) * batch_size for visit in visits]
    pooled: NDArray[np.float64] = np.concatenate([visit.latencies_ms for visit in visits])
    return Figures(
        p50_ms=_quantile(visits, 50, wider),
        p90_ms=float(np.percentile(pooled, 90)),
        p99_ms=_quantile(visits, 99, wider),
        throughput_per_s=float(np.median([n / visit.wall_s for visit, n in zip(visits, images, strict=True)])),
        cpu_s=float(np.median([visit.cpu_s / n for visit, n in zip(visits, images, strict=True)])),
        rounds=len(visits),
        samples=len(pooled),
        quantiles_ms=tuple(float(value) for value in np.quantile(pooled, QUANTILES)),
    )


def energies(
    visits: Sequence[Visit], idle: Sequence[Visit], batch_size: int, source: str, wider: float
) -> Energies | None:
    """What one meter told of an operating point; None where it told nothing.

    Args:
        visits: its own, at least one.
        idle: the idle visits of the whole run.
        batch_size: images per inference.
        source: the meter's.
        wider: of the intervals.
    """
    images = [len(visit.latencies_ms) * batch_size for visit in visits]
    told = [
        (visit.middle_s, visit.energies[source], count)
        for visit, count in zip(visits, images, strict=True)
        if source in visit.energies
    ]
    if not sum(energy.joules for _, energy, _ in told) > 0:  # a counter that never moved has measured nothing
        return None
    net = None
    idle_watts = _interpolated(idle, source, [middle_s for middle_s, _, _ in told])
    if idle_watts is not None:
        net = metered_interval(
            [
                _above(energy[:3], _scaled(watts, energy.seconds), count)
                for (_, energy, count), watts in zip(told, idle_watts, strict=True)
            ],
            positive=False,
            wider=wider,
        )
    return Energies(
        power_w=metered_interval([_watts(energy) for _, energy, _ in told], wider=wider),
        energy_j=metered_interval([_scaled(energy[:3], 1 / count) for _, energy, count in told], wider=wider),
        net_energy_j=net,
    )


def net_joules(visit: Visit, idle: Sequence[Visit], source: str) -> float | None:
    """Joules above idle per answer of one visit; None where the meter did not tell, or no idle cell was metered."""
    watts = _interpolated(idle, source, [visit.middle_s])
    if watts is None or source not in visit.energies:
        return None
    energy = visit.energies[source]
    return (energy.joules - watts[0][0] * energy.seconds) / len(visit.latencies_ms)


class Checked(NamedTuple):
    """One meter's figures beside a second one's."""

    energies: Energies
    check_j: float | None  # joules per image by the second; None where there is none, or it told nothing above 0
    suspect: bool  # they contradict each other


def checked(first: Energies, second: Energies | None) -> Checked:
    """The first meter's figures, and whether the second one's bear them out.

    Two sources of one domain should agree. Where they differ by more than 5 % and beyond the second's own doubt, nobody
    here can tell which is right, so the first's intervals are widened until they cover both.
    """
    if second is None:
        return Checked(first, None, False)
    ours, theirs = first.energy_j, second.energy_j
    if abs(theirs.value / ours.value - 1) <= SUSPECT or theirs.low <= ours.value <= theirs.high:
        return Checked(first, theirs.value if theirs.value > 0 else None, False)
    net = first.net_energy_j
    if net is not None and second.net_energy_j is not None:
        net = _covering(net, second.net_energy_j)
    both = Energies(_covering(first.power_w, second.power_w), _covering(ours, theirs), net)
    return Checked(both, theirs.value if theirs.value > 0 else None, True)


def _covering(a: Interval, b: Interval) -> Interval:
    return Interval(a.value, min(a.low, b.low), max(a.high, b.high))


def _quantile(visits: Sequence[Visit], percent: float, wider: float) -> Interval:
    pooled: NDArray[np.float64] = np.concatenate([visit.latencies_ms for visit in visits])
    rounds = [float(np.percentile(visit.latencies_ms, percent)) for visit in visits]
    return positive_interval(float(np.percentile(pooled, percent)), rounds, wider)


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
