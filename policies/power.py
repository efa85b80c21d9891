"""The power cap: the most accurate rung that stays below it while a batch is being computed."""

from __future__ import annotations

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.memory import Smoothed
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Where
from policies.watts import PowerModel, power_model

_EXCESS_S = 30.0  # time constant of what is drawn beyond the table


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    excess_w: Smoothed = msgspec.field(default_factory=Smoothed)


class Power(RungPolicy, Remembering[_Memory]):
    """The most accurate rung whose calibrated power, back to back, stays below the cap.

    The cap protects a supply, and a supply sees each batch: so the power of a rung at work counts, not its average at
    the arrival rate. What is measured beyond the table's power of the rung in use, averaged over half a minute, is
    drawn by something else and is taken off the cap. While the cap is being exceeded, only rungs that draw less than
    the one in use will do. Without powers in the table nothing binds.
    """

    name = "power"
    looks_at = ("power_w",)

    def __init__(self, goals: Goals, *, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._free: PerTable[Decision] = PerTable(self._unbound)
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The most accurate rung below the cap; the thriftiest, as best effort, when none is."""
        cap_w, busy_w = self.goals.max_power_w, self._model(table).busy_w
        if cap_w is None or busy_w is None:
            return self._free(table)
        rungs = self._rungs(table)
        top = len(rungs.points) - 1
        measured, in_use = conditions.power_w, rungs.position.get(current) if current is not None else None
        if measured is not None and in_use is not None:
            self._memory.excess_w.update(max(0.0, measured - busy_w[in_use]), conditions.time_s, _EXCESS_S)
        excess_w = self._memory.excess_w.value or 0.0
        urgent = measured is not None and measured > cap_w
        fitting = [index for index, watts in enumerate(busy_w) if watts + excess_w <= cap_w]
        if urgent and in_use is not None:  # an average that has yet to rise must not keep what is too much now
            fitting = [index for index in fitting if busy_w[index] < busy_w[in_use]]
        others = f" beside {excess_w:.1f} W of others" if excess_w >= 0.05 else ""
        if not fitting:
            least = min(range(top + 1), key=lambda index: busy_w[index])
            draws = f"{rungs.labels[least]} draws {busy_w[least]:.1f} W{others}, above the cap of {cap_w:g} W"
            return rungs.choose(least, f"power: best effort, even {draws}", "power", urgent=True)
        chosen = fitting[-1]
        draws = f"{rungs.labels[chosen]} draws {busy_w[chosen]:.1f} W{others} of {cap_w:g} W"
        if chosen < top:
            draws += f"; {rungs.labels[chosen + 1]} would draw {busy_w[chosen + 1]:.1f} W"
        return rungs.choose(chosen, f"power: {draws}", "power" if chosen < top else "none", urgent=urgent)

    def _unbound(self, table: Table) -> Decision:
        """The decision where nothing binds."""
        rungs = self._rungs(table)
        top = len(rungs.points) - 1
        why = "no cap" if self.goals.max_power_w is None else "the table has no powers, nothing can be kept"
        return rungs.choose(top, f"power: {why}: {rungs.labels[top]}")
