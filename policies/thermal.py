"""Heat: the best rung whose temperature, forecast some seconds ahead, stays below the limit.

With an identified thermal node (:mod:`policies.heat`) each rung's own temperature is forecast; until then a ladder is
walked by the normalised headroom, ``h = (limit - T) / (limit - reference)``, of the temperature along its slope. Knows
nothing of load or battery.
"""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.heat import HeatMemory, HeatModel, identified, observe
from policies.memory import Smoothed
from policies.remembering import Remembering
from policies.rungs import PerTable, RungPolicy, Where, require
from policies.watts import PowerModel, power_model
from policies.wording import duration
from subnets.errors import InputError

_SLOPE_S = 15.0  # time constant of the slope: long against a sensor's 1 degree steps, short against a heat sink
_POWER_S = 5.0  # time constant of the power that a forecast starts from
_LONG = 3.0  # how much farther than forecast_s is looked before a step up: as long as it should last
_WINDOWS = 3.0  # windows of identification in forecast_s
_FILTERS = 4.0  # time constants of the temperature's filter in forecast_s
_CLEARLY_C = 0.5  # a step up must stay so far below
_DOUBTS = 1.0  # standard deviations of the forecast to keep clear of the limit, beside the margin
_DOUBTS_READING = 2.0  # standard deviations of its noise that a reading at the limit is doubted by
_NOISE_S = 120.0  # time constant of that noise
_IDENTIFY_S = 120.0  # time constant of the degrees-per-watt estimate


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    steps_down: int = 0  # the ceiling, counted from the best rung
    stepped_s: float | None = None  # when the ceiling last moved
    throttled_s: float | None = None  # when the processor was last seen throttled
    temperature_c: float | None = None
    slope_c_per_s: Smoothed = msgspec.field(default_factory=Smoothed)
    rise_times_power: Smoothed = msgspec.field(default_factory=Smoothed)
    power_squared: Smoothed = msgspec.field(default_factory=Smoothed)
    heat: HeatMemory = msgspec.field(default_factory=HeatMemory)
    power_w: Smoothed = msgspec.field(default_factory=Smoothed)
    filtered_c: float | None = None
    missed_c2: Smoothed = msgspec.field(default_factory=Smoothed)  # square of what readings are beside that
    filtered_s: float = 0.0


