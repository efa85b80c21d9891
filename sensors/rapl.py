"""RAPL: the processor's own energy counters below ``/sys/class/powercap``, Intel and AMD alike.

* :class:`Zone`, :func:`zones`: what to add up without counting anything twice.
* :class:`RaplMeter`.

Packages are added, and their memory (``dram``), which is no part of a package. ``core`` and ``uncore`` are parts of one
and ``psys`` contains them all: left out. ``intel-rapl-mmio`` is a second window onto the same package: left out. The
counters wrap around, and since CVE-2020-8694 only root may read them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import msgspec

from sensors.meter import Energy, EnergyMeter, MeterSample, staleness
from sensors.meter import counted as counted_energy
from sensors.root import Root

POWERCAP = "sys/class/powercap"
REMEDY = (
    "only root may read RAPL since CVE-2020-8694; put this line into /etc/tmpfiles.d/gearshift.conf, run "
    "'systemd-tmpfiles --create', and run gearshift in group 'power': "
    "z /sys/devices/virtual/powercap/intel-rapl/intel-rapl:*/energy_uj 0440 root power"
)
_UPDATE_PERIOD_S = 0.001
_RESOLUTION_J = 1e-6 * 61  # 2**-14 J, the usual energy unit; finer on some
_MOST_WATTS = 1000.0  # no package draws more; bounds how soon a counter may wrap twice


class Zone(msgspec.Struct, frozen=True):
    """One counter to add: its name, folder, and the value in µJ at which it wraps (None: unreadable)."""

    name: str
    path: str
    range_uj: float | None


def zones(root: Root) -> tuple[Zone, ...]:
    """Packages and their memory; no part that another one contains."""
    found: dict[str, Zone] = {}
    for package in root.names(POWERCAP, r"intel-rapl:\d+"):
        name = root.text(f"{POWERCAP}/{package}/name").text or ""
        if not name.startswith("package") or name in found:
            continue
        found[name] = _zone(root, name, f"{POWERCAP}/{package}")
        for part in root.names(POWERCAP, re.escape(package) + r":\d+"):
            if root.text(f"{POWERCAP}/{part}/name").text == "dram":
                found[f"{name} dram"] = _zone(root, f"{name} dram", f"{POWERCAP}/{part}")
    # Dies listed beside the package that contains them (package-0 and package-0-die-1) would count twice.
    whole = {name for name in found if re.fullmatch(r"package-\d+", name)}
    return tuple(
        zone
        for name, zone in found.items()
        if not (match := re.match(r"(package-\d+)-die-\d+", name)) or match[1] not in whole
    )


def _zone(root: Root, name: str, path: str) -> Zone:
    return Zone(name, path, root.number(f"{path}/max_energy_range_uj").value)


class RaplMeter(EnergyMeter):
    """Joules of all packages and their memory. ``sample`` reads each counter once."""

    source = "rapl-package"
    device = "CPU"
    update_period_s = _UPDATE_PERIOD_S

    def __init__(self, root: Root, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._zones = zones(root)
        self.where = " + ".join(root.where(zone.path) for zone in self._zones) or root.where(POWERCAP)

    def sample(self) -> MeterSample:
        """All counters; unknown when one cannot be read, since a part would pass for the whole."""
        start_s = self._clock()
        counters: dict[str, float] = {}
        why = "" if self._zones else f"{self._root.where(POWERCAP)}: no package counter"
        for zone in self._zones:
            counter = self._root.number(f"{zone.path}/energy_uj")
            if counter.value is None or counter.value < 0:
                why = counter.why or f"{self._root.where(zone.path)}/energy_uj: negative"
                break
            counters[zone.path] = counter.value
        if not why and not any(counters.values()):  # a virtual machine's emulation
            why = f"{self.where}: the energy counters read 0"
        return MeterSample((start_s + self._clock()) / 2, counters, why)

    def energy(self, before: MeterSample, after: MeterSample) -> Energy:
        """Sum of the counters' differences, each unwrapped once."""
        seconds, why = self._window(before, after)
        if why:
            return self._unknown(before, after, why)
        microjoules = 0.0
        for zone in self._zones:
            difference = after.state[zone.path] - before.state[zone.path]
            if zone.range_uj is None or zone.range_uj <= 0:
                if difference < 0:
                    why = f"{self._root.where(zone.path)}: wrapped around, and max_energy_range_uj is unreadable"
                    return self._unknown(before, after, why)
            else:
                if seconds * self._most_watts(zone) > zone.range_uj * 1e-6:
                    why = f"{self._root.where(zone.path)}: may have wrapped more than once in {seconds:.0f} s"
                    return self._unknown(before, after, why)
                difference += zone.range_uj if difference < 0 else 0.0
            if not 0 <= difference * 1e-6 <= _MOST_WATTS * seconds + 1:  # a joule for windows of a few milliseconds
                return self._unknown(before, after, f"{self._root.where(zone.path)}: the counter jumped")
            microjoules += difference
        resolution_j, stale_s = _RESOLUTION_J * len(self._zones), staleness(before, after, _UPDATE_PERIOD_S)
        return counted_energy(
            microjoules * 1e-6, seconds, self.source, resolution_j=resolution_j, update_period_s=stale_s
        )

    def _most_watts(self, zone: Zone) -> float:
        """The highest power limit of a zone, doubled for what gets past it; 1000 W where none is stated."""
        names = self._root.names(zone.path, r"constraint_\d+_power_limit_uw")
        limits = [self._root.number(f"{zone.path}/{name}", 1e-6).value or 0.0 for name in names]
        return min(_MOST_WATTS, 2 * max(limits)) if limits and max(limits) > 0 else _MOST_WATTS
