"""Views made from the parts of an agent: the rows it can use, how its engines fare, its whole status."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from agent.answering import Answering
from agent.control import ControlLoop
from agent.figures import LoadFigures
from agent.guard import Guard
from agent.journal import Journal
from agent.pool import EnginePool
from agent.sensing import Sensing
from agent.values import Counters, EngineStatus, Status
from agent.watching import Watching
from backends.base import Backend
from calibration.table import Table
from policies.base import Goals
from subnets import Bundle
from subnets.errors import InputError


class Parts(NamedTuple):
    """What an agent is made of."""

    pool: EnginePool
    guard: Guard
    sensing: Sensing
    control: ControlLoop
    answering: Answering
    figures: LoadFigures
    watching: Watching
    journal: Journal | None


def status_of(
    parts: Parts, bundle: Bundle, table: Table, goals: Goals, *, state: str, now_s: float, started_s: float
) -> Status:
    """What an agent is doing and why.

    Args:
        parts: its own.
        bundle, table, goals: what it runs.
        state: "starting", "running", "closing" or "closed".
        now_s: on its clock.
        started_s: when it was made.
    """
    pool, guard, sensing, control, answering, figures, watching, journal = parts
    answering.accounts.settle()
    active, held = pool.current, control.held
    row = active.row if active is not None else None
    if held is not None:
        held = msgspec.structs.replace(held, remaining_s=max(0.0, held.until_s - now_s))
    return Status(
        state="degraded" if state == "running" and not pool.answering else state,
        subnet=row.subnet if row else None,
        backend=row.backend if row else None,
        precision=row.precision if row else None,
        point=row.point if row else None,
        reason=active.reason if active else "no engine is loaded yet",
        bound=active.bound if active else "none",
        policy=control.policy.name,
        goals=goals,
        conditions=control.conditions,
        hold=held,
        dry_run=control.dry_run,
        bundle=bundle.name,
        bundle_key=table.bundle_key,
        expected_accuracy=row.accuracy if row else None,
        uptime_s=now_s - started_s,
        queue_depth=answering.depth,
        engines=engine_statuses(pool, guard),
        counters=Counters(
            requests=figures.requests,
            images=figures.images,
            late=figures.late,
            refused=figures.refused_requests,
            failed=answering.accounts.failed,
            rescued=answering.rescued,
            expired=figures.expired_requests,
            superseded=answering.superseded,
            switches=control.switches,
            engine_failures=guard.engine_failures,
            sensor_failures=sensing.failures,
            policy_failures=control.policy_failures,
            engine_hangs=guard.engine_hangs,
            limits_reached=guard.limits_reached,
            **watching.counters(),
        ),
        slowdown=figures.slowdowns(now_s),
        drifted={out.point: out.ratio for out in watching.drift.drifted},
        journal=journal.status() if journal is not None else None,
    )


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
