"""Replays a trace against a policy: the same policy object as in the agent, with simulated queue, sensors and plant.

One pass of the loop is one control period::

    plant steps (power of the period before) -> sensors -> policy.decide -> the server answers until the next tick

After the last tick whatever still waits is answered under the last decision, so every request ends exactly once. All
randomness comes from the seed: service times from one stream per request, sensor noise from another, so policies are
compared on the same draws. :func:`simulate` is the only entrance.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from importlib.util import find_spec

import msgspec
import numpy as np

from calibration.table import Table
from policies.base import Conditions, Goals, Policy
from simulation.compiled import CompiledTable
from simulation.outcome import Outcome, Sketch, SwitchEvent, Timeline
from simulation.plant import Plant
from simulation.sensors import SensorModel, Sensors, Truth
from simulation.server import Server
from simulation.trace import ENVIRONMENT, Floats, Trace
from subnets.errors import InputError

MAX_TICKS = 20_000_000
MAX_SWITCH_EVENTS = 10_000
COMPILED_FROM = 200_000  # requests; below, loading or building the machine code takes longer than it saves
_TIMELINE_STEPS = 1_440


def simulate(
    table: Table,
    trace: Trace,
    policy: Policy,
    goals: Goals,
    plant: Plant,
    *,
    seed: int = 0,
    control_period_s: float = 1.0,
    queue_limit: int = 1_000,
    drop_late: bool = False,
    drop_oldest: bool = False,
    sensors: SensorModel | None = None,
    progress: Callable[[float], None] | None = None,
    compiled: bool | None = None,
) -> Outcome:
    """One policy on one trace.

    Args:
        table: what each operating point takes and draws.
        trace: arrivals and environment.
        policy: decides once per control period; it is reset first.
        goals: their deadline decides what is on time, unless the trace brings its own; the policy must have been
            made with the same.
        plant: heat and battery. Where the table does not know the whole power, heat is left out.
        seed: of service times and sensor noise.
        control_period_s: time between two decisions.
        queue_limit: requests that may wait.
        drop_late: drop a request whose deadline has passed before its turn.
        drop_oldest: in a full queue the earliest deadline makes room for the newcomer, as a camera's frames do.
        sensors: what the policy sees; the default delays and rounds a little.
        progress: called now and then with the share done, 0..1.
        compiled: whether the hot loop runs as machine code; the outcome is the same to the last bit. By default it does
            for long traces, if numba is installed.

    Raises:
        InputError: the trace has no arrivals, the policy chose a point that the table lacks, or an argument is out of
            range.
        UnavailableError: ``compiled`` is true and numba is not installed.
    """
    if not (control_period_s > 0 and queue_limit >= 1):
        raise InputError(f"control period {control_period_s} s and queue limit {queue_limit} must be above 0")
    if not len(trace.arrivals_s):
        raise InputError(f"{trace.name}: the trace is empty; lay one with arrivals over it, e.g. poisson:rate=1")
    ticks = max(1, math.ceil(trace.duration_s / control_period_s - 1e-9))
    if ticks > MAX_TICKS:
        raise InputError(f"{trace.name}: {ticks} control periods, at most {MAX_TICKS}; use a longer control period")
    flat = CompiledTable(table)
    if not flat.energy_known:
        plant = msgspec.structs.replace(plant, thermal=None, throttle=None)
    if compiled is None:
        compiled = len(trace.arrivals_s) >= COMPILED_FROM and find_spec("numba") is not None
    server = Server(
        flat,
        trace.arrivals_s,
        service_draws(len(trace.arrivals_s), seed),
        deadlines_s=deadlines_s(trace, goals),
        drop_late=drop_late,
        drop_oldest=drop_oldest,
        queue_limit=queue_limit,
        compiled=compiled,
    )
    run = _Run(flat, server, trace, policy, goals, plant, seed, control_period_s, ticks, sensors or SensorModel())
    run.go(table, progress)
    return run.outcome()


def service_draws(requests: int, seed: int) -> Floats:
    """The standard normal number that makes each request's service time; the same for every policy."""
    return np.random.Generator(np.random.PCG64([seed, 1])).standard_normal(requests)


def deadlines_s(trace: Trace, goals: Goals) -> Floats | float | None:
    """What is on time: the trace's own deadlines, else the goals' for all, else None."""
    if trace.deadlines_s is not None:
        return trace.deadlines_s
    return None if goals.deadline_ms is None else goals.deadline_ms / 1000.0


