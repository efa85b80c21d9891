"""Measures a bundle's operating points on this machine and makes the calibration table.

::

    build + load every engine (load_ms, memory)            all stay resident
    accuracy through the engines, where there is data
    round 1: idle a7 a2 a5 .. idle a1 ..   random order    (rounds, summary)
    round 2: idle a3 a1 a7 ..              until each median is known to 3 %, or the budget is spent; 6 to 30 rounds
    closed walks within each family                        (switching)

Six rounds are always completed, so a slow network on a slow processor may exceed the budget. There is no wait for a
reference temperature: random order spreads heating over all points, and cells in which the processor throttled
itself are left out. Latency is that of back-to-back requests; sparse traffic meets colder caches and is slower.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from backends.base import Backend
from calibration.accuracy import accuracy_of_points, data_for
from calibration.disturbance import Watch, median_pressure
from calibration.host import fingerprint
from calibration.modelled import with_own_work
from calibration.rounds import IDLE, Clocks, Visit, order, visit_all
from calibration.statistics import Interval
from calibration.subjects import Subject, choose, opened
from calibration.summary import Figures, figures, idle_power, kept, median_interval
from calibration.switching import switch_costs
from calibration.table import SCHEMA, Protocol, Row, Table
from subnets.bundle import Accuracy, Bundle
from subnets.data import Dataset
from subnets.errors import InputError

if TYPE_CHECKING:
    from sensors import EnergyMeter

_EXPECTED_ROUNDS = 12  # the budget is laid out for so many
_SWITCHING_SHARE = 0.15  # of the budget
_SHORTEST_S, _LONGEST_S = 0.05, 2.0  # one cell
_UPDATES_PER_CELL = 10  # of the meter's counter, so that one update more or less is at most a tenth
_LONGEST_FOR_METER_S = 5.0  # a slower counter (a battery's gauge) shows in its own bounds


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how exactly to measure.

    Raises:
        InputError: from :meth:`check`, naming the value.
    """

    rel_precision: float = 0.03  # half the 95 % interval over the median
    budget_s: float = 90.0  # of answering; building, loading and accuracy come on top
    min_rounds: int = 6
    max_rounds: int = 30
    warmup: int = 5  # inferences before each cell
    walks: int = 15  # per family, at most, for the switch costs
    seed: int = 0

    def check(self) -> Settings:
        """Itself, when the values are possible."""
        if not 0 < self.rel_precision < 1:
            raise InputError(f"precision {self.rel_precision:g} is not between 0 and 1; give a share such as 0.03")
        if not 0 < self.budget_s <= 86400:
            raise InputError(f"budget {self.budget_s:g} s is not between 0 and 86400 s")
        if not 2 <= self.min_rounds <= self.max_rounds:
            raise InputError(f"rounds must satisfy 2 <= min <= max, not {self.min_rounds} and {self.max_rounds}")
        return self


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
        on_progress: called with what is done, how much of it, and the whole (engines, images or seconds).

    Raises:
        InputError: a setting, precision, batch size or data set is impossible, or an accuracy is nowhere to be had.
        UnavailableError: no backend can be used here.
        EngineError: an engine failed.
    """
    settings, clocks, watch = (settings or Settings()).check(), clocks or Clocks(), watch or Watch()
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise InputError(f"batch sizes {', '.join(map(str, batch_sizes)) or '(none)'} are not possible; give 1 or more")
    threads = threads or len(os.sched_getaffinity(0))
    started = clocks.wall()
    pairs = choose(backends, precisions)
    accuracies = accuracy_of_points(bundle, pairs, data or data_for(bundle), split, threads, on_progress)
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
        random = np.random.Generator(np.random.PCG64(settings.seed))
        meters = with_own_work(meters, clocks.wall, clocks.cpu)
        run = _Run(subjects, settings, meters, clocks, watch, random, on_progress)
        with ExitStack() as running:
            for meter in run.meters:
                running.enter_context(meter)
            run.measure()
        rows = tuple(run.row(number, accuracies) for number in range(len(subjects)))
        switches = switch_costs(
            [row.point for row in rows],
            subjects,
            walks=settings.walks,
            budget_s=_SWITCHING_SHARE * settings.budget_s,
            random=random,
            clocks=clocks,
            on_walk=lambda: on_progress("switch costs", min(run.elapsed_s(), settings.budget_s), settings.budget_s),
        )
    source = run.sources[0]  # with engines on several devices, the first one's
    idle = idle_power(run.kept, source)
    return Table(
        schema=SCHEMA,
        bundle_name=bundle.name,
        bundle_key=bundle.key,
        host=fingerprint({backend.name for backend, _ in pairs}),
        protocol=Protocol(
            rounds=run.rounds,
            seconds_per_cell=run.seconds,
            warmup=settings.warmup,
            batch_sizes=sizes,
            threads=threads,
            seed=settings.seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=clocks.wall() - started,
            discarded_cells=dict(sorted(run.discarded.items())),
            rel_precision=settings.rel_precision,
            budget_s=settings.budget_s,
            stopped=run.stopped,
            pressure=median_pressure(visit.disturbance for visit in run.visits),
        ),
        rows=rows,
        switches=switches,
        idle_power_w=idle.value if idle else None,
        idle_power_low_w=max(0.0, idle.low) if idle else None,
        idle_power_high_w=idle.high if idle else None,
        power_source=source if idle else "unmeasurable",
    )


class _Run:
    """The rounds of one calibration and what has come of them so far."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        settings: Settings,
        meters: Sequence[EnergyMeter],
        clocks: Clocks,
        watch: Watch,
        random: np.random.Generator,
        on_progress: Callable[[str, float, float], None],
    ) -> None:
        self.subjects, self.settings = subjects, settings
        self.clocks, self.watch, self.random, self.on_progress = clocks, watch, random, on_progress
        chosen = [_meter_for(subject.device, meters) for subject in subjects]
        self.sources = [meter.source if meter else "unmeasurable" for meter in chosen]
        self.meters = list({meter.source: meter for meter in chosen if meter}.values())
        cells = len(order(len(subjects), np.random.Generator(np.random.PCG64(0)), idle=bool(self.meters)))
        self.rounds_s = (1 - _SWITCHING_SHARE) * settings.budget_s
        self.seconds = min(_LONGEST_S, max(_SHORTEST_S, self.rounds_s / (_EXPECTED_ROUNDS * cells)))
        wanted = max((_UPDATES_PER_CELL * meter.update_period_s for meter in self.meters), default=0.0)
        self.seconds = max(self.seconds, min(wanted, _LONGEST_FOR_METER_S))
        self.visits: list[Visit] = []
        self.kept: list[Visit] = []
        self.discarded: Counter[str] = Counter()
        self.rounds = 0
        self.stopped = ""
        self._started = clocks.wall()

    def elapsed_s(self) -> float:
        """Seconds since the first cell could have begun."""
        return self.clocks.wall() - self._started

    def measure(self) -> None:
        """Round after round until every median is known well enough, or time or rounds are used up."""
        settings = self.settings
        self._started = self.clocks.wall()
        while not self.stopped:
            self._one_round(order(len(self.subjects), self.random, idle=bool(self.meters)))
            if self.rounds < settings.min_rounds:
                continue
            widths = [median_interval(of_one).relative_half_width for of_one in self._by_subject()]
            if max(widths) <= settings.rel_precision:
                self.stopped = "precision"
            elif self.elapsed_s() * (1 + 1 / self.rounds) > self.rounds_s:
                self.stopped = "budget"
            elif self.rounds >= settings.max_rounds:
                self.stopped = "rounds"
        if self.meters:  # so that the last cells too lie between two idle ones
            self._one_round([IDLE], count=False)

    def row(self, number: int, accuracies: dict[tuple[str, str, str], tuple[Accuracy, str]]) -> Row:
        """The table's row of one subject."""
        subject = self.subjects[number]
        idle = [visit for visit in self.kept if visit.subject == IDLE]
        found: Figures = figures(self._by_subject()[number], idle, subject.batch_size, self.sources[number])
        accuracy, source = accuracies[subject.subnet, subject.backend, subject.precision]
        power, energy, net = found.power_w, found.energy_j, found.net_energy_j
        return Row(
            subnet=subject.subnet,
            backend=subject.backend,
            device=subject.device,
            precision=subject.precision,
            batch_size=subject.batch_size,
            threads=subject.threads,
            macs=subject.macs,
            accuracy=accuracy.value,
            accuracy_low=max(
                0.0, min(accuracy.low, accuracy.value)
            ),  # rounding may lift a bound past 0, 1 or the value
            accuracy_high=min(1.0, max(accuracy.high, accuracy.value)),
            accuracy_source=source,
            latency_p50_ms=found.p50_ms.value,
            latency_p50_low_ms=found.p50_ms.low,
            latency_p50_high_ms=found.p50_ms.high,
            latency_p90_ms=found.p90_ms,
            latency_p99_ms=found.p99_ms.value,
            latency_p99_low_ms=found.p99_ms.low,
            latency_p99_high_ms=found.p99_ms.high,
            throughput_per_s=found.throughput_per_s,
            rounds=found.rounds,
            samples=found.samples,
            load_ms=subject.load_ms,
            memory_bytes=subject.memory_bytes,
            cpu_s=found.cpu_s,
            power_w=_value(power),
            power_low_w=_low(power),
            power_high_w=_high(power),
            energy_j=_value(energy),
            energy_low_j=_low(energy),
            energy_high_j=_high(energy),
            net_energy_j=_value(net),
            net_energy_low_j=net.low if net else None,
            net_energy_high_j=_high(net),
            energy_source=self.sources[number] if energy else "unmeasurable",
        )

    def _one_round(self, cells: Sequence[int], *, count: bool = True) -> None:
        budget = self.settings.budget_s
        self.visits += visit_all(
            cells,
            self.subjects,
            number=self.rounds,
            seconds=self.seconds,
            warmup=self.settings.warmup,
            clocks=self.clocks,
            watch=self.watch,
            meters=self.meters,
            on_cell=lambda: self.on_progress(f"round {self.rounds + 1}", min(self.elapsed_s(), budget), budget),
        )
        self.rounds += count
        self.kept, self.discarded = kept(self.visits)

    def _by_subject(self) -> list[list[Visit]]:
        """The kept visits of each subject; all of them where fewer than two would be left."""
        found = []
        for number in range(len(self.subjects)):
            good = [visit for visit in self.kept if visit.subject == number]
            found.append(good if len(good) >= 2 else [visit for visit in self.visits if visit.subject == number])
        return found


def _meter_for(device: str, meters: Sequence[EnergyMeter]) -> EnergyMeter | None:
    """The best meter whose domain holds the device; a processor's counter says nothing of an accelerator's energy."""
    kind = "GPU" if device.upper().startswith(("GPU", "CUDA")) else "CPU"
    return next((meter for meter in meters if meter.device in (kind, "system")), None)


def _value(interval: Interval | None) -> float | None:
    return interval.value if interval else None


def _low(interval: Interval | None) -> float | None:
    return max(0.0, interval.low) if interval else None


def _high(interval: Interval | None) -> float | None:
    return interval.high if interval else None
