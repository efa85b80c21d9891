"""The figures an agent keeps of its own work, computed as it does: arrival rate, slowdown, miss rate.

A policy must see in a replay what it would see in the agent, so the smoothing is the agent's: the rate over about five
seconds, slowdown as an exponentially weighted mean of logarithms per operating point, misses over about twenty answers;
all but the rate are unknown again when nothing fed them for :data:`simulation.kernel.STALE_S`. The hot loop feeds the
last two (:mod:`simulation.kernel`); here they are read.
"""

from __future__ import annotations

import math
from typing import Any

from simulation import kernel

_RATE_TIME_CONSTANT_S = 5.0


class Figures:
    """Read once a control tick.

    Args:
        real: the hot loop's numbers.
        whole: the hot loop's counters.
        log_ratio: per operating point, smoothed logarithm of measured over calibrated latency.
        log_ratio_s: when that was last fed.
    """

    def __init__(self, real: Any, whole: Any, log_ratio: Any, log_ratio_s: Any) -> None:
        self._real, self._whole, self._log_ratio, self._log_ratio_s = real, whole, log_ratio, log_ratio_s
        self._arrived = 0
        self._rate_hz: float | None = None
        self._span_s = self._weight = 0.0

    def passed(self, span_s: float) -> None:
        """So much time went by since the last call, or since the start."""
        arrived = int(self._whole[kernel.ARRIVED])
        rate = (arrived - self._arrived) / span_s
        self._arrived = arrived
        if self._rate_hz is None:
            self._rate_hz = rate
            return
        if span_s != self._span_s:
            self._span_s, self._weight = span_s, 1.0 - math.exp(-span_s / _RATE_TIME_CONSTANT_S)
        self._rate_hz += self._weight * (rate - self._rate_hz)

    @property
    def arrival_rate_hz(self) -> float | None:
        """Requests per second; None before the first period has passed."""
        return self._rate_hz

    def slowdown(self, now_s: float) -> float | None:
        """Measured latency over the table's at the point in use, or that answered last; None when stale."""
        for asked in (self._whole[kernel.CEILING], self._whole[kernel.TOLD_POINT]):
            if now_s - self._log_ratio_s[asked] < kernel.STALE_S:
                return math.exp(self._log_ratio[asked])
        return None

    def miss_rate(self, now_s: float) -> float | None:
        """Share of recent answers that missed their deadline; None when stale, or when there is no deadline."""
        return float(self._real[kernel.MISS]) if now_s - self._real[kernel.MISS_S] < kernel.STALE_S else None