class _Recorder:
    """The bounded timeline: one entry every ``stride`` ticks, rates and power averaged over them."""

    def __init__(self, ticks: int, period_s: float) -> None:
        self.stride = max(1, math.ceil(ticks / _TIMELINE_STEPS))
        self._span_s = self.stride * period_s
        self.time_s, self.point, self.queue_depth = array("d"), array("q"), array("q")
        self.temperature_c, self.charge, self.rate_hz, self.power_w = array("d"), array("d"), array("d"), array("d")
        self._arrived = 0
        self._energy_j = 0.0

    def begin(self, time_s: float, point: int, queued: int, temperature: float | None, charge: float | None) -> None:
        self.time_s.append(time_s)
        self.point.append(point)
        self.queue_depth.append(queued)
        if temperature is not None:
            self.temperature_c.append(temperature)
        if charge is not None:
            self.charge.append(charge)

    def end(self, arrived: int, energy_j: float, span_s: float | None = None) -> None:
        """Closes an entry, given the sums from the start of the run until now."""
        span_s = self._span_s if span_s is None else span_s
        self.rate_hz.append((arrived - self._arrived) / span_s)
        self.power_w.append((energy_j - self._energy_j) / span_s)
        self._arrived, self._energy_j = arrived, energy_j

    def timeline(self, points: tuple[str, ...], energy_known: bool) -> Timeline:
        steps = len(self.time_s)
        return Timeline(
            points=points,
            time_s=tuple(self.time_s),
            point=tuple(self.point),
            arrival_rate_hz=tuple(self.rate_hz),
            queue_depth=tuple(self.queue_depth),
            temperature_c=tuple(self.temperature_c) if len(self.temperature_c) == steps else None,
            charge=tuple(self.charge) if len(self.charge) == steps else None,
            power_w=tuple(self.power_w) if energy_known else None,
        )


