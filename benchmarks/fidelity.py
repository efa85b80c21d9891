"""Does the simulator predict what the agent does? A real run under changing load and deadlines, then its replay.

The agent answers in this process, with real engines, for ``--minutes`` in phases of 24 seconds; load and deadline
change with each, ten kinds in turn. It journals; the journal's arrivals (and the slowdown it measured) are then
replayed with the same policies and table. Compared are the mean accuracy of answers on time, the 95th percentile of the
time from arrival to answer, the processor seconds and the number of switches.

A table knows engines, not what a request costs around them (queue, threads, journal). That is measured before the run,
by a burst of requests, in wall and processor seconds a request, and added to every answer; so is what the agent takes
while nothing arrives. An engine that takes longer than the table says keeps its thread busy for longer: its processor
seconds are the table's times the slowdown that the journal holds. Measured processor seconds are this process's without
the thread that generates the load. How much load that thread makes is set by what the largest subnet answers while it
asks: on some machines that is two thirds of what it answers alone, and the same rate would be another experiment.

    python benchmarks/fidelity.py bundles/resnet20-cifar10 --table resnet20.table.json --minutes 10 > fidelity.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
from common import provenance

from agent import Agent
from agent.journal import Journal as Writer
from agent.values import Event
from backends.registry import create as create_backend
from calibration import table as tables
from calibration.measure import Settings, calibrate
from calibration.table import Duty, Row, Table
from policies import Conditions, Decision, Goals, Policy, create
from policies.rungs import Where, rungs_of
from simulation.journal import Journal, Session, read, trace
from simulation.plant import Plant
from simulation.replay import simulate
from subnets.bundle import Bundle
from subnets.errors import Busy

# Load as a share of what the largest subnet can answer beside the generator; deadline over its 99th percentile. Quiet
# phases are for the largest subnet, busy ones for smaller ones, and none lies near to what the smallest can answer:
# where an engine is nearly full, the longest waits are those of the machine's slowest seconds.
PHASES = (
    (0.2, 8.0),
    (0.75, 1.0),
    (0.4, 4.0),
    (0.8, 1.0),
    (0.3, 3.0),
    (0.75, 0.9),
    (0.4, 5.0),
    (0.8, 1.1),
    (0.3, 4.0),
    (0.7, 1.0),
)
PHASE_S = 24.0
QUEUE_LIMIT = 4096
_LEAST_MINUTES = 0.1
_SETTLE_S = 3.0  # for the neighbours' engines to be loaded
_IDLE_S = 2.0
_PACED_S = 10.0
_PACED_LOAD = 0.5
_BURST = 1500
LIMITS = {"mean_accuracy": 0.01, "latency_p95_ms": 0.15, "cpu_s": 0.10, "switches": 0.10}


def main() -> None:
    """Runs, replays and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--table", type=Path, help="of this bundle on this machine; measured first when left out")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the real run")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--policy", default="composite")
    parser.add_argument("--calibrate-seconds", type=float, default=30.0, help="where there is no --table")
    parser.add_argument("--journal", type=Path, help="folder to keep the journal in")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.minutes < _LEAST_MINUTES:
        parser.error(f"--minutes must be at least {_LEAST_MINUTES}, for the agent to decide a few times")

    bundle, backend = Bundle.open(options.bundle), create_backend("openvino")
    if options.table is not None:
        table = tables.read(options.table)
        table.check(bundle_key=bundle.key, bundle_name=bundle.name)
    else:
        settings = Settings(budget_s=options.calibrate_seconds)
        table = calibrate(bundle, [backend], precisions=(options.precision,), threads=1, settings=settings)
    table = _usable(table, options.precision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.journal or Path(temporary)
        measured = _run(bundle, table, backend, options, folder)
        predicted = _replay(_played(folder, options.minutes), table, options.policy, measured)
    errors = {name: _relative(measured[name], predicted[name]) for name in LIMITS}
    document = {
        "what": "one real run of the agent and the replay of its journal; errors are |predicted - measured| / measured",
        "minutes": options.minutes,
        "policy": options.policy,
        "phases": [{"load": load, "deadline_over_p99": deadline} for load, deadline in PHASES],
        "measured": measured,
        "predicted": predicted,
        "error": errors,
        "limit": LIMITS,
        "shown": {name: error is not None and error <= LIMITS[name] for name, error in errors.items()},
        "bundle": bundle.name,
        "bundle_key": bundle.key,
        "points": [{"point": row.point, "p50_ms": row.latency_p50_ms, "cpu_s": row.cpu_s} for row in table.rows],
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _usable(table: Table, precision: str) -> Table:
    """The rows for single images at one precision; they must know their processor seconds."""
    rows = tuple(row for row in table.select(backend="openvino", precision=precision, batch_size=1) if row.cpu_s)
    if len(rows) < 2:
        sys.exit(f"the table has {len(rows)} rows of openvino:{precision}:b1 with cpu_s; calibrate two subnets or more")
    points = {row.point for row in rows}
    switches = tuple(switch for switch in table.switches if {switch.from_point, switch.to_point} <= points)
    return msgspec.structs.replace(table, rows=rows, switches=switches)


def _phases(minutes: float) -> list[tuple[float, float]]:
    return [PHASES[index % len(PHASES)] for index in range(max(1, round(60.0 * minutes / PHASE_S)))]


def _played(folder: Path, minutes: float) -> tuple[Session, ...]:
    """What the journal holds of the phases; what was measured before them comes first in it."""
    return read([folder / "journal.jsonl"]).sessions[-len(_phases(minutes)) :]


def _run(bundle: Bundle, table: Table, backend: Any, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The real run: what happened, with the journal left in ``folder``."""
    largest = rungs_of(table, Where()).rows[-1]
    phases = _phases(options.minutes)
    phase_s = 60.0 * options.minutes / len(phases)
    random = np.random.Generator(np.random.PCG64(options.seed))
    images = random.standard_normal((64, 1, *bundle.input.shape)).astype(np.float32)
    switches: list[dict[str, Any]] = []
    began_s = time.monotonic()
    spent: dict[str, float] = {}
    refused = 0

    def heard(event: Event) -> None:
        if event.name == "switch" and event.detail["from"] is not None:
            switches.append({"time_s": time.monotonic() - began_s, **event.detail})

    goals = [Goals(deadline_ms=factor * largest.latency_p99_ms) for _, factor in phases]
    agent = Agent(
        bundle,
        table,
        backends={"openvino": backend},
        policy=create(options.policy, goals[0]),
        goals=goals[0],
        sensors=None,
        journal=Writer(folder, max_bytes=2**30),
        queue_limit=QUEUE_LIMIT,
    )

    def generate(hertz: float) -> None:
        nonlocal refused
        began, start_s, count = time.thread_time(), time.monotonic(), 0
        for index, (load, _) in enumerate(phases):
            agent.reconfigure(policy=create(options.policy, goals[index]), goals=goals[index])
            at_s, end_s = start_s + index * phase_s, start_s + (index + 1) * phase_s
            while (at_s := at_s + float(random.exponential(1.0 / (load * hertz)))) < end_s:
                if (ahead_s := at_s - time.monotonic()) > 0:
                    time.sleep(ahead_s)
                try:
                    agent.submit(images[count % len(images)])
                except Busy:
                    refused += 1
                count += 1
            time.sleep(max(0.0, end_s - time.monotonic()))
        spent["generator_s"] = time.thread_time() - began

    agent.on_event(heard)
    with agent:
        time.sleep(_SETTLE_S)
        began_s, began_cpu = time.monotonic(), time.process_time()
        time.sleep(_IDLE_S)
        idle = (time.process_time() - began_cpu) / (time.monotonic() - began_s)
        around_s, around_cpu_s = _around(agent, images)
        agent.reconfigure(policy=create("largest", goals[0]), goals=goals[0])
        alone_s = 1.0 / largest.throughput_per_s
        service_s = _beside_a_generator(agent, images, _PACED_LOAD / (alone_s + around_s), random)
        switches.clear()
        began_s, began_cpu = time.monotonic(), time.process_time()
        thread = threading.Thread(target=generate, args=(1.0 / (service_s + around_s),))
        thread.start()
        thread.join()
        lasted_s = time.monotonic() - began_s
        cpu_s = time.process_time() - began_cpu - spent["generator_s"]
    batches = [batch for session in _played(folder, options.minutes) for batch in session.batches]
    accuracy = {row.point: row.accuracy for row in table.rows}
    latencies = [batch.queue_ms + batch.infer_ms for batch in batches if batch.ok]
    on_time = [b for b in batches if b.ok and b.queue_ms + b.infer_ms <= (b.deadline_ms or np.inf)]
    return {
        "duration_s": lasted_s,
        "requests": len(batches) + refused,
        "refused": refused,
        "on_time": len(on_time),
        "mean_accuracy": float(np.mean([accuracy[b.point] for b in on_time])) if on_time else None,
        "latency_p95_ms": float(np.quantile(latencies, 0.95)) if latencies else None,
        "cpu_s": cpu_s,
        "switches": len(switches),
        "switched": [
            {"time_s": one["time_s"], "from": one["from"], "to": one["to"], "reason": one["reason"]} for one in switches
        ],
        "idle_cpu_share": idle,
        "service_over_alone": service_s / alone_s,
        "around_a_request_ms": 1000.0 * around_s,
        "around_a_request_cpu_s": around_cpu_s,
    }


def _around(agent: Agent, images: Any) -> tuple[float, float]:
    """Wall and processor seconds that a request costs beyond its engine, over a burst answered back to back.

    Wall: the median gap between an answer and the beginning of the next, once all have been submitted.
    """
    began_cpu, began_own = time.process_time(), time.thread_time()
    submitted, futures = [], []
    for k in range(_BURST):
        submitted.append(time.monotonic())
        futures.append(agent.submit(images[k % len(images)]))
    all_in_s = time.monotonic()
    answers = [future.result() for future in futures]
    # Without what this thread took to ask, as that of the generator is left out of what is compared.
    cpu_s = time.process_time() - began_cpu - (time.thread_time() - began_own)
    begins = [at_s + answer.queue_ms / 1000.0 for at_s, answer in zip(submitted, answers, strict=True)]
    ends = [begin_s + answer.infer_ms / 1000.0 for begin_s, answer in zip(begins, answers, strict=True)]
    gaps = [begin_s - end_s for end_s, begin_s in zip(ends, begins[1:], strict=False) if end_s >= all_in_s]
    engine_cpu_s = sum(answer.infer_ms for answer in answers) / 1000.0  # one thread, which never waits
    return max(0.0, float(np.median(gaps))) if gaps else 0.0, max(0.0, cpu_s - engine_cpu_s) / _BURST


def _beside_a_generator(agent: Agent, images: Any, rate_hz: float, random: np.random.Generator) -> float:
    """Mean seconds that the engine in use takes while this thread asks at ``rate_hz``, at random moments."""
    start_s = at_s = time.monotonic()
    futures: list[Any] = []
    while (at_s := at_s + float(random.exponential(1.0 / rate_hz))) < start_s + _PACED_S:
        if (ahead_s := at_s - time.monotonic()) > 0:
            time.sleep(ahead_s)
        futures.append(agent.submit(images[len(futures) % len(images)]))
    took_ms = [future.result().infer_ms for future in futures]
    return float(np.mean(took_ms[len(took_ms) // 2 :])) / 1000.0  # the first half is for it to come into use


class _Phased(Policy):
    """The policy of each phase from its beginning on, with the memory of the one before, as in the agent.

    It sees the table the agent showed it, not the one counted with.

    Args:
        phases: (since when in seconds, policy), in order of time.
        table: the agent's.
        current: the operating point in use at the beginning.
    """

    name = "phased"

    def __init__(self, phases: Sequence[tuple[float, Policy]], table: Table, current: str | None) -> None:
        self._phases, self._table, self._current = phases, table, current
        self._place = 0

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        begun = sum(since_s <= conditions.time_s for since_s, _ in self._phases)
        while self._place < begun - 1:
            self._place += 1
            self._phases[self._place][1].restore(self._phases[self._place - 1][1].state())
        policy = self._phases[self._place][1]
        return policy.decide(conditions, self._table, self._current if current is None else current)

    def reset(self) -> None:
        self._place = 0
        for _, policy in self._phases:
            policy.reset()


def _counting(table: Table, measured: dict[str, Any]) -> Table:
    """The table that the replay counts with: what is around a request added, processor seconds instead of joules."""
    more_ms = measured["around_a_request_ms"]
    rows = tuple(
        msgspec.structs.replace(
            row,
            latency_p50_ms=row.latency_p50_ms + more_ms,
            latency_p99_ms=row.latency_p99_ms + more_ms,
            net_energy_j=row.cpu_s,
            energy_j=None,
            power_w=None,
            duty=_in_processor_seconds(row),
        )
        for row in table.rows
    )
    return msgspec.structs.replace(table, rows=rows, idle_power_w=None)


def _in_processor_seconds(row: Row) -> Duty | None:
    """What a rest costs: an engine that takes longer keeps its threads busy for longer."""
    if row.duty is None:
        return None
    busy = (row.cpu_s or 0.0) / row.latency_p50_ms
    return msgspec.structs.replace(row.duty, extra_net_energy_j=busy * row.duty.extra_ms)


def _replay(sessions: Sequence[Session], table: Table, policy: str, measured: dict[str, Any]) -> dict[str, Any]:
    """The journal's arrivals with their deadlines through the simulator; each phase has its policy and goals."""
    began_s = _tick_before_s(sessions[0])
    sessions = [msgspec.structs.replace(one, offset_s=one.offset_s - began_s) for one in sessions]
    goals = [msgspec.convert(session.meta.goals, Goals) for session in sessions]
    phases = [(one.offset_s, create(policy, wished)) for one, wished in zip(sessions, goals, strict=True)]
    played = trace(Journal(name="journal", sessions=tuple(sessions), torn=False))
    shown = _Phased(phases, table, sessions[0].decisions[0].current if sessions[0].decisions else None)
    outcome = simulate(_counting(table, measured), played, shown, goals[0], Plant(), queue_limit=QUEUE_LIMIT)
    slowdown = _mean_slowdown(sessions)
    return {
        "requests": outcome.requests,
        "on_time": outcome.on_time,
        "mean_accuracy": outcome.mean_accuracy,
        "latency_p95_ms": outcome.latency_ms(0.95),
        "cpu_s": (outcome.net_energy_j or 0.0) * slowdown
        + measured["around_a_request_cpu_s"] * outcome.answered
        + measured["idle_cpu_share"] * measured["duration_s"],
        "mean_slowdown": slowdown,
        "switches": outcome.switches,
        "switched": [
            {"time_s": one.time_s - phases[0][0], "from": one.from_point, "to": one.to_point, "reason": one.reason}
            for one in outcome.switch_events
        ],
    }


def _tick_before_s(session: Session) -> float:
    """A moment before the session begins from which the agent's ticks lie whole seconds away, by the journal's clock.

    A replay that decides part of a second earlier or later sees another rate where the load has just changed.
    """
    second_s = (session.decisions[1].t_mono_ns - session.meta.t_mono_ns) / 1e9
    return session.offset_s + second_s - 2.0


def _mean_slowdown(sessions: Sequence[Session]) -> float:
    """What the journal's conditions say of it, over all requests."""
    conditions = [one.conditions for session in sessions for one in session.decisions]
    told = [(one.slowdown, one.arrival_rate_hz) for one in conditions if one.slowdown and one.arrival_rate_hz]
    rates = sum(rate for _, rate in told)
    return sum(slowdown * rate for slowdown, rate in told) / rates if rates else 1.0


def _relative(measured: float | None, predicted: float | None) -> float | None:
    if measured is None or predicted is None:
        return None
    if not measured:
        return 0.0 if not predicted else None
    return abs(predicted - measured) / abs(measured)


if __name__ == "__main__":
    main()
