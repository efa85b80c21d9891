"""Service times from two quantiles, and the mean wait in a queue with one server."""

from __future__ import annotations

import math

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
