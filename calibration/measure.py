"""Measures a bundle's operating points on this machine and makes the calibration table.

::

    build + load every engine (load_ms, memory)            all stay resident
    accuracy through the engines, where there is data
    round 1: idle a7 a2 a5 .. idle a1 ..   random order    (run, rounds, summary)
    round 2: idle a3 a1 a7 ..              6 to 30 rounds; a point whose median is known well enough is left alone
    rests:   a2 after 20 ms, a7 after 4 ms ..              latency at the rates of sparse traffic (duty)
    closed walks within each family                        first, second, tenth answer after a switch (switching)

Six rounds are always completed, so a slow network on a slow processor may exceed the budget. Where there is a
thermometer, a round begins within a few degrees of the first one's temperature or is left out; random order spreads
what heating remains over all points. What is finished is kept in a ledger, from which an interrupted calibration goes
on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from backends.base import Backend
from calibration.accuracy import accuracy_of_points, data_for
from calibration.disturbance import Watch, median_pressure
from calibration.host import fingerprint
from calibration.ledger import NoLedger
from calibration.modelled import with_own_work
from calibration.rounds import Clocks
from calibration.run import SWITCHING_SHARE, Run, Settings
from calibration.subjects import choose, opened
from calibration.switching import Walk, switch_costs
from calibration.table import SCHEMA, Protocol, Table
from sensors.nvml import NvmlSensor, open_nvml
from subnets.bundle import Accuracy, Bundle
from subnets.data import Dataset
from subnets.errors import InputError

if TYPE_CHECKING:
    from sensors import EnergyMeter, Sensor

__all__ = ["Settings", "calibrate"]


def calibrate(
    bundle: Bundle,
    backends: Sequence[Backend],
    *,
    precisions: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (1,),
    threads: int | None = None,
    settings: Settings | None = None,
    data: Dataset | None = None,
    split: str = "test",
    meters: Sequence[EnergyMeter] = (),
    clocks: Clocks | None = None,
    watch: Watch | None = None,
    ledger: NoLedger | None = None,
    on_progress: Callable[[str, float, float], None] = lambda what, done, total: None,
) -> Table:
    """Measures every (subnet, backend, precision, batch size) of a bundle.

    Args:
        bundle: what to measure.
        backends: those to use; unavailable ones are left out.
        precisions: all that each backend offers when None.
        batch_sizes: images per inference.
        threads: processor threads per engine; all that this process may use when None.
        settings: how long and how exactly.
        data: images to measure accuracy on; without, the digits where the bundle was trained on them, else the
            accuracies recorded in the bundle.
        split: which part of ``data``.
        meters: what could measure energy, best first; each engine's is the first of its device or of the whole
            system, and a model of the whole machine's load is given this process's alone. Without any, energies stay
            unknown.
        clocks: for tests.
        watch: for tests.
        ledger: what an interrupted calibration finished, and where this one keeps what it finishes.
        on_progress: called with what is done, how much of it, and the whole (engines, images or seconds).

    Raises:
        InputError: a setting, precision, batch size or data set is impossible, or an accuracy is nowhere to be had.
        MismatchError: the ledger is of another calibration.
        UnavailableError: no backend can be used here, or the disk is full.
        EngineError: an engine failed.
    """
    settings, clocks = (settings or Settings()).check(), clocks or Clocks()
    watch, ledger = watch or Watch(gpu=gpu_of(backends)), ledger or NoLedger()
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise InputError(f"batch sizes {', '.join(map(str, batch_sizes)) or '(none)'} are not possible; give 1 or more")
    threads = threads or len(os.sched_getaffinity(0))
    started = clocks.wall()
    pairs = choose(bundle, backends, precisions)
    dataset = data or data_for(bundle)
    sessions = 1 + len(ledger.entries("session", int))
    host = fingerprint({backend.name for backend, _ in pairs})
    ledger.begin(
        {
            "bundle": bundle.key,
            "host": host,
            "settings": settings,
            "precisions": [f"{backend.name} {precision}" for backend, precision in pairs],
            "batch_sizes": sizes,
            "threads": threads,
            "meters": [meter.source for meter in meters],
            "data": dataset.name if dataset else "the bundle's own accuracies",
            "split": split,
        }
    )
    ledger.append("session", sessions)
    accuracies = _accuracies(bundle, pairs, dataset, split, threads, ledger, on_progress)
    count = len(pairs) * len(bundle.ladder)
    steps = iter(range(count + 1))
    with opened(
        bundle,
        pairs,
        batch_sizes=sizes,
        threads=threads,
        seed=settings.seed,
        clock=clocks.wall,
        on_step=lambda what: on_progress(what, next(steps), count),
    ) as subjects:
        meters = with_own_work(meters, clocks.wall, clocks.cpu)
        run = Run(subjects, settings, meters, clocks, watch, ledger, on_progress)
        with ExitStack() as running:
            for meter in run.meters:
                running.enter_context(meter)
            run.measure()
            run.rest()
        rows = tuple(
            run.row(number, *accuracies[subject.subnet, subject.backend, subject.precision])
            for number, subject in enumerate(subjects)
        )

        def on_walk(walk: Walk) -> None:
            ledger.append("walk", walk)
            on_progress("switch costs", min(run.elapsed_s(), settings.budget_s), settings.budget_s)

        switches = switch_costs(
            subjects,
            walks=settings.walks,
            budget_s=SWITCHING_SHARE * settings.budget_s,
            seed=settings.seed,
            clocks=clocks,
            done=ledger.entries("walk", Walk),
            on_walk=on_walk,
        )
    idle, source = run.idle_power()
    return Table(
        schema=SCHEMA,
        bundle_name=bundle.name,
        bundle_key=bundle.key,
        host=host,
        protocol=Protocol(
            rounds=run.rounds,
            seconds_per_cell=run.seconds,
            warmup=settings.warmup,
            batch_sizes=sizes,
            threads=threads,
            seed=settings.seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=clocks.wall() - min(started, run.began_s),
            discarded_cells=dict(sorted(sum(run.left_out.values(), Counter()).items())),
            rel_precision=settings.rel_precision,
            budget_s=settings.budget_s,
            stopped=run.stopped,
            pressure=median_pressure(visit.disturbance for visit in run.visits),
            widening=run.widening,
            temperatures_c=run.warmth.reference,
            temperature_band_c=settings.temperature_band_c,
            temperature_waited_s=run.warmth.waited_s,
            rests_ms=run.rests_ms,
            sessions=sessions,
        ),
        rows=rows,
        switches=switches,
        idle_power_w=idle.value if idle else None,
        idle_power_low_w=max(0.0, idle.low) if idle else None,
        idle_power_high_w=idle.high if idle else None,
        power_source=source if idle else "unmeasurable",
    )


def gpu_of(backends: Sequence[Backend]) -> Sensor | None:
    """What tells temperature and throttling of the GPU that engines run on; None where none does."""
    if not any(backend.device.upper().startswith(("GPU", "CUDA")) for backend in backends):
        return None
    gpu, _ = open_nvml()
    return NvmlSensor(gpu) if gpu else None


class _Measured(msgspec.Struct, frozen=True):
    """One operating point's accuracy as the ledger keeps it."""

    subnet: str
    backend: str
    precision: str
    accuracy: Accuracy
    source: str


def _accuracies(
    bundle: Bundle,
    pairs: Sequence[tuple[Backend, str]],
    dataset: Dataset | None,
    split: str,
    threads: int,
    ledger: NoLedger,
    on_progress: Callable[[str, float, float], None],
) -> dict[tuple[str, str, str], tuple[Accuracy, str]]:
    """As :func:`accuracy_of_points`, without measuring again what the ledger has."""
    found = {(m.subnet, m.backend, m.precision): (m.accuracy, m.source) for m in ledger.entries("accuracy", _Measured)}
    for backend, precision in pairs:
        if all((name, backend.name, precision) in found for name in bundle.ladder.names):
            continue
        fresh = accuracy_of_points(bundle, [(backend, precision)], dataset, split, threads, on_progress)
        for key, (accuracy, source) in fresh.items():
            ledger.append("accuracy", _Measured(*key, accuracy, source))
        found |= fresh
    return found
