"""Additive increase, multiplicative decrease: needs no model of anything, only to be told what goes wrong."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.remembering import Remembering
from policies.rungs import RungPolicy, Where, require


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    level: int | None = None
    clean: int = 0  # windows in a row without a violation
    began_s: float | None = None  # of the window under way
    violated: bool = False  # in the window under way


class Aimd(RungPolicy, Remembering[_Memory]):
    """One rung up after some clean windows, half the rungs down on a violation.

    ::

        level <- level + 1             after clean_windows windows without a violation
        level <- floor(level / 2)      at a violation, at most once a window

    A violation is: more late answers than the deadline's percentile allows; temperature at the limit or processor
    throttled; power above the cap; charge at the reserve. It starts from the rung in use, or at the bottom. Neither
    load nor energy is predicted, so it cannot keep "last until".

    Source: Chiu and Jain, Computer Networks and ISDN Systems 17 (1989), for the rule; Crankshaw et al., Clipper, NSDI
    2017, for its use on a latency objective.

    Args:
        window_s: length of a window, in seconds.
        clean_windows: windows in a row before a step up, from 1.
    """

    name = "aimd"
    looks_at = ("miss_rate", "temperature_c", "throttled", "power_w", "battery_charge", "on_mains")

    def __init__(
        self, goals: Goals, *, window_s: float = 5.0, clean_windows: int = 6, where: Where | None = None
    ) -> None:
        super().__init__(goals, where=where)
        require(0 < window_s < math.inf, self.name, "window_s", window_s, "a time above 0 seconds")
        require(clean_windows >= 1, self.name, "clean_windows", clean_windows, "a whole number from 1")
        self.window_s, self.clean_windows = window_s, clean_windows
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The level after this moment."""
        memory, rungs, now = self._memory, self._rungs(table), conditions.time_s
        top = len(rungs.points) - 1
        if memory.level is None:
            memory.level = rungs.position.get(current, 0) if current is not None else 0
        memory.level = min(memory.level, top)
        if memory.began_s is None or now < memory.began_s:
            memory.began_s, memory.violated, memory.clean = now, False, 0
        wrong, bound = self._violation(conditions)
        if now - memory.began_s >= self.window_s:
            memory.clean = 0 if memory.violated or wrong else memory.clean + 1
            memory.began_s, memory.violated = now, False
            if memory.clean >= self.clean_windows and memory.level < top:
                memory.level, memory.clean = memory.level + 1, 0
        if wrong and not memory.violated:
            memory.level, memory.violated, memory.clean = memory.level // 2, True, 0
        level = memory.level
        state = wrong or f"{memory.clean} of {self.clean_windows} clean windows"
        words = f"aimd: {state}: {rungs.labels[level]}"
        bound = bound if wrong else "dwell"
        return rungs.choose(level, words, bound if level < top else "none", urgent=bool(wrong) and bound != "deadline")

    def _violation(self, conditions: Conditions) -> tuple[str, str]:
        """What is going wrong, in words, and its bound."""
        goals, charge = self.goals, conditions.battery_charge
        limit_c, measured_c = goals.temperature_limit_c, conditions.temperature_c
        if limit_c is not None and measured_c is not None and measured_c >= limit_c:
            return f"{measured_c:.1f} °C of {limit_c:g} °C", "thermal"
        if conditions.throttled:
            return "throttled", "thermal"
        if goals.max_power_w is not None and conditions.power_w is not None and conditions.power_w > goals.max_power_w:
            return f"{conditions.power_w:.1f} W of {goals.max_power_w:g} W", "power"
        if charge is not None and charge <= goals.reserve and not conditions.on_mains:
            return f"{100 * charge:.0f} % left, at the reserve", "battery"
        allowed = 1 - goals.deadline_percentile
        if goals.deadline_ms is not None and conditions.miss_rate is not None and conditions.miss_rate > allowed:
            return f"{100 * conditions.miss_rate:.1f} % late, {100 * allowed:.1f} % allowed", "deadline"
        return "", "none"
