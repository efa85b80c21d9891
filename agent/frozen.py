"""Frozen sensors: one that says the same to the last digit while what drives it changes says nothing.

A sensor that hangs in its driver often goes on giving its last value. The rules are for being wrong rarely: a reading
counts as frozen when it has not moved at all

* for five minutes, and the power (or load) that heats or draws it was, from one whole minute to another of these,
  half as high again (and 2 W more; of the load, half of all cores more): temperature and power;
* since the battery has given, by its own power, five per cent of what it can hold: its charge and energy.

As soon as it moves it is believed again. Knows nothing of drivers; time comes with the values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FROZEN_S = 300.0
_MINUTE_S = 60.0
_RATIO, _LEAST_W, _LEAST_LOAD = 1.5, 2.0, 0.5
_SHARE_OF_BATTERY = 0.05
_DRIVEN_BY = {
    "temperature_c": ("power_w", "battery_power_w", "cpu_load"),
    "power_w": ("cpu_load",),
    "battery_power_w": ("cpu_load",),
}
_GAUGES = ("battery_charge", "battery_energy_j")


class _Minutes:
    """The lowest and the highest mean of whole minutes."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._sum = self._weight = 0.0

    def add(self, value: float, seconds: float) -> None:
        self._sum += value * seconds
        self._weight += seconds
        if self._weight >= _MINUTE_S:
            mean = self._sum / self._weight
            self.low, self.high = min(self.low, mean), max(self.high, mean)
            self._sum = self._weight = 0.0

    def moved(self, name: str) -> bool:
        """Whether minutes differ so much that whatever depends on it must have moved."""
        if name == "cpu_load":
            return self.high - self.low >= _LEAST_LOAD
        low, high = sorted((abs(self.low), abs(self.high)))
        return self.high - self.low >= _LEAST_W and high >= _RATIO * low and math.isfinite(high)


class _Still:
    """One quantity since it last moved."""

    def __init__(self, value: float, now_s: float) -> None:
        self.value, self.since_s = value, now_s
        self.drivers: dict[str, _Minutes] = {}
        self.given_j = 0.0


class Frozen:
    """Watches readings, one call a control period."""

    def __init__(self) -> None:
        self._still: dict[str, _Still] = {}
        self._before_s: float | None = None

    def check(self, now_s: float, values: Mapping[str, Any]) -> dict[str, str]:
        """Which quantities are frozen, and why.

        Args:
            now_s: on a monotonic clock.
            values: by field of Conditions; None = unknown.
        """
        passed_s = now_s - self._before_s if self._before_s is not None else 0.0
        self._before_s = now_s
        if not 0 <= passed_s <= _MINUTE_S:  # the machine slept: no minute of anything
            self._still.clear()
        found = {}
        for name in (*_DRIVEN_BY, *_GAUGES):
            value = values.get(name)
            still = self._still.get(name)
            if value is None or still is None or still.value != value:
                self._still.pop(name, None)
                if value is not None:
                    self._still[name] = _Still(value, now_s)
                continue
            still_s = now_s - still.since_s
            if name in _GAUGES:
                why = _emptied(still, values, passed_s)
            else:
                why = _driven(still, name, values, passed_s)
                why = why if still_s >= FROZEN_S else ""
            if why:
                found[name] = f"exactly {value:g} for {still_s:.0f} s, {why}"
        return found


def _driven(still: _Still, name: str, values: Mapping[str, Any], passed_s: float) -> str:
    """Why a reading should have moved with what drives it; empty when nothing says so."""
    moved = ""
    for driver in _DRIVEN_BY[name]:
        value = values.get(driver)
        if value is not None:
            minutes = still.drivers.setdefault(driver, _Minutes())
            minutes.add(value, passed_s)
            if not moved and minutes.moved(driver):
                moved = f"while {driver} was between {minutes.low:.3g} and {minutes.high:.3g}"
    return moved


def _emptied(still: _Still, values: Mapping[str, Any], passed_s: float) -> str:
    """Why a battery's gauge should have moved; empty when nothing says so. A full battery may take for hours."""
    power_w, charge, energy_j = (values.get(name) for name in ("battery_power_w", "battery_charge", "battery_energy_j"))
    if power_w is None or not charge or not energy_j:
        return ""
    still.given_j += max(0.0, power_w) * passed_s
    capacity_j = energy_j / charge
    if still.given_j < _SHARE_OF_BATTERY * capacity_j:
        return ""
    return f"while the battery gave {still.given_j:.0f} of {capacity_j:.0f} J by its own power"
