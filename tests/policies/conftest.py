"""A table as an edge device might give, for every test of policies."""

import pytest

from calibration.table import Host, Protocol, Row, Table

IDLE_W = 3.0
# subnet, MACs, accuracy, median and p99 latency at batch 1 in ms, power at work in W
RUNGS = (
    ("s25", 10_000_000, 0.900, 2.0, 2.6, 7.0),
    ("s50", 20_000_000, 0.925, 4.0, 5.2, 8.0),
    ("s75", 30_000_000, 0.938, 6.5, 8.2, 9.0),
    ("s100", 40_000_000, 0.945, 10.0, 13.0, 10.0),
)


def build_row(subnet, macs, accuracy, p50_ms, p99_ms, power_w, *, precision="bf16", batch_size=1):
    throughput = 1000 * batch_size / p50_ms
    return Row(
        subnet=subnet,
        backend="openvino",
        device="CPU",
        precision=precision,
        batch_size=batch_size,
        threads=2,
        macs=macs,
        accuracy=accuracy,
        accuracy_low=accuracy - 0.01,
        accuracy_high=accuracy + 0.01,
        accuracy_source="measured: test, n=2000",
        latency_p50_ms=p50_ms,
        latency_p50_low_ms=0.98 * p50_ms,
        latency_p50_high_ms=1.02 * p50_ms,
        latency_p90_ms=(p50_ms + p99_ms) / 2,
        latency_p99_ms=p99_ms,
        latency_p99_low_ms=0.95 * p99_ms,
        latency_p99_high_ms=1.05 * p99_ms,
        throughput_per_s=throughput,
        rounds=6,
        samples=1200,
        load_ms=40.0,
        memory_bytes=4 * macs,
        cpu_s=2 / throughput,
        power_w=power_w,
        energy_j=power_w / throughput,
        net_energy_j=(power_w - IDLE_W) / throughput,
        energy_source="rapl-package",
    )


def build_table(rows):
    host = Host(cpu="some cpu", cores=2, memory_bytes=2**32, system="Linux x86_64", python="3.11", libraries={})
    protocol = Protocol(
        rounds=6,
        seconds_per_cell=1.0,
        warmup=10,
        batch_sizes=tuple(sorted({row.batch_size for row in rows})),
        threads=2,
        seed=0,
        created="2026-01-01T00:00:00Z",
        wall_s=60.0,
    )
    return Table(
        schema=1,
        bundle_name="digits",
        bundle_key="0123456789abcdef",
        host=host,
        protocol=protocol,
        rows=tuple(rows),
        idle_power_w=IDLE_W,
        power_source="rapl-package",
    )


@pytest.fixture(scope="session")
def table():
    """Four rungs at batch 1 and 8 in bf16, and an f32 row that no frontier needs."""
    one = [build_row(*rung) for rung in RUNGS]
    eight = [build_row(s, m, a, 6 * p50, 6 * p99, w + 1, batch_size=8) for s, m, a, p50, p99, w in RUNGS]
    return build_table([*one, *eight, build_row("s50", 20_000_000, 0.925, 7.0, 9.0, 9.0, precision="f32")])


@pytest.fixture(scope="session")
def make_table():
    """Builds a table from rows."""
    return build_table


@pytest.fixture(scope="session")
def make_row():
    """Builds a row from (subnet, macs, accuracy, p50, p99, power)."""
    return build_row
