"""Power now: from counters by difference, from gauges directly."""

from __future__ import annotations

from collections.abc import Sequence

from sensors.base import Reading, Sensor, known, unknown
from sensors.meter import EnergyMeter, MeterSample, PowerGauge


class PowerSensor(Sensor):
    """``power_w``, one reading a source: counters first (mean power since the reading before), then gauges.

    Measured sources only: a modelled power is for calibration, where its interval travels with it.
    """

    name = "power"
    names = ("power_w",)

    def __init__(self, counters: Sequence[EnergyMeter] = (), gauges: Sequence[PowerGauge] = ()) -> None:
        self._counters = tuple(counters)
        self._gauges = tuple(gauges)
        self._before: list[MeterSample] = [meter.sample() for meter in self._counters]

    def read(self) -> tuple[Reading, ...]:
        """One reading for each counter and gauge."""
        readings: list[Reading] = []
        for index, meter in enumerate(self._counters):
            after = meter.sample()
            energy = meter.energy(self._before[index], after)
            self._before[index] = after
            source = f"{meter.source}: {meter.where}"
            watts = energy.power_w
            readings.append(
                unknown("power_w", source, energy.why) if watts is None else known("power_w", watts, source)
            )
        for gauge in self._gauges:
            source = f"{gauge.source}: {gauge.where}"
            found = gauge.power_w()
            readings.append(
                unknown("power_w", source, found.why) if found.value is None else known("power_w", found.value, source)
            )
        return tuple(readings)
