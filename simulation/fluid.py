"""The linear program that no policy can beat: a run as a fluid, with the future known.

* :class:`Problem`: trace, table, goals and plant as arrays, one entry a control period.
* :func:`upper_bound`: the bound, and the prices of energy at which it holds.

In epoch k, ``x[k, i]`` requests are answered by operating point i, for the share ``y[k]`` that the device has power:

    maximise    sum a[i] x[k, i]
    subject to  sum_i x[k, i]              <= n[k] y[k]            what arrives
                sum_i x[k, i] s[k, i]/b[i] <= D[k]                 one engine
                E[k] <= E[k-1] - drawn[k] + fed[k]                 the battery, at most full
                E[k] >= what the goals and the cut-off leave
                T[k] = A T[k-1] + B power[k] <= limit              heat is linear in power

Why it is a bound: whole requests, switch costs, what rests cost, the queue's limit, throttling, the battery's
resistances and batches that are not full are left out, and each could only cost. Scipy's HiGHS solves it with means per
epoch; these would not bound a clairvoyant who knows every drawn service time. So only its *prices* are used (the duals:
of a second of engine, a joule, a degree). For any prices at or above zero the Lagrangian bounds the optimum (weak
duality), and here it is evaluated exactly, request by request: each is worth ``a[i]`` less the engine time and energy
of its own draw at the lowest prices between its arrival and its deadline, or nothing. The members of a batch pay the
batch's first request, which gets as much back: ``members <= (b - 1) firsts`` with its own multiplier.

Steps of the battery hold the open-circuit voltage for one control period; what that can give beyond the stored energy
is bounded and added (:attr:`Problem.slack_j`).
"""

from __future__ import annotations

import math
import operator

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.table import Table
from policies.base import Goals
from simulation.compiled import CompiledTable
from simulation.plant import Plant
from simulation.replay import deadlines_s, service_draws
from simulation.trace import Floats, Trace
from subnets.errors import UnavailableError

_CHUNK = 500_000
_ROUNDING = 1.0 + 1e-9


