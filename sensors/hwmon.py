"""Power of the whole system from hwmon, where a chip says that it measures it.

Believed: an ACPI power meter (``power_meter``), a rail whose label says "total" or "system", or the only INA2xx supply
monitor of a board. Several unlabelled monitors may sit one behind the other, so they are not added up.
"""

from __future__ import annotations

import re

from sensors.meter import PowerGauge
from sensors.root import Number, Root

HWMON = "sys/class/hwmon"


class HwmonGauge(PowerGauge):
    """Watts of the system (hwmon's unit is µW)."""

    source = "hwmon"
    device = "system"
    update_period_s = 0.05

    def __init__(self, root: Root) -> None:
        self._root = root
        self._path, self._why = _find(root)
        self.where = root.where(self._path or HWMON)

    def power_w(self) -> Number:
        """The rail found when this was made."""
        if not self._path:
            return Number(None, self._why)
        return self._root.number(self._path, 1e-6)


def _find(root: Root) -> tuple[str, str]:
    """The path of the system's power, or '' and why."""
    rails: list[tuple[str, str, str]] = []  # (chip name, label, path)
    for chip in root.names(HWMON, r"hwmon\d+"):
        name = root.text(f"{HWMON}/{chip}/name").text or chip
        files = root.names(f"{HWMON}/{chip}", r"power\d+_(input|average)")
        for stem, file in {file.partition("_")[0]: file for file in files}.items():  # input, where both are there
            label = root.text(f"{HWMON}/{chip}/{stem}_label").text or ""
            rails.append((name, label, f"{HWMON}/{chip}/{file}"))
    for name, _, path in rails:
        if name == "power_meter":
            return path, ""
    for _, label, path in rails:
        if re.search(r"total|system", label, re.I):
            return path, ""
    monitors = [path for name, _, path in rails if re.fullmatch(r"ina2\d\d", name)]
    if len(monitors) == 1:
        return monitors[0], ""
    if monitors:
        return "", f"{root.where(HWMON)}: {len(monitors)} supply monitors, and none says which is the total"
    return "", f"{root.where(HWMON)}: no rail that measures the whole system"
