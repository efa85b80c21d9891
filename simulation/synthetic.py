"""A made-up calibration table in the manner of a small GPU, for tests and for a second opinion in the arena.

Nothing in it was measured, and every field that names a source says so. Its shape is what distinguishes an
accelerator from a processor: a fixed cost per launch, batches that cost little more than single images, an idle power
that is a good part of the whole.
"""

from __future__ import annotations

import math

from calibration.table import Host, Protocol, Row, Switch, Table

NAME = "synthetic-gpu"
MADE_UP = "made up"
_LADDER = (("s12", 0.12, 0.683), ("s25", 0.25, 0.722), ("s50", 0.50, 0.755), ("s75", 0.75, 0.771), ("s100", 1.0, 0.780))
_BATCHES = (1, 4, 16)
_FULL_MACS = 4_000_000_000
_IDLE_W, _FULL_W = 5.0, 20.0
_LAUNCH_MS, _FIXED_MS, _IMAGE_MS = 0.40, 0.50, 0.45  # a batch of b: launch + share of MACs * (fixed + b * image)
_TAIL = 1.25  # 99th percentile over median


def synthetic_table() -> Table:
    """Five subnets at batches of 1, 4 and 16; the same on every machine."""
    rows = [_row(name, share, accuracy, size) for name, share, accuracy in _LADDER for size in _BATCHES]
    switches = tuple(
        Switch(from_point=a.point, to_point=b.point, first_ms=1.2 * b.latency_p50_ms, extra_ms=0.2 * b.latency_p50_ms)
        for a in rows
        for b in rows
        if a.subnet != b.subnet and a.batch_size == b.batch_size
    )
    return Table(
        schema=1,
        bundle_name=NAME,
        bundle_key="0" * 16,
        host=Host(cpu=MADE_UP, cores=1, memory_bytes=1, system=MADE_UP, python=MADE_UP, libraries={}),
        protocol=Protocol(
            rounds=1,
            seconds_per_cell=0.0,
            warmup=0,
            batch_sizes=_BATCHES,
            threads=1,
            seed=0,
            created="1970-01-01T00:00:00+00:00",
            wall_s=0.0,
        ),
        rows=tuple(rows),
        switches=switches,
        idle_power_w=_IDLE_W,
        idle_power_low_w=_IDLE_W,
        idle_power_high_w=_IDLE_W,
        power_source=MADE_UP,
    )


def _row(subnet: str, share: float, accuracy: float, size: int) -> Row:
    median_ms = _LAUNCH_MS + share * (_FIXED_MS + size * _IMAGE_MS)
    busy = (median_ms - _LAUNCH_MS) / median_ms  # the share of the time in which the arithmetic units work
    power_w = _IDLE_W + (_FULL_W - _IDLE_W) * (0.4 + 0.6 * math.sqrt(busy))
    seconds = median_ms / 1000.0 / size
    tail_ms = _TAIL * median_ms
    return Row(
        subnet=subnet,
        backend="synthetic",
        device="gpu",
        precision="f16",
        batch_size=size,
        threads=1,
        macs=round(share * _FULL_MACS),
        accuracy=accuracy,
        accuracy_low=accuracy,
        accuracy_high=accuracy,
        accuracy_source=MADE_UP,
        latency_p50_ms=median_ms,
        latency_p50_low_ms=median_ms,
        latency_p50_high_ms=median_ms,
        latency_p90_ms=1.12 * median_ms,
        latency_p99_ms=tail_ms,
        latency_p99_low_ms=tail_ms,
        latency_p99_high_ms=tail_ms,
        throughput_per_s=1.0 / seconds,
        rounds=1,
        samples=0,
        load_ms=50.0,
        power_w=power_w,
        power_low_w=power_w,
        power_high_w=power_w,
        energy_j=power_w * seconds,
        energy_low_j=power_w * seconds,
        energy_high_j=power_w * seconds,
        net_energy_j=(power_w - _IDLE_W) * seconds,
        energy_source=MADE_UP,
    )
