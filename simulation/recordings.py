"""Readers of recordings that others published: loads, noisy neighbours and sunshine from the real world.

Each takes a path and options and gives a :class:`simulation.trace.Trace`; :mod:`simulation.readers` picks among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np

from simulation import fields
from simulation.trace import Floats, Trace
from subnets.errors import InputError


def _timestamp(text: str, place: str) -> datetime:
    # Azure writes seven digits of a second; fromisoformat takes six.
    whole, _, fraction = text.strip().partition(".")
    try:
        return datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}")
    except ValueError:
        raise InputError(
            f"{place}: '{text}' is not a time like 2023-11-16 18:15:46.680; fix or remove the line"
        ) from None


def azure_llm(path: Path, options: Mapping[str, float]) -> Trace:
    """Azure LLM inference (Azure/AzurePublicDataset): column TIMESTAMP, wall time of each request."""
    times: list[float] = []
    start: datetime | None = None
    last = 0.0
    for place, row in fields.rows(path, "TIMESTAMP"):
        at = _timestamp(row["TIMESTAMP"], place)
        start = start or at
        last = fields.ascending(place, last, (at - start).total_seconds(), strict=False)
        times.append(last)
    return fields.arrivals(path, times)


def azure_functions(path: Path, options: Mapping[str, float]) -> Trace:
    """Azure Functions 2021 (Azure/AzurePublicDataset): a call arrives at ``end_timestamp - duration``."""
    times = []
    for place, row in fields.rows(path, "end_timestamp", "duration"):
        duration = fields.number(row["duration"], f"{place}: duration")
        if duration < 0:
            raise InputError(f"{place}: duration is {duration:g}; expected at least 0")
        arrived = fields.number(row["end_timestamp"], f"{place}: end_timestamp") - duration
        if arrived < 0:
            raise InputError(f"{place}: arrives at {arrived:g} s, before the record begins; fix or remove the line")
        times.append(arrived)
    return fields.arrivals(path, sorted(times))


def vm_noise(path: Path, options: Mapping[str, float]) -> Trace:
    """Azure VM noise (Azure/AzurePublicDataset): how a fixed benchmark fared on real machines, as slowdown.

    One machine's readings in order of time, each held until the next; ``period_s`` gives each the same time. Slowdown
    is the median over all readings divided by the reading.
    """
    readings: list[tuple[str, datetime, float]] = []
    for place, row in fields.rows(path, "value", "starttime"):
        value = fields.number(row["value"], f"{place}: value")
        if value <= 0:
            raise InputError(f"{place}: value is {value:g}; expected a throughput above 0")
        readings.append((row.get("VM_id") or "0", _timestamp(row["starttime"], place), value))
    if not readings:
        raise InputError(f"{path}: holds no readings; expected at least one line below the header")
    typical = float(np.median([value for *_, value in readings]))
    machines = list(dict.fromkeys(machine for machine, *_ in readings))
    machine = f"{options['vm']:g}" if len(machines) > 1 else machines[0]
    if machine not in machines:
        raise InputError(f"{path}: no readings of vm '{machine}'; there are {', '.join(machines[:10])}")
    chosen: dict[datetime, float] = {at: value for name, at, value in readings if name == machine}
    moments = sorted(chosen)
    if options["period_s"] > 0:
        times: Floats = np.arange(len(moments), dtype=np.float64) * options["period_s"]
    else:
        times = np.array([(at - moments[0]).total_seconds() for at in moments])
    slowdown = typical / np.array([chosen[at] for at in moments])
    return fields.environment(path, times, {"slowdown": slowdown})


def surfrad(path: Path, options: Mapping[str, float]) -> Trace:
    """Sun and air of a SURFRAD day: harvest = irradiance / 1000 W/m² x ``panel_w`` x ``derate``; air as ambient.

    Columns as in NOAA's SURFRAD README: year, day of year, month, day, hour, minute, decimal hour, zenith angle, then
    pairs of value and quality; the first pair is downwelling global solar (W/m²), the sixteenth air temperature (°C).
    A value of -9999.9 is missing and the one before it holds.
    """
    times: list[float] = []
    suns: list[float] = []
    airs: list[float] = []
    start: datetime | None = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if number < 3 or not line.strip():
                continue
            place = f"{path}, line {number}"
            cells = line.split()
            if len(cells) != 48:
                raise InputError(f"{place}: {len(cells)} columns, SURFRAD has 48; get the file again")
            year, _, month, day, hour, minute = (int(fields.number(cell, place)) for cell in cells[:6])
            try:
                at = datetime(year, month, day, hour, minute)
            except ValueError as error:
                raise InputError(f"{place}: not a time ({error}); get the file again") from None
            start = start or at
            previous = times[-1] if times else -1.0
            times.append(fields.ascending(place, previous, (at - start).total_seconds(), strict=True))
            suns.append(fields.number(cells[8], f"{place}: irradiance"))
            airs.append(fields.number(cells[38], f"{place}: air temperature"))
    if not times:
        raise InputError(f"{path}: holds no measurements; get the file again")
    values: dict[str, Floats] = {}
    if (sun := _filled(np.array(suns))) is not None:
        values["harvest_w"] = np.maximum(0.0, sun) / 1000.0 * options["panel_w"] * options["derate"]
    if (air := _filled(np.array(airs))) is not None:
        values["ambient_c"] = air
    if not values:
        raise InputError(f"{path}: every irradiance and air temperature is missing; give another day")
    return fields.environment(path, np.array(times), values)


def _filled(values: Floats) -> Floats | None:
    """Missing values (SURFRAD's -9999.9) take the last before them, or the first after; None when all are missing."""
    good = values > -9990.0
    if not good.any():
        return None
    last = np.maximum.accumulate(np.where(good, np.arange(len(values)), -1))
    filled: Floats = values[np.where(last < 0, int(np.argmax(good)), last)]
    return filled
