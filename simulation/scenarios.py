"""Scenarios: a trace with the device, the goals and the sensors it is played on, scaled to the table at hand.

* :class:`Scenario`: all that a replay needs but the policy and the bound.
* :data:`SCENARIOS`, :func:`build`: the generated ones, each a pure function of (table, seed).
* :func:`of_trace`: a recorded load, brought to the table's capacity.

A fixed load would be idleness for one table and collapse for another. So loads are shares of what the table's largest
and smallest subnet can answer, deadlines multiples of its 99th percentile, and cooling and battery lie between what
the smallest and the largest subnet draw: every scenario asks for a choice, and the smallest subnet keeps every limit.
The device is a scenario too: it idles at no more than a fifth of what the largest subnet adds at the usual load, since
on a big machine's idle power no subnet makes a difference. Energies per answer are the table's own.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from calibration.table import Row, Table
from policies.base import Goals
from policies.rungs import Where, rungs_of
from simulation.battery import Battery
from simulation.compiled import CompiledTable
from simulation.plant import Plant, Thermal, Throttle
from simulation.sensors import SensorModel
from simulation.trace import Floats, Trace
from subnets.bundle import Strict
from subnets.errors import InputError

QUEUE_LIMIT = 64  # the agent's own default
RESERVE = 0.05
_REQUESTS = 400_000  # about so many in a run; sets how long it lasts
_SHORTEST_S, _LONGEST_S = 600.0, 1800.0
_USUAL = 0.4  # load, as a share of what the largest subnet can answer
_IDLE = 0.2  # idle power at most, over what the largest subnet adds at the usual load
_COOL_C = 25.0
_RISE_C = 30.0  # what the largest subnet at the usual load warms the box above the air
_MARGIN_C = 8.0  # from there to the temperature limit
_TRIP_C = 3.0  # the processor protects itself so far above the limit
_LOSSES = 0.975  # of the battery's energy that reaches its terminals, resistances as below
_STEPS = 240  # changes of the environment in a run


class Scenario(Strict, frozen=True, kw_only=True, eq=False):
    """A trace and all that it is played on."""

    name: str
    summary: str
    table: Table  # with the device's idle power
    trace: Trace
    goals: Goals
    plant: Plant
    seed: int  # of arrivals, service times and sensor noise
    sensors: SensorModel = SensorModel()
    control_period_s: float = 1.0
    queue_limit: int = QUEUE_LIMIT
    drop_late: bool = False

    @property
    def charge_tolerance(self) -> float:
        """So much below the reserve still counts as kept: what the sensor cannot tell, or a percent."""
        return max(0.01, self.sensors.charge_step)

    @property
    def temperature_tolerance_c(self) -> float:
        """So much above the limit still counts as kept: what the sensor cannot tell, or a degree."""
        return max(1.0, self.sensors.temperature_step_c)


class _Device:
    """The table as a device, and the figures that scenarios are scaled by."""

    def __init__(self, table: Table, duration_s: float | None) -> None:
        compiled = CompiledTable(table)
        rungs = rungs_of(table, Where())
        places = [compiled.place(point) for point in rungs.points]
        size = rungs.rows[0].batch_size
        mean_s = [compiled.median_s[k] * math.exp(compiled.sigma[k] ** 2 / 2.0) for k in places]
        self.fast_hz, self.top_hz = size / mean_s[0], size / mean_s[-1]
        self.usual_hz = _USUAL * self.top_hz
        self.deadline_ms = 4.0 * rungs.rows[-1].latency_p99_ms
        self.duration_s = duration_s or min(_LONGEST_S, max(_SHORTEST_S, _REQUESTS / self.usual_hz))
        joules = [
            (compiled.batch_j[k] + _rested(row, self.usual_hz / size, seconds) * compiled.rest_j[k]) / size
            for k, row, seconds in zip(places, rungs.rows, mean_s, strict=True)
        ]
        self.energy_known = compiled.net_known and max(joules) > 0.0
        self.least_j, self.most_j = min(joules), joules[-1]
        idle_w = _IDLE * self.usual_hz * self.most_j
        if table.idle_power_w is not None:
            idle_w = min(idle_w, table.idle_power_w)
        self.idle_w = idle_w
        self.table = table
        if self.energy_known:
            net = {point: compiled.batch_j[k] / compiled.batch[k] for point, k in compiled.index.items()}
            rows = tuple(_boxed(row, net[row.point], idle_w) for row in table.rows)
            self.table = msgspec.structs.replace(
                table, rows=rows, idle_power_w=idle_w, idle_power_low_w=None, idle_power_high_w=None
            )

    def power_w(self, joules: float, rate_hz: float) -> float:
        """Mean power with so many joules an answer."""
        return self.idle_w + rate_hz * joules

    def box(self) -> tuple[Thermal, float]:
        """Cooling, and the swing of the air that takes the largest subnet above the limit but not the smallest."""
        most_w, least_w = self.power_w(self.most_j, self.usual_hz), self.power_w(self.least_j, self.usual_hz)
        resistance = _RISE_C / most_w
        thermal = Thermal(resistance_c_per_w=resistance, capacity_j_per_c=self.duration_s / 12.0 / resistance)
        return thermal, resistance * (most_w - least_w) / 2.0 + _MARGIN_C

    def battery(self, usable_j: float, *, start: float = 1.0) -> Battery:
        """A battery with so much energy above the reserve, and resistances that lose a few percent at mean power."""
        power_w = self.power_w(self.most_j, self.usual_hz)
        full_j = usable_j / _LOSSES / (start - RESERVE)
        like = Battery(
            r0_ohm=0.2 / power_w,
            r1_ohm=0.1 / power_w,
            c1_f=self.duration_s * power_w,
            charger_w=3.0 * power_w,
            initial_charge=start,
        )
        return msgspec.structs.replace(like, capacity_ah=like.capacity_ah * full_j / like.energy_j)

    def need_j(self, arrivals: int, share_up: float, duration_s: float | None = None) -> float:
        """Energy for a run, from all answers with the thriftiest subnet (0) to all with the largest (1)."""
        joules = self.least_j + share_up * (self.most_j - self.least_j)
        return self.idle_w * (self.duration_s if duration_s is None else duration_s) + arrivals * joules


def _rested(row: Row, rate_hz: float, service_s: float) -> float:
    """The share of what rests cost that the mean batch pays, where batches are asked for at random.

    It is one of those that find the engine idle, and after an exponential rest, or pays nothing.
    """
    idle = max(0.0, 1.0 - rate_hz * service_s)
    return 0.0 if row.duty is None else idle * row.duty.rested_by_chance(1e3 / rate_hz)


def _boxed(row: Row, net_j: float, idle_w: float) -> Row:
    """The row on a device with another idle power; what answering adds stays."""
    energy_j = net_j + idle_w / row.throughput_per_s
    if energy_j <= 0.0:
        return row
    nothing: dict[str, float | None] = dict.fromkeys(
        ("power_low_w", "power_high_w", "energy_low_j", "energy_high_j", "net_energy_low_j", "net_energy_high_j")
    )
    return msgspec.structs.replace(
        row, power_w=energy_j * row.throughput_per_s, energy_j=energy_j, net_energy_j=net_j, **nothing
    )


Maker = Callable[[_Device, np.random.Generator], dict[str, object]]


def _steady(device: _Device, random: np.random.Generator, share: float = 1.0) -> Floats:
    """Poisson arrivals at a share of the usual load, for the whole run."""
    return _arrivals(random, [0.0, device.duration_s], [share * device.usual_hz])


def _arrivals(
    random: np.random.Generator, corners_s: Sequence[float], rates: Sequence[float], cv2: float = 1.0
) -> Floats:
    """A renewal process (``cv2`` = 1: Poisson) stretched by a rate that is constant between corners (time change)."""
    corners = np.asarray(corners_s, np.float64)
    expected = np.concatenate([[0.0], np.cumsum(np.asarray(rates) * np.diff(corners))])
    total = float(expected[-1])
    size = int(1.02 * total + 6.0 * math.sqrt(total * max(1.0, cv2)) + 64)
    gaps = random.standard_exponential(size) if cv2 == 1.0 else random.gamma(1.0 / cv2, cv2, size)
    ticks = np.cumsum(gaps)
    found: Floats = np.interp(ticks[ticks < total], expected, corners)
    return found


def _bursts(
    device: _Device, random: np.random.Generator, base: float, count: int, length_s: float, most: float = 0.7
) -> tuple[list[float], list[float]]:
    """Corners and rates: bursts beyond the largest subnet, at random times that keep apart.

    They ask for at most the share ``most`` of what the smallest subnet can answer.
    """
    high = min(0.8 * math.sqrt(device.top_hz * device.fast_hz), most * device.fast_hz)
    corners, rates = [0.0], []
    slot = device.duration_s / count
    for k in range(count):
        start = k * slot + float(random.uniform(0.1, 0.9)) * (slot - length_s)
        corners += [start, start + length_s]
        rates += [base * device.top_hz, high]
    return [*corners, device.duration_s], [*rates, base * device.top_hz]


def _grid(device: _Device) -> Floats:
    return np.linspace(0.0, device.duration_s, _STEPS, endpoint=False)


def _noon(device: _Device, swing_c: float) -> Floats:
    """Air that warms by ``swing_c`` to the middle of the run, and cools again."""
    air: Floats = _COOL_C + swing_c * np.sin(np.pi * _grid(device) / device.duration_s) ** 2
    return air


def _heated(device: _Device) -> tuple[Plant, float, float]:
    """The box, its limit and the swing of the air; the processor throttles a little above the limit."""
    thermal, swing_c = device.box()
    limit_c = _COOL_C + _RISE_C + _MARGIN_C
    return Plant(thermal=thermal, throttle=Throttle(trip_c=limit_c + _TRIP_C), ambient_c=_COOL_C), limit_c, swing_c


def _slow(device: _Device, load: float) -> float:
    """A neighbour that the smallest subnet can bear at this share of the usual load, and the largest cannot."""
    return max(1.05, min(2.5, 0.6 * device.fast_hz / (load * device.usual_hz)))


def _windows(device: _Device, random: np.random.Generator, count: int, share: float) -> Floats:
    """Which steps of the grid lie within one of ``count`` windows that fill ``share`` of the run; booleans."""
    grid, slot = _grid(device), device.duration_s / count
    inside = np.zeros(len(grid), bool)
    for k in range(count):
        start = k * slot + float(random.uniform(0.0, 1.0 - share)) * slot
        inside |= (grid >= start) & (grid < start + share * slot)
    return inside.astype(np.float64)


def _dull(device: _Device, random: np.random.Generator) -> dict[str, object]:
    arrivals = _steady(device, random, 0.5)
    found: dict[str, object] = {"arrivals_s": arrivals}
    if device.energy_known:
        plant, limit_c, _ = _heated(device)
        battery = device.battery(2.0 * device.need_j(len(arrivals), 1.0))
        found["plant"] = msgspec.structs.replace(plant, battery=battery)
        found["goals"] = Goals(temperature_limit_c=limit_c + 15.0, last_until_s=device.duration_s)
    return found


def _heat(device: _Device, random: np.random.Generator) -> dict[str, object]:
    plant, limit_c, swing_c = _heated(device)
    return {
        "arrivals_s": _steady(device, random),
        "plant": plant,
        "goals": Goals(temperature_limit_c=limit_c),
        "environment": {"ambient_c": _noon(device, swing_c)},
    }


def _drain(device: _Device, random: np.random.Generator) -> dict[str, object]:
    arrivals = _steady(device, random)
    battery = device.battery(device.need_j(len(arrivals), 0.5))
    return {
        "arrivals_s": arrivals,
        "plant": Plant(battery=battery),
        "goals": Goals(last_until_s=device.duration_s),
    }


def _burst(device: _Device, random: np.random.Generator) -> dict[str, object]:
    corners, rates = _bursts(device, random, 0.3, 6, device.duration_s / 30.0)
    return {"arrivals_s": _arrivals(random, corners, rates, cv2=4.0)}


def _harvest(device: _Device, random: np.random.Generator) -> dict[str, object]:
    arrivals = _steady(device, random)
    need_j = device.need_j(len(arrivals), 0.5)
    grid, length_s = _grid(device), device.duration_s
    sun = np.maximum(0.0, np.sin((grid / length_s - 0.2) / 0.6 * np.pi)) * (grid < 0.8 * length_s)
    sun *= np.clip(1.0 + 0.3 * random.standard_normal(len(sun)), 0.2, 1.6)  # clouds
    sun_w = sun * 0.6 * need_j / (float(sun.sum()) * length_s / len(sun))
    return {
        "arrivals_s": arrivals,
        "plant": Plant(battery=device.battery(0.4 * need_j, start=0.5)),
        "goals": Goals(last_until_s=length_s),
        "environment": {"harvest_w": sun_w},
    }


def _noisy(device: _Device, random: np.random.Generator) -> dict[str, object]:
    arrivals = _steady(device, random)
    plant, limit_c, swing_c = _heated(device)
    battery = device.battery(device.need_j(len(arrivals), 0.6))
    return {
        "arrivals_s": arrivals,
        "plant": msgspec.structs.replace(plant, battery=battery),
        "goals": Goals(temperature_limit_c=limit_c, last_until_s=device.duration_s),
        "environment": {"ambient_c": _noon(device, swing_c)},
        "sensors": SensorModel(
            delay_s=5.0, temperature_step_c=2.0, temperature_noise_c=1.5, charge_step=0.05, power_noise=0.2
        ),
    }


def _slowdown(device: _Device, random: np.random.Generator) -> dict[str, object]:
    slow = 1.0 + (_slow(device, 1.2) - 1.0) * _windows(device, random, 3, 0.4)
    return {"arrivals_s": _steady(device, random, 1.2), "environment": {"slowdown": slow}}


def _unplugged(device: _Device, random: np.random.Generator) -> dict[str, object]:
    arrivals = _steady(device, random)
    away_s = 0.7 * device.duration_s
    answered_away = int((arrivals >= device.duration_s - away_s).sum())
    mains = (_grid(device) < device.duration_s - away_s).astype(np.float64)
    return {
        "arrivals_s": arrivals,
        "plant": Plant(battery=device.battery(device.need_j(answered_away, 0.5, away_s))),
        "goals": Goals(last_until_s=device.duration_s),
        "environment": {"on_mains": mains},
    }


def _deadlines(device: _Device, random: np.random.Generator) -> dict[str, object]:
    arrivals = _steady(device, random)
    factors = random.choice([0.3, 1.0, 2.5], len(arrivals), p=[0.3, 0.5, 0.2])
    return {"arrivals_s": arrivals, "deadlines_s": factors * device.deadline_ms / 1000.0}


def _blind(device: _Device, random: np.random.Generator) -> dict[str, object]:
    found = _drain(device, random)
    return {**found, "environment": {"sensors_lost": _windows(device, random, 2, 0.2)}}


def _everything(device: _Device, random: np.random.Generator) -> dict[str, object]:
    slow = 1.0 + 0.5 * (_slow(device, 1.0) - 1.0)
    corners, rates = _bursts(device, random, 0.3, 4, device.duration_s / 40.0, most=0.7 / slow)
    arrivals = _arrivals(random, corners, rates, cv2=2.0)
    plant, limit_c, swing_c = _heated(device)
    battery = device.battery(device.need_j(len(arrivals), 0.6))
    return {
        "arrivals_s": arrivals,
        "plant": msgspec.structs.replace(plant, battery=battery),
        "goals": Goals(temperature_limit_c=limit_c, last_until_s=device.duration_s),
        "environment": {
            "ambient_c": _noon(device, swing_c),
            "slowdown": 1.0 + (slow - 1.0) * _windows(device, random, 2, 0.3),
        },
    }


class Kind(msgspec.Struct, frozen=True):
    """A generated scenario: what it is in a sentence, its function, and whether it needs the table's energies."""

    summary: str
    make: Maker
    energy: bool = True
    longer: float = 1.0  # than the others