class Problem:
    """A run as arrays. Lists of floats per tick unless said otherwise; energies in joules at the battery's terminals.

    Args:
        table: rows above the goals' power cap are left out, unless all are.
        trace: arrivals and environment.
        goals: hard limits are the temperature, and charge above the reserve when it was to last until.
        plant: as for the simulator.
        seed: of the service times.
        period_s: the control period.
        queue_limit: requests that may wait.
        charge_tolerance: so much below the reserve still counts as kept.
        temperature_tolerance_c: so much above the limit still counts as kept.
        limits: whether the goals' limits hold, or only those of nature.
    """

    def __init__(
        self,
        table: Table,
        trace: Trace,
        goals: Goals,
        plant: Plant,
        *,
        seed: int,
        period_s: float,
        queue_limit: int,
        charge_tolerance: float,
        temperature_tolerance_c: float,
        limits: bool = True,
    ) -> None:
        self.table, self.trace, self.goals, self.plant = CompiledTable(table), trace, goals, plant
        if not self.table.energy_known:
            self.plant = plant = msgspec.structs.replace(plant, thermal=None, throttle=None)
        self.period_s, self.queue_limit = period_s, queue_limit
        self.ticks = max(1, math.ceil(trace.duration_s / period_s - 1e-9))
        begins = np.arange(self.ticks, dtype=np.float64) * period_s
        self.span = np.diff(np.append(begins, trace.duration_s))
        arrivals = trace.arrivals_s
        self.tick = np.minimum((arrivals / period_s).astype(np.int64), self.ticks - 1)
        self.draws = service_draws(len(arrivals), seed)
        given = deadlines_s(trace, goals)
        self.deadline = np.broadcast_to(np.asarray(math.inf if given is None else given, np.float64), arrivals.shape)
        self.due = arrivals + self.deadline
        self.last_tick = np.minimum(np.minimum(self.due / period_s, self.ticks).astype(np.int64), self.ticks - 1)

        self.slow = _or(trace.environment("slowdown", begins), 1.0, self.ticks)
        self.ambient = _or(trace.environment("ambient_c", begins), plant.ambient_c, self.ticks)
        harvest = _or(trace.environment("harvest_w", begins), 0.0, self.ticks)
        mains = _or(trace.environment("on_mains", begins), 0.0, self.ticks) > 0
        cap = goals.max_power_w if limits else None
        allowed = [power is None or cap is None or power <= cap for power in self.table.power_w]
        self.allowed = [place for place, kept in enumerate(allowed) if kept or not any(allowed)]
        self.base_j = self.table.base_w * self.span
        limited = limits and plant.thermal is not None and goals.temperature_limit_c is not None
        self.limit_c = goals.temperature_limit_c + temperature_tolerance_c if limited else None  # type: ignore[operator]

        battery = plant.battery
        self.off_mains = ~mains if battery is not None else np.zeros(self.ticks, bool)
        self.fed_j = (harvest + (0.0 if battery is None else battery.charger_w) * mains) * self.span
        self.must_until = 0  # ticks in which the device has to have power
        self.floor_j = np.zeros(self.ticks)
        self.full_j = self.start_j = self.slack_j = 0.0
        if battery is not None:
            self.start_j, self.full_j = battery.stored_j(battery.initial_charge), battery.energy_j
            self.floor_j[:] = battery.stored_j(battery.cutoff_charge)
            if limits and goals.last_until_s is not None and goals.last_until_s > 0:
                self.must_until = min(self.ticks, math.ceil(goals.last_until_s / period_s - 1e-9))
                kept_j = battery.stored_j(max(battery.cutoff_charge, goals.reserve - charge_tolerance))
                self.floor_j[self.must_until - 1] = max(self.floor_j[self.must_until - 1], kept_j)
            self._add_slack(float(harvest.max(initial=0.0)))
        else:
            self.must_until = self.ticks

    def epochs(self, most: int) -> NDArray[np.int64]:
        """First ticks of at most about ``most`` epochs; one begins where the battery was to last until."""
        starts = np.arange(0, self.ticks, max(1, math.ceil(self.ticks / most)))
        return np.union1d(starts, [self.must_until]) if 0 < self.must_until < self.ticks else starts

    def _add_slack(self, harvest_w: float) -> None:
        """What the simulated battery can give beyond its stored energy, because a step holds its voltage still."""
        battery = self.plant.battery
        assert battery is not None
        low_v = min(battery.ocv_v)
        slope = max(
            (high_v - low) / (high - at)
            for at, high, low, high_v in zip(
                battery.charges, battery.charges[1:], battery.ocv_v, battery.ocv_v[1:], strict=False
            )
        ) / (3600.0 * battery.capacity_ah)
        fastest = math.exp(-abs(float(self.draws.min(initial=0.0))) * max(self.table.sigma))
        joules = map(operator.add, self.table.batch_j, self.table.rest_j)
        watts = map(operator.truediv, joules, self.table.median_s)
        hungry_w = max(watts) / fastest / float(self.slow.min())
        flow_a = max(
            (self.table.base_w + hungry_w) / min(battery.cutoff_v, low_v), (battery.charger_w + harvest_w) / low_v
        )
        moved_c = (self.start_j + 2.0 * float(self.fed_j.sum())) / low_v
        self.slack_j = 0.5 * slope * flow_a * self.period_s * moved_c
        settled = 1.0 - math.exp(-self.period_s / (battery.r1_ohm * battery.c1_f))
        self.slack_j += flow_a * moved_c * max(0.0, 1.5 * battery.r1_ohm * settled - battery.r0_ohm)
        self.full_j += 0.5 * battery.c1_f * (flow_a * battery.r1_ohm) ** 2 + self.slack_j

    def thermal(self, dt_s: float) -> tuple[Floats, Floats]:
        """(A, B): the rises of die and case above their course without power, after ``dt_s``, are A rises + B watts."""
        thermal = self.plant.thermal
        assert thermal is not None
        columns = [thermal.step_both(die, case, 0.0, 0.0, dt_s) for die, case in ((1.0, 0.0), (0.0, 1.0))]
        return np.array(columns).T, np.array(thermal.step_both(0.0, 0.0, 1.0, 0.0, dt_s))

    def unpowered_c(self) -> Floats:
        """The temperature at each tick's end if nothing were ever drawn."""
        assert self.plant.thermal is not None
        found = np.empty(self.ticks)
        die = case = float(self.ambient[0])
        for tick, (ambient, span) in enumerate(zip(self.ambient.tolist(), self.span.tolist(), strict=True)):
            die, case = self.plant.thermal.step_both(die, case, 0.0, ambient, span)
            found[tick] = die
        return found


