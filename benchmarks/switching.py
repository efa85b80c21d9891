"""Switching among four resident ResNet-18 engines: is anything lost or wrong, and what does the first answer cost?

Four parts, in one process and one run:

1. *Load*: clients ask without a pause while the agent switches ``--switches`` times, spread over ``--seconds``. Every
   answer's logits are compared with those that the subnet it names gave for that image alone, beforehand. From the
   policy's decision to the effect: until the other engine is current, and answers whoever is next.
2. *Switching*: one client, nothing else; the first answer after a switch and those that follow, and in turns with it
   the same changes between the same engines asked directly, without an agent. Their ratio is what the agent adds.
3. *After a pause*: the same, with a pause before each answer, in which an agent may touch the engine it has switched
   to; beside it an agent that does not.
4. *On demand*: from wanting an engine that is not in memory to its first answer, loaded from the cache of artifacts.

Weights are random and accuracies made up: neither changes what anything takes.

    python benchmarks/switching.py > switching.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import known_bundle, provenance
from ladder import Steered, known_images, quick_table

from agent import Agent
from agent.pool import Active
from backends.base import Batch, CompileRequest, Engine
from backends.openvino import OpenVINOBackend
from calibration.statistics import positive_interval
from calibration.switching import closed_walk
from calibration.table import Table
from policies.base import Goals
from subnets.bundle import Bundle

ALLOWED_EFFECT_US, ALLOWED_OVER_RAW, ALLOWED_OVER_STEADY = 100.0, 1.1, 1.25
_IMAGES = 16
_FOLLOWING = 5  # answers after the first at each stop
_SETTLED = 3  # of these, the last


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--switches", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=210.0, help="of load")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--rounds", type=int, default=6, help="each with every change from one subnet to another")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds before each answer in part 3")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    with tempfile.TemporaryDirectory() as folder:
        bundle = known_bundle("resnet18", Path(folder))
        backend = OpenVINOBackend(Path(folder) / "cache")
        images = known_images(bundle, _IMAGES)
        engines = {name: _load(bundle, backend, name, options.threads) for name in bundle.ladder.names}
        table = quick_table(bundle, engines, images)
        logits = {
            name: np.concatenate([engine.infer(image[None]) for image in images]) for name, engine in engines.items()
        }
        for engine in engines.values():
            engine.close()
        setting = _Setting(bundle, table, backend, images)
        load = _under_load(setting, logits, options)
        switching = _alternating(setting, options.rounds)
        paused = {
            "touched": _after_a_pause(setting, options.rounds, options.pause, touch=True),
            "not_touched": _after_a_pause(setting, options.rounds, options.pause, touch=False),
        }
        on_demand = _on_demand(setting, options.threads)
    document = {
        "what": "switching among four resident ResNet-18 engines at 224 x 224, f32, batch 1; times are medians",
        "latency_ms": {row.subnet: row.latency_p50_ms for row in table.rows},
        "load": load,
        "first_answer": switching,
        "after_a_pause": paused,
        "on_demand_ms": on_demand,
        "allowed": {
            "lost": 0,
            "wrong": 0,
            "effect_us": ALLOWED_EFFECT_US,
            "first_over_raw": ALLOWED_OVER_RAW,
            "touched_over_steady": ALLOWED_OVER_STEADY,
        },
        "shown": {
            "lost": load["lost"] == 0 and load["late"] == 0,
            "wrong": load["wrong"] == 0,
            "switches": load["switches"] >= options.switches,
            "effect_us": load["effect_us_p50"] < ALLOWED_EFFECT_US,
            "first_over_raw": switching["agent_over_raw"]["value"] <= ALLOWED_OVER_RAW,
            "touched_over_steady": paused["touched"]["first_over_steady"]["value"] <= ALLOWED_OVER_STEADY,
        },
        "threads": options.threads,
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _load(bundle: Bundle, backend: OpenVINOBackend, subnet: str, threads: int) -> Engine:
    return backend.load(backend.build(bundle, CompileRequest(subnet=subnet, threads=threads)))


class _Setting:
    """What the agents of all parts share."""

    def __init__(self, bundle: Bundle, table: Table, backend: OpenVINOBackend, images: Batch) -> None:
        self.bundle, self.table, self.backend, self.images = bundle, table, backend, images
        self.points = {row.subnet: row.point for row in table.rows}
        self.names = tuple(self.points)

    def agent(self, *, touch: bool, deadline_ms: float | None = None) -> tuple[Agent, Steered]:
        """A started agent with every engine in memory, and the policy that steers it."""
        policy = Steered(self.points[self.names[0]])
        agent = Agent(
            self.bundle,
            self.table,
            backends={"openvino": self.backend},
            policy=policy,
            goals=Goals(deadline_ms=deadline_ms),
            sensors=None,
            control_period_s=3600.0,
            touch=touch,
        ).start()
        for name in self.names:
            agent.infer(self.images[:1], subnet=name)
        return agent, policy


def _under_load(setting: _Setting, logits: Mapping[str, Batch], options: argparse.Namespace) -> dict[str, Any]:
    """Part 1."""
    # Every client's request may wait for all others': a deadline that a delayed or lost one would miss.
    slowest_ms = max(row.latency_p50_ms for row in setting.table.rows)
    deadline_ms = 20.0 * slowest_ms * options.clients
    agent, policy = setting.agent(touch=True, deadline_ms=deadline_ms)
    effects: list[float] = []
    tolerance = 1e-4 * max(float(np.abs(values).max()) for values in logits.values())
    stop = threading.Event()
    tallies = [_Client() for _ in range(options.clients)]

    pool = agent._pool
    touch = pool.on_current

    def changed(active: Active) -> None:  # called right after another engine has become current
        effects.append((time.perf_counter_ns() - policy.decided_ns) / 1e3)
        touch(active)

    def client(mine: _Client, seed: int) -> None:
        random = np.random.Generator(np.random.PCG64(seed))
        while not stop.is_set():
            place = int(random.integers(_IMAGES))
            mine.asked += 1
            answer = agent.infer(setting.images[place : place + 1])
            mine.answered += 1
            mine.by_subnet[answer.subnet] = mine.by_subnet.get(answer.subnet, 0) + 1
            mine.changes += mine.last not in ("", answer.subnet)
            mine.last = answer.subnet
            mine.wrong += not np.allclose(answer.logits[0], logits[answer.subnet][place], rtol=1e-3, atol=tolerance)

    pool.on_current = changed
    before = agent.status().counters
    threads = [threading.Thread(target=client, args=(mine, seed)) for seed, mine in enumerate(tallies)]
    random = np.random.Generator(np.random.PCG64(1))
    try:
        for thread in threads:
            thread.start()
        began = time.perf_counter()
        current = setting.names[0]
        for number in range(options.switches):
            current = str(random.choice([name for name in setting.names if name != current]))
            policy.point = setting.points[current]
            agent.tick()
            time.sleep(max(0.0, began + (number + 1) * options.seconds / options.switches - time.perf_counter()))
        took_s = time.perf_counter() - began
        stop.set()
        for thread in threads:
            thread.join()
        after = agent.status().counters
    finally:
        stop.set()
        agent.close()
    apart = min(
        float(np.abs(one - other).max(axis=1).min()) for one, other in itertools.combinations(logits.values(), 2)
    )
    return {
        "clients": options.clients,
        "seconds": took_s,
        "switches": after.switches - before.switches,
        "requests": sum(mine.asked for mine in tallies),
        "lost": sum(mine.asked - mine.answered for mine in tallies),
        "wrong": sum(mine.wrong for mine in tallies),
        "late": after.late - before.late,
        "deadline_ms": deadline_ms,
        "failed": after.failed - before.failed,
        "refused": after.refused - before.refused,
        "by_subnet": {name: sum(mine.by_subnet.get(name, 0) for mine in tallies) for name in setting.names},
        "answers_by_another_subnet_than_the_clients_last": sum(mine.changes for mine in tallies),
        "tolerance": tolerance,
        "least_difference_between_subnets": apart,
        "effect_us_p50": statistics.median(effects),
        "effect_us_p99": float(np.percentile(effects, 99)),
        "effects": len(effects),
    }


class _Client:
    """What one client saw."""

    def __init__(self) -> None:
        self.asked = self.answered = self.wrong = self.changes = 0
        self.last = ""
        self.by_subnet: dict[str, int] = {}


def _alternating(setting: _Setting, rounds: int) -> dict[str, Any]:
    """Part 2: the same walks by the agent and by its engines asked directly, in turns."""
    agent, policy = setting.agent(touch=False)
    raw = {resident.key.subnet: resident.engine for resident in agent._pool.residents()}
    image = setting.images[:1]

    def by_agent(name: str) -> list[float]:
        policy.point = setting.points[name]
        agent.tick()
        return [_ms(lambda: agent.infer(image)) for _ in range(1 + _FOLLOWING)]

    def directly(name: str) -> list[float]:
        return [_ms(lambda: raw[name].infer(image)) for _ in range(1 + _FOLLOWING)]

    legs: dict[str, list[dict[str, list[list[float]]]]] = {"agent": [], "raw": []}
    sides: dict[str, Callable[[str], list[float]]] = {"agent": by_agent, "raw": directly}
    try:
        for number in range(rounds):
            random = np.random.Generator(np.random.PCG64([2, number]))
            walk = [setting.names[place] for place in closed_walk(len(setting.names), random)]
            for side in ("agent", "raw") if number % 2 else ("raw", "agent"):
                sides[side](walk[0])
                stops: dict[str, list[list[float]]] = {name: [] for name in setting.names}
                for name in walk[1:]:
                    stops[name].append(sides[side](name))
                legs[side].append(stops)
    finally:
        agent.close()
    ratios = [_first(agent_side) / _first(raw_side) for agent_side, raw_side in zip(*legs.values(), strict=True)]
    return {
        "agent_over_raw": _interval(ratios),
        "agent_first_over_steady": _interval([_over_steady(stops) for stops in legs["agent"]]),
        "raw_first_over_steady": _interval([_over_steady(stops) for stops in legs["raw"]]),
        "by_subnet": {
            name: {
                f"{side}_{what}_ms": statistics.median(take(stop) for stops in legs[side] for stop in stops[name])
                for side in legs
                for what, take in (("first", lambda stop: stop[0]), ("steady", _steady))
            }
            for name in setting.names
        },
        "rounds": rounds,
        "switches": rounds * len(setting.names) * (len(setting.names) - 1),
    }


def _after_a_pause(setting: _Setting, rounds: int, pause_s: float, *, touch: bool) -> dict[str, Any]:
    """Part 3."""
    agent, policy = setting.agent(touch=touch)
    image = setting.images[:1]

    def rested() -> float:
        time.sleep(pause_s)
        return _ms(lambda: agent.infer(image))

    found: list[dict[str, list[list[float]]]] = []
    try:
        for number in range(rounds):
            random = np.random.Generator(np.random.PCG64([3, number]))
            stops: dict[str, list[list[float]]] = {name: [] for name in setting.names}
            for place in closed_walk(len(setting.names), random):
                name = setting.names[place]
                policy.point = setting.points[name]
                agent.tick()
                stops[name].append([rested() for _ in range(1 + _SETTLED)])
            found.append(stops)
    finally:
        agent.close()
    return {
        "first_over_steady": _interval([_over_steady(stops) for stops in found]),
        "by_subnet": {
            name: {
                "first_ms": statistics.median(stop[0] for stops in found for stop in stops[name]),
                "steady_ms": statistics.median(_steady(stop) for stops in found for stop in stops[name]),
            }
            for name in setting.names
        },
        "pause_s": pause_s,
        "rounds": rounds,
    }


def _on_demand(setting: _Setting, threads: int) -> dict[str, float]:
    """Part 4."""
    found: dict[str, list[float]] = {name: [] for name in setting.names}
    for _ in range(5):
        for name in setting.names:
            artifact = setting.backend.build(setting.bundle, CompileRequest(subnet=name, threads=threads))
            began = time.perf_counter()
            engine = setting.backend.load(artifact)
            engine.infer(setting.images[:1])
            found[name].append((time.perf_counter() - began) * 1000)
            engine.close()
    return {name: statistics.median(values) for name, values in found.items()}


def _ms(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1000


def _steady(stop: list[float]) -> float:
    return statistics.median(stop[-_SETTLED:])


def _first(stops: Mapping[str, list[list[float]]]) -> float:
    """The geometric mean over subnets of the median first answer."""
    return statistics.geometric_mean(statistics.median(stop[0] for stop in mine) for mine in stops.values())


def _over_steady(stops: Mapping[str, list[list[float]]]) -> float:
    """The geometric mean over subnets of the median of first over steady, stop by stop."""
    return statistics.geometric_mean(
        statistics.median(stop[0] / _steady(stop) for stop in mine) for mine in stops.values()
    )


def _interval(rounds: list[float]) -> dict[str, float]:
    """The median over rounds, with the 95 % interval of the rounds' own values."""
    found = positive_interval(statistics.median(rounds), rounds)
    return {"value": found.value, "low": found.low, "high": found.high}


if __name__ == "__main__":
    main()