class Thermal(RungPolicy, Remembering[_Memory]):
    """Steps a ceiling down before the limit is reached, and up again when the model says that it will hold.

    *Once the device is identified* as one thermal node, from its own temperature and power, ``T_i(s)`` is the forecast
    for rung i after ``s`` seconds, plus a standard deviation of the estimate, and ``t_i`` without. With
    ``H = forecast_s`` and rung u in use::

        down if                  T_u(H) > limit - margin,  to the best i below with T_i(H) <= limit
        up one rung if           T_i(H), t_i(3 H)  <= limit - margin - 0.5

    The longer look before going up keeps the number of switches small where no rung holds the limit exactly: the two
    around it take turns of a minute or more. The power of a rung is the measured one, plus the table's difference.

    *Until then*, each row of the table is tried in turn; at most one step per ``settle_s``, so that the last one can
    show its effect, which also holds with a model.

    ==================================  ==========================================================
    temperature at or above the limit   down to the fastest rung at once (urgent); with a model, the filtered
                                        temperature counts, and a reading only beyond two standard deviations of noise
    the processor has throttled itself  one step down (urgent)
    h < ``h_lo``                        one step down
    h > ``h_hi``, now and ahead,        one step up, if the headroom predicted for the better rung
    not throttled for ``clear_s``       stays above ``h_lo``
    no limit, or temperature unknown    one step up after ``clear_s`` without throttling
    ==================================  ==========================================================

    A step down starts from the rung in use when that is below the ceiling, for it is the one that makes the heat.

    The prediction adds to the temperature what the better rung draws more, times degrees per watt. These are given, or
    fitted as the line through (0 W, ``reference_c``) over the measured power (the table's at the arrival rate where
    none is measured). Surroundings warmer than the reference make the estimate too large, and the step up late. Without
    powers or an estimate nothing is predicted. An unknown temperature never binds on its own: what an earlier one
    imposed is given back step by step.

    Args:
        h_lo: headroom below which the ceiling steps down, a share.
        h_hi: headroom above which it may step up, a share above h_lo.
        forecast_s: how far ahead the temperature is looked at, in seconds.
        margin_c: how far below the limit an identified forecast should stay, in degrees Celsius.
        reference_c: temperature of headroom 1, best that of the surroundings, in degrees Celsius.
        settle_s: least time between two steps, in seconds.
        clear_s: time without throttling before a step up, in seconds.
        degrees_per_watt: rise of the temperature per watt in the long run; identified when left out.
    """

    name = "thermal"
    looks_at = ("temperature_c", "throttled", "power_w", "arrival_rate_hz")

    def __init__(
        self,
        goals: Goals,
        *,
        h_lo: float = 0.15,
        h_hi: float = 0.35,
        forecast_s: float = 30.0,
        margin_c: float = 0.5,
        reference_c: float = 25.0,
        settle_s: float = 10.0,
        clear_s: float = 60.0,
        degrees_per_watt: float | None = None,
        where: Where | None = None,
    ) -> None:
        super().__init__(goals, where=where)
        require(0 <= h_lo < 1, self.name, "h_lo", h_lo, "a share from 0 to below 1")
        require(h_lo < h_hi < 1, self.name, "h_hi", h_hi, f"a share above h_lo ({h_lo:g}) and below 1")
        require(0 <= forecast_s < math.inf, self.name, "forecast_s", forecast_s, "a time from 0 seconds")
        require(0 <= margin_c < math.inf, self.name, "margin_c", margin_c, "degrees from 0")
        require(0 <= settle_s < math.inf, self.name, "settle_s", settle_s, "a time from 0 seconds")
        require(0 <= clear_s < math.inf, self.name, "clear_s", clear_s, "a time from 0 seconds")
        require(math.isfinite(reference_c), self.name, "reference_c", reference_c, "a temperature in degrees Celsius")
        positive = degrees_per_watt is None or 0 < degrees_per_watt < math.inf
        require(positive, self.name, "degrees_per_watt", degrees_per_watt, "a number above 0, or leave it out")
        limit = goals.temperature_limit_c
        if limit is not None and limit <= reference_c:
            raise InputError(
                f"goal temperature_limit_c is {limit:g}; give more than the reference temperature "
                f"({reference_c:g}), or lower the option reference_c of policy thermal"
            )
        self.h_lo, self.h_hi, self.forecast_s, self.reference_c = h_lo, h_hi, forecast_s, reference_c
        self.margin_c = margin_c
        self.settle_s, self.clear_s, self.degrees_per_watt = settle_s, clear_s, degrees_per_watt
        self._model: PerTable[PowerModel] = PerTable(lambda t: power_model(self._rungs(t), t.idle_power_w))
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The ceiling after at most one step, or at the bottom when the limit is reached."""
        memory, rungs, now = self._memory, self._rungs(table), conditions.time_s
        top = len(rungs.points) - 1
        level = max(0, top - memory.steps_down)
        running = rungs.position.get(current, level) if current is not None else level
        self._observe(conditions, self._model(table), running)
        limit, measured = self.goals.temperature_limit_c, conditions.temperature_c
        if measured is None or limit is None:
            state = "temperature unknown" if measured is None else f"{measured:.1f} °C, no limit set"
            target = level
            if conditions.throttled:
                target = self._down(now, level, running)
            elif level < top and self._clear(now) and self._since(memory.stepped_s, now) >= self.clear_s:
                target = level + 1
        elif (node := identified(memory.heat)) is not None and (power_w := memory.power_w.value) is not None:
            target, state = self._foresee(conditions, table, node, power_w, measured, limit, level, running)
        else:
            memory.filtered_c = None
            target, state = self._walk(conditions, table, measured, limit, level, running)
        if conditions.throttled:
            memory.throttled_s = now
            state += ", throttled"
        if target != level:
            memory.steps_down, memory.stepped_s = top - target, now
        urgent = bool(conditions.throttled) or (
            measured is not None and limit is not None and self._at(limit, measured)
        )
        bound = "thermal" if target < top else "none"
        return rungs.choose(target, f"thermal: {state}: {rungs.labels[target]}", bound, urgent=urgent)

    def _walk(
        self, conditions: Conditions, table: Table, measured: float, limit: float, level: int, running: int
    ) -> tuple[int, str]:
        """The next level when temperature and limit are known, and what was seen."""
        rungs, now = self._rungs(table), conditions.time_s
        span = limit - self.reference_c
        ahead = measured + self.forecast_s * (self._memory.slope_c_per_s.value or 0.0)
        headroom = (limit - ahead) / span
        state = f"{measured:.1f} °C, in {self.forecast_s:g} s {ahead:.1f} °C of {limit:g} °C (headroom {headroom:.2f})"
        if measured >= limit:
            return 0, state
        if conditions.throttled or headroom < self.h_lo:
            return self._down(now, level, running), state
        hottest = max(measured, ahead)
        roomy = (limit - hottest) / span > self.h_hi and self._clear(now)
        if level == len(rungs.points) - 1 or not roomy or self._since(self._memory.stepped_s, now) < self.settle_s:
            return level, state
        warmer = hottest + self._rise_c(table, level + 1, running, conditions)
        if (limit - warmer) / span > self.h_lo:
            return level + 1, state
        return level, f"{state}; {rungs.labels[level + 1]} would bring {warmer:.1f} °C"

    def _foresee(
        self,
        conditions: Conditions,
        table: Table,
        node: HeatModel,
        power_w: float,
        measured: float,
        limit: float,
        level: int,
        running: int,
    ) -> tuple[int, str]:
        """The level after this moment, with an identified node, and the state in words."""
        now, rungs, keep_c = conditions.time_s, self._rungs(table), limit - self.margin_c
        reading, measured = measured, self._filter(node, power_w, measured, now)
        model = self._model(table)

        def ahead_c(index: int, seconds: float, doubts: float = _DOUBTS) -> float:
            watts = power_w
            if index != running:
                more_w = model.difference_w(index, running, conditions.arrival_rate_hz)
                watts = max(0.0, power_w + (more_w or 0.0))
            return node.forecast_c(measured, watts, seconds) + doubts * node.doubt_c(measured, watts, seconds)

        expected = ahead_c(level, self.forecast_s)
        state = (
            f"{reading:.1f} °C, {rungs.labels[level]} brings {expected:.1f} °C in {self.forecast_s:g} s, "
            f"{limit:g} °C allowed"
        )
        if self._at(limit, reading):
            return 0, state
        settled = self._since(self._memory.stepped_s, now) >= self.settle_s
        if conditions.throttled:
            return self._down(now, level, running), state
        if expected > keep_c:
            if not settled:
                return level, state
            # One step, unless that would not do: the next forecast comes long before the limit does.
            fitting = (index for index in range(level - 1, 0, -1) if ahead_c(index, self.forecast_s) <= limit)
            return min(next(fitting, 0), level), state
        if level < len(rungs.points) - 1 and settled and self._clear(now):
            long_s = _LONG * self.forecast_s
            # Far ahead it is enough to be likely: near the limit there is still the way back.
            warmest = max(ahead_c(level + 1, self.forecast_s), ahead_c(level + 1, long_s, 0.0))
            if warmest <= keep_c - _CLEARLY_C:
                return level + 1, state
            state += f"; {rungs.labels[level + 1]} would bring {warmest:.1f} °C in {duration(long_s)}"
        return level, state

    def _filter(self, node: HeatModel, power_w: float, measured: float, now: float) -> float:
        """The temperature without the sensor's noise and steps: the model's, drawn towards what is measured."""
        memory = self._memory
        before, elapsed = memory.filtered_c, now - memory.filtered_s
        memory.filtered_s = now
        if before is None or not 0 <= elapsed <= self.forecast_s:
            memory.filtered_c = measured
        else:
            expected = node.forecast_c(before, power_w, elapsed)
            memory.missed_c2.update((measured - expected) ** 2, now, _NOISE_S)
            memory.filtered_c = expected - math.expm1(-elapsed * _FILTERS / self.forecast_s) * (measured - expected)
        return memory.filtered_c

    def _at(self, limit: float, reading: float) -> bool:
        """Whether the limit is reached: by the filtered temperature, or by a reading that noise does not explain."""
        memory = self._memory
        if memory.filtered_c is None or memory.missed_c2.value is None:
            return reading >= limit
        return memory.filtered_c >= limit or reading - _DOUBTS_READING * math.sqrt(memory.missed_c2.value) >= limit

    def _down(self, now: float, level: int, running: int) -> int:
        """One below what runs, unless the last step is too recent to have shown its effect."""
        if self._since(self._memory.stepped_s, now) < self.settle_s:
            return level
        return max(0, min(level, running) - 1)

    def _clear(self, now: float) -> bool:
        """Whether the processor has not throttled itself for a while."""
        return self._since(self._memory.throttled_s, now) >= self.clear_s

    @staticmethod
    def _since(then: float | None, now: float) -> float:
        """Seconds since ``then``; unlimited when that never was, or time has started anew."""
        return math.inf if then is None or now < then else now - then

    def _observe(self, conditions: Conditions, model: PowerModel, running: int) -> None:
        """Takes a temperature into the slope, and with the power into the degrees per watt."""
        memory, now, measured = self._memory, conditions.time_s, conditions.temperature_c
        if measured is None:
            return
        slope = memory.slope_c_per_s
        elapsed = now - slope.time_s
        if memory.temperature_c is None or elapsed < 0:
            memory.slope_c_per_s = Smoothed(0.0, now)
        elif elapsed > 0:
            slope.update((measured - memory.temperature_c) / elapsed, now, _SLOPE_S)
        memory.temperature_c = measured
        power = conditions.power_w
        if power is None and conditions.arrival_rate_hz is not None:
            above_idle = model.inference_w(running, conditions.arrival_rate_hz)
            power = None if above_idle is None else above_idle + (model.idle_w or 0.0)
        if power is not None:
            observe(memory.heat, now, measured, power, self.forecast_s / _WINDOWS)
            memory.power_w.update(power, now, _POWER_S)
            if identified(memory.heat) is None:
                memory.rise_times_power.update((measured - self.reference_c) * power, now, _IDENTIFY_S)
                memory.power_squared.update(power * power, now, _IDENTIFY_S)

    def _rise_c(self, table: Table, index: int, running: int, conditions: Conditions) -> float:
        """How many degrees more a rung brings in the long run than the one in use; 0 when that cannot be said."""
        degrees = self.degrees_per_watt
        if degrees is None:
            product, square = self._memory.rise_times_power.value, self._memory.power_squared.value
            degrees = max(0.0, product / square) if product is not None and square else 0.0
        more_w = self._model(table).difference_w(index, running, conditions.arrival_rate_hz)
        return degrees * max(0.0, more_w or 0.0)