class Prices(msgspec.Struct, frozen=True):
    """What the last unit of each resource is worth, in right answers; one entry a tick."""

    second: Floats  # of the engine
    joule: Floats  # drawn, for battery and heat together
    stored_j: Floats  # in the battery
    degree: Floats  # of the temperature at the tick's end


def upper_bound(problem: Problem, epochs: int) -> tuple[float, Prices] | None:
    """No policy that keeps the limits is worth more; and the prices. None where no policy can keep them.

    Raises:
        UnavailableError: scipy is not installed.
    """
    prices = _solved(problem, epochs)
    if prices is None:
        return None
    nothing = np.zeros(problem.ticks)
    free = Prices(nothing, nothing, nothing, nothing)
    found = min(_lagrangian(problem, prices), _lagrangian(problem, free))
    return found * _ROUNDING, prices


def _or(values: Floats | None, default: float, ticks: int) -> Floats:
    return np.full(ticks, default) if values is None else values


def _solved(problem: Problem, epochs: int) -> Prices | None:
    try:
        from scipy.optimize import linprog  # type: ignore[import-untyped]
        from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
    except ImportError:
        raise UnavailableError("the oracle needs scipy; pip install 'gearshift[simulate]'") from None

    p, table = problem, problem.table
    starts = p.epochs(epochs)
    count = len(starts)
    ends = np.append(starts[1:], p.ticks) - 1
    epoch_of = np.repeat(np.arange(count), ends - starts + 1)
    places = _useful(p)
    spans, fed = np.add.reduceat(p.span, starts), np.add.reduceat(p.fed_j, starts)
    base, paid = np.add.reduceat(p.base_j, starts), np.add.reduceat(p.base_j * p.off_mains, starts)
    off = np.add.reduceat(p.off_mains * p.span, starts) / spans
    where = epoch_of[p.tick]
    arrived = np.bincount(where, minlength=count).astype(np.float64)
    slow = p.slow[p.tick]

    width = len(places)
    has_battery, has_heat = p.plant.battery is not None, p.limit_c is not None
    y, energy, die, case = width, width + 1, width + 2, width + 3
    width += 4
    at: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]] = []
    k = np.arange(count)

    def put(row: NDArray[np.int64], column: int, value: Floats | float, shift: int = 0) -> None:
        """``value`` at each epoch's row, in the column of its (or an earlier) epoch's variable."""
        good = k - shift >= 0
        values = np.broadcast_to(np.asarray(value, np.float64), (count,))
        at.append((row[good], ((k - shift) * width + column)[good], values[good]))

    rows = 0
    right: list[Floats] = []
    upper = np.full((count, width), math.inf)
    lower = np.zeros((count, width))
    gain = np.zeros((count, width))
    upper[:, y] = 1.0
    lower[:, y] = np.where(p.must_until > ends, 1.0, 0.0)
    arrive_row, engine_row = k, count + k
    rows = 2 * count
    right += [np.zeros(count), spans]
    put(arrive_row, y, -arrived)
    battery_row = heat_rows = None
    if has_battery:
        battery_row, rows = rows + k, rows + count
        right.append(fed + np.where(k == 0, p.start_j + p.slack_j, 0.0))
        put(battery_row, energy, 1.0)
        put(battery_row, energy, -1.0, shift=1)
        put(battery_row, y, paid)
        lower[:, energy] = p.floor_j[ends]
        upper[:, energy] = p.full_j
    else:
        upper[:, energy] = 0.0
    if has_heat:
        assert p.limit_c is not None
        length = ends - starts + 1
        steady, push = _stacked(p, length)
        room = p.limit_c - p.unpowered_c()[ends]
        heat_rows = (rows + k, rows + count + k)
        rows += 2 * count
        right += [np.zeros(count), np.zeros(count)]
        for node, (row, column) in enumerate(zip(heat_rows, (die, case), strict=True)):
            put(row, column, -1.0)
            put(row, die, steady[:, node, 0], shift=1)
            put(row, case, steady[:, node, 1], shift=1)
            put(row, y, push[:, node] * base / spans)
        whole = np.abs(spans - length * p.period_s) < 1e-9  # a last, shorter tick is left unlimited
        upper[:, die] = np.where(whole, room, math.inf)
        if (upper[:, die] < 0).any():
            return None
    else:
        upper[:, [die, case]] = 0.0
    for column, place in enumerate(places):
        size, joules = table.batch[place], table.batch_j[place] / table.batch[place]
        service = table.median_s[place] * np.exp(table.sigma[place] * p.draws) * slow
        possible = service <= p.deadline
        mean = np.bincount(where, weights=service, minlength=count) / np.maximum(arrived, 1.0)
        gain[:, column] = table.accuracy[place]
        share = np.bincount(where, weights=possible, minlength=count)
        upper[:, column] = share if size == 1 else arrived
        put(arrive_row, column, 1.0)
        put(engine_row, column, mean / size)
        if battery_row is not None:
            put(battery_row, column, joules * off)
        if heat_rows is not None:
            for node, row in enumerate(heat_rows):
                put(row, column, push[:, node] * joules / spans)
    matrix = coo_matrix(
        (
            np.concatenate([values for *_, values in at]),
            (np.concatenate([row for row, *_ in at]), np.concatenate([column for _, column, _ in at])),
        ),
        shape=(rows, count * width),
    ).tocsr()
    found = linprog(
        -gain.ravel(),
        A_ub=matrix,
        b_ub=np.concatenate(right),
        bounds=np.column_stack([lower.ravel(), upper.ravel()]),
        method="highs",
    )
    if found.status == 2:
        return None
    if found.status != 0:  # pragma: no cover - HiGHS gave up; any prices bound, these least tightly
        nothing = np.zeros(p.ticks)
        return Prices(nothing, nothing, nothing, nothing)
    dual = np.maximum(0.0, -found.ineqlin.marginals)
    stored = dual[battery_row][epoch_of] if battery_row is not None else np.zeros(p.ticks)
    degree = np.zeros(p.ticks)
    if has_heat:
        degree[ends] = np.maximum(0.0, -found.upper.marginals.reshape(count, width)[:, die])
    return Prices(dual[engine_row][epoch_of], stored * p.off_mains + _heat_price(p, degree), stored, degree)


