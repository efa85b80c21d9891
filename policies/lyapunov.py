"""Drift plus penalty: every wish has a virtual queue that grows while the wish is broken, and its length is a price."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.headroom import LOOKS_AT, HeadroomMemory, headrooms
from policies.load import LoadModel, load_model
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Where, require
from policies.watts import PowerModel, power_model

_LONGEST_STEP_S = 10.0  # a longer gap between decisions counts as this


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    prices: dict[str, float] = {}  # the virtual queues
    chosen: int | None = None
    seen_s: float | None = None
    seen: HeadroomMemory = msgspec.field(default_factory=HeadroomMemory)


class Lyapunov(RungPolicy, Remembering[_Memory]):
    """The rung with the least ``-V accuracy + sum of price times overshoot``, prices being virtual queues.

    With ``h_ic`` the headroom of rung i under constraint c (:mod:`policies.headroom`: load, deadline, heat 30 s ahead,
    power, battery), overshoot ``x_ic = -h_ic`` (above 0 = broken), and the rung in use u::

        Z_c(t + dt) = max(0, Z_c(t) + x_uc dt)
        i(t)        = argmin  -V a_i / (a_max - a_min) + sum_c Z_c x_ic + switching [i != u]

    Headrooms are shares of their limit, so that one V serves all. A larger V costs less accuracy and lets the limits be
    exceeded longer: the gap to the optimum is O(1/V), the queues O(V). Limits hold on average, not always; one that is
    being broken now sends it to the fastest rung at once.

    Source: Neely, Stochastic Network Optimization, 2010, chapter 4.

    Args:
        v: weight of accuracy, above 0, in seconds of a limit exceeded by all of it.
        switching: what a switch must be worth, from 0, in the same unit.
    """

    name = "lyapunov"
    looks_at = LOOKS_AT

    def __init__(self, goals: Goals, *, v: float = 1.0, switching: float = 0.02, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        require(0 < v < math.inf, self.name, "v", v, "a number above 0")
        require(0 <= switching < math.inf, self.name, "switching", switching, "a number from 0")
        self.v, self.switching = v, switching
        self._load: PerTable[LoadModel] = PerTable(lambda table: load_model(self._rungs(table), goals))
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The rung with the least drift plus penalty."""
        memory, rungs, now = self._memory, self._rungs(table), conditions.time_s
        top = len(rungs.points) - 1
        before = top if memory.chosen is None else min(memory.chosen, top)
        running = rungs.position.get(current, before) if current is not None else before
        found = headrooms(memory.seen, self.goals, conditions, rungs, self._load(table), self._model(table), running)
        elapsed = 0.0 if memory.seen_s is None else min(max(0.0, now - memory.seen_s), _LONGEST_STEP_S)
        memory.seen_s = now
        prices = {
            name: max(0.0, memory.prices.get(name, 0.0) - values[running] * elapsed)
            for name, values in found.of.items()
        }
        memory.prices = {name: price for name, price in prices.items() if price > 0}
        accuracies = [row.accuracy for row in rungs.rows]
        span = max(accuracies) - min(accuracies) or 1.0
        costs = [
            -self.v * accuracies[index] / span
            - sum(price * found.of[name][index] for name, price in memory.prices.items())
            + (self.switching if index != running else 0.0)
            for index in range(top + 1)
        ]
        chosen = min(range(top + 1), key=lambda index: (costs[index], index))
        dearest = max(memory.prices, key=lambda name: memory.prices[name], default="")
        state = f"price of {dearest} {memory.prices[dearest]:.2f}" if dearest else "nothing has a price"
        bound = dearest or "none"
        if found.broken:
            chosen, state, bound = 0, found.broken, found.broken_bound
        elif conditions.throttled:
            chosen, state, bound = min(chosen, max(0, running - 1)), "throttled", "thermal"
        memory.chosen = chosen
        urgent = bool(found.broken or conditions.throttled)
        if chosen == top:
            bound = "none"
        elif bound == "none":
            bound = "dwell"
        return rungs.choose(chosen, f"lyapunov: {state}: {rungs.labels[chosen]}", bound, urgent=urgent)
