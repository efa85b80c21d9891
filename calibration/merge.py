"""Tables of several machines of one kind, made into one; machines of different kinds are kept apart.

Tables belong together when bundle, :attr:`Host.key` and threads are the same. A row of the merged table is the mean of
its rows' logarithms, weighted by their rounds. Its interval is to hold for one machine of the kind, known or not yet
seen: it covers the doubt within the tables and the spread between them, which is estimated by the method of moments
(DerSimonian and Kacker 2007, for any weights) and is 0 where the tables agree within their own doubt.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from calibration.statistics import Interval, student_quantile
from calibration.table import Row, Switch, Table
from subnets.bundle import Strict
from subnets.errors import InputError

_WIDEST = 50.0  # of a logarithm


class Kind(Strict, frozen=True, kw_only=True):
    """What tables must share to be merged."""

    bundle_key: str
    host_key: str
    threads: int


class One(NamedTuple):
    """One table's figure: value, bounds of its 95 % interval, and the rounds it comes from."""

    value: float
    low: float
    high: float
    rounds: int


def kind(table: Table) -> Kind:
    """What a table may be merged by."""
    return Kind(bundle_key=table.bundle_key, host_key=table.host.key, threads=table.protocol.threads)


def merge(tables: Sequence[Table]) -> dict[Kind, Table]:
    """One table for each kind among those given, in the order of their first tables.

    Raises:
        InputError: no table was given.
    """
    if not tables:
        raise InputError("no table to merge; give at least one")
    groups: dict[Kind, list[Table]] = defaultdict(list)
    for table in tables:
        groups[kind(table)].append(table)
    return {of: _merged(members) for of, members in groups.items()}


def why_apart(a: Table, b: Table) -> str:
    """One sentence on why two tables are not merged; empty when they are."""
    if a.bundle_key != b.bundle_key:
        return f"bundle '{a.bundle_name}' ({a.bundle_key}) is not '{b.bundle_name}' ({b.bundle_key})"
    if a.host.key != b.host.key:
        found = a.host.differences(b.host)
        return "; ".join(found) or "they list different backend libraries"
    if a.protocol.threads != b.protocol.threads:
        return f"engines had {b.protocol.threads} threads, and {a.protocol.threads}"
    return ""


def combined(ones: Sequence[One]) -> Interval:
    """The weighted mean of positive figures, with an interval for one machine."""
    values = np.log([one.value for one in ones])
    rounds = np.array([max(1, one.rounds) for one in ones], np.float64)
    weights = rounds / rounds.sum()
    middle = float(weights @ values)
    within = np.array([_error(one) ** 2 for one in ones])
    if len(ones) == 1:
        return Interval(*ones[0][:3])
    if not np.isfinite(within).all():
        return Interval(math.exp(middle), 0.0, math.exp(middle + _WIDEST))
    spread = float(weights @ (values - middle) ** 2)
    share = 1 - float(weights @ weights)
    between = max(0.0, (spread - float((weights * (1 - weights)) @ within)) / share)
    # For one machine: the doubt of the mean, and once more the spread between machines.
    parts = [
        (float(weights**2 @ within), float(rounds.sum()) - len(ones)),
        (between * (1 + float(weights @ weights)), len(ones) - 1.0),
    ]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(math.exp(middle), math.exp(middle), math.exp(middle))
    df = variance**2 / sum(part**2 / max(1.0, freedom) for part, freedom in parts)
    width = min(_WIDEST, student_quantile(max(1, math.floor(df + 1e-6))) * math.sqrt(variance))
    return Interval(math.exp(middle), math.exp(middle - width), math.exp(middle + width))


def _error(one: One) -> float:
    """The standard error of a logarithm, from its interval."""
    if one.rounds < 2 or one.low <= 0:
        return math.inf
    return math.log(one.high / one.low) / 2 / student_quantile(one.rounds - 1)


def _merged(tables: Sequence[Table]) -> Table:
    """One table of several that belong together; itself where there is one."""
    first = tables[0]
    if len(tables) == 1:
        return first
    of_point: dict[str, list[Row]] = defaultdict(list)
    for table in tables:
        for row in table.rows:
            of_point[row.point].append(row)
    protocols = [table.protocol for table in tables]
    idle = _idle(tables)
    return msgspec.structs.replace(
        first,
        protocol=msgspec.structs.replace(
            first.protocol,
            rounds=sum(protocol.rounds for protocol in protocols),
            batch_sizes=tuple(sorted({size for protocol in protocols for size in protocol.batch_sizes})),
            created=max(protocol.created for protocol in protocols),
            wall_s=sum(protocol.wall_s for protocol in protocols),
            discarded_cells=_sums(protocol.discarded_cells for protocol in protocols),
            rel_precision=max(protocol.rel_precision for protocol in protocols),
            budget_s=sum(protocol.budget_s for protocol in protocols),
            stopped="",
            pressure=_median(protocol.pressure for protocol in protocols),
            widening=max(protocol.widening for protocol in protocols),
            temperatures_c={},
            temperature_waited_s=sum(protocol.temperature_waited_s for protocol in protocols),
            sessions=sum(protocol.sessions for protocol in protocols),
            tables=sum(protocol.tables for protocol in protocols),
        ),
        rows=tuple(_row(rows) for rows in of_point.values()),
        switches=_switches(tables),
        idle_power_w=idle.value if idle else None,
        idle_power_low_w=idle.low if idle else None,
        idle_power_high_w=idle.high if idle else None,
        power_source=first.power_source if idle else "unmeasurable",
    )


