"""Service times from two quantiles, and waits in a queue with one server."""

from __future__ import annotations

import math
from statistics import NormalDist

_Z99 = 2.3263478740408408  # the standard normal's 99 % quantile


def lognormal(p50: float, p99: float) -> tuple[float, float]:
    """Mean and squared coefficient of variation of the lognormal with these quantiles.

    ``ln`` of the variable has standard deviation ``s = ln(p99 / p50) / z99``; the mean is ``p50 * exp(s^2 / 2)`` and
    the squared coefficient of variation ``exp(s^2) - 1``. A p99 at or below p50 counts as no variation.
    """
    if not 0 < p50 < p99:
        return p50, 0.0
    variance = (math.log(p99 / p50) / _Z99) ** 2
    return p50 * math.exp(variance / 2), math.expm1(variance)


def mean_wait(rate: float, service: float, squared_variation: float) -> float:
    """Mean time in an M/G/1 queue: ``rho / (1 - rho) * (1 + C^2) / 2 * service``, infinite from rho = 1.

    The Pollaczek-Khinchine formula (Kleinrock, Queueing Systems I, 1975, chapter 5): Poisson arrivals, one server,
    any service time with this mean and squared coefficient of variation. ``rate`` is per the unit of ``service``.
    """
    utilisation = rate * service
    if utilisation >= 1:
        return math.inf
    return utilisation / (1 - utilisation) * (1 + squared_variation) / 2 * service


def quantile(p50: float, p99: float, share: float) -> float:
    """The ``share`` quantile of the lognormal with these quantiles; p99 itself, unrounded, at 0.99."""
    if share == 0.99 or not 0 < p50 < p99:
        return p99
    return p50 * math.pow(p99 / p50, NormalDist().inv_cdf(share) / _Z99)


def on_time(rate: float, service: tuple[float, ...], squared_variation: float, deadline: float) -> float:
    """Share of answers within ``deadline``, with ``service`` a few equally likely service times.

    The wait is taken as zero with probability ``1 - rho`` and exponential otherwise, with the mean of
    :func:`mean_wait`: exact for M/M/1, the usual approximation for M/G/1 (Tijms, A First Course in Stochastic Models,
    2003, chapter 9). 0 from rho = 1.
    """
    mean = sum(service) / len(service)
    utilisation = rate * mean
    if utilisation >= 1:
        return 0.0
    wait = mean_wait(rate, mean, squared_variation)
    total = 0.0
    for time in service:
        left = deadline - time
        if left >= 0:
            total += 1.0 - (utilisation * math.exp(-utilisation * left / wait) if wait > 0 else 0.0)
    return total / len(service)


def spread(p50: float, p99: float, count: int) -> tuple[float, ...]:
    """``count`` equally likely times of the lognormal with these quantiles: the medians of equal slices."""
    sigma = math.log(p99 / p50) / _Z99 if 0 < p50 < p99 else 0.0
    normal = NormalDist()
    return tuple(p50 * math.exp(sigma * normal.inv_cdf((k + 0.5) / count)) for k in range(count))
