"""Sensors: what the machine says about its battery, heat, load and power, and meters of energy.

* Base: :mod:`sensors.base` (readings, snapshots, the guarded set), :mod:`sensors.root` (the seam to files).
* Sensors: ``battery``, ``thermal``, ``throttle``, ``load``, ``frequency``, ``pressure``, ``power``, ``nvml``.
* Meters: ``meter`` (what a meter is), ``rapl``, ``ina3221``, ``hwmon``, ``battery_meter``, ``nvml_meter``,
  ``integrate`` (power into energy), ``spec_curve`` (modelled, labelled as such).
* :func:`discover`, :func:`meters`, :func:`diagnose`; :mod:`sensors.contract` is the test class to inherit.

Imports nothing of the project's, and never raises for what a machine lacks: that is unknown, with a reason. Knows
nothing of policies or engines.
"""

from sensors.base import NullSensor, Reading, Sensor, SensorSet, Snapshot
from sensors.diagnosis import Diagnosis, Machine, diagnose, machine
from sensors.discovery import Candidate, candidates, discover, meters
from sensors.meter import Energy, EnergyMeter, MeterSample, PowerGauge
from sensors.root import Root
from sensors.spec_curve import SpecCurveModel

__all__ = [
    "Candidate",
    "Diagnosis",
    "Energy",
    "EnergyMeter",
    "Machine",
    "MeterSample",
    "NullSensor",
    "PowerGauge",
    "Reading",
    "Root",
    "Sensor",
    "SensorSet",
    "Snapshot",
    "SpecCurveModel",
    "candidates",
    "diagnose",
    "discover",
    "machine",
    "meters",
]