SCENARIOS: dict[str, Kind] = {
    "dull": Kind("a light, steady load, cool air, a full battery: nothing should happen", _dull, False, 2.0),
    "heat": Kind("a hot noon in which the largest subnet would pass the temperature limit", _heat),
    "drain": Kind("a battery that lasts for half the way from the smallest to the largest subnet", _drain),
    "burst": Kind("six bursts of bursty arrivals beyond what the largest subnet can answer", _burst, False),
    "harvest": Kind("a half-empty battery and a cloudy sun that brings most of what is needed", _harvest),
    "noisy": Kind("heat and drain, seen five seconds late through coarse and noisy sensors", _noisy),
    "slowdown": Kind("a neighbour on the machine three times slows every answer", _slowdown, False),
    "unplugged": Kind("mains at first, then a battery that has to last", _unplugged),
    "deadlines": Kind("requests in more or less of a hurry, a third of them in a great one", _deadlines, False),
    "blind": Kind("drain, with all sensors lost for a fifth of the time", _blind),
    "everything": Kind("bursts, a hot noon, a slow neighbour and a short battery at once", _everything),
}
"""Name -> what and how."""


def usable(table: Table) -> tuple[str, ...]:
    """The scenarios that a table has what it takes for; without energies there is no heat and no battery."""
    known = _Device(table, 1.0).energy_known
    return tuple(name for name, kind in SCENARIOS.items() if known or not kind.energy)


