"""The demo's compressed day: a battery-powered box, its weather, its load, and real requests sent in real time.

* :class:`Day`: the scenario, scaled to what the calibration table says this machine draws and takes, so that load, heat
  and charge each bind at their time wherever it runs.
* :class:`Box`: heat and battery of the box, driven by the answers really given; stands in for the sensors.
* :func:`play`: starts the agent on the box, sends real images at the scenario's times, and records what happened.

The engines, the answers, the agent and its decisions are real; temperature and charge come from the simulator's plant.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec
import numpy as np

from agent import Agent
from agent.values import Answer, Event
from calibration.table import Row, Table, frontier
from policies import Goals, Policy, create
from sensors.base import Reading, Snapshot, known
from simulation.battery import Battery
from simulation.outcome import Outcome
from simulation.plant import Plant, PlantState, Thermal, Throttle
from simulation.replay import simulate
from simulation.sensors import SensorModel
from simulation.trace import Trace
from subnets import Bundle
from subnets.errors import Busy, EngineError

CONTROL_PERIOD_S = 0.25
_LEAD_S = 1.0  # for loading engines, before midnight
_LIMIT_C = 70.0
_COOL_C, _HOT_C = 20.0, 38.0
_IDLE = 0.2  # idle power of the box over what the largest subnet adds at the usual load
_BATTERY = 0.85  # of the way from what the smallest subnet draws to what the largest does
_USUAL = 0.4  # load, as a share of what the largest subnet can do
# A day in half a minute: everything the policy measures in seconds shrinks with it.
POLICY_OPTIONS = {
    "forecast_s": 1.0,
    "settle_s": 1.0,
    "clear_s": 3.0,
    "mix_s": 1.5,
    "up_votes": 4,
    "dwell_s": 1.0,
    "reference_c": 30.0,
}
# (hour, load as such a share, temperature of the air around the box)
_HOURS = (
    (0.0, 0.15, _COOL_C),
    (5.0, _USUAL, _COOL_C),
    (7.5, 1.10, _COOL_C),
    (10.0, _USUAL, _COOL_C),
    (12.5, _USUAL, _HOT_C),
    (16.0, _USUAL, _COOL_C),
    (18.0, 0.80, _COOL_C),
    (19.5, _USUAL, _COOL_C),
    (22.0, 0.15, _COOL_C),
)


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """The scenario of one compressed day."""

    table: Table  # as calibrated, but with the box's idle power
    trace: Trace  # arrivals of single images, and the weather
    sheets_s: tuple[float, ...]  # when requests of ``batch_size`` images are sent
    plant: Plant
    goals: Goals  # last_until_s counts from the day's start
    batch_size: int
    notes: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Real seconds from midnight to midnight."""
        return self.trace.duration_s

    def hour(self, time_s: float) -> str:
        """The time of day, e.g. ``14:30``."""
        minutes = min(24 * 60 - 1, max(0, int(time_s / self.duration_s * 24 * 60)))
        return f"{minutes // 60:02d}:{minutes % 60:02d}"


def plan(table: Table, *, duration_s: float, seed: int = 0) -> Day:
    """A day that asks this machine for choices: bursts above what the largest subnet can do, heat, too small a battery.

    The box is a scenario: it idles at a fifth of what the largest subnet adds at the usual load, and its battery holds
    what the smallest subnet would draw over the day and 85 % of what the largest would draw beyond it. Energies
    per answer are the table's, back to back; what rests add is left out, here, in the box and in the replay.
    """
    rungs = frontier(table.select())
    largest, batch_size = rungs[-1], rungs[-1].batch_size
    top_hz = min(400.0, largest.throughput_per_s / batch_size)  # sheets per second
    random = np.random.Generator(np.random.PCG64(seed))
    starts = np.array([hour / 24 * duration_s for hour, _, _ in _HOURS])
    ends = np.append(starts[1:], duration_s)
    sheets = np.concatenate(
        [
            np.sort(random.uniform(start, end, random.poisson(load * top_hz * (end - start))))
            for start, end, (_, load, _) in zip(starts, ends, _HOURS, strict=True)
        ]
    )
    deadline_ms = max(100.0, 20 * largest.latency_p50_ms, 4 * largest.latency_p99_ms)
    goals = Goals(deadline_ms=deadline_ms, temperature_limit_c=_LIMIT_C, last_until_s=duration_s + 1, reserve=0.01)
    trace = Trace(name="a compressed day", duration_s=duration_s, arrivals_s=np.repeat(sheets, batch_size))
    plant = Plant()
    notes: tuple[str, ...] = ("the table knows no energies, so neither battery nor heat play a part",)
    if all(row.net_energy_j for row in table.rows) and largest.net_energy_j:
        notes = ()
        net_w = _USUAL * top_hz * batch_size * largest.net_energy_j
        table = msgspec.structs.replace(table, idle_power_w=_IDLE * net_w, rows=tuple(map(_restless, table.rows)))
        power_w = (1 + _IDLE) * net_w
        # With the largest subnet at the usual load: 9 degrees below the limit in cool air, above it in hot.
        resistance = (_LIMIT_C - 9.0 - _COOL_C) / power_w
        thermal = Thermal(resistance_c_per_w=resistance, capacity_j_per_c=duration_s / 20 / resistance)
        plant = Plant(thermal=thermal, throttle=Throttle(trip_c=_LIMIT_C + 8), ambient_c=_COOL_C)
        air_c = np.array([air for _, _, air in _HOURS])
        trace = msgspec.structs.replace(trace, times_s=starts, ambient_c=air_c)
        plant = _with_battery(table, plant, trace, power_w)
    return Day(
        table=table,
        trace=trace,
        sheets_s=tuple(sheets.tolist()),
        plant=plant,
        goals=goals,
        batch_size=batch_size,
        notes=notes,
    )


