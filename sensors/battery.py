"""Batteries and mains from ``/sys/class/power_supply``, read by type and never by name.

* :class:`Battery`, :func:`batteries`: one cell pack each, in SI units.
* :class:`BatterySensor`: all packs that supply the machine, summed.

Robots' gauges are called ``bq27500-0`` or ``sbs-1-000b``, so the name says nothing; ``type`` and ``scope`` do. Drivers
differ: some give energy (µWh), some charge (µAh), some only percent; some power (µW), some current (µA) whose sign
means either direction. The status decides the sign here.
"""

from __future__ import annotations

import msgspec

from sensors.base import Reading, Sensor, known, unknown
from sensors.root import Number, Root

SUPPLIES = "sys/class/power_supply"
_FULLEST = 1.1  # gauges overshoot "full" a little after calibration; beyond this the ratio is garbage


class Battery(msgspec.Struct, frozen=True):
    """One pack: charge (share 0..1), energy left and when full (J), power (W, positive = discharging), status."""

    path: str
    charge: Number
    energy_j: Number
    full_j: Number
    power_w: Number
    status: str


class BatterySensor(Sensor):
    """``battery_charge``, ``battery_energy_j``, ``battery_power_w`` and ``on_mains`` of the whole machine."""

    name = "battery"
    names = ("battery_charge", "battery_energy_j", "battery_power_w", "on_mains")

    def __init__(self, root: Root) -> None:
        self._root = root

    def read(self) -> tuple[Reading, ...]:
        """Four readings; a sum over packs is unknown when one of its parts is."""
        mains = _on_mains(self._root)
        packs = batteries(self._root, mains.value)
        if not packs:
            source = self._root.where(SUPPLIES)
            why = f"{source}: no battery that supplies this machine"
            return (*(unknown(name, source, why) for name in self.names[:3]), mains)
        source = " + ".join(self._root.where(pack.path) for pack in packs)
        return (
            _charge(packs, source),
            _sum("battery_energy_j", [pack.energy_j for pack in packs], source),
            _sum("battery_power_w", [pack.power_w for pack in packs], source),
            mains,
        )


def batteries(root: Root, on_mains: float | bool | None = None) -> tuple[Battery, ...]:
    """The packs that supply this machine; those of mice and headsets (scope Device) and empty bays are left out.

    ``on_mains`` settles the direction of power where a pack's own status does not.
    """
    return tuple(
        _battery(root, path, on_mains)
        for path in _supplies(root)
        if _word(root, f"{path}/type") == "battery" and root.number(f"{path}/present").value != 0
    )


def _supplies(root: Root) -> list[str]:
    """Power supplies of the machine itself."""
    paths = [f"{SUPPLIES}/{name}" for name in root.names(SUPPLIES)]
    return [path for path in paths if _word(root, f"{path}/scope") != "device"]


def _word(root: Root, path: str) -> str:
    return (root.text(path).text or "").lower()


def _battery(root: Root, path: str, on_mains: float | bool | None) -> Battery:
    # The voltage now, else the design's lower one, which is about the nominal voltage of a pack.
    volts = _first(root, (f"{path}/voltage_now", f"{path}/voltage_min_design"), 1e-6)
    status = _word(root, f"{path}/status")
    return Battery(
        path=path,
        charge=_own_charge(root, path),
        energy_j=_joules(root, path, "now", volts),
        full_j=_joules(root, path, "full", volts),
        power_w=_power(root, path, volts, status, on_mains),
        status=status,
    )


def _first(root: Root, paths: tuple[str, ...], scale: float) -> Number:
    found = Number(None)
    for path in paths:
        found = root.number(path, scale)
        if found.value is not None:
            return found
    return found


