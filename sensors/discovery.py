"""Finds the sensors and meters of a machine, or of a recorded tree.

* :func:`discover`: every sensor, hardware or not; what is absent reads as unknown.
* :func:`meters`: the energy meters that gave a reading, best first.
* :func:`candidates`: all meters that were tried, with the reason for those that gave none.

A meter is believed only after a reading succeeded: libraries and drivers announce more than they deliver.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from sensors.base import NullSensor, Sensor, SensorSet
from sensors.battery import BatterySensor
from sensors.battery_meter import BatteryMeter
from sensors.frequency import FrequencySensor
from sensors.hwmon import HwmonGauge
from sensors.ina3221 import Ina3221Gauge
from sensors.integrate import IntegratingMeter
from sensors.load import LoadSensor
from sensors.meter import EnergyMeter
from sensors.nvml import Nvml, NvmlSensor, open_nvml
from sensors.nvml_meter import NvmlCounterMeter, NvmlGauge
from sensors.power import PowerSensor
from sensors.pressure import PressureSensor
from sensors.rapl import RaplMeter
from sensors.root import Root
from sensors.spec_curve import SpecCurveModel
from sensors.thermal import ThermalSensor
from sensors.throttle import ThrottleSensor

_MACHINE = Path("/")


class Candidate(msgspec.Struct, frozen=True):
    """A rung of the ladder: the provenance it would give, its meter, and why it is no good ('' = it is)."""

    source: str
    where: str
    meter: EnergyMeter | None
    why: str


def discover(root: Path = _MACHINE, *, device: str = "CPU") -> SensorSet:
    """All sensors below a root.

    Args:
        root: ``/`` for the machine; NVML, which is no file, is asked only there.
        device: where the engines run. With "GPU" the temperature, throttling and power that policies see are the GPU's,
            and the board's are second choice; else the GPU stands beside under names of its own.
    """
    files = Root(root)
    board: list[Sensor] = [
        BatterySensor(files),
        ThermalSensor(files),
        ThrottleSensor(files),
        LoadSensor(files),
        FrequencySensor(files),
        PressureSensor(files),
        PowerSensor([RaplMeter(files)], [Ina3221Gauge(files), HwmonGauge(files)]),
    ]
    nvml, why = _nvml(files)
    if nvml is None:
        return SensorSet([*board, NullSensor("nvml", (f"gpu_{name}" for name in NvmlSensor.plain_names), why)])
    gpu = NvmlSensor(nvml, feeds_conditions=device == "GPU")
    return SensorSet([gpu, *board] if device == "GPU" else [*board, gpu])


def meters(root: Path = _MACHINE) -> tuple[EnergyMeter, ...]:
    """Energy meters from which a reading succeeded, best first."""
    return tuple(found.meter for found in candidates(root) if found.meter is not None and not found.why)


def candidates(root: Path = _MACHINE) -> tuple[Candidate, ...]:
    """Every rung of the ladder, best first, each tried once.

    nvml-counter, rapl-package, tegra-ina3221, hwmon, battery-gauge, nvml-power-integrated, modelled:spec-curve.
    """
    files = Root(root)
    nvml, why = _nvml(files)
    counter = _tried(NvmlCounterMeter(nvml)) if nvml else Candidate(NvmlCounterMeter.source, "nvml", None, why)
    gauge = _tried(IntegratingMeter(NvmlGauge(nvml))) if nvml else Candidate(NvmlGauge.source, "nvml", None, why)
    return (
        counter,
        _tried(RaplMeter(files)),
        _tried(IntegratingMeter(Ina3221Gauge(files))),
        _tried(IntegratingMeter(HwmonGauge(files))),
        _tried(BatteryMeter(files)),
        gauge,
        _tried(SpecCurveModel(files)),
    )


def _nvml(files: Root) -> tuple[Nvml | None, str]:
    return open_nvml() if files.is_machine else (None, "NVML is not part of a recorded tree")


def _tried(meter: EnergyMeter) -> Candidate:
    return Candidate(meter.source, meter.where, meter, meter.sample().why)
