"""Intervals for measurements that come in rounds, and whether two such measurements differ.

The unit of replication is the round, not the single inference: within a round samples share clock, heat and
neighbours, so pooling them all into one interval would claim far too much. Knows nothing of engines or meters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
_MOST_ALIKE = 0.8  # correlation of neighbouring rounds beyond which few rounds can tell nothing anyway
_LEAST_FOR_ALIKE = 6  # rounds
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


@functools.lru_cache(maxsize=1024)
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


def widening(many: Sequence[Sequence[float]]) -> float:
    """By how much intervals must be wider because rounds resemble the ones next to them: 1 where they do not.

    With lag-1 correlation r of the rounds the variance of their mean is about (1 + r) / (1 - r) times s² / R (Bartlett
    1946, for a first-order process). r is estimated over all series together, from logarithms, and corrected for the
    bias that the unknown mean brings, -(1 + 3 r) / R (Marriott and Pope 1954, Kendall 1954).

    Args:
        many: per operating point one positive value for each of its rounds, in order.
    """
    above = below = length = count = 0.0
    for series in many:
        if len(series) < _LEAST_FOR_ALIKE:
            continue
        logs = np.log(np.asarray(series, np.float64))
        logs -= logs.mean()
        above += float(logs[:-1] @ logs[1:]) * len(logs) / (len(logs) - 1)
        below += float(logs @ logs)
        length, count = length + len(logs), count + 1
    if below <= 1e-12 * count:  # no spread beyond rounding
        return 1.0
    mean_length = length / count
    alike = (mean_length * above / below + 1) / (mean_length - 3)
    alike = min(_MOST_ALIKE, max(0.0, alike))
    return math.sqrt((1 + alike) / (1 - alike))


class Shift(NamedTuple):
    """How much larger B is than A, as a ratio with the bounds of its interval."""

    ratio: float
    low: float
    high: float


def shift(a: Interval, a_rounds: int, b: Interval, b_rounds: int, confidence: float = CONFIDENCE) -> Shift:
    """The ratio B / A of two independent measurements of positive quantities, with Welch's interval on logarithms.

    Each one's standard error is taken from its own 95 % interval over its rounds. Bounds are 0 and infinite where
    either has fewer than two rounds.
    """
    ratio = b.value / a.value
    errors, shares = [], []
    for interval, rounds in ((a, a_rounds), (b, b_rounds)):
        if rounds < 2 or interval.low <= 0:
            return Shift(ratio, 0.0, math.inf)
        error = math.log(interval.high / interval.low) / 2 / student_quantile(rounds - 1)
        errors.append(error**2)
        shares.append(error**4 / (rounds - 1))
    variance = sum(errors)
    if variance == 0:
        return Shift(ratio, ratio, ratio)
    df = max(1, math.floor(variance**2 / sum(shares) + 1e-6))
    width = min(student_quantile(df, confidence) * math.sqrt(variance), _WIDEST)
    return Shift(ratio, ratio * math.exp(-width), ratio * math.exp(width))


def positive_interval(pooled: float, rounds: Sequence[float], wider: float = 1.0) -> Interval:
    """The interval of a quantity above zero, such as a latency quantile.

    The value is that of all samples pooled; the width is the t interval of the rounds' own values on a logarithmic
    scale, times ``wider`` (see :func:`widening`), so the bounds stay positive and are relative. With one round the
    interval begins at 0 and ends far away.
    """
    width = wider * half_width([math.log(value) for value in rounds])
    return Interval(pooled, pooled * math.exp(-width), pooled * math.exp(min(width, _WIDEST)))


def metered_interval(
    rounds: Sequence[tuple[float, float, float]], *, positive: bool = True, wider: float = 1.0
) -> Interval:
    """The interval of what a meter says, from (value, low, high) per round.

    ``low`` and ``high`` are the meter's own doubt (its resolution, or the spread of the population a model was fitted
    on). It is the same in each round and does not average out, so it is averaged, and the t interval of the rounds'
    values, ``wider`` as above, widens it on both sides: by a factor, or for what may be negative by an amount.
    """
    value, low, high = (float(np.mean(column)) for column in zip(*rounds, strict=True))
    values = [value for value, _, _ in rounds]
    if positive and min(values) > 0:
        factor = math.exp(min(wider * half_width([math.log(value) for value in values]), _WIDEST))
        return Interval(value, max(0.0, low) / factor, high * factor)
    width = wider * half_width(values)
    return Interval(value, low - width, high + width)
