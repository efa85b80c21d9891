"""Views made from the parts of an agent: the rows it can use, and how its engines fare."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from agent.guard import Guard
from agent.pool import EnginePool
from agent.values import EngineStatus
from backends.base import Backend
from calibration.table import Table
from subnets import Bundle
from subnets.errors import InputError


def usable_rows(bundle: Bundle, table: Table, backends: Mapping[str, Backend], points: Collection[str] | None) -> Table:
    """The table with the rows that can be used here.

    Raises:
        InputError: there is none, or a row names a subnet the bundle lacks.
    """
    for row in table.rows:
        bundle.ladder.named(row.subnet)
    rows = tuple(r for r in table.rows if r.backend in backends and (points is None or r.point in points))
    if not rows:
        have = ", ".join(sorted({row.backend for row in table.rows}))
        raise InputError(
            f"no operating point of the table can be used: it has rows of {have}, "
            f"wanted are {', '.join(sorted(backends)) or 'no backends'}; calibrate with the backend you want"
        )
    return msgspec.structs.replace(table, rows=rows)


def engine_statuses(pool: EnginePool, guard: Guard) -> tuple[EngineStatus, ...]:
    """Every engine that is in memory or has ever failed."""
    residents = {resident.key: resident for resident in pool.residents()}
    active = pool.current
    found = []
    for key in dict.fromkeys([*residents, *guard.failed_keys]):
        resident = residents.get(key)
        failures, last_error = guard.history(key)
        status = EngineStatus(
            subnet=key.subnet,
            backend=key.backend,
            precision=key.precision,
            threads=key.threads,
            resident=resident is not None,
            current=resident is not None and active is not None and active.resident is resident,
            memory_bytes=resident.memory_bytes if resident else None,
            load_ms=resident.load_ms if resident else None,
            failures=failures,
            quarantined_s=guard.quarantined_s(key),
            last_error=last_error,
        )
        found.append(status)
    return tuple(found)