def _own_charge(root: Root, path: str) -> Number:
    """From energy or charge where given, since capacity comes in whole percent; capacity else."""
    for kind in ("energy", "charge"):
        now, full = root.number(f"{path}/{kind}_now").value, root.number(f"{path}/{kind}_full").value
        if now is not None and full is not None and full > 0 and 0 <= now / full <= _FULLEST:
            return Number(min(1.0, now / full))
    capacity = root.number(f"{path}/capacity", 0.01)
    if capacity.value is not None and not 0 <= capacity.value <= _FULLEST:
        return Number(None, f"{root.where(path)}/capacity: implausible value {capacity.value * 100:g} %")
    return capacity if capacity.value is None else Number(min(1.0, capacity.value))


def _joules(root: Root, path: str, when: str, volts: Number) -> Number:
    energy = root.number(f"{path}/energy_{when}", 3600e-6)  # µWh
    if energy.value is not None:
        return energy
    coulombs = root.number(f"{path}/charge_{when}", 3600e-6)  # µAh
    if coulombs.value is None:
        return Number(None, f"{root.where(path)}: neither energy_{when} nor charge_{when}")
    return volts if volts.value is None else Number(coulombs.value * volts.value)


def _power(root: Root, path: str, volts: Number, status: str, on_mains: float | bool | None) -> Number:
    """|power|, else |current × voltage|, with the sign that the status gives."""
    power = root.number(f"{path}/power_now", 1e-6)  # µW
    current = root.number(f"{path}/current_now", 1e-6)  # µA
    if power.value is not None:
        watts = abs(power.value)
    elif current.value is not None and volts.value is not None:
        watts = abs(current.value * volts.value)
    else:
        return Number(None, f"{root.where(path)}: neither power_now nor current_now with a voltage")
    if watts == 0:  # the idle one of two packs, often with status Unknown
        return Number(0.0)
    if status == "discharging":
        return Number(watts)
    if status in ("charging", "full", "not charging"):
        return Number(-watts)
    if on_mains is not None and status in ("unknown", ""):
        return Number(-watts if on_mains else watts)
    return Number(None, f"{root.where(path)}/status: {status or 'missing'!r} does not say whether it discharges")


def _charge(packs: tuple[Battery, ...], source: str) -> Reading:
    """Weighted by the packs' sizes where all are known; else the plain mean."""
    for pack in packs:
        if pack.charge.value is None:
            return unknown("battery_charge", source, pack.charge.why)
    charges = [pack.charge.value or 0.0 for pack in packs]
    sizes = [pack.full_j.value or 0.0 for pack in packs]
    if not all(size > 0 for size in sizes):
        sizes = [1.0] * len(packs)
    total = sum(charge * size for charge, size in zip(charges, sizes, strict=True))
    return known("battery_charge", min(1.0, total / sum(sizes)), source)


def _sum(name: str, parts: list[Number], source: str) -> Reading:
    for part in parts:
        if part.value is None:
            return unknown(name, source, part.why)
    return known(name, sum(part.value or 0.0 for part in parts), source)


def _on_mains(root: Root) -> Reading:
    """True when any charger is online; else what the chargers, or failing these the packs, say."""
    chargers: list[tuple[str, float]] = []
    statuses: list[tuple[str, str]] = []
    for path in _supplies(root):
        if _word(root, f"{path}/type") == "battery":
            statuses.append((path, _word(root, f"{path}/status")))
        elif (online := root.number(f"{path}/online").value) is not None:
            chargers.append((path, online))
    for path, online in chargers:
        if online > 0:
            return known("on_mains", True, root.where(f"{path}/online"))
    if chargers and statuses:  # without a battery, a charger that is offline is an unused USB-C port of a desktop
        return known("on_mains", False, root.where(f"{chargers[0][0]}/online"))
    for path, status in statuses:
        if status == "discharging":
            return known("on_mains", False, root.where(f"{path}/status"))
    for path, status in statuses:
        if status in ("charging", "full", "not charging"):
            return known("on_mains", True, root.where(f"{path}/status"))
    source = root.where(SUPPLIES)
    return unknown("on_mains", source, f"{source}: no charger, and no battery whose status tells")
