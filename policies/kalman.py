"""ALERT's adaptive Kalman filter: one factor by which all latencies of a table are off, and how sure that is.

With the observed ratio ``z`` of latency over the table's::

    y     = z - mu
    Q    <- max(Q0, alpha Q + (1 - alpha) (K_before y_before)^2)
    K     = (sigma2 + Q) / (sigma2 + Q + R)
    mu   <- mu + K y
    sigma2 <- (1 - K) (sigma2 + Q)

Source: Wan et al., ALERT, USENIX ATC 2020. The process noise ``Q`` follows the latest innovations, so that
the filter is quick after a change and calm otherwise. The floor ``Q0`` is ours, 5 % a step: what is observed here is
not a single inference but a ratio smoothed over several.
"""

from __future__ import annotations

import math

import msgspec

ALPHA = 0.3  # weight of the old process noise
LEAST_NOISE = 0.05 * 0.05  # Q0
MEASUREMENT_NOISE = 0.001  # R


class SlowdownFilter(msgspec.Struct, forbid_unknown_fields=True):
    """The factor's mean and variance; part of a policy's state."""

    mean: float = 1.0
    variance: float = 0.1
    process: float = LEAST_NOISE
    moved: float = 0.0  # K y of the step before

    def update(self, ratio: float) -> None:
        """Takes one observed ratio in."""
        self.process = max(LEAST_NOISE, ALPHA * self.process + (1 - ALPHA) * self.moved * self.moved)
        predicted = self.variance + self.process
        gain = predicted / (predicted + MEASUREMENT_NOISE)
        self.moved = gain * (ratio - self.mean)
        self.mean = max(1e-3, self.mean + self.moved)
        self.variance = (1 - gain) * predicted

    @property
    def deviation(self) -> float:
        """Standard deviation of the next ratio: what is unsure now, and what may change until then."""
        return math.sqrt(self.variance + self.process)
