"""The clairvoyant's plan: a dynamic program over what each choice is worth in each epoch, replayed for the truth.

:func:`achieved` gives the best script found (:mod:`simulation.scripts`), with its outcome in the simulator.

What a choice is worth is not estimated: each one (an operating point, alone or with a slack plan below it) runs over
the whole trace once, on the very draws of the replay, and its answers on time and its energy are counted per epoch.
The dynamic program then walks the epochs backwards,

    V[k](T, j) = max_i  r[k, i] - price[k] e[k, i] - c[j, i] + V[k+1](T'(T, e[k, i]), i)

over the temperature in bins (where there is a limit) and the choice before. What a policy decided in its own replay
may be one of the choices, so that the plan is never worse than a policy given to copy.

The price of energy follows the linear program's; its height is searched until the replayed battery keeps its goal, and
the last gap is closed by beginning with a dearer script and going over to a thriftier one. Only replayed outcomes
count, so what is reported was achieved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.table import Table
from policies.base import Policy
from policies.hull import concave_hull
from simulation.fluid import Prices, Problem
from simulation.outcome import Outcome
from simulation.replay import deadlines_s
from simulation.scripts import Choice, Recorder, Script, Step, choices
from simulation.server import Server
from simulation.trace import Floats

_BINS = 96
_PENALTIES = (0.3, 3.0, 30.0)  # on a degree too much in one epoch, over what the heat in a degree could have answered
_HEIGHTS = 8  # prices of energy that are tried
_AIMS = 6  # times that the aim is lowered by what the replay was too hot
_CHANGE = 1e-9  # right answers that any change of choice costs: of equals the one in use
_SELDOM = 0.01  # share of the epochs
_SPLITS = 8  # places to go over from one script to another


def achieved(
    problem: Problem,
    table: Table,
    prices: Prices | None,
    simulated: Callable[[Policy], Outcome],
    kept: Callable[[Outcome], bool],
    *,
    drop_late: bool,
    drop_oldest: bool,
    compiled: bool,
    epochs: int,
    contenders: Sequence[Policy] = (),
) -> tuple[tuple[Step, ...], Outcome] | None:
    """The best script that keeps the hard limits, and its outcome; None where none was found.

    Args:
        problem: the run.
        table: its table.
        prices: of the linear program, where it has a solution.
        simulated: replays a policy.
        kept: whether an outcome keeps the hard limits.
        drop_late, drop_oldest, compiled: as for :func:`simulation.replay.simulate`.
        epochs: how often the script may change its mind, at most.
        contenders: policies whose decisions may be copied, wholly or for some epochs.
    """
    search = _Search(problem, table, simulated, kept, epochs)
    for policy in contenders:
        search.copy(policy)
    search.measure(drop_late=drop_late, drop_oldest=drop_oldest, compiled=compiled)
    search.constants()
    limits = [problem.limit_c]
    throttle = problem.plant.throttle
    if throttle is not None and problem.plant.thermal is not None:
        below_trip = throttle.trip_c - 0.05
        limits.append(below_trip if problem.limit_c is None else min(problem.limit_c, below_trip))
    for limit_c in dict.fromkeys(limits):
        for penalty in (0.0,) if limit_c is None else _PENALTIES:
            search.priced(prices, limit_c, penalty)
    return search.best


class _Search:
    """Scripts tried so far, and the best of them."""

    def __init__(
        self,
        problem: Problem,
        table: Table,
        simulated: Callable[[Policy], Outcome],
        kept: Callable[[Outcome], bool],
        epochs: int,
    ) -> None:
        self.problem, self._simulated, self._kept = problem, simulated, kept
        self._choices = choices(problem, table)
        self._starts = problem.epochs(epochs)
        self._ends = np.append(self._starts[1:], problem.ticks) - 1
        self.best: tuple[tuple[Step, ...], Outcome] | None = None
        self._tried: dict[tuple[int, ...], tuple[Outcome, bool]] = {}
        self._columns: NDArray[np.int64] | None = None

    def copy(self, policy: Policy) -> None:
        """Offers what a policy decides in its own replay as one more choice."""
        recorder = Recorder(policy)
        outcome = self._simulated(recorder)
        p = self.problem
        times = np.array([time_s for time_s, *_ in recorder.decided])
        held = np.searchsorted(times, (np.arange(p.ticks) + 0.5) * p.period_s, side="right") - 1
        decided = tuple(recorder.decided[at][1:] for at in np.maximum(held, 0).tolist())
        self._choices.append(Choice(decided[0][0], (), decided))
        if outcome.off_s == 0.0:  # its own run is that of the script which copies all of it
            self._hear([len(self._choices) - 1] * len(self._starts), outcome)

    def measure(self, *, drop_late: bool, drop_oldest: bool, compiled: bool) -> None:
        """Right answers on time and joules above base, per epoch and choice; ``[epochs, choices]``."""
        p, table = self.problem, self.problem.table
        shape = (len(self._starts), len(self._choices))
        self._worth, self._joules = np.zeros(shape), np.zeros(shape)
        slow, begins = p.slow.tolist(), (np.arange(p.ticks) * p.period_s).tolist()
        epoch_of = np.repeat(np.arange(len(self._starts)), self._ends - self._starts + 1).tolist()
        for column, choice in enumerate(self._choices):
            server = Server(
                table,
                p.trace.arrivals_s,
                p.draws,
                deadlines_s=deadlines_s(p.trace, p.goals),
                drop_late=drop_late,
                drop_oldest=drop_oldest,
                queue_limit=p.queue_limit,
                compiled=compiled,
            )
            before, worth, joules = 0.0, self._worth[:, column], self._joules[:, column]
            for tick, epoch in enumerate(epoch_of):
                server.slow_down(slow[tick])
                point, plan = choice.at(tick, slow[tick])
                server.use(table.place(point), plan)
                begin = begins[tick]
                joules[epoch] += server.advance(begin, begin + p.span[tick])
                now = server.accuracy_sum
                worth[epoch] += now - before
                before = now

    def constants(self) -> None:
        """Every choice that may do better than the best so far, kept from beginning to end."""
        worth = self._worth.sum(axis=0)
        for column in np.argsort(-worth, kind="stable").tolist():
            if self.best is None or worth[column] > self.best[1].accuracy_sum:
                self._try([column] * len(self._starts))

    def priced(self, prices: Prices | None, limit_c: float | None, penalty: float) -> None:
        """Scripts of the dynamic program under this limit, at rising prices of energy; then mixtures of two."""
        aimed_c = limit_c
        for _ in range(_AIMS):
            plan = self._program(np.zeros(len(self._starts)), aimed_c, penalty)
            outcome, kept = self._try(plan)
            hot = 0.0 if limit_c is None or outcome.peak_temperature_c is None else outcome.peak_temperature_c - limit_c
            if aimed_c is None or hot <= 0.0:
                break
            aimed_c -= hot + 0.02
        if kept or self.problem.plant.battery is None:
            return
        shape = self._price_shape(prices)
        low, high = 0.0, 1.0
        dear, thrifty = plan, None
        for _ in range(_HEIGHTS):
            middle = high if thrifty is None else (low + high) / 2.0
            plan = self._program(middle * shape, aimed_c, penalty)
            _, kept = self._try(plan)
            if kept:
                high, thrifty = middle, plan
            else:
                low, dear = middle, plan
                if thrifty is None:
                    high *= 4.0
        if thrifty is not None and dear != thrifty:
            self._mixed(dear, thrifty)
            self._mixed(thrifty, dear)

    def _mixed(self, first: list[int], second: list[int]) -> None:
        """One script up to some epoch, then another; halving finds where the limits are just kept."""
        low, high = 0, len(first)
        forwards = self._try(first)[1]  # more of the first is safe
        for _ in range(_SPLITS):
            if high - low <= 1:
                break
            middle = (low + high) // 2
            _, kept = self._try(first[:middle] + second[middle:])
            if kept == forwards:
                high = middle
            else:
                low = middle

    def _price_shape(self, prices: Prices | None) -> Floats:
        """The price of a joule per epoch at height 1: as in the linear program, else the same in all."""
        p, count = self.problem, len(self._starts)
        usual = float(self._worth.sum()) / max(float(self._joules.sum()), 1e-12)
        paid = np.maximum.reduceat((p.off_mains & (np.arange(p.ticks) < (p.must_until or p.ticks))), self._starts)
        flat = np.where(paid, usual, 0.0)
        if prices is None or not prices.stored_j.any():
            return flat
        joule = np.add.reduceat(prices.stored_j * p.off_mains, self._starts) / (self._ends - self._starts + 1)
        assert len(joule) == count
        return np.asarray(joule + 0.01 * flat, np.float64)

    def _program(self, price: Floats, limit_c: float | None, penalty: float) -> list[int]:
        """The best column for each epoch, by dynamic programming."""
        worth = self._worth - price[:, None] * self._joules
        change = self._change()
        count, width = worth.shape
        if limit_c is None or self.problem.plant.thermal is None:
            value = np.zeros(width)
            came = np.empty((count, width), np.int64)
            for k in range(count - 1, -1, -1):
                through = value + worth[k] - change  # [before, chosen]
                came[k] = through.argmax(axis=1)
                value = through[np.arange(width), came[k]]
            plan = [int(value.argmax())]  # whoever was before the first costs nothing
            for k in range(count):
                plan.append(int(came[k][plan[-1]]))
            return plan[1:]
        useful = self._useful()
        plan = self._heated(worth[:, useful], change[np.ix_(useful, useful)], useful, limit_c, penalty)
        return [int(useful[column]) for column in plan]

    def _useful(self) -> NDArray[np.int64]:
        """The choices that are among the best for their energy, in one epoch of a hundred at least."""
        if self._columns is None:
            count = np.zeros(len(self._choices), np.int64)
            for joules, worth in zip(self._joules.tolist(), self._worth.tolist(), strict=True):
                count[list(concave_hull(joules, worth))] += 1
            self._columns = np.flatnonzero(count >= _SELDOM * len(self._starts))
        return self._columns

    def _heated(
        self, worth: Floats, change: Floats, chosen: NDArray[np.int64], limit_c: float, penalty: float
    ) -> list[int]:
        """The same over temperatures of the case, in bins, for the ``chosen`` columns; a die is taken as settled.

        Values between bins are interpolated, which blurs the temperature a little at each step. So too much heat costs
        a price, not infinitely much: a wall would be felt from far away.
        """
        p = self.problem
        thermal = p.plant.thermal
        assert thermal is not None
        count, width = worth.shape
        spans = np.add.reduceat(p.span, self._starts)
        power = (self._joules[:, chosen] + np.add.reduceat(p.base_j, self._starts)[:, None]) / spans[:, None]
        ambient = np.add.reduceat(p.ambient * p.span, self._starts) / spans
        decay = np.exp(-spans / (thermal.resistance_c_per_w * thermal.capacity_j_per_c))
        steady = ambient[:, None] + thermal.resistance_c_per_w * power
        die = thermal.die_resistance_c_per_w * power
        penalty *= thermal.capacity_j_per_c * float(self._worth.sum()) / max(float(self._joules.sum()), 1e-12)
        low = min(float(p.ambient.min()), float(steady.min())) - 1.0
        grid = np.linspace(low, max(limit_c, low + 1.0), _BINS)
        step = grid[1] - grid[0]

        def after(k: int, case: Floats) -> Floats:  # [..., choices]
            found: Floats = steady[k] + (case[..., None] - steady[k]) * decay[k]
            return found

        def worth_after(k: int, case: Floats, value: Floats) -> Floats:
            warm = after(k, case)
            place = np.clip((warm - low) / step, 0.0, _BINS - 1.000001)
            whole = place.astype(np.int64)
            part = place - whole
            columns = np.arange(width)
            later = value[whole, columns] * (1.0 - part) + value[whole + 1, columns] * part
            over = np.maximum(0.0, warm + die[k] - limit_c)
            found: Floats = worth[k] + later - penalty * over
            return found

        # A change costs by the operating points alone, so it is enough to compare the best choice at each of them.
        places = [self.problem.table.place(self._choices[column].point) for column in chosen]
        group, one = np.unique(places, return_inverse=True)[1], np.unique(places, return_index=True)[1]
        members = [np.flatnonzero(group == k) for k in range(len(one))]
        between = change[np.ix_(one, one)]
        np.fill_diagonal(between, _CHANGE)
        values = [np.zeros((_BINS, width))]
        for k in range(count - 1, 0, -1):
            offer = worth_after(k, grid, values[-1])
            best = np.stack([offer[:, columns].max(axis=1) for columns in members], axis=1)
            elsewhere = (best[:, None, :] - between).max(axis=2)
            values.append(np.maximum(offer, elsewhere[:, group]))
        values.reverse()
        plan: list[int] = []
        case = np.asarray(float(p.ambient[0]))
        for k in range(count):
            offer = worth_after(k, case, values[k])
            if plan:
                offer = offer - change[plan[-1]]
            plan.append(int(offer.argmax()))
            case = after(k, case)[plan[-1]]
        return plan

    def _change(self) -> Floats:
        """Right answers that a switch costs, about: what would have been answered meanwhile; ``[before, chosen]``."""
        p = self.problem
        rate = len(p.draws) / p.trace.duration_s
        places = [p.table.place(choice.point) for choice in self._choices]
        seconds = np.array([[p.table.switch_s[a][b] for b in places] for a in places])
        return np.asarray(rate * seconds * max(p.table.accuracy) + _CHANGE * (1.0 - np.eye(len(places))), np.float64)

    def _try(self, plan: list[int]) -> tuple[Outcome, bool]:
        key = tuple(plan)
        if key not in self._tried:
            self._hear(plan, self._simulated(Script(self.script(plan))))
        return self._tried[key]

    def _hear(self, plan: list[int], outcome: Outcome) -> None:
        """Remembers what became of a plan."""
        kept = self._kept(outcome)
        self._tried[tuple(plan)] = msgspec.structs.replace(outcome, timeline=None, switch_events=()), kept
        if kept and (self.best is None or outcome.accuracy_sum > self.best[1].accuracy_sum):
            self.best = self.script(plan), outcome

    def script(self, plan: Sequence[int]) -> tuple[Step, ...]:
        """The plan's steps, without those that change nothing."""
        found: list[Step] = []
        slow = self.problem.slow.tolist()
        for start, end, column in zip(self._starts.tolist(), self._ends.tolist(), plan, strict=True):
            for tick in range(start, end + 1):
                point, slack_plan = self._choices[column].at(tick, slow[tick])
                if not found or (found[-1].point, found[-1].slack_plan) != (point, slack_plan):
                    found.append(Step(time_s=tick * self.problem.period_s, point=point, slack_plan=slack_plan))
        return tuple(found)
