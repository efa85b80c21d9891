"""What a resident agent costs: four ResNet-18 engines at 224 x 224, ``gearshift run`` in a process of its own.

* *Ready*: from starting the process to its ``READY=1``, with a warm cache of artifacts; ``--starts`` times. Beside it
  the processor seconds it took: on a busy machine they tell more than the clock.
* *Memory*: anonymous and file-backed, once all four engines are loaded; and whether torch is in the process.
* *Idle*: the share of one core it takes while nothing is asked.
* *Sparse*: latency at ``--rate`` requests a second, asked of an agent in this process and of the same engine directly,
  in turns, with the 95 % interval of the ratio over turns.
* *Throughput*: answers a second to eight threads, by the agent and by the engine behind a lock, in turns.

    python benchmarks/resident.py > resident.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from common import ROOT, known_bundle, provenance
from ladder import Steered, known_images, quick_table

from agent import Agent
from backends.base import Batch, CompileRequest
from backends.openvino import OpenVINOBackend
from calibration.statistics import positive_interval
from calibration.table import Table, write
from policies.base import Goals
from subnets.bundle import Bundle

ALLOWED_READY_S, ALLOWED_ANONYMOUS_BYTES, ALLOWED_IDLE, ALLOWED_THROUGHPUT = 1.5, 230e6, 0.01, 0.9
_PROGRAM = "import cli; cli.main()"
_SETTLE_S = 2.0
_CLIENTS = 8


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="per turn and side")
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--precision", default="f32", help="of each engine; f32 by default")
    options = parser.parse_args()
    if options.turns < 2:
        parser.error("--turns must be at least 2")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = known_bundle("resnet18", folder)
        backend = OpenVINOBackend(folder / "cache")
        if options.precision not in backend.precisions():
            parser.error(f"precision {options.precision} is not native here; use {', '.join(backend.precisions())}")
        images = known_images(bundle, 4)
        wanted = {"precision": options.precision, "threads": options.threads}
        requests = [CompileRequest(subnet=subnet, **wanted) for subnet in bundle.ladder.names]
        engines = {request.subnet: backend.load(backend.build(bundle, request)) for request in requests}
        table = quick_table(bundle, engines, images)
        for engine in engines.values():
            engine.close()
        write(table, folder / "table.json")
        starts = [_start(folder, bundle) for _ in range(options.starts - 1)]
        last = _start(folder, bundle, idle_s=options.idle, engines=len(engines))
        starts.append(last)
        sparse, throughput = _beside_the_engine(bundle, table, backend, images, options)
    document = {
        "what": f"an agent with four resident ResNet-18 engines, {options.precision}, batch 1",
        "ready_s": statistics.median(start["ready_s"] for start in starts),
        "ready_each_s": [start["ready_s"] for start in starts],
        "ready_cpu_s": statistics.median(start["cpu_s"] for start in starts),
        **{key: last[key] for key in ("anonymous_bytes", "file_bytes", "torch", "idle_share", "idle_s")},
        "sparse": sparse,
        "throughput": throughput,
        "allowed": {
            "ready_s": ALLOWED_READY_S,
            "anonymous_bytes": ALLOWED_ANONYMOUS_BYTES,
            "idle_share": ALLOWED_IDLE,
            "throughput_ratio": ALLOWED_THROUGHPUT,
        },
        "shown": {
            "ready_s": statistics.median(start["ready_s"] for start in starts) < ALLOWED_READY_S,
            "anonymous_bytes": last["anonymous_bytes"] <= ALLOWED_ANONYMOUS_BYTES,
            "idle_share": last["idle_share"] < ALLOWED_IDLE,
            "no_torch": not last["torch"],
            "sparse_no_worse": sparse["ratio"]["low"] <= 1.0,
            "throughput": throughput["ratio"]["value"] >= ALLOWED_THROUGHPUT,
        },
        "threads": options.threads,
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _start(folder: Path, bundle: Bundle, *, idle_s: float = 0.0, engines: int = 0) -> dict[str, Any]:
    """One start, up to READY; with ``idle_s`` also what it takes while nothing happens."""
    address = folder / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(address))
        told.settimeout(120)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(address),
            "RUNTIME_DIRECTORY": str(folder / "run"),
            "STATE_DIRECTORY": str(folder / "state"),
            "GEARSHIFT_CACHE": str(folder / "cache"),
        }
        command = [sys.executable, "-c", _PROGRAM, "run", str(bundle.path), "--table", str(folder / "table.json")]
        command += ["--policy", "largest", "--port", "0", "--socket", str(folder / "http.sock")]
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE)
        try:
            while b"READY=1" not in told.recv(4096):
                pass
            found: dict[str, Any] = {"ready_s": time.perf_counter() - began}
            running = psutil.Process(process.pid)
            found["cpu_s"] = sum(running.cpu_times()[:2])
            if idle_s:
                assert process.stderr is not None
                loaded = 0
                while loaded < engines:  # the others come in the background
                    loaded += b"loaded s" in process.stderr.readline()
                time.sleep(_SETTLE_S)
                found |= _idle(process.pid, running, idle_s)
        finally:
            process.terminate()
            process.communicate(timeout=60)
    return found


def _idle(pid: int, running: psutil.Process, idle_s: float) -> dict[str, Any]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    before, began = sum(running.cpu_times()[:2]), time.perf_counter()
    time.sleep(idle_s)
    share = (sum(running.cpu_times()[:2]) - before) / (time.perf_counter() - began)
    return {
        "anonymous_bytes": int(status["RssAnon"].split()[0]) * 1024,
        "file_bytes": int(status["RssFile"].split()[0]) * 1024,
        "torch": "libtorch" in Path(f"/proc/{pid}/maps").read_text(),
        "idle_share": share,
        "idle_s": idle_s,
    }


def _beside_the_engine(
    bundle: Bundle, table: Table, backend: OpenVINOBackend, images: Batch, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sparse latency and throughput of the smallest subnet, where what the agent adds weighs most."""
    policy = Steered(table.rows[0].point)
    with Agent(bundle, table, backends={"openvino": backend}, policy=policy, goals=Goals(), sensors=None) as agent:
        for row in table.rows:
            agent.infer(images[:1], subnet=row.subnet)
        active = agent._pool.current
        assert active is not None
        engine, lock = active.resident.engine, threading.Lock()

        def by_agent(image: Batch) -> object:
            return agent.infer(image)

        def directly(image: Batch) -> object:
            with lock:
                return engine.infer(image)

        sides = {"agent": by_agent, "engine": directly}
        latency: dict[str, list[float]] = {side: [] for side in sides}
        rate: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(options.turns):
            for side in ("agent", "engine") if turn % 2 else ("engine", "agent"):
                latency[side].append(_paced_ms(sides[side], images, options.rate, options.seconds))
                rate[side].append(_answers_per_s(sides[side], images, options.seconds))
    sparse = {
        "subnet": table.rows[0].subnet,
        "rate_hz": options.rate,
        **{f"{side}_ms": statistics.median(values) for side, values in latency.items()},
        "ratio": _ratio(latency["agent"], latency["engine"]),
    }
    throughput = {
        "subnet": table.rows[0].subnet,
        "clients": _CLIENTS,
        **{f"{side}_per_s": statistics.median(values) for side, values in rate.items()},
        "ratio": _ratio(rate["agent"], rate["engine"]),
    }
    return sparse, throughput


def _paced_ms(ask: Callable[[Batch], object], images: Batch, rate_hz: float, seconds: float) -> float:
    """The median latency in ms, one request every so often."""
    took, due = [], time.perf_counter()
    for number in range(max(1, round(rate_hz * seconds))):
        due += 1 / rate_hz
        time.sleep(max(0.0, due - time.perf_counter()))
        place = number % len(images)
        began = time.perf_counter()
        ask(images[place : place + 1])
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def _answers_per_s(ask: Callable[[Batch], object], images: Batch, seconds: float) -> float:
    """How many answers a second several threads get that ask without a pause."""
    counts = [0] * _CLIENTS
    until = time.perf_counter() + seconds

    def client(mine: int) -> None:
        image = images[mine % len(images)][None].copy()
        while time.perf_counter() < until:
            ask(image)
            counts[mine] += 1

    threads = [threading.Thread(target=client, args=(mine,)) for mine in range(_CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def _ratio(mine: list[float], theirs: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    found = positive_interval(statistics.median(ratios), ratios)
    return {"value": found.value, "low": found.low, "high": found.high}


if __name__ == "__main__":
    main()
