"""The battery budget: what is left, over the time it has to last, is the power that may be drawn.

::

    budget = (energy left - reserve) / (last_until - now)
    power of a rung = base + min(arrival rate, throughput) * net energy per image

Knows nothing of latency or heat.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.hull import concave_hull
from policies.memory import Smoothed, dump, load
from policies.rungs import PerTable, RungPolicy, Rungs, Where, require
from policies.watts import PowerModel, power_model
from policies.wording import duration, energy

_BASE_S = 60.0  # time constant of what the rest of the device draws
_LEAST_BUSY = 0.001  # share of a processor below which nothing can be told from its work


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    base_w: Smoothed = msgspec.field(default_factory=Smoothed)  # drawn beside inference
    watts_per_core: Smoothed = msgspec.field(default_factory=Smoothed)  # only where the table has no energies
    chosen: int | None = None  # rung last decided
    chosen_s: float = 0.0  # since when
    seen_s: float | None = None
    saved_j: float = 0.0  # what the mix has saved against the budget so far


class _Draw(msgspec.Struct, frozen=True):
    """What each rung draws at the arrival rate of now."""

    watts: list[float]
    rate_hz: float


class Battery(RungPolicy):
    """Spends what is in the battery evenly until ``last_until_s``, at the best accuracy that buys.

    *Energy left* is ``battery_energy_j``, else ``battery_charge`` times the goal's capacity. The reserve is a share of
    the capacity (the goal's, else energy over charge; of what is left where neither is known).

    *Base power* is the battery's own, minus what inference should draw at the moment, averaged over a minute; the
    table's idle power where the battery does not tell. A table without energies but with processor seconds ranks by
    these, at the watts per busy processor that make up all of the battery's power. Where that is unknown too, or the
    arrival rate is, nothing can be predicted and nothing binds; nor on mains, nor without a time to last until.

    *Mixing*: a budget between two neighbours of the concave hull of (energy, accuracy) is met on average by using both
    (:mod:`policies.hull`), as in sigma-delta modulation: the lower rung saves energy until the upper can be afforded
    for ``mix_s``, and the upper is used until that is spent. Going up also waits ``mix_s`` since the last change. What
    was saved is counted at the rung truly in use, so a wrapper or a stricter constraint does no harm.

    When even the thriftiest rung draws too much, when the reserve is reached or the time is over, the thriftiest
    rung is used, as best effort and urgently.

    Args:
        mix_s: shortest stay on the upper of two mixed rungs, in seconds; 0 never mixes.
    """

    name = "battery"
    looks_at = ("battery_charge", "battery_energy_j", "battery_power_w", "on_mains", "arrival_rate_hz")

    def __init__(self, goals: Goals, *, mix_s: float = 60.0, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        require(0 <= mix_s < math.inf, self.name, "mix_s", mix_s, "a time from 0 seconds")
        self.mix_s = mix_s
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._hull: PerTable[tuple[int, ...]] = PerTable(self._find_hull)
        self._memory = _Memory()

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The most accurate rung, or mix of two, within the power budget."""
        rungs, model, now = self._rungs(table), self._model(table), conditions.time_s
        top = len(rungs.points) - 1
        memory = self._memory
        if memory.chosen is not None and memory.chosen > top:
            memory.chosen = None  # of another table
        running = rungs.position.get(current) if current is not None else memory.chosen
        draw = self._draw(conditions, model, running)
        if conditions.on_mains:
            return self._unbound(rungs, top, "on mains")
        left_j, reserve_j = self._energy(conditions)
        charge = conditions.battery_charge
        if charge is not None:
            left = f"{100 * charge:.0f} % left"
        elif left_j is not None:
            left = f"{energy(left_j)} left"
        else:
            return self._unbound(rungs, top, "charge unknown")
        thriftiest = self._hull(table)[0]
        if charge is not None and charge <= self.goals.reserve:
            return self._best_effort(rungs, thriftiest, f"{left}, at the reserve of {100 * self.goals.reserve:.0f} %")
        if self.goals.last_until_s is None:
            return self._unbound(rungs, top, f"{left}, no time to last until")
        if left_j is None:
            return self._unbound(rungs, top, f"{left}, capacity unknown")
        remaining_s = self.goals.last_until_s - now
        if remaining_s <= 0:
            return self._best_effort(rungs, thriftiest, f"{left}, past the time to last until")
        if draw is None:
            why = "arrival rate" if conditions.arrival_rate_hz is None else "energy per image"
            return self._unbound(rungs, top, f"{left}, {why} unknown")
        budget_w = (left_j - reserve_j - max(0.0, memory.saved_j)) / remaining_s  # what is saved is spent apart
        allows = f"{left} for {duration(remaining_s)} allows {max(0.0, budget_w):.1f} W"
        if min(draw.watts) > budget_w:
            needs = f"{rungs.labels[thriftiest]} needs {draw.watts[thriftiest]:.1f} W at {draw.rate_hz:.1f}/s"
            return self._best_effort(rungs, thriftiest, f"{allows}, even {needs}")
        if draw.watts[top] <= budget_w:
            chosen = better = top
            memory.seen_s, memory.saved_j = None, 0.0
        elif self.mix_s > 0:
            chosen, better = self._mix(self._hull(table), draw.watts, budget_w, running, now)
        else:
            chosen = max(index for index, watts in enumerate(draw.watts) if watts <= budget_w)
            better = chosen + 1
        if chosen != memory.chosen:
            memory.chosen, memory.chosen_s = chosen, now
        needs = f"{rungs.labels[better]} needs {draw.watts[better]:.1f} W at {draw.rate_hz:.1f}/s"
        if chosen == better and draw.watts[better] > budget_w:
            needs += f", spending the {energy(memory.saved_j)} saved"
        return rungs.choose(chosen, f"battery: {allows}; {needs}", "battery" if chosen < top else "none")

    def reset(self) -> None:
        """Forgets the base power and the mix."""
        self._memory = _Memory()

    def state(self) -> dict[str, Any]:
        """The base power and the mix."""
        return dump(self._memory)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._memory = load(_Memory, state, self.name)

    def _find_hull(self, table: Table) -> tuple[int, ...]:
        """Rungs worth mixing; with no energies known, the ladder itself."""
        rungs, model = self._rungs(table), self._model(table)
        cost = model.net_energy_j or model.cpu_s or tuple(range(len(rungs.rows)))
        return concave_hull(cost, [row.accuracy for row in rungs.rows])

    def _unbound(self, rungs: Rungs, top: int, why: str) -> Decision:
        self._memory.chosen, self._memory.seen_s, self._memory.saved_j = None, None, 0.0
        return rungs.choose(top, f"battery: {why}: {rungs.labels[top]}")

    def _best_effort(self, rungs: Rungs, thriftiest: int, why: str) -> Decision:
        self._memory.chosen, self._memory.seen_s, self._memory.saved_j = None, None, 0.0
        bound = "battery" if thriftiest < len(rungs.points) - 1 else "none"
        return rungs.choose(
            thriftiest, f"battery: {why}; best effort with {rungs.labels[thriftiest]}", bound, urgent=True
        )

    def _energy(self, conditions: Conditions) -> tuple[float | None, float]:
        """Joules left, and joules to keep of them."""
        left_j, charge, capacity_j = (
            conditions.battery_energy_j,
            conditions.battery_charge,
            self.goals.battery_capacity_j,
        )
        if left_j is None and charge is not None and capacity_j is not None:
            left_j = charge * capacity_j
        if capacity_j is None and left_j is not None:
            capacity_j = left_j / charge if charge else left_j
        return left_j, self.goals.reserve * (capacity_j or 0.0)

    def _draw(self, conditions: Conditions, model: PowerModel, running: int | None) -> _Draw | None:
        """What each rung draws at the present rate; learns the base power (or the watts per core) on the way."""
        memory, rate, measured = self._memory, conditions.arrival_rate_hz, conditions.battery_power_w
        if rate is None:
            return None
        if conditions.on_mains or (measured is not None and measured <= 0):
            measured = None  # what charges the battery says nothing of what is drawn
        images = [min(rate, most) for most in model.throughput_hz]
        if model.net_energy_j is not None:
            if measured is not None and running is not None:
                base = max(0.0, measured - images[running] * model.net_energy_j[running])
                memory.base_w.update(base, conditions.time_s, _BASE_S)
            base_w = memory.base_w.value if memory.base_w.value is not None else model.idle_w or 0.0
            costs = model.net_energy_j
        elif model.cpu_s is not None:
            if measured is not None and running is not None:
                cores = images[running] * model.cpu_s[running]
                if cores >= _LEAST_BUSY:
                    memory.watts_per_core.update(measured / cores, conditions.time_s, _BASE_S)
            if (watts_per_core := memory.watts_per_core.value) is None:
                return None
            base_w, costs = 0.0, tuple(watts_per_core * cpu_s for cpu_s in model.cpu_s)
        else:
            return None
        watts = [base_w + hz * cost for hz, cost in zip(images, costs, strict=True)]
        return _Draw(watts, rate)

    def _mix(
        self, hull: tuple[int, ...], watts: list[float], budget_w: float, running: int | None, now: float
    ) -> tuple[int, int]:
        """The rung for now, and the upper rung of the mix."""
        memory = self._memory
        place = max((k for k, index in enumerate(hull) if watts[index] <= budget_w), default=0)
        lower, upper = hull[place], hull[min(place + 1, len(hull) - 1)]
        span_w = watts[upper] - watts[lower]
        elapsed = 0.0 if memory.seen_s is None else max(0.0, now - memory.seen_s)
        used_w = watts[lower if running is None else running]
        most_j = span_w * self.mix_s
        memory.saved_j = min(max(memory.saved_j + (budget_w - used_w) * elapsed, -most_j), most_j)
        memory.seen_s = now
        if memory.chosen == upper:
            wanted = upper if memory.saved_j > 0 else lower
        else:
            wanted = upper if memory.saved_j >= (watts[upper] - budget_w) * self.mix_s > 0 else lower
        before = memory.chosen
        if before is not None and before < wanted and 0 <= now - memory.chosen_s < self.mix_s:
            wanted = before if watts[before] <= budget_w else lower
        return wanted, upper