def _restless(row: Row) -> Row:
    """The row without the energy that rests add."""
    if row.duty is None:
        return row
    return msgspec.structs.replace(row, duty=msgspec.structs.replace(row.duty, extra_net_energy_j=None))


def _with_battery(table: Table, plant: Plant, trace: Trace, power_w: float) -> Plant:
    """A battery too small for the largest subnet all day, and large enough that heat comes into play as well."""
    goals = Goals()
    least_j, most_j = (
        simulate(table, trace, create(name, goals), goals, plant, control_period_s=CONTROL_PERIOD_S).energy_j or 0.0
        for name in ("smallest", "largest")
    )
    like = Battery(r0_ohm=0.2 / power_w, r1_ohm=0.1 / power_w, c1_f=trace.duration_s * power_w)
    capacity_ah = like.capacity_ah * (least_j + _BATTERY * (most_j - least_j)) / like.energy_j
    return msgspec.structs.replace(plant, battery=msgspec.structs.replace(like, capacity_ah=capacity_ah))


class Box:
    """Heat and charge of the box, one step each time the agent reads its sensors."""

    def __init__(self, day: Day, clock: Callable[[], float]) -> None:
        self._day, self._clock = day, clock
        self._lock = threading.Lock()
        self._drawn_j = 0.0
        self._state: PlantState = day.plant.start(_COOL_C)  # already warm
        self._read_s = 0.0
        self.energy_j = 0.0
        self.records: list[dict[str, float]] = []

    def answered(self, row: Row, images: int) -> None:
        """Books the energy of an answer."""
        if row.net_energy_j is not None:
            with self._lock:
                self._drawn_j += row.net_energy_j * images

    def read(self) -> Snapshot:
        """What the box's sensors say now."""
        at_s = max(0.0, self._clock())
        step_s, self._read_s = max(1e-3, at_s - self._read_s), at_s
        with self._lock:
            net_j, self._drawn_j = self._drawn_j, 0.0
        plant = self._day.plant
        if plant.thermal is None or plant.battery is None or self._day.table.idle_power_w is None:
            return Snapshot(())
        power_w = self._day.table.idle_power_w + net_j / step_s
        ambient_c = self._day.trace.environment("ambient_c", np.array([at_s]))
        assert ambient_c is not None
        self.energy_j += power_w * step_s
        self._state = plant.step(self._state, power_w, step_s, ambient_c=float(ambient_c[0]))
        battery, temperature_c = self._state.battery, self._state.temperature_c
        assert battery is not None and temperature_c is not None
        self.records.append(
            {"time_s": at_s, "temperature_c": temperature_c, "charge": battery.charge, "power_w": power_w}
        )
        source = "the demo's simulated box"
        readings: list[Reading] = [
            known("temperature_c", round(temperature_c, 1), source),
            known("throttled", self._state.frequency < 1.0, source),
            known("power_w", power_w, source),
            known("battery_charge", round(battery.charge, 2), source),
            known("battery_energy_j", plant.battery.stored_j(battery.charge), source),
            known("battery_power_w", power_w, source),
            known("on_mains", False, source),
        ]
        return Snapshot(tuple(readings))


