"""Axes of a chart: from values to places, and round tick values. Knows nothing of drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple


class Axis(NamedTuple):
    """The range an axis shows and what it measures, with its unit in ``label``."""

    low: float
    high: float
    label: str
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], label: str, *, log: bool = False, zero: bool = False) -> Axis:
        """An axis that shows all of ``values`` with a little room; ``zero`` makes it start at 0."""
        shown = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        if not shown:
            return cls(1.0 if log else 0.0, 10.0 if log else 1.0, label, log)
        low, high = min(shown), max(shown)
        if log:
            return cls(low / 1.25, high * 1.25, label, True)
        room = 0.06 * (high - low) or 0.06 * abs(high) or 0.5
        return cls(0.0 if zero and low >= 0 else low - room, high + room, label)

    def place(self, value: float) -> float | None:
        """Where a value lies between ``low`` (0) and ``high`` (1); None when it cannot be shown."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        low, high = self._range()
        if self.log:
            return (math.log10(value) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return (value - low) / (high - low)

    def ticks(self, most: int = 7) -> list[tuple[float, str]]:
        """At most about ``most`` round values within the range, with their texts."""
        low, high = self._range()
        if self.log and (decades := _log_ticks(low, high, most)):
            return decades
        step = _nice_step((high - low) / max(1, most))
        while math.ceil(low / step - 1e-9) > math.floor(high / step + 1e-9):  # none lies within a range below a step
            step = _nice_step(step / 2.5)
        decimals = max(0, -math.floor(math.log10(step)))
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [(k * step, f"{k * step + 0.0:,.{decimals}f}") for k in range(first, last + 1)]

    def _range(self) -> tuple[float, float]:
        low, high = self.low, self.high
        if self.log:
            low = max(low, 1e-12)
            return (low, high) if high > low else (low / 1.5, low * 1.5)
        return (low, high) if high > low else (low - 0.5, low + 0.5)


def _nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is at least ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [f * 10.0**d for d in decades for f in factors]
        values = [v for v in values if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(values) <= most or factors == (1,):
            break
    if len(values) < 2:
        return []  # less than a decade without two round values: linear ticks read better
    keep = values[:: max(1, math.ceil(len(values) / most))]
    return [(v, f"{v:,.0f}" if v >= 1000 else f"{v:.3g}") for v in keep]
