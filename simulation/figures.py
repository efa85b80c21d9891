"""The figures an agent keeps of its own work, computed as it does: arrival rate, slowdown, miss rate.

A policy must see in a replay what it would see in the agent, so the smoothing is the agent's: the rate over about five
seconds, slowdown as an exponentially weighted mean of logarithms per operating point, misses over about twenty answers;
all but the rate are unknown again when nothing fed them for :data:`STALE_S`. Written for one thread and a tight loop.
"""

from __future__ import annotations

import math

STALE_S = 30.0
_RATE_TIME_CONSTANT_S = 5.0
_SLOWDOWN_WEIGHT = 0.1  # of the newest batch
_MISS_WEIGHT = 0.05  # of the newest answer


class Figures:
    """Fed by the server, read once a control tick.

    Args:
        points: how many operating points the table has.
    """

    def __init__(self, points: int) -> None:
        self._log_ratio = [0.0] * points
        self._log_ratio_s = [-math.inf] * points  # when it was last fed
        self._last_point = 0
        self._miss, self._miss_s = 0.0, -math.inf
        self._rate_hz: float | None = None

    def served(self, now_s: float, point: int, log_ratio: float) -> None:
        """A batch took exp(``log_ratio``) times what the table says."""
        if now_s - self._log_ratio_s[point] < STALE_S:
            before = self._log_ratio[point]
            log_ratio = before + _SLOWDOWN_WEIGHT * (log_ratio - before)
        self._log_ratio[point], self._log_ratio_s[point], self._last_point = log_ratio, now_s, point

    def answered(self, now_s: float, missed: float) -> None:
        """A request with a deadline was answered late (1) or on time (0)."""
        if now_s - self._miss_s < STALE_S:
            missed = self._miss + _MISS_WEIGHT * (missed - self._miss)
        self._miss, self._miss_s = missed, now_s

    def arrived(self, requests: int, span_s: float) -> None:
        """So many requests came in since the last call, ``span_s`` ago."""
        rate = requests / span_s
        if self._rate_hz is None:
            self._rate_hz = rate
        else:
            self._rate_hz += (1.0 - math.exp(-span_s / _RATE_TIME_CONSTANT_S)) * (rate - self._rate_hz)

    @property
    def arrival_rate_hz(self) -> float | None:
        """Requests per second; None before the first period has passed."""
        return self._rate_hz

    def slowdown(self, now_s: float, point: int) -> float | None:
        """Measured latency over the table's at ``point``, or at the point that answered last; None when stale."""
        for asked in (point, self._last_point):
            if now_s - self._log_ratio_s[asked] < STALE_S:
                return math.exp(self._log_ratio[asked])
        return None

    def miss_rate(self, now_s: float) -> float | None:
        """Share of recent answers that missed their deadline; None when stale, or when there is no deadline."""
        return self._miss if now_s - self._miss_s < STALE_S else None
