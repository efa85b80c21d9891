"""A small hand-made table, trivial policies and short traces."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.table import Host, Protocol, Row, Switch, Table
from policies.base import Conditions, Decision, Policy, SlackStep
from simulation.trace import Trace


def _row(subnet: str, latency_ms: float, accuracy: float, net_j: float | None, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "subnet": subnet,
        "backend": "toy",
        "device": "cpu",
        "precision": "f32",
        "batch_size": 1,
        "threads": 1,
        "macs": 1_000,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.01,
        "accuracy_high": accuracy + 0.01,
        "accuracy_source": "measured: test, n=400",
        "latency_p50_ms": latency_ms,
        "latency_p50_low_ms": latency_ms,
        "latency_p50_high_ms": latency_ms,
        "latency_p90_ms": latency_ms,
        "latency_p99_ms": latency_ms,  # no spread: service times can be computed by hand
        "latency_p99_low_ms": latency_ms,
        "latency_p99_high_ms": latency_ms,
        "throughput_per_s": 1000.0 / latency_ms,
        "rounds": 10,
        "samples": 100,
        "load_ms": 5.0,
        "power_w": None if net_j is None else 2.0 + net_j * 1000.0 / latency_ms,
        "energy_j": None if net_j is None else net_j + 2.0 * latency_ms / 1000.0,
        "net_energy_j": net_j,
    }
    values |= changes
    values["latency_p99_low_ms"] = values["latency_p99_high_ms"] = values["latency_p99_ms"]
    return Row(**values)


@pytest.fixture
def row() -> Callable[..., Row]:
    return _row


@pytest.fixture
def make_table() -> Callable[..., Table]:
    def make(*rows: Row, switches: tuple[Switch, ...] = (), idle_power_w: float | None = 2.0) -> Table:
        return Table(
            schema=1,
            bundle_name="toy",
            bundle_key="0" * 16,
            host=Host(cpu="toy", cores=1, memory_bytes=1, system="toy", python="3.11", libraries={}),
            protocol=Protocol(
                rounds=10,
                seconds_per_cell=1.0,
                warmup=1,
                batch_sizes=(1,),
                threads=1,
                seed=0,
                created="2024-01-01T00:00:00Z",
                wall_s=1.0,
            ),
            rows=rows,
            switches=switches,
            idle_power_w=idle_power_w,
        )

    return make


@pytest.fixture
def table(make_table: Callable[..., Table]) -> Table:
    """Idle 2 W; s50 takes 100 ms and 0.1 J, s100 takes 400 ms and 0.8 J; switching up costs 50 ms."""
    small, large = _row("s50", 100.0, 0.8, 0.1), _row("s100", 400.0, 0.9, 0.8)
    return make_table(
        small, large, switches=(Switch(from_point=small.point, to_point=large.point, first_ms=450.0, extra_ms=50.0),)
    )


class _Always(Policy):
    name = "always"

    def __init__(self, point: str, plan: tuple[SlackStep, ...] = ()) -> None:
        self.point, self.plan = point, plan
        self.seen: list[Conditions] = []

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        self.seen.append(conditions)
        return Decision(point=self.point, reason="always this one", slack_plan=self.plan)


class _Scripted(Policy):
    """The point of the last entry whose time has come; with state, to see that replays reset it."""

    name = "scripted"

    def __init__(self, script: dict[float, str]) -> None:
        self.script = script
        self.calls = 0

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        self.calls += 1
        point = [point for at, point in self.script.items() if at <= conditions.time_s][-1]
        return Decision(point=point, reason=f"call {self.calls}", bound="deadline")

    def reset(self) -> None:
        self.calls = 0


@pytest.fixture
def always() -> type[_Always]:
    return _Always


@pytest.fixture
def scripted() -> type[_Scripted]:
    return _Scripted


@pytest.fixture
def make_trace() -> Callable[..., Trace]:
    def make(arrivals: list[float], duration_s: float, **environment: list[float]) -> Trace:
        arrays = {name: np.asarray(values, np.float64) for name, values in environment.items()}
        return Trace(name="hand", duration_s=duration_s, arrivals_s=np.asarray(arrivals, np.float64), **arrays)

    return make


@pytest.fixture
def recorded() -> Path:
    """The folder of recorded traces; set GEARSHIFT_TRACES or put it beside the checkout under shared/traces."""
    folder = Path(os.environ.get("GEARSHIFT_TRACES") or Path(__file__).parents[3] / "shared" / "traces")
    if not folder.is_dir():
        pytest.skip(f"no recorded traces at {folder}; set GEARSHIFT_TRACES to test on them")
    return folder
