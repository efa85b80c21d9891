"""Temperatures from thermal zones and hwmon together, keyed by what drivers call them and never by index.

* :func:`temperatures`: every zone's temperature, or why not.
* :class:`ThermalSensor`: the hottest zone that concerns the processor, and each zone beside it.

Indices change from boot to boot, gated zones answer EAGAIN or EINVAL (an idle accelerator of a Jetson), and absent
sensors answer 0 or -274000: such a zone is unknown, the others still count.
"""

from __future__ import annotations

import re

import msgspec

from sensors.base import Reading, Sensor, known, unknown
from sensors.root import Number, Root

ZONES = "sys/class/thermal"
HWMON = "sys/class/hwmon"

# Zones that are not about the processor: they may be hotter for reasons a smaller network does not change, and some
# are constants (a Jetson's PMIC-Die reads 100 °C whatever happens; fan estimates are offsets).
_ELSEWHERE = re.compile(r"pmic|nvme|drive|iwlwifi|wifi|wlan|ath\d|mt7\d|r8169|phy|bat|charg|fan|jc42|spd5118|dimm|pch")
_PROCESSOR = re.compile(
    r"cpu|gpu|soc|npu|x86_pkg|package|coretemp|k10temp|zenpower|apss|cluster|big|little|\bcv\d|\btj\b|\bcore\b"
)


class Zone(msgspec.Struct, frozen=True):
    """One temperature sensor: what its driver calls it, where it is read, degrees Celsius or why not."""

    label: str
    path: str
    celsius: Number

    @property
    def about_processor(self) -> bool:
        """Whether its name says that it sits in the processor."""
        return bool(_PROCESSOR.search(self.label.lower())) and not self.elsewhere

    @property
    def elsewhere(self) -> bool:
        """Whether its name says that it sits somewhere that does not concern the processor."""
        return bool(_ELSEWHERE.search(self.label.lower()))


def temperatures(root: Root) -> tuple[Zone, ...]:
    """All zones, thermal zones before hwmon; a label that occurs twice gets ``#2``."""
    zones = [*_thermal_zones(root), *_hwmon(root)]
    seen: dict[str, int] = {}
    unique: list[Zone] = []
    for zone in zones:
        seen[zone.label] = count = seen.get(zone.label, 0) + 1
        unique.append(zone if count == 1 else msgspec.structs.replace(zone, label=f"{zone.label}#{count}"))
    return tuple(unique)


class ThermalSensor(Sensor):
    """``temperature_c``: the hottest plausible zone of the processor; else of the zones that may concern it.

    Beside it ``zone_temperature_c:<label>`` for every zone.
    """

    name = "thermal"
    names = ("temperature_c",)

    def __init__(self, root: Root) -> None:
        self._root = root

    def read(self) -> tuple[Reading, ...]:
        """The hottest first, then one reading a zone."""
        zones = [(zone, _reading(self._root, zone)) for zone in temperatures(self._root)]
        return (self._hottest(zones), *(reading for _, reading in zones))

    def _hottest(self, zones: list[tuple[Zone, Reading]]) -> Reading:
        available = [(zone, reading) for zone, reading in zones if reading.value is not None]
        relevant = [reading for zone, reading in available if zone.about_processor] or [
            reading for zone, reading in available if not zone.elsewhere
        ]
        if relevant:
            hottest = max(relevant, key=lambda reading: reading.value or 0.0)
            return known("temperature_c", float(hottest.value or 0.0), hottest.source)
        source = f"{self._root.where(ZONES)} and {self._root.where(HWMON)}"
        if not zones:
            return unknown("temperature_c", source, f"{source}: no temperature sensor")
        why = next((reading.why for _, reading in zones if reading.value is None), "none of them is the processor's")
        return unknown("temperature_c", source, f"none of {len(zones)} zones is usable: {why}")


def _reading(root: Root, zone: Zone) -> Reading:
    name, source = f"zone_temperature_c:{zone.label}", root.where(zone.path)
    if zone.celsius.value is None:
        return unknown(name, source, zone.celsius.why)
    if zone.celsius.value == 0:  # exactly 0.000 is a sensor that is off, not a freezing device
        return unknown(name, source, f"{source}: 0, as a sensor reads that is off")
    return known(name, zone.celsius.value, source)


def _thermal_zones(root: Root) -> list[Zone]:
    found = []
    for zone in root.names(ZONES, r"thermal_zone\d+"):
        path = f"{ZONES}/{zone}/temp"
        label = root.text(f"{ZONES}/{zone}/type").text or zone
        found.append(Zone(label, path, root.number(path, 1e-3)))
    return sorted(found, key=lambda zone: zone.label)


def _hwmon(root: Root) -> list[Zone]:
    found = []
    for chip in root.names(HWMON, r"hwmon\d+"):
        name = root.text(f"{HWMON}/{chip}/name").text or chip
        for file in root.names(f"{HWMON}/{chip}", r"temp\d+_input"):
            stem, path = file.removesuffix("_input"), f"{HWMON}/{chip}/{file}"
            label = root.text(f"{HWMON}/{chip}/{stem}_label").text or stem
            celsius = root.number(path, 1e-3)
            if root.number(f"{HWMON}/{chip}/{stem}_fault").value == 1:
                celsius = Number(None, f"{root.where(path)}: the driver reports a fault")
            found.append(Zone(f"{name}/{label}", path, celsius))
    return sorted(found, key=lambda zone: zone.label)