def _stacked(problem: Problem, length: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """:meth:`Problem.thermal` of each epoch."""
    made = {ticks: problem.thermal(ticks * problem.period_s) for ticks in np.unique(length).tolist()}
    return np.array([made[ticks][0] for ticks in length.tolist()]), np.array([made[t][1] for t in length.tolist()])


def _heat_price(problem: Problem, degree: Floats) -> Floats:
    """What a joule drawn in each tick costs in later degrees: the temperature's recursion, walked backwards."""
    found = np.zeros(problem.ticks)
    if not degree.any():
        return found
    steady, push = problem.thermal(problem.period_s)
    later = np.zeros(2)
    for tick in range(problem.ticks - 1, -1, -1):
        later = steady.T @ later
        later[0] += degree[tick]
        found[tick] = push @ later / problem.period_s
    return found


def _useful(problem: Problem) -> list[int]:
    """Operating points that no other beats in accuracy, time and energy per answer at once."""
    table = problem.table
    figures = {
        place: (
            -table.accuracy[place],
            table.median_s[place] / table.batch[place],
            table.batch_j[place] / table.batch[place],
        )
        for place in problem.allowed
    }
    return [
        place
        for place, mine in figures.items()
        if not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and (other, rival) < (mine, place)
            for rival, other in figures.items()
            if rival != place
        )
    ]


