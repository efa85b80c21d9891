"""ALERT: the rung with the best expected accuracy under a latency that is a random variable."""

from __future__ import annotations

import math
from statistics import NormalDist

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.kalman import SlowdownFilter
from policies.load import LoadModel, load_model
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Rungs, Where, require, rungs_of
from policies.watts import PowerModel, power_model

_NORMAL = NormalDist()
_HOPELESS = 0.5  # chance below which nothing but being early counts


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    filter: SlowdownFilter = msgspec.field(default_factory=SlowdownFilter)


class Alert(RungPolicy, Remembering[_Memory]):
    """Expected accuracy under a Kalman-filtered slowdown; an energy goal bounds what a period may cost.

    One factor ``xi ~ N(mu, sigma^2)`` corrects all rows (:mod:`policies.kalman`). With the calibrated time ``t_i``, the
    deadline less the mean wait ``T``, and accuracies ``q``::

        Pr_i  = Phi((T / t_i - mu) / sigma)
        q^_i  = q_i Pr_i + late_worth (1 - Pr_i)
        e^_i  = p_i mu t_i + phi_i p_i max(0, T_period - mu t_i)         phi_i = idle power / p_i

    It maximises ``q^`` subject to ``e^ <= max_power_w * T_period``; asked for answers per joule it minimises ``e^``
    subject to ``q^ >= min_accuracy``. ``T_period`` is the time between arrivals. Where nothing keeps the goal, the
    energy goal is given up before the deadline. The spread of a single answer (the row's own p99 over p50) is added to
    ``sigma``. Ours, and not in the paper: the wait in the queue is taken off the deadline. Without a deadline the most
    accurate rung that keeps up within the energy goal is used.

    Source: Wan et al., ALERT, USENIX ATC 2020.

    Args:
        late_worth: accuracy that a late answer still has, a share.
    """

    name = "alert"
    looks_at = ("slowdown", "arrival_rate_hz", "queue_depth")

    def __init__(self, goals: Goals, *, late_worth: float = 0.0, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        require(0 <= late_worth < 1, self.name, "late_worth", late_worth, "a share from 0 to below 1")
        self.late_worth = late_worth
        self._load: PerTable[LoadModel] = PerTable(lambda table: load_model(self._rungs(table), goals))
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._remember(_Memory)

    def _find(self, table: Table) -> Rungs:
        return rungs_of(table, self.where, self.goals.min_accuracy)  # what to maximise is weighed here, not there

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The rung with the best expectation."""
        rungs, load_, memory = self._rungs(table), self._load(table), self._memory
        if conditions.slowdown is not None:
            memory.filter.update(conditions.slowdown)
        mu = memory.filter.mean
        rate = conditions.arrival_rate_hz or 0.0
        top = len(rungs.points) - 1
        chance = [self._chance(index, load_, rate, conditions.queue_depth or 0, rungs) for index in range(top + 1)]
        expected = [row.accuracy * p + self.late_worth * (1 - p) for row, p in zip(rungs.rows, chance, strict=True)]
        cost = self._energies(self._model(table), load_, mu, conditions.arrival_rate_hz)
        cap_w = self.goals.max_power_w
        allowed = list(range(top + 1))
        if cost is not None and cap_w is not None:
            allowed = [index for index in allowed if cost[index] <= cap_w]
        bound, word = "none", ""
        if not allowed:
            allowed, word = list(range(top + 1)), "; nothing keeps the power cap, given up for the deadline"
        if max(chance[index] for index in allowed) < _HOPELESS:
            chosen = max(allowed, key=lambda index: (chance[index], -index))
            word = "; best effort"
        elif self.goals.maximise == "answers_per_joule" and cost is not None:
            wished = self.goals.min_accuracy or 0.0
            enough = [index for index in allowed if expected[index] >= wished]
            costs = cost
            chosen = (
                min(enough, key=lambda index: (costs[index], index))
                if enough
                else max(allowed, key=lambda index: (expected[index], -index))
            )
        else:
            chosen = max(allowed, key=lambda index: (expected[index], -index))
        if chosen < top:
            bound = "power" if chosen == allowed[-1] and len(allowed) <= top else "deadline"
        deviation = memory.filter.deviation
        words = f"{rungs.labels[chosen]} is in time with {100 * chance[chosen]:.1f} %"
        words += f" at slowdown {mu:.2f} ± {deviation:.2f}"
        return rungs.choose(chosen, f"alert: {words}{word}", bound, urgent=bool(word))

    def _chance(self, index: int, model: LoadModel, rate: float, waiting: int, rungs: Rungs) -> float:
        """Probability of an answer in time."""
        mu, mean_ms = self._memory.filter.mean, model.mean_ms(index, rate, 1.0)
        wait_ms = max(model.wait_ms(index, rate, mu), waiting / model.batch_size * mean_ms * mu)
        deadline_ms = self.goals.deadline_ms
        if deadline_ms is None:
            return 1.0 if math.isfinite(wait_ms) else 0.0
        if not math.isfinite(wait_ms):
            return 0.0
        own = math.sqrt(model.squared_variation[index]) * mu
        sigma = math.hypot(self._memory.filter.deviation, own)
        return _NORMAL.cdf(((deadline_ms - wait_ms) / mean_ms - mu) / sigma)

    def _energies(self, power: PowerModel, model: LoadModel, mu: float, rate: float | None) -> list[float] | None:
        """Mean power of each rung over a period; back to back where the rate is not known."""
        if power.busy_w is None:
            return None
        idle = power.idle_w or 0.0
        watts = []
        for index, busy_w in enumerate(power.busy_w):
            busy = 1.0 if rate is None else min(1.0, model.busy(index, rate, mu))
            watts.append(busy_w * busy + idle * (1 - busy))
        return watts
