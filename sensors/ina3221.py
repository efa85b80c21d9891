"""INA3221 rails of Jetson boards: power now, from the hwmon driver or from the older iio one.

The board's total is the rail ``VDD_IN`` or ``POM_5V_IN``; boards without it get the sum of all rails. Channels labelled
``NC`` are not connected, and channel 7 is the chip's own sum of shunt voltages. There is no counter of energy.
"""

from __future__ import annotations

import msgspec

from sensors.meter import PowerGauge
from sensors.root import Number, Root

DRIVERS = ("sys/bus/i2c/drivers/ina3221", "sys/bus/i2c/drivers/ina3221x")
HWMON = "sys/class/hwmon"
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")


class Rail(msgspec.Struct, frozen=True):
    """One measured rail: label, path, and watts now or why not."""

    label: str
    path: str
    power_w: Number


def rails(root: Root) -> tuple[Rail, ...]:
    """All connected rails, from whichever driver this kernel has."""
    found: list[Rail] = []
    for driver in DRIVERS:
        for device in root.names(driver, r"\d+-[0-9a-f]{4}"):
            for chip in root.names(f"{driver}/{device}/hwmon", r"hwmon\d+"):
                found += _hwmon_rails(root, f"{driver}/{device}/hwmon/{chip}")
            for chip in root.names(f"{driver}/{device}", r"iio:device\d+"):
                found += _iio_rails(root, f"{driver}/{device}/{chip}")
    if not found:  # the driver built under another name is still found by its class
        for chip in root.names(HWMON, r"hwmon\d+"):
            if root.text(f"{HWMON}/{chip}/name").text == "ina3221":
                found += _hwmon_rails(root, f"{HWMON}/{chip}")
    return tuple(found)


class Ina3221Gauge(PowerGauge):
    """Watts of the whole board."""

    source = "tegra-ina3221"
    device = "system"
    update_period_s = 0.02  # well above 10 Hz, since there is no counter; the chip converts every few milliseconds

    def __init__(self, root: Root) -> None:
        self._root = root
        used = self._used()
        self.where = " + ".join(f"{root.where(rail.path)} ({rail.label})" for rail in used) or "ina3221"

    def power_w(self) -> Number:
        """The total rail, else the sum; unknown when a rail that is needed is."""
        used = self._used()
        if not used:
            return Number(None, f"{self._root.where(DRIVERS[0])}: no INA3221")
        for rail in used:
            if rail.power_w.value is None:
                return rail.power_w
        return Number(sum(rail.power_w.value or 0.0 for rail in used))

    def _used(self) -> tuple[Rail, ...]:
        every = rails(self._root)
        total = tuple(rail for rail in every if rail.label in TOTAL_RAILS)
        return total[:1] or every


def _connected(label: str | None) -> bool:
    return bool(label) and label not in ("NC", "sum of shunt voltages")


def _hwmon_rails(root: Root, chip: str) -> list[Rail]:
    found = []
    for file in root.names(chip, r"in[1-3]_label"):  # 4 to 6 are shunt voltages, 7 their sum
        number = file.removeprefix("in").removesuffix("_label")
        label = root.text(f"{chip}/{file}").text
        if not _connected(label):
            continue
        volts = root.number(f"{chip}/in{number}_input", 1e-3)
        amperes = root.number(f"{chip}/curr{number}_input", 1e-3)
        power = next((part for part in (volts, amperes) if part.value is None), None)
        power = power or Number((volts.value or 0.0) * (amperes.value or 0.0))
        found.append(Rail(label or "", f"{chip}/in{number}_input", power))
    return found


def _iio_rails(root: Root, chip: str) -> list[Rail]:
    found = []
    for file in root.names(chip, r"rail_name_\d"):
        number = file.removeprefix("rail_name_")
        label = root.text(f"{chip}/{file}").text
        if _connected(label):
            path = f"{chip}/in_power{number}_input"
            found.append(Rail(label or "", path, root.number(path, 1e-3)))  # mW
    return found
