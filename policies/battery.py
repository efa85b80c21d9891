"""The battery: the best mix of rungs that lasts until a given time, planned anew at every decision.

The budget is :mod:`policies.budget`'s, the mix is a pair of neighbours of :mod:`policies.hull`. Knows nothing of
latency or heat.
"""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.budget import Budget, BudgetMemory, budget
from policies.hull import concave_hull
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Rungs, Where, require
from policies.watts import PowerModel, power_model
from policies.wording import energy

_STAYS = 20  # towards the end, stays shrink to this part of the time that is left
_LEAST_STAY_S = 60.0  # but not below this


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    budget: BudgetMemory = msgspec.field(default_factory=BudgetMemory)
    chosen: int | None = None  # rung last decided
    chosen_s: float = 0.0  # since when
    seen_s: float | None = None
    saved_j: float = 0.0  # what the mix has saved against the budget so far


class Battery(RungPolicy, Remembering[_Memory]):
    """Spends what is in the battery evenly over the answers until ``last_until_s``, at the best accuracy that buys.

    A receding plan: at every decision the whole time left is planned anew. With ``n_k`` requests ahead in epoch k and
    energies ``e_i``, maximise ``sum n_k a_{i_k}`` subject to ``sum n_k e_{i_k} <= E``. Its Lagrangian
    ``n_k (a_i - mu e_i)`` has one price ``mu`` for all epochs, so at most two neighbours i < j of the concave hull of
    (energy, accuracy) are in use, the upper one for the share ``(e - e_i) / (e_j - e_i)`` of the answers, where ``e``
    is the energy per answer that the budget allows (:mod:`policies.budget`; a linear programme's basic solution with
    one budget constraint; the per-request rule of Han et al., MCDNN, MobiSys 2016, is the case of one epoch).

    *Mixing* is by sigma-delta modulation: the lower rung saves energy until the upper can be afforded for ``mix_s``,
    and the upper is used until that is spent. Going up also waits ``mix_s`` since the last change. What was saved is
    counted at the rung truly in use, so a wrapper or a stricter constraint does no harm. Towards the end stays become
    shorter, so that nothing is left over.

    When even the thriftiest rung draws too much, when the reserve is reached or the time is over, the thriftiest
    rung is used, as best effort and urgently. Without battery, time, arrival rate or energies nothing binds.

    Args:
        mix_s: shortest stay on the upper of two mixed rungs, in seconds; 0 never mixes.
    """

    name = "battery"
    looks_at = ("battery_charge", "battery_energy_j", "battery_power_w", "on_mains", "arrival_rate_hz", "power_w")

    def __init__(self, goals: Goals, *, mix_s: float = 60.0, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        require(0 <= mix_s < math.inf, self.name, "mix_s", mix_s, "a time from 0 seconds")
        self.mix_s = mix_s
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._hull: PerTable[tuple[int, ...]] = PerTable(self._find_hull)
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The most accurate rung, or mix of two, within the power budget."""
        rungs, model, now = self._rungs(table), self._model(table), conditions.time_s
        top = len(rungs.points) - 1
        memory = self._memory
        if memory.chosen is not None and memory.chosen > top:
            memory.chosen = None  # of another table
        running = rungs.position.get(current) if current is not None else memory.chosen
        plan = budget(
            memory.budget, self.goals, conditions, model, running, set_aside_j=max(0.0, memory.saved_j)
        )  # what is saved is spent apart
        if plan.why and not plan.gone:
            memory.chosen, memory.seen_s, memory.saved_j = None, None, 0.0
            return rungs.choose(top, f"battery: {plan.why}: {rungs.labels[top]}")
        thriftiest = self._hull(table)[0]
        if plan.gone:
            return self._best_effort(rungs, thriftiest, plan.why)
        if min(plan.watts_ahead) > plan.mean_w:
            needs = f"{rungs.labels[thriftiest]} needs {plan.watts_ahead[thriftiest]:.1f} W at {plan.rate_hz:.1f}/s"
            return self._best_effort(rungs, thriftiest, f"{plan.allows_ahead}, even {needs}")
        if plan.watts[top] <= plan.budget_w:
            chosen = better = top
            memory.seen_s, memory.saved_j = None, 0.0
        elif self.mix_s > 0:
            chosen, better = self._mix(self._hull(table), plan, running, now)
        else:
            chosen = max((index for index, watts in enumerate(plan.watts) if watts <= plan.budget_w), default=0)
            better = min(chosen + 1, top)
        if chosen != memory.chosen:
            memory.chosen, memory.chosen_s = chosen, now
        needs = f"{rungs.labels[better]} needs {plan.watts[better]:.1f} W at {plan.rate_hz:.1f}/s"
        if chosen == better and plan.watts[better] > plan.budget_w:
            needs += f", spending the {energy(memory.saved_j)} saved"
        return rungs.choose(chosen, f"battery: {plan.allows}; {needs}", "battery" if chosen < top else "none")

    def _find_hull(self, table: Table) -> tuple[int, ...]:
        """Rungs worth mixing; with no energies known, the ladder itself."""
        rungs, model = self._rungs(table), self._model(table)
        cost = model.net_energy_j or model.cpu_s or tuple(range(len(rungs.rows)))
        return concave_hull(cost, [row.accuracy for row in rungs.rows])

    def _best_effort(self, rungs: Rungs, thriftiest: int, why: str) -> Decision:
        self._memory.chosen, self._memory.seen_s, self._memory.saved_j = None, None, 0.0
        bound = "battery" if thriftiest < len(rungs.points) - 1 else "none"
        return rungs.choose(
            thriftiest, f"battery: {why}; best effort with {rungs.labels[thriftiest]}", bound, urgent=True
        )

    def _mix(self, hull: tuple[int, ...], plan: Budget, running: int | None, now: float) -> tuple[int, int]:
        """The rung for now, and the upper rung of the mix."""
        memory, watts, budget_w = self._memory, plan.watts, plan.budget_w
        mix_s = min(self.mix_s, max(_LEAST_STAY_S, plan.remaining_s / _STAYS))
        place = max((k for k, index in enumerate(hull) if watts[index] <= budget_w), default=0)
        lower, upper = hull[place], hull[min(place + 1, len(hull) - 1)]
        span_w = watts[upper] - watts[lower]
        elapsed = 0.0 if memory.seen_s is None else max(0.0, now - memory.seen_s)
        used_w = watts[lower if running is None else running]
        most_j = span_w * mix_s
        memory.saved_j = min(max(memory.saved_j + (budget_w - used_w) * elapsed, -most_j), most_j)
        memory.seen_s = now
        if memory.chosen == upper:
            wanted = upper if memory.saved_j > 0 else lower
        else:
            wanted = upper if memory.saved_j >= (watts[upper] - budget_w) * mix_s > 0 else lower
        before = memory.chosen
        if before is not None and before < wanted and 0 <= now - memory.chosen_s < mix_s:
            wanted = before if watts[before] <= budget_w else lower
        return wanted, upper
