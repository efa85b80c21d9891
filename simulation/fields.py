"""What readers of line-based files share: numbers, rows and ascending times, with errors that name the line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from simulation.trace import MAX_ARRIVALS, Floats, Trace
from subnets.errors import InputError


def number(text: str | None, what: str) -> float:
    """A finite number, or an :class:`InputError` that says where."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{what} is '{text}'; expected a number")
    return value


def rows(path: Path, *needed: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(place for messages, row) of each line of a CSV file, with the needed columns present."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                for name in needed:
                    if row.get(name) is None:
                        raise InputError(f"{place}: column '{name}' is missing; fix or remove the line")
                yield place, row
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not CSV ({error}); fix or remove the line") from None


def arrivals(path: Path, times: list[float], deadlines_s: list[float] | None = None) -> Trace:
    """Recorded arrivals, with the deadline of each where they are known; the trace ends with the last."""
    if not times:
        raise InputError(f"{path}: holds no arrivals; expected at least one line below the header")
    if len(times) > MAX_ARRIVALS:
        raise InputError(f"{path}: more than {MAX_ARRIVALS} arrivals; cut the file")
    arrivals = np.asarray(times, np.float64)
    return Trace(
        name=path.name,
        duration_s=max(float(arrivals[-1]), 1e-3),
        arrivals_s=arrivals,
        deadlines_s=None if deadlines_s is None else np.asarray(deadlines_s, np.float64),
    )


def environment(path: Path, times: Floats, values: Mapping[str, Floats]) -> Trace:
    """Recorded environment without arrivals; the last value holds as long as the one before it."""
    duration_s = float(times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1.0))
    return Trace(name=path.name, duration_s=duration_s, arrivals_s=np.zeros(0), times_s=times, **values)


def ascending(place: str, previous: float, now: float, *, strict: bool) -> float:
    """``now``, when it is not before ``previous`` (nor equal, if ``strict``) and not negative."""
    if now < 0:
        raise InputError(f"{place}: time {now:g} s is negative; times must ascend from 0")
    if now < previous or (strict and now == previous):
        raise InputError(f"{place}: time {now:g} s comes after {previous:g} s; times must ascend from 0")
    return now