def _row(rows: Sequence[Row]) -> Row:
    """One row of several of one operating point.

    Accuracy is that of the most images; energies are merged where one source told them all, else those of the first
    row's source alone; the duty-cycle fit is that of the most rounds, since its parts belong together.
    """
    if len(rows) == 1:
        return rows[0]
    best = min(rows, key=lambda row: row.accuracy_high - row.accuracy_low)
    p50 = _of(rows, "latency_p50_ms", "latency_p50_low_ms", "latency_p50_high_ms")
    p99 = _of(rows, "latency_p99_ms", "latency_p99_low_ms", "latency_p99_high_ms")
    metered = [row for row in rows if row.energy_j is not None]
    metered = [row for row in metered if row.energy_source == metered[0].energy_source]
    power = _of(metered, "power_w", "power_low_w", "power_high_w")
    energy = _of(metered, "energy_j", "energy_low_j", "energy_high_j")
    assert p50 is not None and p99 is not None  # a row always has them
    return msgspec.structs.replace(
        rows[0],
        accuracy=best.accuracy,
        accuracy_low=best.accuracy_low,
        accuracy_high=best.accuracy_high,
        accuracy_source=best.accuracy_source,
        latency_p50_ms=p50.value,
        latency_p50_low_ms=p50.low,
        latency_p50_high_ms=p50.high,
        latency_p90_ms=_mean(rows, lambda row: row.latency_p90_ms),
        latency_p99_ms=p99.value,
        latency_p99_low_ms=p99.low,
        latency_p99_high_ms=p99.high,
        throughput_per_s=_mean(rows, lambda row: row.throughput_per_s),
        rounds=sum(row.rounds for row in rows),
        samples=sum(row.samples for row in rows),
        load_ms=_mean(rows, lambda row: row.load_ms),
        memory_bytes=max((row.memory_bytes for row in rows if row.memory_bytes is not None), default=None),
        cpu_s=_mean(rows, lambda row: row.cpu_s) if all(row.cpu_s is not None for row in rows) else None,
        power_w=power.value if power else None,
        power_low_w=power.low if power else None,
        power_high_w=power.high if power else None,
        energy_j=energy.value if energy else None,
        energy_low_j=energy.low if energy else None,
        energy_high_j=energy.high if energy else None,
        **_net(metered),
        energy_source=metered[0].energy_source if energy else "unmeasurable",
        energy_check_j=None,
        energy_check_source="",
        energy_suspect=any(row.energy_suspect for row in metered),
        duty=max((row.duty for row in rows if row.duty), key=lambda duty: duty.rounds, default=None),
        round_p50_ms=(),
        quantiles_ms=_quantiles(rows),
        discarded=_sums(row.discarded for row in rows),
        disturbed=any(row.disturbed for row in rows),
    )


def _of(rows: Sequence[Row], value: str, low: str, high: str) -> Interval | None:
    """One figure with its interval, of the rows that have it; None where none has."""
    ones = [One(getattr(row, value), getattr(row, low), getattr(row, high), row.rounds) for row in rows]
    ones = [one for one in ones if None not in one]
    return combined(ones) if ones else None


def _net(rows: Sequence[Row]) -> dict[str, float | None]:
    """Energy above idle, which may be negative: the weighted mean, within the outermost bounds."""
    rows = [row for row in rows if row.net_energy_j is not None]
    lows = [row.net_energy_low_j for row in rows if row.net_energy_low_j is not None]
    highs = [row.net_energy_high_j for row in rows if row.net_energy_high_j is not None]
    weights = [max(1, row.rounds) for row in rows]
    values = [row.net_energy_j or 0.0 for row in rows]
    return {
        "net_energy_j": float(np.average(values, weights=weights)) if rows else None,
        "net_energy_low_j": min(lows, default=None),
        "net_energy_high_j": max(highs, default=None),
    }


def _mean(rows: Sequence[Row], of: Callable[[Row], float | None]) -> float:
    """The mean of something without an interval, weighted by rounds."""
    return float(np.average([of(row) or 0.0 for row in rows], weights=[max(1, row.rounds) for row in rows]))


def _quantiles(rows: Sequence[Row]) -> tuple[float, ...]:
    """The mean of each quantile, by logarithms, where all rows have them."""
    if not all(row.quantiles_ms and len(row.quantiles_ms) == len(rows[0].quantiles_ms) for row in rows):
        return ()
    weights = [max(1, row.rounds) for row in rows]
    logs = np.average(np.log([row.quantiles_ms for row in rows]), axis=0, weights=weights)
    return tuple(float(value) for value in np.exp(logs))


def _switches(tables: Sequence[Table]) -> tuple[Switch, ...]:
    """The mean of each switch over the tables that have it, weighted by their rounds."""
    found: dict[tuple[str, str], list[tuple[Switch, int]]] = defaultdict(list)
    for table in tables:
        for switch in table.switches:
            found[switch.from_point, switch.to_point].append((switch, max(1, table.protocol.rounds)))

    def mean(ones: Sequence[tuple[Switch, int]], name: str) -> Any:
        known = [(getattr(switch, name), weight) for switch, weight in ones if getattr(switch, name) is not None]
        return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None

    names = ("first_ms", "extra_ms", "second_ms", "tenth_ms")
    return tuple(
        Switch(from_point=from_, to_point=to, **{name: mean(ones, name) for name in names})
        for (from_, to), ones in found.items()
    )


def _idle(tables: Sequence[Table]) -> Interval | None:
    source = tables[0].power_source
    ones = [
        One(table.idle_power_w, table.idle_power_low_w, table.idle_power_high_w, table.protocol.rounds)
        for table in tables
        if table.power_source == source
        and table.idle_power_w is not None
        and table.idle_power_low_w is not None
        and table.idle_power_high_w is not None
    ]
    return combined(ones) if ones and all(one.value > 0 for one in ones) else None


def _sums(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None
