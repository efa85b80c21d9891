"""The physical side of a device: heat, throttling and battery, as pure step functions of power and time.

* :class:`Thermal`: one or two thermal nodes (resistance and capacity each), stepped exactly.
* :class:`Throttle`: the processor's own protection: clock steps down above a trip temperature, up below it.
* :class:`Plant`, :class:`PlantState`: these with a :class:`simulation.battery.Battery`, stepped together.

The default numbers describe no particular product: they are this project's own choice of a small passively cooled box
on one lithium-ion cell. Measure your device (a step in load gives resistance and time constant) and set them. Knows
nothing of requests, subnets or policies.
"""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from simulation.battery import Battery, BatteryState
from subnets.errors import InputError

DEFAULT_AMBIENT_C = 25.0
DEFAULT_RISE_C = 45.0  # what :meth:`Thermal.for_power` lets full power warm the box above ambient
DEFAULT_TIME_CONSTANT_S = 600.0


class Thermal(msgspec.Struct, frozen=True, kw_only=True):
    """One node between the processor and the air, e.g. 6 °C per watt and 100 J per °C; with a die, two.

    With ``die_resistance_c_per_w`` above 0 the processor is a small node of its own in front of the case, so that it
    heats within seconds while the case takes minutes; sensors and throttling then see the die.

    Raises:
        InputError: a number is not above 0.
    """

    resistance_c_per_w: float = 6.0  # case to air
    capacity_j_per_c: float = 100.0  # of the case
    die_resistance_c_per_w: float = 0.0  # die to case; 0 = one node
    die_capacity_j_per_c: float = 5.0

    def __post_init__(self) -> None:
        for name in ("resistance_c_per_w", "capacity_j_per_c", "die_capacity_j_per_c"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"thermal {name} is {value}; give a number above 0")
        if not 0 <= self.die_resistance_c_per_w < math.inf:
            raise InputError(
                f"thermal die_resistance_c_per_w is {self.die_resistance_c_per_w}; give a number above 0, or 0 for "
                "one node"
            )

    @staticmethod
    def for_power(power_w: float) -> Thermal:
        """A box built for a load: that power ends 45 °C above ambient, with a time constant of 10 minutes."""
        resistance = DEFAULT_RISE_C / power_w
        return Thermal(resistance_c_per_w=resistance, capacity_j_per_c=DEFAULT_TIME_CONSTANT_S / resistance)

    def step(self, temperature_c: float, power_w: float, ambient_c: float, dt_s: float) -> float:
        """The temperature after ``dt_s`` at constant power and ambient; solves C dT/dt = P - (T - Ta) / R exactly."""
        resistance = self.resistance_c_per_w
        steady = ambient_c + resistance * power_w
        return steady + (temperature_c - steady) * math.exp(-dt_s / (resistance * self.capacity_j_per_c))

    def step_both(
        self, die_c: float, case_c: float, power_w: float, ambient_c: float, dt_s: float
    ) -> tuple[float, float]:
        """Die and case after ``dt_s`` at constant power and ambient, exactly; both the same where there is one node."""
        if self.die_resistance_c_per_w == 0.0:
            after = self.step(case_c, power_w, ambient_c, dt_s)
            return after, after
        steady_case = ambient_c + self.resistance_c_per_w * power_w
        steady_die = steady_case + self.die_resistance_c_per_w * power_w
        dd, dc, cd, cc = self._decay(dt_s)
        die, case = die_c - steady_die, case_c - steady_case
        return steady_die + dd * die + dc * case, steady_case + cd * die + cc * case

    def _decay(self, dt_s: float) -> tuple[float, float, float, float]:
        """The matrix exponential of the two nodes' differential equations, row by row.

        With x the deviations from the steady state, dx/dt = [[-a, a], [b, -(b + c)]] x, where a, b and c are the
        inverse time constants of die to case, case to die and case to air. Both eigenvalues are real and below 0.
        """
        a = 1.0 / (self.die_resistance_c_per_w * self.die_capacity_j_per_c)
        b = 1.0 / (self.die_resistance_c_per_w * self.capacity_j_per_c)
        c = 1.0 / (self.resistance_c_per_w * self.capacity_j_per_c)
        middle, spread = -(a + b + c) / 2.0, math.sqrt((a - b - c) ** 2 / 4.0 + a * b)
        fast, slow = middle - spread, middle + spread
        quick, long = math.exp(fast * dt_s), math.exp(slow * dt_s)
        whole, part = (slow * quick - fast * long) / (slow - fast), (long - quick) / (slow - fast)
        return whole - a * part, a * part, b * part, whole - (b + c) * part


