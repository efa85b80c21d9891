"""Hard limits: what no policy, no operator and no request may overrule.

A policy keeps its goals as well as it can; these limits are for when that was not enough, or when the policy knows of
no goals. While one is reached the guard uses the safe choice:

* the temperature is at the critical one,
* the power is at what the supply can give (beyond, the voltage breaks down),
* the charge is at the reserve, on battery.

Each is left with hysteresis, and stays longer when it comes back soon, so that it does not oscillate. Knows nothing of
engines.
"""

from __future__ import annotations

import math

import msgspec

from policies.base import Conditions, Goals
from subnets.errors import InputError

FIRST_STAY_S, LONGEST_STAY_S = 30.0, 600.0
_COOLER_C, _LESS_POWER, _MORE_CHARGE = 5.0, 0.9, 0.02  # where a limit is left again
_ABOVE_GOAL_C, _ABOVE_CAP = 10.0, 1.25  # what a goal implies for what is critical


class HardLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Where the limits lie; None = nobody knows, so it does not bind."""

    critical_temperature_c: float | None = None
    brownout_power_w: float | None = None
    reserve: float = 0.05  # share of the battery's charge

    @staticmethod
    def of(
        goals: Goals, critical_temperature_c: float | None = None, brownout_power_w: float | None = None
    ) -> HardLimits:
        """What is said, else what the goals imply: 10 °C above the temperature limit, 1.25 times the power cap.

        Raises:
            InputError: a limit is not above 0, or below the goal that it should protect.
        """
        for name, value, goal in (
            ("critical_temperature_c", critical_temperature_c, goals.temperature_limit_c),
            ("brownout_power_w", brownout_power_w, goals.max_power_w),
        ):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; give a number above 0, or leave it out")
            if value is not None and goal is not None and value < goal:
                raise InputError(f"{name} is {value:g}, below the goal of {goal:g}; give a higher one, or leave it out")
        if critical_temperature_c is None and goals.temperature_limit_c is not None:
            critical_temperature_c = goals.temperature_limit_c + _ABOVE_GOAL_C
        if brownout_power_w is None and goals.max_power_w is not None:
            brownout_power_w = _ABOVE_CAP * goals.max_power_w
        return HardLimits(
            critical_temperature_c=critical_temperature_c, brownout_power_w=brownout_power_w, reserve=goals.reserve
        )


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that holds now."""

    limit: str  # "critical_temperature", "brownout" or "reserve"
    bound: str  # as in policies.base.Decision
    reason: str


class _Latch:
    """Beyond, until well below for long enough.

    States: free -> beyond -> (stays while not below) -> free again ``stay_s`` after the last value that was not below.
    Coming back within ten stays doubles the stay.
    """

    def __init__(self) -> None:
        self.on = False
        self._stay_s, self._beyond_s, self._left_s = FIRST_STAY_S, -math.inf, -math.inf

    def update(self, now_s: float, beyond: bool | None, below: bool | None) -> bool:
        """Whether it holds. None = unknown, which never begins it, and ends it only after the longest stay."""
        if beyond:
            if not self.on:
                soon = now_s - self._left_s < 10 * self._stay_s
                self._stay_s = min(LONGEST_STAY_S, 2 * self._stay_s) if soon else FIRST_STAY_S
                self.on = True
            self._beyond_s = now_s
        elif self.on:
            if below is False:
                self._beyond_s = now_s
            if now_s - self._beyond_s >= (LONGEST_STAY_S if below is None else self._stay_s):
                self.on, self._left_s = False, now_s
        return self.on


class LimitWatch:
    """Says which limit holds, one call a control period."""

    def __init__(self) -> None:
        self._hot, self._brownout, self._empty = _Latch(), _Latch(), False

    def check(self, conditions: Conditions, limits: HardLimits) -> Reached | None:
        """The limit that holds now: power before heat before charge, as fast as they do harm."""
        now_s, power_w, temperature_c = conditions.time_s, conditions.power_w, conditions.temperature_c
        found = []
        most_w, most_c = limits.brownout_power_w, limits.critical_temperature_c
        if most_w is not None and self._brownout.update(
            now_s, _at_least(power_w, most_w), _below(power_w, _LESS_POWER * most_w)
        ):
            seen = "now unknown" if power_w is None else f"{power_w:.1f} W"
            found.append(
                Reached(limit="brownout", bound="power", reason=f"power {seen}, the supply gives {most_w:g} W")
            )
        if most_c is not None and self._hot.update(
            now_s, _at_least(temperature_c, most_c), _below(temperature_c, most_c - _COOLER_C)
        ):
            seen = "now unknown" if temperature_c is None else f"{temperature_c:.1f} °C"
            reason = f"temperature {seen}, critical is {most_c:g} °C"
            found.append(Reached(limit="critical_temperature", bound="thermal", reason=reason))
        charge = conditions.battery_charge
        left = limits.reserve + (_MORE_CHARGE if self._empty else 0.0)
        self._empty = charge is not None and conditions.on_mains is not True and charge <= left
        if self._empty and charge is not None:
            reason = f"charge {100 * charge:.0f} %, the reserve is {100 * limits.reserve:g} %"
            found.append(Reached(limit="reserve", bound="battery", reason=reason))
        return found[0] if found else None


def _at_least(value: float | None, limit: float) -> bool | None:
    return None if value is None else value >= limit


def _below(value: float | None, limit: float) -> bool | None:
    return None if value is None else value < limit
