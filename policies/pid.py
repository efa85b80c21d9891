"""A power budget from the temperature's error, as the Linux power allocator gives it out, met by switching rungs."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.heat import HeatMemory, identified, observe
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Rungs, Where, require
from policies.watts import PowerModel, power_model

_MARGIN_C = 2.0  # the set point is so far below the limit
_WINDOW_S = 10.0


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    integral_w: float = 0.0
    error_c: float | None = None
    seen_s: float | None = None
    owed_j: float = 0.0  # sigma-delta: budget not yet spent
    level: int | None = None
    since_s: float = 0.0
    heat: HeatMemory = msgspec.field(default_factory=HeatMemory)


class Pid(RungPolicy, Remembering[_Memory]):
    """A PID power budget at the temperature limit, mixed from two rungs by sigma-delta.

    With ``e = T_control - T`` and the control temperature 2 degrees below the limit, the kernel's *power allocator*::

        P_max = P_sus + k_p e + k_i sum(e dt) + k_d de/dt        clamped to [0, most]
        k_p   = 2 P_sus / (T_control - T_on) below T_control,  P_sus / (T_control - T_on) above
        k_i   = k_p below / 10,  k_d = 0

    integrating only above T_control and only while the integral stays within the greatest power; everything is
    forgotten below ``T_on``. ``P_sus`` is what holds T_control: an option, or of the node identified from the
    agent's own temperature and power (:mod:`policies.heat`), or the most that any rung draws. The user's power cap
    bounds the budget as well.

    A budget between two rungs is met on average: what was not spent is added up, ``owed += (P_max - P_used) dt``, and
    the sign of ``owed`` says which of the two rungs is next; each stays ``stay_s``.

    Source: Linux kernel, drivers/thermal/gov_power_allocator.c, and Documentation/driver-api/thermal/power_allocator.

    Args:
        on_c: degrees below the limit at which control begins.
        sustainable_w: power that holds the control temperature; identified when left out.
        stay_s: shortest stay on a rung, in seconds.
    """

    name = "pid"
    looks_at = ("temperature_c", "throttled", "power_w", "arrival_rate_hz")

    def __init__(
        self,
        goals: Goals,
        *,
        on_c: float = 15.0,
        sustainable_w: float | None = None,
        stay_s: float = 10.0,
        where: Where | None = None,
    ) -> None:
        super().__init__(goals, where=where)
        require(_MARGIN_C < on_c < math.inf, self.name, "on_c", on_c, f"degrees above {_MARGIN_C:g}")
        known = sustainable_w is None or 0 < sustainable_w < math.inf
        require(known, self.name, "sustainable_w", sustainable_w, "a power above 0, or leave it out")
        require(0 <= stay_s < math.inf, self.name, "stay_s", stay_s, "a time from 0 seconds")
        self.on_c, self.sustainable_w, self.stay_s = on_c, sustainable_w, stay_s
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The rung whose turn it is within the budget."""
        rungs, model, memory = self._rungs(table), self._model(table), self._memory
        top = len(rungs.points) - 1
        level = top if memory.level is None else min(memory.level, top)
        running = rungs.position.get(current, level) if current is not None else level
        watts = self._watts(model, conditions)
        if watts is None:
            memory.level = None
            return rungs.choose(top, f"pid: the table has no powers: {rungs.labels[top]}")
        elapsed = 0.0 if memory.seen_s is None else max(0.0, conditions.time_s - memory.seen_s)
        memory.seen_s = conditions.time_s
        budget_w, words = self._budget(conditions, watts, running, elapsed)
        limit, measured = self.goals.temperature_limit_c, conditions.temperature_c
        if limit is not None and measured is not None and measured >= limit:
            return self._go(rungs, 0, conditions, f"{words}, at the limit", urgent=True)
        if budget_w is None or watts[top] <= budget_w:
            memory.owed_j = 0.0
            return self._go(rungs, top, conditions, words)
        lower = max((index for index, power in enumerate(watts) if power <= budget_w), default=0)
        upper = min(lower + 1, top)
        most_j = max(0.0, watts[upper] - watts[lower]) * max(self.stay_s, 1.0)
        memory.owed_j = min(max(memory.owed_j + (budget_w - watts[running]) * elapsed, -most_j), most_j)
        wanted = upper if memory.owed_j > 0 and watts[lower] <= budget_w else lower
        stayed = conditions.time_s - memory.since_s >= self.stay_s
        if wanted > level and not stayed:
            wanted = level
        return self._go(rungs, wanted, conditions, words, urgent=bool(conditions.throttled))

    def _watts(self, model: PowerModel, conditions: Conditions) -> tuple[float, ...] | None:
        """Power of every rung: at the arrival rate where energies are known, else back to back."""
        rate = conditions.arrival_rate_hz
        if rate is None or model.net_energy_j is None:
            return model.busy_w
        base = model.idle_w or 0.0
        return tuple(base + (model.inference_w(index, rate) or 0.0) for index in range(len(model.throughput_hz)))

    def _budget(
        self, conditions: Conditions, watts: tuple[float, ...], running: int, elapsed: float
    ) -> tuple[float | None, str]:
        """The power allowed, None for any, and the words for it."""
        memory, goals = self._memory, self.goals
        limit, measured, cap_w = goals.temperature_limit_c, conditions.temperature_c, goals.max_power_w
        capped = (None, "no limit known") if cap_w is None else (cap_w, f"cap {cap_w:g} W")
        if limit is None or measured is None:
            memory.integral_w, memory.error_c = 0.0, None
            return capped
        power = conditions.power_w if conditions.power_w is not None else watts[running]
        observe(memory.heat, conditions.time_s, measured, power, _WINDOW_S)
        control_c, most_w = limit - _MARGIN_C, max(watts)
        error = control_c - measured
        before, memory.error_c = memory.error_c, error
        if measured < limit - self.on_c:
            memory.integral_w = 0.0
            return capped
        node = identified(memory.heat)
        sustainable_w = self.sustainable_w
        if sustainable_w is None:
            sustainable_w = most_w if node is None else min(most_w, node.sustainable_w(control_c))
        gain = sustainable_w / (self.on_c - _MARGIN_C)
        if error < 0 and before is not None:
            integral = memory.integral_w + gain * 2 / 10 * error * elapsed
            if abs(integral) < most_w:
                memory.integral_w = integral
        budget_w = sustainable_w + (2 * gain if error > 0 else gain) * error + memory.integral_w
        budget_w = min(max(0.0, budget_w), most_w if cap_w is None else min(cap_w, most_w))
        return budget_w, f"{measured:.1f} °C of {control_c:g} °C allows {budget_w:.1f} W"

    def _go(self, rungs: Rungs, target: int, conditions: Conditions, words: str, *, urgent: bool = False) -> Decision:
        memory = self._memory
        if target != memory.level or conditions.time_s < memory.since_s:
            memory.level, memory.since_s = target, conditions.time_s
        bound = "none"
        if target < len(rungs.points) - 1:
            heat = self.goals.temperature_limit_c is not None and conditions.temperature_c is not None
            bound = "thermal" if heat and "°C" in words else "power"
        return rungs.choose(target, f"pid: {words}: {rungs.labels[target]}", bound, urgent=urgent)
