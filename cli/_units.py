"""Quantities on the command line: ``50ms``, ``8h``, ``20Wh``; a bare number is in the base unit."""

from __future__ import annotations

import math
import re

import click


class Quantity(click.ParamType):  # type: ignore[type-arg]  # click 8.1 has no argument to give
    """A number with an optional unit, converted to the base unit.

    Args:
        name: shown in the help, e.g. ``duration``.
        units: unit -> factor to the base unit; the first is the base, assumed where none is written.
    """

    def __init__(self, name: str, units: dict[str, float]) -> None:
        self.name, self._units = name, units

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The value in the base unit; fails with a sentence that lists the units."""
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"\s*([-+0-9.eE]+?)\s*([A-Za-z]*)\s*", str(value))
        factor = self._units.get((found[2] or next(iter(self._units))) if found else "")
        try:
            number = float(found[1]) if found else math.nan
        except ValueError:
            number = math.nan
        if factor is None or not math.isfinite(number):
            self.fail(f"'{value}' is not a {self.name}; write a number and one of {', '.join(self._units)}", param, ctx)
        return number * factor


MILLISECONDS = Quantity("time", {"ms": 1.0, "us": 1e-3, "s": 1e3, "m": 6e4, "min": 6e4})
SECONDS = Quantity("duration", {"s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0})
JOULES = Quantity("energy", {"Wh": 3600.0, "mWh": 3.6, "kWh": 3.6e6, "J": 1.0, "kJ": 1e3})
