"""A live agent for the benchmarks: ``gearshift run`` in a process of its own, with every front door open.

* :func:`plain_table`: a calibration table of subnets with given latencies.
* :class:`LiveAgent`: the process, where it listens, and its memory.
* :func:`end_on_sigterm`: a script that is stopped stops its agent, too.

The table's accuracy is made up (nobody is to choose by it); everything else of the agent is as in production.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
from common import ROOT

from agent.lifecycle import RunningAgent
from calibration.host import fingerprint
from calibration.table import Protocol, Row, Table, write
from subnets.bundle import Bundle

_STARTS_IN_S = 120.0
_PROGRAM = "import cli; cli.main()"


def has_grpc() -> bool:
    """Whether the extra for gRPC is installed, client and server."""
    return all(importlib.util.find_spec(name) is not None for name in ("grpc", "tritonclient"))


def end_on_sigterm() -> None:
    """Makes SIGTERM end the script by way of its context managers."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def plain_table(bundle: Bundle, latency_ms: Mapping[str, float], *, threads: int = 1, precision: str = "f32") -> Table:
    """A table of subnets at batch size 1.

    Args:
        bundle: whose subnets.
        latency_ms: of each subnet that is to be in it.
        threads, precision: of each engine.
    """
    macs = {entry.name: entry.macs for entry in bundle.manifest.subnets}
    rows = [
        Row(
            subnet=subnet,
            backend="openvino",
            device="CPU",
            precision=precision,
            batch_size=1,
            threads=threads,
            macs=macs[subnet],
            accuracy=0.5,
            accuracy_low=0.0,
            accuracy_high=1.0,
            accuracy_source="made up for a benchmark",
            latency_p50_ms=took_ms,
            latency_p50_low_ms=took_ms,
            latency_p50_high_ms=took_ms,
            latency_p90_ms=took_ms,
            latency_p99_ms=took_ms,
            latency_p99_low_ms=took_ms,
            latency_p99_high_ms=took_ms,
            throughput_per_s=1000 / took_ms,
            rounds=1,
            samples=1,
            load_ms=1.0,
            memory_bytes=None,
        )
        for subnet, took_ms in latency_ms.items()
    ]
    protocol = Protocol(
        rounds=1, seconds_per_cell=1.0, warmup=1, batch_sizes=(1,), threads=threads, seed=0, created="", wall_s=1.0
    )
    return Table(
        schema=1,
        bundle_name=bundle.name,
        bundle_key=bundle.key,
        host=fingerprint(["openvino"]),
        protocol=protocol,
        rows=tuple(rows),
    )


class LiveAgent:
    """A running agent; a context manager, which stops it.

    Args:
        folder: for sockets, table, configuration and output; it may hold nothing else.
        bundle: what it serves.
        table: of its operating points.
        serve: more keys of ``[serve]``.
        agent: more keys of ``[agent]``.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        table: Table,
        *,
        serve: Mapping[str, Any] | None = None,
        agent: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.bundle = folder, bundle
        self.output = folder / "output.txt"
        folder.mkdir(parents=True, exist_ok=True)
        write(table, folder / "table.json")
        doors = {"port": 0, "socket": "http.sock", "native": "native.sock"}
        if has_grpc():
            doors |= {"grpc_socket": "grpc.sock", "grpc_port": 0}
        sections = {
            "agent": {"bundle": str(bundle.path.absolute()), "table": "table.json", "policy": "largest"}
            | dict(agent or {}),
            "serve": doors | dict(serve or {}),
        }
        lines = [
            line
            for section, keys in sections.items()
            for line in (f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()))
        ]
        (folder / "agent.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LiveAgent:
        """Starts it and waits until it answers."""
        with self.output.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "run", "--config", str(self.folder / "agent.toml")],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={
                    **os.environ,
                    "RUNTIME_DIRECTORY": str(self.folder / "run"),
                    "GEARSHIFT_CACHE": str(self.folder / "cache"),
                },
            )
        try:
            self.running = self._announced()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _announced(self) -> RunningAgent:
        state = self.folder / "run" / "agent.json"
        until_s = time.monotonic() + _STARTS_IN_S
        while not state.exists():
            if not self.alive or time.monotonic() > until_s:
                raise SystemExit(f"the agent did not start:\n{self.text}")
            time.sleep(0.05)
        return msgspec.json.decode(state.read_bytes(), type=RunningAgent)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    @property
    def anonymous_bytes(self) -> int:
        """Its memory that is not a file's."""
        assert self._process is not None
        found = psutil.Process(self._process.pid).memory_full_info()
        return int(found.uss)
