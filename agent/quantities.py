"""Quantities as people write them in a configuration: ``50ms``, ``10m``, ``250MB``, ``18:00``."""

from __future__ import annotations

import datetime
import math
import re

from subnets.errors import InputError

SECONDS = {"s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MILLISECONDS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "m": 6e4, "min": 6e4}
BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def parse(value: str | float, units: dict[str, float], what: str) -> float:
    """A number with a unit in the base unit; a bare number is in it already.

    Raises:
        InputError: it is not a number above 0 with one of the units.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*", str(value))
    factor = units.get(found[2] or next(iter(units))) if found else None
    number = float(found[1]) * factor if found and factor else math.nan
    if not 0 < number < math.inf:
        raise InputError(f"'{value}' is not a {what}; write a number above 0 and one of {', '.join(units)}")
    return number


def seconds(value: str | float) -> float:
    """A duration in seconds, e.g. ``10m``.

    Raises:
        InputError: it is none.
    """
    return parse(value, SECONDS, "duration")


def milliseconds(value: str | float) -> float:
    """A latency in milliseconds, e.g. ``50ms``; a bare number is in milliseconds, as in every latency of this project.

    Raises:
        InputError: it is none.
    """
    return parse(value, MILLISECONDS, "latency")


def size_bytes(value: str | float) -> int:
    """A size in bytes, e.g. ``250MB``.

    Raises:
        InputError: it is none.
    """
    return round(parse(value, BYTES, "size"))


def seconds_until(value: str | float, now: datetime.datetime | None = None) -> float:
    """How long until a time of day (``18:00``, the next one) or for how long (``8h``).

    Raises:
        InputError: it is neither.
    """
    clock = re.fullmatch(r"\s*([01]?[0-9]|2[0-3]):([0-5][0-9])\s*", str(value))
    if clock is None:
        try:
            return seconds(value)
        except InputError:
            raise InputError(f"'{value}' is neither a time of day (18:00) nor a duration (8h)") from None
    now = (now or datetime.datetime.now()).astimezone()
    # Wall time first, then the zone: the hour may change on the way.
    then = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0, tzinfo=None)
    if then <= now.replace(tzinfo=None):
        then += datetime.timedelta(days=1)
    return then.astimezone().timestamp() - now.timestamp()


def time_past(value: str, now: datetime.datetime | None = None) -> float:
    """A moment as Unix time: a time of day (``14:05`` or ``14:05:30``, the last one that was) or an ISO date and time.

    Without a zone it is local time.

    Raises:
        InputError: it is neither, or lies in the future.
    """
    now = (now or datetime.datetime.now()).astimezone()
    clock = re.fullmatch(r"\s*([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?\s*", value)
    if clock is not None:
        then = now.replace(
            hour=int(clock[1]), minute=int(clock[2]), second=int(clock[3] or 0), microsecond=0, tzinfo=None
        )
        if then > now.replace(tzinfo=None):
            then -= datetime.timedelta(days=1)
        return then.astimezone().timestamp()
    try:
        moment = datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        raise InputError(
            f"'{value}' is neither a time of day (14:05 or 14:05:30) nor a date and time (2026-01-31T14:05)"
        ) from None
    if moment.timestamp() > now.timestamp():
        raise InputError(f"'{value}' lies in the future; give a time that has been")
    return moment.timestamp()