def build(name: str, table: Table, seed: int = 0, duration_s: float | None = None) -> Scenario:
    """A generated scenario on a table.

    Args:
        name: of :data:`SCENARIOS`.
        table: sets capacity, deadline, cooling and battery.
        seed: of arrivals, bursts and clouds, and of the replay.
        duration_s: of the run; by default what gives some 400,000 requests, within 10 to 30 minutes.

    Raises:
        InputError: there is no such scenario, or the table lacks the energies it needs.
    """
    if name not in SCENARIOS:
        close = difflib.get_close_matches(name, SCENARIOS, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(SCENARIOS)}"
        raise InputError(f"there is no scenario '{name}'; {hint}")
    kind = SCENARIOS[name]
    device = _Device(table, duration_s)
    if kind.energy and not device.energy_known:
        raise InputError(
            f"scenario '{name}' needs the energy of every operating point, which the table of {table.bundle_name} does "
            f"not know; there remain {', '.join(usable(table))}"
        )
    device.duration_s *= kind.longer
    random = np.random.Generator(np.random.PCG64([seed, list(SCENARIOS).index(name), 3]))
    return _scenario(name, kind.summary, device, seed, **kind.make(device, random))  # type: ignore[arg-type]


def _scenario(
    name: str,
    summary: str,
    device: _Device,
    seed: int,
    *,
    arrivals_s: Floats,
    deadlines_s: Floats | None = None,
    plant: Plant | None = None,
    goals: Goals | None = None,
    environment: dict[str, Floats] | None = None,
    sensors: SensorModel | None = None,
) -> Scenario:
    trace = Trace(
        name=name,
        duration_s=device.duration_s,
        arrivals_s=arrivals_s,
        deadlines_s=deadlines_s,
        times_s=_grid(device) if environment else None,
        **(environment or {}),
    )
    return Scenario(
        name=name,
        summary=summary,
        table=device.table,
        trace=trace,
        goals=msgspec.structs.replace(goals or Goals(), deadline_ms=device.deadline_ms, reserve=RESERVE).check(),
        plant=plant or Plant(),
        seed=seed,
        sensors=sensors or SensorModel(),
    )