class Played(msgspec.Struct, kw_only=True):
    """What happened on the day."""

    switches: list[dict[str, Any]]
    requests: int = 0
    failed: int = 0
    late: int = 0
    images: int = 0
    correct: int = 0
    energy_j: float
    subnet_images: dict[str, int] = {}
    records: list[dict[str, Any]] = []  # one a control period: time, point, temperature, charge, power


def play(
    bundle: Bundle,
    backends: dict[str, Any],
    day: Day,
    images: np.ndarray[Any, np.dtype[np.float32]],
    labels: np.ndarray[Any, np.dtype[np.int64]],
    *,
    on_switch: Callable[[float, str | None, str, str], None],
    on_time: Callable[[float], None],
) -> Played:
    """Runs the agent through the day.

    Args:
        images: preprocessed test images [N, C, H, W] to draw requests from.
        labels: [N].
        on_switch: called with (seconds into the day, from, to, reason).
        on_time: called now and then with the seconds gone.
    """
    random = np.random.Generator(np.random.PCG64(1))
    picks = random.integers(0, len(images), (64, day.batch_size))
    sheets = [(np.ascontiguousarray(images[pick]), labels[pick]) for pick in picks]
    rows = {row.point: row for row in day.table.rows}
    played = Played(switches=[], energy_j=0.0)
    lock = threading.Lock()
    midnight_s = time.monotonic() + _LEAD_S

    def clock() -> float:
        return time.monotonic() - midnight_s

    box = Box(day, clock)
    policy: Policy = create("composite", day.goals, POLICY_OPTIONS)
    agent = Agent(
        bundle,
        day.table,
        backends=backends,
        policy=policy,
        goals=day.goals,
        sensors=box,
        clock=clock,
        control_period_s=CONTROL_PERIOD_S,
        queue_limit=1024,
        policy_options=POLICY_OPTIONS,
    )

    def heard(event: Event) -> None:
        detail = event.detail
        if event.name != "switch" or detail["from"] is None:
            return
        entry = {"time_s": max(0.0, event.time_s), **{key: detail[key] for key in ("from", "to", "reason")}}
        played.switches.append(entry)
        on_switch(entry["time_s"], entry["from"], entry["to"], entry["reason"])

    def answered(truth: np.ndarray[Any, np.dtype[np.int64]], future: Future[Answer]) -> None:
        try:
            answer = future.result()
        except (Busy, EngineError):
            with lock:
                played.failed += 1
            return
        box.answered(rows[answer.point], len(truth))
        right = int((answer.logits.argmax(1) == truth).sum())
        with lock:
            played.images += len(truth)
            played.correct += right
            played.subnet_images[answer.subnet] = played.subnet_images.get(answer.subnet, 0) + len(truth)

    agent.on_event(heard)
    with agent:
        for index, at_s in enumerate(day.sheets_s):
            while (ahead_s := at_s - clock()) > 0:
                time.sleep(min(ahead_s, 0.1))
                on_time(clock())
            batch, truth = sheets[index % len(sheets)]
            played.requests += 1
            try:
                future = agent.submit(batch)
            except Busy:
                with lock:
                    played.failed += 1
                continue
            future.add_done_callback(partial(answered, truth))
        while clock() < day.duration_s:
            time.sleep(0.1)
            on_time(clock())
        last = agent.status()
        agent.close()
        played.late = agent.status().counters.late
    played.records = _joined(box.records, played.switches, last.point or "")
    played.energy_j = box.energy_j
    return played


def _joined(records: list[dict[str, float]], switches: list[dict[str, Any]], last: str) -> list[dict[str, Any]]:
    """Each record with the operating point then in use; ``last`` is the one at the end."""
    points = [*(switch["from"] for switch in switches), last]
    times = [switch["time_s"] for switch in switches]
    return [{**record, "point": points[bisect.bisect_right(times, record["time_s"])]} for record in records]


def compare(day: Day) -> dict[str, Outcome]:
    """The same day replayed in the simulator under the demo's policy, always-largest and always-smallest."""
    options: dict[str, dict[str, Any]] = {"composite": dict(POLICY_OPTIONS), "largest": {}, "smallest": {}}
    return {
        name: simulate(
            day.table,
            day.trace,
            create(name, day.goals, chosen),
            day.goals,
            day.plant,
            control_period_s=CONTROL_PERIOD_S,
            queue_limit=1024 * day.batch_size,
            sensors=SensorModel(delay_s=0.0, temperature_step_c=0.1, temperature_noise_c=0.0),
        )
        for name, chosen in options.items()
    }
