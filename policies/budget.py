"""The energy budget: how much power a battery that has to last allows now, and what each rung would draw.

::

    mean budget  = (energy left - reserve) / (last_until - now)
    per answer   = (mean budget - base power ahead) / arrival rate ahead
    budget now   = base power now + arrival rate now * energy per answer
    power of i   = base power now + share * min(arrival rate now, throughput_i) * net energy per image_i

The *share* (0..1) is what the measured domain draws above idle over what it should: less where requests are dropped, go
together in batches, or are answered below the ceiling.

Spending the same for *each answer*, not for each second, is what a linear programme over the time left does: with one
budget and concave accuracy its optimum has the same price of energy at all times (:mod:`policies.hull`). What is ahead
is forecast from what was seen: the present value fades into the long-run mean. Knows nothing of latency or heat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from policies.base import Conditions, Goals
from policies.memory import LongMean, Smoothed
from policies.watts import PowerModel
from policies.wording import duration, energy

_BASE_S = 60.0  # time constant of what the rest of the device draws
_LONG_S = 7200.0  # over which the long-run means forget
_FADE_S = 600.0  # in which a forecast goes from the present to the long-run mean
_SETTLE_S = 6.0  # after a switch, power and arrival rate are still partly those of the rung before
_RECKON_S = 3600.0  # so long a silent gauge is bridged by what should have been drawn
_LEAST_SHARE = 0.1  # of what the table says that answering draws
_LEAST_BUSY = 0.001  # share of a processor below which nothing can be told from its work


class BudgetMemory(msgspec.Struct, forbid_unknown_fields=True):
    """What is remembered of base power, harvest and load; part of a policy's state."""

    base_w: Smoothed = msgspec.field(default_factory=Smoothed)  # beside inference, less what is harvested
    watts_per_core: Smoothed = msgspec.field(default_factory=Smoothed)  # only where the table has no energies
    drawn_above_w: Smoothed = msgspec.field(default_factory=Smoothed)  # by the measured domain, above idle
    modelled_w: Smoothed = msgspec.field(default_factory=Smoothed)  # by the table for the same
    long_base_w: LongMean = msgspec.field(default_factory=LongMean)
    long_rate_hz: LongMean = msgspec.field(default_factory=LongMean)
    running: int | None = None  # the rung in use
    running_s: float | None = None  # since when; None when it was from the start
    left_j: float | None = None  # last told, less what was drawn since
    left_s: float = 0.0  # when that was true
    told_s: float = 0.0
    reserve_j: float = 0.0
    drawn_w: float = 0.0


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What :func:`budget` found. Where ``why`` is not empty, nothing binds (or, with ``gone``, nothing helps)."""

    left: str  # in words
    why: str = ""
    gone: bool = False  # at the reserve, or past the time
    watts: tuple[float, ...] = ()  # per rung, now
    watts_ahead: tuple[float, ...] = ()  # per rung, over the time left
    budget_w: float = 0.0  # now
    mean_w: float = 0.0  # over the time left
    rate_hz: float = 0.0
    remaining_s: float = 0.0

    @property
    def allows(self) -> str:
        """``60 % left for 1.0 h allows 4.4 W``: of the power now, to set beside ``watts``."""
        return self._allows(self.budget_w)

    @property
    def allows_ahead(self) -> str:
        """The same of the mean over the time left, to set beside ``watts_ahead``."""
        return self._allows(self.mean_w)

    def _allows(self, power_w: float) -> str:
        return f"{self.left} for {duration(self.remaining_s)} allows {max(0.0, power_w):.1f} W"


class _Draw(msgspec.Struct, frozen=True):
    base_w: float
    costs: tuple[float, ...]  # joules above base for an image
    rate_hz: float


def budget(
    memory: BudgetMemory,
    goals: Goals,
    conditions: Conditions,
    model: PowerModel,
    running: int | None,
    *,
    set_aside_j: float = 0.0,
) -> Budget:
    """The budget now; learns base power and load on the way.

    *Energy left* is ``battery_energy_j``, else ``battery_charge`` times the goal's capacity. The reserve is a share of
    the capacity (the goal's, else energy over charge; of what is left where neither is known).

    *Base power* is the battery's own, minus what inference should draw at the moment: so a harvest counts as less
    base. It is learnt while drawing, and while charging where it is known that no mains is attached; ahead, the less
    favourable of forecast and long-run mean counts, and never below zero. The table's idle power where the battery
    does not tell.

    A gauge that falls silent is bridged for an hour: what was left, less what should have been drawn since.

    A table without energies but with processor seconds ranks by these, at the watts per busy processor that make up
    all of the battery's power.

    Args:
        memory: changed here.
        goals: ``last_until_s``, ``reserve`` and ``battery_capacity_j`` count.
        conditions: of now.
        model: the rungs' energies.
        running: the rung in use.
        set_aside_j: energy that is planned apart.
    """
    draw = _draw(memory, conditions, model, running)
    if conditions.on_mains:
        memory.left_j = None
        return Budget(left="", why="on mains")
    left_j, reserve_j = _energy(goals, conditions)
    charge = conditions.battery_charge
    if charge is None and left_j is None:
        left_j, reserve_j = _reckon(memory, conditions.time_s), memory.reserve_j
    elif left_j is not None:
        memory.left_j, memory.left_s, memory.told_s = left_j, conditions.time_s, conditions.time_s
        memory.reserve_j = reserve_j
    if draw is not None and running is not None:
        memory.drawn_w = draw.base_w + min(draw.rate_hz, model.throughput_hz[running]) * draw.costs[running]
    if charge is not None:
        left = f"{100 * charge:.0f} % left"
    elif left_j is not None:
        left = f"{energy(left_j)} left"
    else:
        return Budget(left="", why="charge unknown")
    if charge is not None and charge <= goals.reserve:
        return Budget(left=left, why=f"{left}, at the reserve of {100 * goals.reserve:.0f} %", gone=True)
    if goals.last_until_s is None:
        return Budget(left=left, why=f"{left}, no time to last until")
    if left_j is None:
        return Budget(left=left, why=f"{left}, capacity unknown")
    remaining_s = goals.last_until_s - conditions.time_s
    if remaining_s <= 0:
        return Budget(left=left, why=f"{left}, past the time to last until", gone=True)
    if draw is None:
        what = "arrival rate" if conditions.arrival_rate_hz is None else "energy per image"
        return Budget(left=left, why=f"{left}, {what} unknown")
    mean_w = (left_j - reserve_j - set_aside_j) / remaining_s
    share = min(1.0, -math.expm1(-remaining_s / _FADE_S) * _FADE_S / remaining_s)
    rate_ahead = _ahead(draw.rate_hz, memory.long_rate_hz.value, share)
    base_ahead = draw.base_w
    if (long_w := memory.long_base_w.value) is not None:
        base_ahead = max(0.0, long_w, _ahead(draw.base_w, long_w, share))
    budget_w = mean_w + draw.base_w - base_ahead
    if rate_ahead > 0:
        budget_w = draw.base_w + (mean_w - base_ahead) * (draw.rate_hz / rate_ahead)
    return Budget(
        left=left,
        watts=_watts(draw.base_w, draw.rate_hz, model.throughput_hz, draw.costs),
        watts_ahead=_watts(base_ahead, rate_ahead, model.throughput_hz, draw.costs),
        budget_w=mean_w if draw.rate_hz == rate_ahead and draw.base_w == base_ahead else budget_w,
        mean_w=mean_w,
        rate_hz=draw.rate_hz,
        remaining_s=remaining_s,
    )


def _watts(base_w: float, rate_hz: float, most_hz: Sequence[float], costs: Sequence[float]) -> tuple[float, ...]:
    return tuple([base_w + (hz if hz < rate_hz else rate_hz) * cost for hz, cost in zip(most_hz, costs, strict=True)])


def _ahead(now: float, long: float | None, share: float) -> float:
    """The mean over the time left of what starts at ``now`` and fades into the long-run mean."""
    return now if long is None else long + (now - long) * share


def _energy(goals: Goals, conditions: Conditions) -> tuple[float | None, float]:
    """Joules left, and joules to keep of them."""
    left_j, charge, capacity_j = conditions.battery_energy_j, conditions.battery_charge, goals.battery_capacity_j
    if left_j is None and charge is not None and capacity_j is not None:
        left_j = charge * capacity_j
    if capacity_j is None and left_j is not None:
        capacity_j = left_j / charge if charge else left_j
    return left_j, goals.reserve * (capacity_j or 0.0)


def _reckon(memory: BudgetMemory, now: float) -> float | None:
    """Energy left by dead reckoning; None when nothing was told, or too long ago."""
    if memory.left_j is None or not 0 <= now - memory.told_s <= _RECKON_S or now < memory.left_s:
        memory.left_j = None
        return None
    memory.left_j = max(0.0, memory.left_j - memory.drawn_w * (now - memory.left_s))
    memory.left_s = now
    return memory.left_j


def _draw(memory: BudgetMemory, conditions: Conditions, model: PowerModel, running: int | None) -> _Draw | None:
    """Base power and each rung's cost of an image; learns the base power (or the watts per core) on the way."""
    rate, measured, now = conditions.arrival_rate_hz, conditions.battery_power_w, conditions.time_s
    if rate is None:
        return None
    memory.long_rate_hz.update(rate, now, _LONG_S)
    if running != memory.running:
        memory.running_s = None if memory.running is None else now
        memory.running = running
    if memory.running_s is not None and 0 <= now - memory.running_s < _SETTLE_S:
        measured = None
    power = conditions.power_w
    if memory.running_s is not None and 0 <= now - memory.running_s < _SETTLE_S:
        power = None
    if conditions.on_mains or (measured is not None and measured <= 0 and conditions.on_mains is None):
        measured = None  # what charges the battery says nothing of what is drawn
    if (net_j := model.net_j(rate)) is not None:
        if power is not None and running is not None and model.idle_w is not None:
            memory.drawn_above_w.update(max(0.0, power - model.idle_w), now, _BASE_S)
            memory.modelled_w.update(min(rate, model.throughput_hz[running]) * net_j[running], now, _BASE_S)
        if (modelled_w := memory.modelled_w.value) and (drawn_w := memory.drawn_above_w.value) is not None:
            share = min(1.0, max(_LEAST_SHARE, drawn_w / modelled_w))
            net_j = tuple([share * joules for joules in net_j])
        if measured is not None and running is not None:
            base = measured - min(rate, model.throughput_hz[running]) * net_j[running]
            memory.base_w.update(base, now, _BASE_S)
            memory.long_base_w.update(base, now, _LONG_S)
        return _Draw(memory.base_w.value if memory.base_w.value is not None else model.idle_w or 0.0, net_j, rate)
    if model.cpu_s is None:
        return None
    if measured is not None and measured > 0 and running is not None:
        cores = min(rate, model.throughput_hz[running]) * model.cpu_s[running]
        if cores >= _LEAST_BUSY:
            memory.watts_per_core.update(measured / cores, now, _BASE_S)
    if (watts_per_core := memory.watts_per_core.value) is None:
        return None
    return _Draw(0.0, tuple(watts_per_core * cpu_s for cpu_s in model.cpu_s), rate)
