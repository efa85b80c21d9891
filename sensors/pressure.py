"""Pressure stall information: the share of time some task waited for a processor, for memory, for storage."""

from __future__ import annotations

import re

from sensors.base import Reading, Sensor, known, unknown
from sensors.root import Root

PRESSURE = "proc/pressure"
_FILES = {"pressure": "cpu", "memory_pressure": "memory", "io_pressure": "io"}


class PressureSensor(Sensor):
    """``pressure`` (cpu), ``memory_pressure`` and ``io_pressure``: "some avg10" as shares 0..1."""

    name = "pressure"
    names = tuple(_FILES)

    def __init__(self, root: Root) -> None:
        self._root = root

    def read(self) -> tuple[Reading, ...]:
        """Three readings; all unknown on a kernel without PSI."""
        return tuple(self._one(name, f"{PRESSURE}/{resource}") for name, resource in _FILES.items())

    def _one(self, name: str, path: str) -> Reading:
        source = self._root.where(path)
        found = self._root.text(path)
        if found.text is None:
            return unknown(name, source, found.why)
        match = re.search(r"^some avg10=(\d{1,9}(?:\.\d{1,9})?) ", found.text, re.M)
        if match is None:
            return unknown(name, source, f"{source}: no 'some avg10=' in it")
        return known(name, float(match[1]) / 100, source)
