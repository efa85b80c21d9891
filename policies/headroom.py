"""Headrooms: how far each rung is from each limit, on one scale.

``h = (limit - value) / (limit - reference)``: 1 far away, 0 at the limit, negative beyond; load and deadline have
reference 0. A constraint that nobody wished for, or of which nothing is known, gives none. Used by the policies that
look at all constraints at once.
"""

from __future__ import annotations

import msgspec

from policies.base import Conditions, Goals
from policies.budget import BudgetMemory, budget
from policies.heat import HeatMemory, identified, observe
from policies.load import LoadModel
from policies.rungs import Rungs
from policies.watts import PowerModel

_AHEAD_S = 30.0
_WINDOW_S = 10.0
LOOKS_AT = (
    "arrival_rate_hz",
    "queue_depth",
    "slowdown",
    "temperature_c",
    "throttled",
    "power_w",
    "battery_charge",
    "battery_energy_j",
    "battery_power_w",
    "on_mains",
)


class HeadroomMemory(msgspec.Struct, forbid_unknown_fields=True):
    """What is remembered of heat and battery; part of a policy's state."""

    heat: HeatMemory = msgspec.field(default_factory=HeatMemory)
    budget: BudgetMemory = msgspec.field(default_factory=BudgetMemory)


class Headrooms(msgspec.Struct, frozen=True):
    """Per constraint (a word that :class:`~policies.base.Decision` knows as ``bound``), per rung."""

    of: dict[str, tuple[float, ...]]
    broken: str = ""  # the hard limit that is being broken now, in words
    broken_bound: str = ""

    def tightest(self, index: int) -> tuple[float, str]:
        """The least headroom of a rung, and whose; a rung without constraints has 1."""
        least, bound = 1.0, "none"
        for name, values in self.of.items():
            if values[index] < least:
                least, bound = values[index], name
        return least, bound


def headrooms(
    memory: HeadroomMemory,
    goals: Goals,
    conditions: Conditions,
    rungs: Rungs,
    load: LoadModel,
    model: PowerModel,
    running: int,
    reference_c: float = 25.0,
) -> Headrooms:
    """The headrooms of every rung at this moment; learns heat and base power on the way."""
    count, of = range(len(rungs.points)), {}
    rate, slowdown = conditions.arrival_rate_hz, 1.0 if conditions.slowdown is None else conditions.slowdown
    broken = bound = ""
    if rate is not None:
        of["throughput"] = tuple(1.0 - load.busy(index, rate, slowdown) for index in count)
    deadline = goals.deadline_ms
    if deadline is not None:
        waiting = conditions.queue_depth or 0
        values = []
        for index in count:
            backlog_ms = waiting / load.batch_size * load.mean_ms(index, None, slowdown)  # back to back
            wait_ms = max(load.wait_ms(index, rate or 0.0, slowdown), backlog_ms)
            values.append(max(-9.0, 1.0 - (load.tail_ms(index, rate, slowdown) + wait_ms) / deadline))
        of["deadline"] = tuple(values)
    power = conditions.power_w
    measured, limit = conditions.temperature_c, goals.temperature_limit_c
    if measured is not None and limit is not None:
        here = None if power is None else power
        if here is None and rate is not None and model.net_energy_j is not None:
            here = (model.inference_w(running, rate) or 0.0) + (model.idle_w or 0.0)
        if here is not None:
            observe(memory.heat, conditions.time_s, measured, here, _WINDOW_S)
        node = identified(memory.heat)
        span = max(1.0, limit - reference_c)
        warm = []
        for index in count:
            more_w = model.difference_w(index, running, rate) or 0.0
            ahead_c = measured
            if node is not None and here is not None:
                ahead_c = node.forecast_c(measured, max(0.0, here + more_w), _AHEAD_S)
            warm.append((limit - max(ahead_c, measured if index >= running else ahead_c)) / span)
        of["thermal"] = tuple(warm)
        if measured >= limit:
            broken, bound = f"{measured:.1f} °C of {limit:g} °C", "thermal"
    if goals.max_power_w is not None and model.busy_w is not None:
        of["power"] = tuple(1.0 - watts / goals.max_power_w for watts in model.busy_w)
        if power is not None and power > goals.max_power_w:
            broken, bound = f"{power:.1f} W of {goals.max_power_w:g} W", "power"
    plan = budget(memory.budget, goals, conditions, model, running)
    if plan.gone:
        broken, bound = plan.why, "battery"
    elif not plan.why:
        most = max(plan.budget_w, 1e-9)
        of["battery"] = tuple(max(-9.0, 1.0 - watts / most) for watts in plan.watts)
    return Headrooms(of, broken, bound)