class _Run:
    """Everything one run needs; :meth:`go` is the loop, :meth:`outcome` adds up."""

    def __init__(
        self,
        table: CompiledTable,
        server: Server,
        trace: Trace,
        policy: Policy,
        goals: Goals,
        plant: Plant,
        seed: int,
        period_s: float,
        ticks: int,
        model: SensorModel,
    ) -> None:
        self._table, self._server, self._trace, self._policy = table, server, trace, policy
        self._goals, self._plant, self._period_s, self._ticks = goals, plant, period_s, ticks
        self._sensors = Sensors(
            model,
            battery_energy_j=None if plant.battery is None else plant.battery.energy_j,
            control_period_s=period_s,
            seed=seed,
        )
        self._recorder = _Recorder(ticks, period_s)
        self._ceiling: int | None = None
        self._seconds_in = [0.0] * len(table.points)
        self._bounds: dict[str, int] = {}
        self._switches = 0
        self._events: list[SwitchEvent] = []
        self._off_s = self._throttled_s = self._over_s = 0.0
        self._base_j = 0.0
        self._empty_at: float | None = None
        self._at_goal: float | None = None  # charge when the battery was to last until
        self._peak: float | None = None

    def go(self, table: Table, progress: Callable[[float], None] | None) -> None:
        """Runs the trace from start to end."""
        plant, server, policy, recorder = self._plant, self._server, self._policy, self._recorder
        period, ticks, base_w = self._period_s, self._ticks, self._table.base_w
        grid = np.arange(ticks, dtype=np.float64) * period
        ambient, harvest, slow, mains, lost = self._environment(grid)
        figures, end = server.figures, 0.0
        spread_j = 0.0  # drawn so far, each batch evenly over the time it takes
        state = plant.start(ambient[0] if ambient else None)
        power_w: float | None = None  # mean of the period before
        limit_c, until_s = self._goals.temperature_limit_c, self._goals.last_until_s
        report_every = max(1, ticks // 100)
        policy.reset()
        for tick in range(ticks):
            now = tick * period
            end = min(now + period, self._trace.duration_s) if tick == ticks - 1 else now + period
            span = end - now
            battery = state.battery
            on_mains = mains[tick] > 0 if mains else None
            powered = battery is None or not battery.off or bool(on_mains)
            factor = plant.slowdown(state)
            if powered:
                server.slow_down(factor * slow[tick] if slow else factor)
                load = power_w if self._table.energy_known else None
                truth = Truth(
                    state.temperature_c,
                    None if state.temperature_c is None else state.frequency < 1.0,
                    None if battery is None else battery.charge,
                    None
                    if battery is None or power_w is None
                    else self._battery_power_w(power_w, harvest, tick, on_mains),
                    on_mains,
                    load,
                )
                conditions = self._sensors.read(
                    now,
                    truth,
                    arrival_rate_hz=figures.arrival_rate_hz,
                    queue_depth=server.waiting,
                    slowdown=figures.slowdown(now),
                    miss_rate=figures.miss_rate(now),
                    lost=bool(lost) and lost[tick] > 0,
                )
                self._seconds_in[self._decide(table, conditions, now)] += span
            if tick % recorder.stride == 0:
                if tick:
                    recorder.end(server.arrived, spread_j)
                charge = None if battery is None else battery.charge
                recorder.begin(now, self._ceiling or 0, server.waiting, state.temperature_c, charge)
            if powered:
                drawn_j = server.advance(now, end) + base_w * span
                self._base_j += base_w * span
            else:
                server.refuse(end)
                drawn_j = 0.0
                self._off_s += span
            power_w = drawn_j / span
            spread_j += drawn_j
            figures.passed(span)
            state = plant.step(
                state,
                power_w,
                span,
                ambient_c=ambient[tick] if ambient else None,
                harvest_w=harvest[tick] if harvest else 0.0,
                on_mains=bool(on_mains),
            )
            self._watch(state.temperature_c, state.frequency, limit_c, span)
            if state.battery is not None and state.battery.off and self._empty_at is None and not on_mains:
                self._empty_at = end
            if state.battery is not None and self._at_goal is None and until_s is not None and end >= until_s:
                self._at_goal = state.battery.charge
            if progress is not None and tick % report_every == 0:
                progress(tick / ticks)
        recorder.end(server.arrived, spread_j, end - recorder.time_s[-1])
        if powered and (state.battery is None or not state.battery.off):
            server.advance(end, math.inf)
        else:
            server.refuse(math.inf)
        self._state = state
        if progress is not None:
            progress(1.0)

    def _environment(self, grid: Floats) -> list[list[float]]:
        """The environment at every tick, as lists; an empty list where the trace does not say."""
        found = []
        for name in ENVIRONMENT:
            values = self._trace.environment(name, grid)
            found.append([] if values is None else values.tolist())
        return found

    def _battery_power_w(self, power_w: float, harvest: list[float], tick: int, on_mains: bool | None) -> float:
        battery = self._plant.battery
        assert battery is not None
        drawn_w = -battery.charger_w if on_mains else power_w
        return drawn_w - (harvest[tick] if harvest else 0.0)

    def _decide(self, table: Table, conditions: Conditions, now: float) -> int:
        """Asks the policy and does as it says; the place of the operating point now in use."""
        compiled, server = self._table, self._server
        current = None if self._ceiling is None else compiled.points[self._ceiling]
        decision = self._policy.decide(conditions, table, current)
        place = compiled.index.get(decision.point)
        if place is None:
            place = compiled.place(decision.point)
        if place != self._ceiling:
            if current is not None:
                self._switches += 1
                if len(self._events) < MAX_SWITCH_EVENTS:
                    self._events.append(SwitchEvent(now, current, decision.point, decision.reason))
            self._ceiling = place
        server.use(place, decision.slack_plan)
        self._bounds[decision.bound] = self._bounds.get(decision.bound, 0) + 1
        return place

    def _watch(self, temperature: float | None, frequency: float, limit_c: float | None, span: float) -> None:
        if temperature is None:
            return
        if self._peak is None or temperature > self._peak:
            self._peak = temperature
        if frequency < 1.0:
            self._throttled_s += span
        if limit_c is not None and temperature > limit_c:
            self._over_s += span

    def outcome(self) -> Outcome:
        """The counts and sums of the finished run."""
        compiled, server, battery = self._table, self._server, self._plant.battery
        seconds_in: dict[str, float] = {}
        for subnet, seconds in zip(compiled.subnets, self._seconds_in, strict=True):
            if seconds:
                seconds_in[subnet] = seconds_in.get(subnet, 0.0) + seconds
        heat = self._plant.thermal is not None
        left = None if self._state.battery is None else self._state.battery.charge
        powers = [power for place in server.used if (power := compiled.power_w[place]) is not None]
        return Outcome(
            duration_s=self._trace.duration_s,
            requests=len(self._trace.arrivals_s),
            answered=server.answered,
            on_time=server.on_time,
            dropped_queue=server.dropped_queue,
            dropped_late=server.dropped_late,
            dropped_off=server.dropped_off,
            accuracy_sum=server.accuracy_sum,
            energy_j=self._base_j + server.drawn_j if compiled.energy_known else None,
            net_energy_j=server.drawn_j if compiled.net_known else None,
            switches=self._switches,
            slack_choices=server.slack_choices,
            seconds_in=dict(sorted(seconds_in.items())),
            bounds=dict(sorted(self._bounds.items())),
            latencies=Sketch.of(server.latencies_s),
            peak_temperature_c=self._peak,
            peak_power_w=max(powers, default=None) if len(powers) == len(server.used) else None,
            throttled_s=self._throttled_s if heat and self._plant.throttle is not None else None,
            over_temperature_s=self._over_s if heat and self._goals.temperature_limit_c is not None else None,
            battery_left=left,
            battery_left_j=None if left is None or battery is None else battery.stored_j(left),
            time_to_empty_s=self._empty_at,
            battery_at_goal=left if self._at_goal is None else self._at_goal,
            off_s=self._off_s,
            notes=compiled.notes,
            switch_events=tuple(self._events),
            timeline=self._recorder.timeline(compiled.points, compiled.energy_known),
        )
