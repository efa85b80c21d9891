"""What does each way to the agent cost beside the bare engine? One client and eight, small images and large ones.

The agent runs in a process of its own, as ``gearshift run`` starts it, with one operating point: a subnet on one
thread. Only ``in-process`` is another: an agent inside this process, asked as an embedding program would. The bare
engine is that one's very engine, so both read the same weights.

A round takes all ways and the bare engine in random order, each for a while, so that what else the machine does hits
them all; medians are taken per round, and intervals are over rounds. Overhead is a round's median minus the bare
engine's in the same round. The images are written anew before each request, outside the time that is taken; what the
client's Python spends on encoding, sending and decoding is inside.

``floor`` is what any way into another process costs here: one that has the same engine, reads the image from memory
that both have mapped, and is told by sixteen bytes on a socket; nothing is checked, counted or explained. Most of it is
waking up a sleeping core, twice, which is dear on a virtual machine. ``native`` is the client as it comes: it sleeps
until shortly before the answer is due, and both sides stay awake for a moment for each other's frames; so it can be
faster than the floor. ``native-sleep`` never looks: the difference between it and the floor is the agent's own.
``native-spin`` always looks.

gRPC's client has a process of its own also where it is alone: its threads would slow the other ways down.

With eight clients, each a process that asks again as soon as it is answered, the figure is answers a second over what
the bare engine gives in a loop of one thread. Clients and agent share the machine's cores, so the clients' own work
counts as the ways' cost: that is how it is on a device.
Rounds that other work on the machine disturbed are measured again, as long as the patience lasts.

    python benchmarks/serving.py > serving.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import multiprocessing
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import RESNET18_SHARES, ROOT, difference, provenance, random_bundle
from live import LiveAgent, end_on_sigterm, has_grpc, plain_table
from paths import NAMES, open_path
from quiet import Quiet

from agent import Agent
from agent.lifecycle import RunningAgent
from backends.base import Artifact, CompileRequest
from backends.openvino import OpenVINOBackend
from calibration.statistics import half_width
from policies import registry
from policies.base import Goals
from subnets.bundle import Bundle

CLIENTS = 8
_BOUNDS_US = {
    "in-process": 30.0,
    "native": 60.0,
    "native-spin": 60.0,
    "http-unix": 350.0,
}  # at 12 KB, one client, median
_BOUND_RATIO = 0.9  # of the bare engine's throughput, eight clients, ResNet-18
_WARM_REQUESTS = 20


class Case(NamedTuple):
    """One network and subnet."""

    network: str
    bundle: Bundle
    subnet: str


class Rig:
    """A live agent, an agent inside, the bare engine, and eight client processes, for one case."""

    def __init__(self, case: Case, folder: Path, names: list[str]) -> None:
        self.case = case
        backend = OpenVINOBackend(folder / "cache")
        request = CompileRequest(subnet=case.subnet, threads=1)
        self.shape = case.bundle.input.shape
        engine = backend.load(backend.build(case.bundle, request))
        batch = _images(self.shape)
        took_ms = statistics.median(_timed(lambda: engine.infer(batch)) for _ in range(30)) / 1e3
        engine.close()
        table = plain_table(case.bundle, {case.subnet: took_ms})
        self.live = LiveAgent(folder, case.bundle, table, serve={"max_connections": 256, "idle_timeout": "1h"})
        policy = registry.create("largest", Goals(), {})
        self.inside = Agent(
            case.bundle, table, backends={"openvino": backend}, policy=policy, goals=Goals(), sensors=None
        )
        self._artifact = backend.build(case.bundle, request)
        self._memory = folder / "floor"
        self._names = names
        self._paths: dict[str, Any] = {}
        self._workers: list[tuple[Any, Connection]] = []

    def __enter__(self) -> Rig:
        with contextlib.ExitStack() as stack:  # what was begun is ended, whatever goes wrong
            stack.enter_context(self.live)
            stack.enter_context(self.inside)
            active = self.inside._pool.current
            assert active is not None
            self.engine = active.resident.engine  # the very one: another would bring weights of its own into the caches
            apart = [name for name in self._names if name.startswith("grpc")]
            for name in self._names:
                if name not in apart:
                    self._paths[name] = open_path(name, self.live.running, self.shape)
                    stack.callback(self._paths[name].close)
            context = multiprocessing.get_context("spawn")
            self._paths["floor"] = Floor(context, self._artifact, self._memory)
            stack.callback(self._paths["floor"].close)
            for rank, names in enumerate([*[self._names] * CLIENTS, apart]):
                here, there = context.Pipe()
                arguments = (there, self.live.running, self.shape, names, rank)
                worker = context.Process(target=_client, args=arguments, daemon=True)
                worker.start()
                stack.callback(worker.terminate)
                self._workers.append((worker, here))
            for _, pipe in self._workers:
                pipe.recv()
            self._ending = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ending.close()

    def alone(self, name: str) -> Callable[[float], list[float]]:
        """What gives the microseconds of a client's answers for so many seconds; warm."""
        if name.startswith("grpc"):
            return lambda seconds: self._apart(name, seconds)
        if name in self._paths:
            batch, ask = self._paths[name].batch, self._paths[name].ask
        elif name == "bare":
            batch, ask = self.bare()
        else:
            batch = _images(self.shape)
            ask = functools.partial(self.inside.infer, batch)
        batch[:] = _images(self.shape)
        for _ in range(_WARM_REQUESTS):
            ask()
        return lambda seconds: _block(batch, ask, time.perf_counter() + seconds)

    def bare(self) -> tuple[np.ndarray[Any, Any], Callable[[], Any]]:
        """(the array to write images into, what asks the engine itself)."""
        batch = _images(self.shape)
        return batch, lambda: self.engine.infer(batch)

    def _apart(self, name: str, seconds: float) -> list[float]:
        _, pipe = self._workers[CLIENTS]
        pipe.send((name, time.perf_counter(), seconds))
        took: list[float] = pipe.recv()[0]
        return took

    def together(self, name: str, seconds: float) -> tuple[list[float], float]:
        """(microseconds of every answer that the eight got, seconds from the first request to the last answer)."""
        begin = time.perf_counter() + 0.05
        for _, pipe in self._workers[:CLIENTS]:
            pipe.send((name, begin, seconds))
        got = [pipe.recv() for _, pipe in self._workers[:CLIENTS]]
        return [value for took, _ in got for value in took], max(ended for _, ended in got) - begin

    @property
    def companions(self) -> list[int]:
        """The processes that belong to the measurement."""
        floor = self._paths["floor"]
        return [self.live.running.pid, floor.pid, *(worker.pid for worker, _ in self._workers)]