def of_trace(
    trace: Trace, table: Table, seed: int = 0, duration_s: float | None = None, *, as_is: bool = False
) -> Scenario:
    """A recorded load on a table, on a battery that lasts for half the way from the smallest to the largest subnet.

    Unless ``as_is``, the load is brought to the table: a recording longer than the run is sped up into it, and every
    arrival stands for as many as it takes for the mean to be the usual load; fewer where the busiest moments (95th
    percentile over hundredths of the run) would pass what the smallest subnet can answer. New arrivals fall as a
    Poisson process along the recorded count (time change), so that the shape stays and requests do not come in lumps.
    What the trace says of the environment is kept; deadlines are the table's.

    Raises:
        InputError: the trace holds no arrivals.
    """
    if not len(trace.arrivals_s):
        raise InputError(f"{trace.name}: holds no arrivals, so there is nothing to answer; give a trace with requests")
    device = _Device(table, duration_s)
    if as_is:
        device.duration_s = trace.duration_s
    else:
        if trace.duration_s > device.duration_s:
            trace = trace.faster(trace.duration_s / device.duration_s)
        device.duration_s = trace.duration_s
        random = np.random.Generator(np.random.PCG64([seed, 4]))
        trace = msgspec.structs.replace(trace, arrivals_s=_at_load(trace, device, random), deadlines_s=None)
    plant, goals = Plant(), Goals(deadline_ms=device.deadline_ms, reserve=RESERVE)
    if device.energy_known:
        plant = Plant(battery=device.battery(device.need_j(len(trace.arrivals_s), 0.5)))
        goals = msgspec.structs.replace(goals, last_until_s=device.duration_s)
    summary = "a recorded load" + ("" if as_is else " at the table's scale") + " on a battery that has to last"
    return Scenario(
        name=trace.name,
        summary=summary if device.energy_known else "a recorded load",
        table=device.table,
        trace=trace,
        goals=goals,
        plant=plant,
        seed=seed,
    )


def _at_load(trace: Trace, device: _Device, random: np.random.Generator) -> Floats:
    arrivals, length_s = trace.arrivals_s, trace.duration_s
    counts, _ = np.histogram(arrivals, bins=100, range=(0.0, length_s))
    busiest_hz = float(np.quantile(counts, 0.95)) * 100.0 / length_s
    factor = device.usual_hz * length_s / len(arrivals)
    if busiest_hz > 0.0:
        factor = min(factor, 0.7 * device.fast_hz / busiest_hz)
    total = factor * len(arrivals)
    ticks = np.cumsum(random.standard_exponential(int(1.02 * total + 6.0 * math.sqrt(total) + 64)))
    recorded = np.concatenate([[0.0], arrivals])
    found: Floats = np.interp(ticks[ticks < total] / factor, np.arange(len(recorded), dtype=np.float64), recorded)
    return found
