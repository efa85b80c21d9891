"""Energy drawn from the batteries by their own gauges: coarse, but there where nothing else is.

A gauge of energy gives a difference; a gauge of charge gives ΔQ × the mean voltage, since Q × V itself would follow the
voltage's sag under load. Only while discharging: a charger's energy does not pass through the gauge.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from sensors.battery import SUPPLIES, batteries
from sensors.meter import Energy, EnergyMeter, MeterSample, counted
from sensors.root import Root

_STEP_J = 36.0  # gauges count in steps of 1 to 10 mWh; 10 mWh assumed


class _Gauge(msgspec.Struct, frozen=True):
    """Either joules, or coulombs with the voltage."""

    joules: float | None
    coulombs: float | None = None
    volts: float | None = None


class BatteryMeter(EnergyMeter):
    """Joules that left all packs of the machine."""

    source = "battery-gauge"
    device = "system"
    update_period_s = 30.0  # gauges refresh every 1 to 60 s; windows must be minutes long to mean anything

    def __init__(self, root: Root, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self.where = " + ".join(root.where(pack.path) for pack in batteries(root)) or root.where(SUPPLIES)

    def sample(self) -> MeterSample:
        """Every pack's gauge; unknown unless a pack discharges and none charges."""
        gauges: dict[str, _Gauge] = {}
        packs = batteries(self._root)
        why = ""
        if not packs:
            why = f"{self.where}: no battery that supplies this machine"
        elif any(pack.status == "charging" for pack in packs) or all(pack.status != "discharging" for pack in packs):
            why = f"{self.where}: not discharging, so the gauge does not see what the machine draws"
        for pack in packs if not why else ():
            joules = self._root.number(f"{pack.path}/energy_now", 3600e-6)
            coulombs = self._root.number(f"{pack.path}/charge_now", 3600e-6)
            volts = self._root.number(f"{pack.path}/voltage_now", 1e-6)
            if joules.value is not None:
                gauges[pack.path] = _Gauge(joules.value)
            elif coulombs.value is not None and volts.value is not None:
                gauges[pack.path] = _Gauge(None, coulombs.value, volts.value)
            else:
                why = f"{self._root.where(pack.path)}: neither energy_now nor charge_now with voltage_now"
        return MeterSample(self._clock(), gauges, why)

    def energy(self, before: MeterSample, after: MeterSample) -> Energy:
        """Sum over packs of what went missing."""
        seconds, why = self._window(before, after)
        if not why and before.state.keys() != after.state.keys():
            why = f"{self.where}: a battery was added or removed within the window"
        if why:
            return self._unknown(before, after, why)
        joules = 0.0
        for path, first in before.state.items():
            last = after.state[path]
            if first.joules is not None and last.joules is not None:
                joules += first.joules - last.joules
            elif first.coulombs is not None and last.coulombs is not None:
                joules += (first.coulombs - last.coulombs) * ((first.volts or 0.0) + (last.volts or 0.0)) / 2
            else:
                return self._unknown(before, after, f"{path}: the gauge changed its unit within the window")
        if joules < 0:
            return self._unknown(before, after, f"{self.where}: the gauge corrected itself upwards within the window")
        resolution_j = _STEP_J * len(before.state)
        return counted(joules, seconds, self.source, resolution_j=resolution_j, update_period_s=self.update_period_s)