class Floor:
    """The least that asking another process costs: a mapped file, and a socket to ring at.

    Args:
        context: to start the process.
        artifact: of the engine it has.
        memory: the file that both map.
    """

    def __init__(self, context: Any, artifact: Artifact, memory: Path) -> None:
        shape = (1, *artifact.input_shape)
        memory.write_bytes(bytes(4 * int(np.prod(shape))))
        self.batch = np.memmap(memory, np.float32, "r+", shape=shape)
        path = memory.with_suffix(".sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(path))
        listener.listen(1)
        self._process = context.Process(target=_floor, args=(artifact, memory, path), daemon=True)
        self._process.start()
        self.pid = int(self._process.pid)
        self._socket, _ = listener.accept()
        listener.close()
        self._frame = bytearray(65536)

    def ask(self) -> np.ndarray[Any, Any]:
        """The logits of ``batch``."""
        self._socket.send(b"sixteen bytes ..")
        size = self._socket.recv_into(self._frame)
        return np.frombuffer(self._frame, np.float32, size // 4).copy()

    def close(self) -> None:
        """Ends the process."""
        self._socket.close()
        self._process.join(10)


def _floor(artifact: Artifact, memory: Path, path: Path) -> None:
    """The process behind :class:`Floor`."""
    engine = OpenVINOBackend(memory.parent / "cache").load(artifact)
    batch = np.memmap(memory, np.float32, "r+", shape=(1, *artifact.input_shape)).view(np.ndarray)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(str(path))
        frame = bytearray(64)
        while caller.recv_into(frame):
            caller.send(engine.infer(batch).tobytes())


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="per round and way, one client")
    parser.add_argument("--rounds-together", type=int, default=8)
    parser.add_argument("--seconds-together", type=float, default=1.5, help="per round and way, eight clients")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a quiet machine, per subnet")
    parser.add_argument("--network", action="append", choices=["resnet20", "resnet18"], help="both by default")
    options = parser.parse_args()
    if min(options.rounds, options.rounds_together) < 2:
        parser.error("--rounds and --rounds-together must be at least 2")
    end_on_sigterm()
    names = [name for name in NAMES if has_grpc() or not name.startswith("grpc")]
    overheads: list[dict[str, Any]] = []
    throughputs: list[dict[str, Any]] = []
    quiets: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in _cases(options.network or ["resnet20", "resnet18"], Path(folder)):
            with Rig(case, Path(folder) / f"{case.network}-{case.subnet}", names) as rig:
                quiet = Quiet(options.patience, rig.companions)
                overheads += _alone(
                    rig, quiet, ["bare", "in-process", "floor", *names], options.rounds, options.seconds
                )
                # Eight that look instead of sleep would only take the cores from the engine.
                sleeping = [name for name in names if name != "native-spin"]
                throughputs += _together(rig, quiet, sleeping, options.rounds_together, options.seconds_together)
                quiets.append({"network": case.network, "subnet": case.subnet, **quiet.told()})
    document = {
        "what": "microseconds from asking to the logits, batch 1, one engine thread; overhead = a way's median minus "
        "the bare engine's of the same round; with eight clients, answers a second over the bare engine's in a loop",
        "overheads": overheads,
        "throughputs": throughputs,
        "quiet": quiets,
        "bounds": _bounds(overheads, throughputs),
        "skipped": {} if has_grpc() else {"grpc": "the extra gearshift[grpc] or tritonclient is not installed"},
        **provenance(__file__, ("openvino", "starlette", "uvicorn", *(("grpcio", "tritonclient") * has_grpc()))),
    }
    print(json.dumps(document, indent=1))


def _cases(networks: list[str], folder: Path) -> list[Case]:
    cases = []
    if "resnet20" in networks:
        bundle = Bundle.open(ROOT / "bundles" / "resnet20-cifar10")
        cases.append(Case("resnet20", bundle, bundle.ladder.names[0]))
    if "resnet18" in networks:
        bundle = random_bundle(folder / "resnet18", "resnet18", RESNET18_SHARES, image=(3, 224, 224), align=16)
        # The smallest shows the overhead best; the whole network is what the bound on throughput speaks of.
        cases += [Case("resnet18", bundle, bundle.ladder.names[0]), Case("resnet18", bundle, bundle.ladder.names[-1])]
    return cases


def _images(shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)


def _timed(ask: Callable[[], Any]) -> float:
    before = time.perf_counter_ns()
    ask()
    return (time.perf_counter_ns() - before) / 1e3


def _block(batch: np.ndarray[Any, Any], ask: Callable[[], Any], until: float) -> list[float]:
    """Microseconds of requests in a closed loop; the image is another one each time."""
    took: list[float] = []
    while time.perf_counter() < until or not took:
        np.negative(batch, out=batch)
        took.append(_timed(ask))
    return took


def _alone(rig: Rig, quiet: Quiet, names: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One client: medians, p99 and the overhead of every way."""
    sides = {name: rig.alone(name) for name in names}
    took: dict[str, list[list[float]]] = {name: [] for name in names}
    order, chance = list(names), random.Random(0)

    def measure(number: int) -> dict[str, list[float]]:
        chance.shuffle(order)
        gc.collect()
        return {name: sides[name](seconds) for name in order}

    for blocks in quiet.rounds(rounds, measure):
        for name, block in blocks.items():
            took[name].append(block)
    bare = [statistics.median(block) for block in took["bare"]]
    everything = {name: [value for block in blocks for value in block] for name, blocks in took.items()}
    found = []
    for name in names:
        per_round = [statistics.median(block) - base for block, base in zip(took[name], bare, strict=True)]
        over = difference(statistics.median(per_round), per_round)
        found.append(
            {
                **_about(rig, name, 1),
                "median_us": statistics.median(everything[name]),
                "p99_us": float(np.quantile(everything[name], 0.99)),
                "overhead_us": over.value,
                "overhead_low_us": over.low,
                "overhead_high_us": over.high,
                "overhead_p99_us": float(np.quantile(everything[name], 0.99) - np.quantile(everything["bare"], 0.99)),
                "requests": len(everything[name]),
                "rounds": rounds,
            }
        )
    return found


def _together(rig: Rig, quiet: Quiet, names: list[str], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Eight clients: answers a second over the bare engine's, and latencies."""
    batch, ask = rig.bare()
    rates: dict[str, list[float]] = {name: [] for name in ("bare", *names)}
    took: dict[str, list[float]] = {name: [] for name in ("bare", *names)}
    order, chance = list(rates), random.Random(1)

    def measure(number: int) -> dict[str, tuple[list[float], float]]:
        chance.shuffle(order)
        found = {}
        for name in order:
            if name == "bare":
                began = time.perf_counter()
                block = _block(batch, ask, began + seconds)
                found[name] = block, time.perf_counter() - began
            else:
                found[name] = rig.together(name, seconds)
        return found

    for blocks in quiet.rounds(rounds, measure):
        for name, (block, wall_s) in blocks.items():
            rates[name].append(len(block) / wall_s)
            took[name] += block
    found = []
    for name in names:
        ratios = [rate / base for rate, base in zip(rates[name], rates["bare"], strict=True)]
        middle, width = statistics.fmean(ratios), half_width(ratios)
        found.append(
            {
                **_about(rig, name, CLIENTS),
                "per_s": statistics.fmean(rates[name]),
                "bare_per_s": statistics.fmean(rates["bare"]),
                "ratio": middle,
                "ratio_low": middle - width,
                "ratio_high": middle + width,
                "median_us": statistics.median(took[name]),
                "p99_us": float(np.quantile(took[name], 0.99)),
                "requests": len(took[name]),
                "rounds": rounds,
            }
        )
    return found


def _about(rig: Rig, name: str, clients: int) -> dict[str, Any]:
    return {
        "network": rig.case.network,
        "subnet": rig.case.subnet,
        "input_bytes": 4 * int(np.prod(rig.shape)),
        "clients": clients,
        "way": name,
    }


def _bounds(overheads: list[dict[str, Any]], throughputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked for, what was found, and whether the interval shows it."""
    bounds = []
    for point in overheads:
        if point["network"] == "resnet20" and (asked_us := _BOUNDS_US.get(point["way"])) is not None:
            bounds.append(
                {
                    "what": f"{point['way']}: median overhead at 12 KB, one client, in microseconds, at most",
                    "asked": asked_us,
                    "found": point["overhead_us"],
                    "low": point["overhead_low_us"],
                    "high": point["overhead_high_us"],
                    "shown": point["overhead_high_us"] <= asked_us,
                }
            )
    for point in throughputs:
        if point["network"] == "resnet18" and point["subnet"] == "s100":
            bounds.append(
                {
                    "what": f"{point['way']}: throughput with eight clients over the bare engine's, ResNet-18, min.",
                    "asked": _BOUND_RATIO,
                    "found": point["ratio"],
                    "low": point["ratio_low"],
                    "high": point["ratio_high"],
                    "shown": point["ratio_low"] >= _BOUND_RATIO,
                }
            )
    return bounds


def _client(pipe: Connection, running: RunningAgent, shape: tuple[int, int, int], names: list[str], rank: int) -> None:
    """One of the eight: asks as it is told, until it is ended."""
    paths = {name: open_path(name, running, shape) for name in names}
    for path in paths.values():
        path.batch[:] = np.random.default_rng(rank).standard_normal(path.batch.shape).astype(np.float32)
        path.ask()
    pipe.send(True)
    while True:
        name, begin, seconds = pipe.recv()
        time.sleep(max(0.0, begin - time.perf_counter()))
        took = _block(paths[name].batch, paths[name].ask, begin + seconds)
        pipe.send((took, time.perf_counter()))


if __name__ == "__main__":
    main()