class Throttle(msgspec.Struct, frozen=True, kw_only=True):
    """How the processor protects itself.

    Above ``trip_c`` its clock falls by ``rate_per_s`` of full speed each second, down to ``min_frequency``; below
    ``trip_c - hysteresis_c`` it rises at the same rate. ``memory_share`` of the work waits for memory and does not
    slow down with the clock.
    """

    trip_c: float = 85.0
    hysteresis_c: float = 5.0
    rate_per_s: float = 0.1
    min_frequency: float = 0.4
    memory_share: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.min_frequency <= 1 and 0 <= self.memory_share <= 1 and self.rate_per_s > 0):
            raise InputError(
                f"throttle min_frequency {self.min_frequency}, memory_share {self.memory_share} and rate_per_s "
                f"{self.rate_per_s} must be shares of full speed, the first and last above 0"
            )

    def step(self, frequency: float, temperature_c: float, dt_s: float) -> float:
        """The clock after ``dt_s``, as a share of full speed."""
        if temperature_c > self.trip_c:
            return max(self.min_frequency, frequency - self.rate_per_s * dt_s)
        if temperature_c < self.trip_c - self.hysteresis_c:
            return min(1.0, frequency + self.rate_per_s * dt_s)
        return frequency

    def slowdown(self, frequency: float) -> float:
        """Latency over latency at full speed."""
        return self.memory_share + (1.0 - self.memory_share) / frequency


class PlantState(msgspec.Struct, frozen=True):
    """The plant at one instant; None where that part is not modelled."""

    temperature_c: float | None
    frequency: float = 1.0  # share of full speed
    battery: BatteryState | None = None
    case_c: float | None = None  # where the die is a node of its own


class Plant(msgspec.Struct, frozen=True, kw_only=True):
    """Heat, throttling and battery together; a part that is None is not modelled."""

    thermal: Thermal | None = None
    throttle: Throttle | None = None
    battery: Battery | None = None
    ambient_c: float = DEFAULT_AMBIENT_C  # where the trace does not say

    @staticmethod
    def for_table(table: Table, battery: Battery | None = None, ambient_c: float = DEFAULT_AMBIENT_C) -> Plant:
        """The default plant for a table: a box whose cooling fits its most power-hungry operating point.

        Heat is modelled only where the table knows the power of every row.
        """
        powers = [row.power_w for row in table.rows if row.power_w]
        if len(powers) < len(table.rows):
            return Plant(battery=battery, ambient_c=ambient_c)
        return Plant(thermal=Thermal.for_power(max(powers)), throttle=Throttle(), battery=battery, ambient_c=ambient_c)

    def with_thermal(
        self,
        resistance_c_per_w: float | None = None,
        capacity_j_per_c: float | None = None,
        trip_c: float | None = None,
    ) -> Plant:
        """The same plant with measured figures where they are given; a resistance alone keeps the time constant.

        Raises:
            InputError: a figure is not above 0, or heat is not modelled here.
        """
        given = {"resistance_c_per_w": resistance_c_per_w, "capacity_j_per_c": capacity_j_per_c}
        if resistance_c_per_w is not None and capacity_j_per_c is None:
            given["capacity_j_per_c"] = DEFAULT_TIME_CONSTANT_S / resistance_c_per_w
        changes = {name: value for name, value in given.items() if value is not None}
        if not changes and trip_c is None:
            return self
        if self.thermal is None or self.throttle is None:
            raise InputError("the table does not know every operating point's power, so heat cannot be modelled")
        throttle = self.throttle if trip_c is None else msgspec.structs.replace(self.throttle, trip_c=trip_c)
        return msgspec.structs.replace(
            self, thermal=Thermal(**{**msgspec.structs.asdict(self.thermal), **changes}), throttle=throttle
        )

    def start(self, ambient_c: float | None = None) -> PlantState:
        """Cold (at ambient), at full speed, charged as the battery says."""
        ambient = self.ambient_c if ambient_c is None else ambient_c
        return PlantState(
            temperature_c=None if self.thermal is None else ambient,
            battery=None if self.battery is None else self.battery.start(),
            case_c=ambient if self.thermal is not None and self.thermal.die_resistance_c_per_w > 0.0 else None,
        )

    def step(
        self,
        state: PlantState,
        power_w: float,
        dt_s: float,
        *,
        ambient_c: float | None = None,
        harvest_w: float = 0.0,
        on_mains: bool = False,
    ) -> PlantState:
        """The plant after ``dt_s`` seconds at this power."""
        temperature, frequency, battery, case = state.temperature_c, state.frequency, state.battery, state.case_c
        if temperature is not None and self.thermal is not None:
            ambient = self.ambient_c if ambient_c is None else ambient_c
            if case is None:
                temperature = self.thermal.step(temperature, power_w, ambient, dt_s)
            else:
                temperature, case = self.thermal.step_both(temperature, case, power_w, ambient, dt_s)
            if self.throttle is not None:
                frequency = self.throttle.step(frequency, temperature, dt_s)
        if battery is not None and self.battery is not None:
            drawn_w = -self.battery.charger_w if on_mains else power_w
            battery = self.battery.step(battery, drawn_w - harvest_w, dt_s)
        return PlantState(temperature, frequency, battery, case)

    def slowdown(self, state: PlantState) -> float:
        """Latency over latency at full speed, from throttling alone."""
        return 1.0 if self.throttle is None or state.frequency >= 1.0 else self.throttle.slowdown(state.frequency)
