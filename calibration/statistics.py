"""Intervals for measurements that come in rounds.

The unit of replication is the round, not the single inference: within a round samples share clock, heat and
neighbours, so pooling them all into one interval would claim far too much. Knows nothing of engines or meters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
_WIDEST = 50.0  # of a logarithm: keeps bounds finite where the spread says nothing


class Interval(NamedTuple):
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def relative_half_width(self) -> float:
        """Half the interval over the value; infinite where nothing is known of the spread."""
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.inf


def student_share(t: float, df: int) -> float:
    """P(-t < T < t) for Student's distribution; the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(df))
    cos2, sine = math.cos(theta) ** 2, math.sin(theta)
    term = math.cos(theta) if df % 2 else 1.0
    total = 0.0 if df == 1 else term
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + sine * total) if df % 2 else sine * total


def student_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """The t for which ``student_share(t, df)`` is ``confidence``, by bisection; 12.71 for df 1, 1.96 for many."""
    low, high = 0.0, 1e4
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if student_share(middle, df) < confidence else (low, middle)
    return (low + high) / 2


def half_width(rounds: Sequence[float]) -> float:
    """t * s / sqrt(R) over one value per round; infinite with fewer than two rounds."""
    if len(rounds) < 2:
        return math.inf
    return student_quantile(len(rounds) - 1) * float(np.std(rounds, ddof=1)) / math.sqrt(len(rounds))


def positive_interval(pooled: float, rounds: Sequence[float]) -> Interval:
    """The interval of a quantity above zero, such as a latency quantile.

    The value is that of all samples pooled; the width is the t interval of the rounds' own values on a logarithmic
    scale, so the bounds stay positive and are relative. With one round the interval begins at 0 and ends far away.
    """
    width = half_width([math.log(value) for value in rounds])
    return Interval(pooled, pooled * math.exp(-width), pooled * math.exp(min(width, _WIDEST)))


def metered_interval(rounds: Sequence[tuple[float, float, float]], *, positive: bool = True) -> Interval:
    """The interval of what a meter says, from (value, low, high) per round.

    ``low`` and ``high`` are the meter's own doubt (its resolution, or the spread of the population a model was fitted
    on). It is the same in each round and does not average out, so it is averaged, and the t interval of the rounds'
    values widens it on both sides: by a factor, or for a quantity that may be negative by an amount.
    """
    value, low, high = (float(np.mean(column)) for column in zip(*rounds, strict=True))
    values = [value for value, _, _ in rounds]
    if positive and min(values) > 0:
        factor = math.exp(min(half_width([math.log(value) for value in values]), _WIDEST))
        return Interval(value, max(0.0, low) / factor, high * factor)
    width = half_width(values)
    return Interval(value, low - width, high + width)