def _lagrangian(problem: Problem, prices: Prices) -> float:
    """The most that any policy is worth when resources cost these prices, plus what the resources are worth."""
    p, table = problem, problem.table
    second_low, second_high = _Range(prices.second), _Range(-prices.second)
    joule_low, joule_high = _Range(prices.joule), _Range(-prices.joule)
    slow_low, slow_high = _Range(p.slow), _Range(-p.slow)
    worth = np.zeros(p.ticks)
    after: list[Floats] = []  # what is gained where an answer may come after the end, when nothing costs
    for begin in range(0, len(p.draws), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        first, last, draws, deadline = p.tick[part], p.last_tick[part], p.draws[part], p.deadline[part]
        second, joule, slow = (low(first, last) for low in (second_low, joule_low, slow_low))
        second_most, joule_most, slow_most = (-high(first, last) for high in (second_high, joule_high, slow_high))
        best, best_free = np.zeros(len(draws)), np.zeros(len(draws))
        for place in p.allowed:
            size, median, joules = table.batch[place], table.median_s[place], table.batch_j[place]
            accuracy = table.accuracy[place]
            service = median * np.exp(table.sigma[place] * draws) * slow
            back = (size - 1) / size * (second_most * median * slow_most + joule_most * joules)
            value = accuracy - second * service - joule * joules + back
            possible = service <= deadline * _ROUNDING
            np.maximum(best, np.where(possible, value, 0.0), out=best)
            np.maximum(best_free, np.where(possible | (size > 1), accuracy, 0.0), out=best_free)
            if size > 1:
                np.maximum(best, accuracy - (second * median * slow + joule * joules) / size, out=best)
        worth += np.bincount(first, weights=best, minlength=p.ticks)
        crossing = p.due[part] > p.trace.duration_s
        after.append((best_free - best)[crossing])
    worth -= prices.joule * p.base_j
    must = np.arange(p.ticks) < p.must_until
    total = float(np.where(must, worth, np.maximum(worth, 0.0)).sum()) + float(prices.second @ p.span)
    waiting = np.sort(np.maximum(0.0, np.concatenate([*after, np.zeros(0)])))[::-1]
    total += float(waiting[: p.queue_limit + max(table.batch)].sum())
    if p.plant.battery is not None:
        stored = prices.stored_j
        rising = np.append(stored[1:], 0.0) - stored
        total += float(stored[0]) * p.start_j + float(stored @ p.fed_j) + float(stored.max()) * p.slack_j
        total += float(np.maximum(rising * p.full_j, rising * p.floor_j).sum())
    if prices.degree.any():
        assert p.limit_c is not None
        total += float(prices.degree @ (p.limit_c - p.unpowered_c()))
    return total


class _Range:
    """Least value between two places, both included, for many pairs at once: a sparse table."""

    def __init__(self, values: Floats) -> None:
        self._levels = [values]
        while 2 ** len(self._levels) <= len(values):
            before, half = self._levels[-1], 2 ** (len(self._levels) - 1)
            self._levels.append(np.minimum(before[:-half], before[half:]))

    def __call__(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> Floats:
        length = last - first + 1
        level = np.frexp(length)[1] - 1
        found = np.empty(len(first))
        for one in np.unique(level).tolist():
            here = level == one
            values = self._levels[one]
            found[here] = np.minimum(values[first[here]], values[last[here] - 2**one + 1])
        return found
