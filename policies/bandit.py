"""A contextual bandit with a knapsack: learns where the table is wrong, within a mask of what is safe by the table."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.budget import BudgetMemory, budget
from policies.load import LoadModel, load_model
from policies.memory import load
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Where, require
from policies.watts import PowerModel, power_model
from subnets.errors import InputError

_FEATURES = 4  # constant, load, heat, slowdown
_RIDGE = 1.0
_MOST_BUSY = 0.95


class _Arm(msgspec.Struct, forbid_unknown_fields=True):
    """Discounted sums of one rung: of x x' by rows, and of x times the residual."""

    gram: list[float] = msgspec.field(default_factory=lambda: [0.0] * _FEATURES**2)
    moment: list[float] = msgspec.field(default_factory=lambda: [0.0] * _FEATURES)


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    arms: dict[str, _Arm] = {}
    price: float = 0.0  # mu
    context: list[float] | None = None  # of the decision before
    played: str | None = None
    seen_s: float | None = None
    budget: BudgetMemory = msgspec.field(default_factory=BudgetMemory)


class Bandit(RungPolicy, Remembering[_Memory]):
    """LinUCB on what the table gets wrong, with a price on energy, within a safety mask.

    Context ``x = (1, load, heat, slowdown)``, each about 0 to 1. For each rung that the mask allows, what is learnt is
    the *residual* reward, observed less expected by the table, where reward is accuracy times the share on time::

        r^_i    = a_i Pr_i(on time) + x' A_i^-1 b_i + alpha sqrt(x' A_i^-1 x)
        i       = argmax r^_i - mu (e_i - e_budget) / e_max
        mu     <- max(0, mu + eta (e_u - e_budget) / e_max)
        A_u    <- gamma A_u + x x',   b_u <- gamma b_u + x (observed - expected)

    *Mask*: a rung is allowed while the table says that it keeps up, that its tail latency fits in the deadline, that
    its power is below the cap; at the temperature limit, when throttled and at the reserve only the fastest is. So
    exploring never breaks a limit that the table knows of. ``e_budget`` is the energy budget of
    :mod:`policies.budget`. Deterministic: optimism explores, not chance.

    Source: Li et al., A Contextual-Bandit Approach to Personalized News Article Recommendation, WWW 2010 (LinUCB);
    Agrawal and Devanur, Linear Contextual Bandits with Knapsacks, NeurIPS 2016 (the price); discounting after Russac et
    al., Weighted Linear Bandits for Non-Stationary Environments, NeurIPS 2019.

    Args:
        alpha: width of the confidence bound, from 0.
        eta: step of the price, from 0.
        gamma: discount of what was seen, above 0 and up to 1.
    """

    name = "bandit"
    looks_at = (
        "arrival_rate_hz",
        "slowdown",
        "miss_rate",
        "temperature_c",
        "throttled",
        "battery_charge",
        "battery_energy_j",
        "battery_power_w",
        "on_mains",
        "power_w",
    )

    def __init__(
        self,
        goals: Goals,
        *,
        alpha: float = 0.02,
        eta: float = 0.01,
        gamma: float = 0.995,
        where: Where | None = None,
    ) -> None:
        super().__init__(goals, where=where)
        require(0 <= alpha < math.inf, self.name, "alpha", alpha, "a number from 0")
        require(0 <= eta < math.inf, self.name, "eta", eta, "a number from 0")
        require(0 < gamma <= 1, self.name, "gamma", gamma, "a number above 0 and up to 1")
        self.alpha, self.eta, self.gamma = alpha, eta, gamma
        self._load: PerTable[LoadModel] = PerTable(lambda table: load_model(self._rungs(table), goals))
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The rung with the best optimistic reward at the price of now."""
        memory, rungs, model, power = self._memory, self._rungs(table), self._load(table), self._model(table)
        top = len(rungs.points) - 1
        rate = conditions.arrival_rate_hz or 0.0
        slowdown = 1.0 if conditions.slowdown is None else conditions.slowdown
        played = current if current in rungs.position else None
        running = rungs.position[played] if played is not None else None
        expected = [self._expected(index, model, rate, slowdown, table) for index in range(top + 1)]
        if running is not None and played is not None:
            self._learn(conditions, expected[running], rungs.rows[running].accuracy, played)
        plan = budget(memory.budget, self.goals, conditions, power, running)
        energies = None if plan.why or not plan.watts else plan.watts
        if energies is None:
            memory.price = 0.0
        elif running is not None:
            most = max(energies)
            step = self.eta * (energies[running] - plan.budget_w) / most if most > 0 else 0.0
            memory.price = min(1.0, max(0.0, memory.price + step))
        context = self._context(conditions, model, rate, slowdown, top)
        allowed, bound, why = self._mask(conditions, model, power, rate, slowdown, top)
        if plan.gone:
            allowed, bound, why = [0], "battery", plan.why
        scores = {
            index: expected[index]
            + self._optimism(rungs.points[index], context)
            - (
                memory.price * (energies[index] - plan.budget_w) / max(energies)
                if energies and max(energies) > 0
                else 0
            )
            for index in allowed
        }
        chosen = max(allowed, key=lambda index: (scores[index], index))
        memory.context, memory.played, memory.seen_s = context, rungs.points[chosen], conditions.time_s
        if chosen < top and bound == "none":
            bound = "battery" if memory.price > 0 else "deadline"
        words = why or f"expects {100 * scores[chosen]:.2f} % right and on time, energy price {memory.price:.3f}"
        return rungs.choose(
            chosen,
            f"bandit: {words}: {rungs.labels[chosen]}",
            bound if chosen < top else "none",
            urgent=bound == "thermal" or plan.gone,
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from saved sums."""
        memory = load(_Memory, state, self.name)
        if any(len(arm.gram) != _FEATURES**2 or len(arm.moment) != _FEATURES for arm in memory.arms.values()):
            raise InputError(f"the saved state of policy {self.name} has other features; start without it")
        self._memory = memory

    def _expected(self, index: int, model: LoadModel, rate: float, slowdown: float, table: Table) -> float:
        """Accuracy times share on time, by the table."""
        accuracy = self._rungs(table).rows[index].accuracy
        if self.goals.deadline_ms is None:
            return accuracy
        return accuracy * model.on_time(index, rate, slowdown, self.goals.deadline_ms)

    def _context(self, conditions: Conditions, model: LoadModel, rate: float, slowdown: float, top: int) -> list[float]:
        limit, measured = self.goals.temperature_limit_c, conditions.temperature_c
        heat = 0.0 if limit is None or measured is None else min(1.0, max(0.0, measured / limit))
        return [1.0, min(2.0, model.busy(top, rate, slowdown)), heat, min(3.0, slowdown) - 1.0]

    def _learn(self, conditions: Conditions, expected: float, accuracy: float, played: str) -> None:
        """The residual of the decision before, if the rung in use is the one that was decided then."""
        memory, missed = self._memory, conditions.miss_rate
        if played != memory.played or memory.context is None or missed is None or self.goals.deadline_ms is None:
            return
        if memory.seen_s is None or conditions.time_s <= memory.seen_s:
            return
        residual = accuracy * (1.0 - missed) - expected
        arm, x = memory.arms.setdefault(played, _Arm()), memory.context
        arm.gram = [self.gamma * old + x[k // _FEATURES] * x[k % _FEATURES] for k, old in enumerate(arm.gram)]
        arm.moment = [self.gamma * old + value * residual for old, value in zip(arm.moment, x, strict=True)]

    def _optimism(self, point: str, context: list[float]) -> float:
        """What the table misses at this rung, plus the width of the confidence bound."""
        arm = self._memory.arms.get(point)
        x = np.asarray(context)
        if arm is None:
            return float(self.alpha * math.sqrt(float(x @ x) / _RIDGE))
        gram = np.asarray(arm.gram).reshape(_FEATURES, _FEATURES) + _RIDGE * np.eye(_FEATURES)
        estimate, direction = np.linalg.solve(gram, np.stack([arm.moment, x], axis=1)).T
        return float(x @ estimate + self.alpha * math.sqrt(max(0.0, float(x @ direction))))

    def _mask(
        self, conditions: Conditions, model: LoadModel, power: PowerModel, rate: float, slowdown: float, top: int
    ) -> tuple[list[int], str, str]:
        """The rungs that are safe by the table (the fastest where none is), and what took the next one away."""
        goals, measured = self.goals, conditions.temperature_c
        if conditions.throttled:
            return [0], "thermal", "throttled"
        if goals.temperature_limit_c is not None and measured is not None and measured >= goals.temperature_limit_c:
            return [0], "thermal", f"{measured:.1f} °C of {goals.temperature_limit_c:g} °C"
        allowed, bound = [], "none"
        for index in range(top + 1):
            if goals.deadline_ms is not None and model.tail_ms(index, rate, slowdown) > goals.deadline_ms:
                bound = "deadline"
            elif model.busy(index, rate, slowdown) > _MOST_BUSY:
                bound = "throughput"
            elif goals.max_power_w is not None and power.busy_w is not None and power.busy_w[index] > goals.max_power_w:
                bound = "power"
            else:
                allowed.append(index)
        if not allowed:
            return [0], bound, "nothing is safe by the table, best effort"
        return allowed, bound if allowed[-1] < top else "none", ""
