"""What a sensor is: readings with a reason for everything unknown, and the set that guards them.

* :class:`Reading`, :func:`known`, :func:`unknown`: one value, or None and why.
* :class:`Snapshot`: the readings of one instant; the first available of each name counts.
* :class:`Sensor`, :class:`NullSensor`, :class:`SensorSet`.
* :data:`QUANTITIES`: every name a reading may have, its unit and the range beyond which a value is no measurement.

Knows nothing of files, drivers or policies; the plain names are the fields of the conditions that policies see.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

Value = float | bool | None


class Quantity(msgspec.Struct, frozen=True):
    """A unit, and the closed range of plausible values."""

    unit: str
    low: float
    high: float


_SHARE = Quantity("share", 0.0, 1.0)
_YES_NO = Quantity("bool", 0.0, 1.0)
# Below: colder than any device is rated for. Above: past every junction limit, and drivers' 127 and 255 mean "none".
_TEMPERATURE = Quantity("°C", -40.0, 125.0)
_POWER = Quantity("W", 0.0, 10_000.0)

QUANTITIES: Mapping[str, Quantity] = {
    "battery_charge": _SHARE,
    "battery_energy_j": Quantity("J", 0.0, 3.6e8),  # 100 kWh
    "battery_power_w": Quantity("W", -10_000.0, 10_000.0),  # positive: discharging
    "on_mains": _YES_NO,
    "temperature_c": _TEMPERATURE,
    "throttled": _YES_NO,
    "power_w": _POWER,
    "cpu_load": _SHARE,
    "pressure": _SHARE,
    # Beside what conditions hold: for doctor, status and metrics. "zone_temperature_c:cpu-thermal" carries its zone.
    "memory_pressure": _SHARE,
    "io_pressure": _SHARE,
    "cpu_frequency_hz": Quantity("Hz", 1e6, 2e10),
    "zone_temperature_c": _TEMPERATURE,
    "gpu_temperature_c": _TEMPERATURE,
    "gpu_throttled": _YES_NO,
    "gpu_power_w": _POWER,
}


def quantity(name: str) -> Quantity:
    """The unit and range of a reading's name; what follows a colon only says where it was read."""
    return QUANTITIES[name.partition(":")[0]]


class Reading(msgspec.Struct, frozen=True):
    """One value with its unit and where it was read; None means unknown, and ``why`` says why."""

    name: str
    value: Value
    unit: str
    source: str
    why: str = ""


def known(name: str, value: float | bool, source: str) -> Reading:
    """A reading; unknown after all when the value is outside what is plausible for its name."""
    limits = quantity(name)
    if not math.isfinite(value) or not limits.low <= value <= limits.high:
        return unknown(name, source, f"{source}: implausible value {value:g} {limits.unit}")
    return Reading(name, value, limits.unit, source)


def unknown(name: str, source: str, why: str) -> Reading:
    """A reading that could not be taken."""
    return Reading(name, None, quantity(name).unit, source, why)


class Snapshot(msgspec.Struct, frozen=True):
    """The readings of one instant, in the order of preference."""

    readings: tuple[Reading, ...]

    def values(self) -> dict[str, Value]:
        """The first available reading of each name; None where no reading of that name is available."""
        values: dict[str, Value] = {}
        for reading in self.readings:
            if values.get(reading.name) is None:
                values[reading.name] = reading.value
        return values


class Sensor(abc.ABC):
    """Takes some readings. Never raises for what the machine lacks: that is unknown, with the reason."""

    name: str
    names: tuple[str, ...] = ()  # of the readings it always gives: they become unknown when it fails

    @abc.abstractmethod
    def read(self) -> tuple[Reading, ...]:
        """Its readings now; the same names each time, known or not."""


class NullSensor(Sensor):
    """Stands in for absent hardware: the readings it would have given are unknown, for one reason."""

    def __init__(self, name: str, names: Iterable[str], why: str) -> None:
        self.name = name
        self.names = tuple(names)
        self._readings = tuple(unknown(reading, name, why) for reading in self.names)

    def read(self) -> tuple[Reading, ...]:
        """The same unknown readings each time."""
        return self._readings


class SensorSet:
    """Several sensors read together; one that fails becomes unknown and takes no other down."""

    def __init__(self, sensors: Sequence[Sensor]) -> None:
        self.sensors = tuple(sensors)

    def read(self) -> Snapshot:
        """All readings now, in the order of the sensors."""
        return Snapshot(tuple(reading for sensor in self.sensors for reading in _guarded(sensor)))


def _guarded(sensor: Sensor) -> tuple[Reading, ...]:
    try:
        return tuple(sensor.read())
    except Exception as error:  # a faulty driver or sensor must not stop the control loop
        why = f"{sensor.name} failed: {type(error).__name__}: {error}"
        units = {name: QUANTITIES[name].unit for name in sensor.names if name in QUANTITIES}
        names = sensor.names or (sensor.name,)
        return tuple(Reading(name, None, units.get(name, ""), sensor.name, why) for name in names)
