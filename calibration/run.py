"""The rounds of one calibration, and what has come of them so far.

* :class:`Run`: round after round until each median is known well enough, then rounds of rests; rows at the end.
* :class:`Settings`: how long and how exactly.

Each finished round goes to the ledger before the next one begins; the order of a round depends on the seed and its
number alone. So an interrupted run goes on as it would have. Knows nothing of bundles, accuracies or switching.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from calibration import duty
from calibration.disturbance import Disturbance, Warmth, Watch
from calibration.ledger import NoLedger
from calibration.rounds import IDLE, Bench, Clocks, Metered, Visit, order
from calibration.statistics import Interval, widening
from calibration.subjects import Subject
from calibration.summary import (
    Checked,
    Energies,
    Figures,
    checked,
    energies,
    figures,
    idle_power,
    kept,
    median_interval,
    net_joules,
    round_medians,
)
from calibration.table import Duty, Row
from subnets.bundle import Accuracy
from subnets.errors import InputError

if TYPE_CHECKING:
    from sensors import EnergyMeter

SWITCHING_SHARE = 0.15  # of the budget
_RESTING_SHARE = 0.20
_EXPECTED_ROUNDS = 12  # the budget is laid out for so many
_SHORTEST_S, _LONGEST_S = 0.05, 2.0  # one cell
_UPDATES_PER_CELL = 10  # of the meter's counter, at least
_LONGEST_FOR_METER_S = 5.0  # a slower counter (a battery's gauge) shows in its own bounds
_ROUNDS, _RESTS = 0, 1  # streams of random numbers


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how exactly to measure.

    Raises:
        InputError: from :meth:`check`, naming the value.
    """

    rel_precision: float = 0.03  # half the 95 % interval over the median; a point that reaches it is left alone
    budget_s: float = 90.0  # of answering; building, loading and accuracy come on top
    min_rounds: int = 6
    max_rounds: int = 30
    warmup: int = 5  # inferences before each cell
    walks: int = 15  # per family, at most, for the switch costs
    rests_ms: tuple[float, ...] = (1.0, 4.0, 20.0, 80.0)  # before each answer, for the duty-cycle fit; empty: no fit
    temperature_band_c: float = 3.0  # a round begins within so much of the first one's temperature ...
    temperature_wait_s: float = 10.0  # ... or after so long, and is then left out
    seconds_per_cell: float | None = None  # None: what the budget allows
    seed: int = 0

    def check(self) -> Settings:
        """Itself, when the values are possible."""
        if not 0 < self.rel_precision < 1:
            raise InputError(f"precision {self.rel_precision:g} is not between 0 and 1; give a share such as 0.03")
        if not 0 < self.budget_s <= 86400:
            raise InputError(f"budget {self.budget_s:g} s is not between 0 and 86400 s")
        if not 2 <= self.min_rounds <= self.max_rounds:
            raise InputError(f"rounds must satisfy 2 <= min <= max, not {self.min_rounds} and {self.max_rounds}")
        if not all(0 < rest <= 1e4 for rest in self.rests_ms) or list(self.rests_ms) != sorted(set(self.rests_ms)):
            raise InputError(f"rests {', '.join(map(str, self.rests_ms))} must rise, each above 0 and at most 10000 ms")
        return self


class _Cell(msgspec.Struct, frozen=True, array_like=True):
    """A :class:`Visit` as the ledger keeps it."""

    subject: int
    round: int
    rest_ms: float
    middle_s: float
    wall_s: float
    cpu_s: float
    latencies_ms: list[float]
    energies: dict[str, Metered]
    disturbance: Disturbance


class _Round(msgspec.Struct, frozen=True):
    """One finished round; ``elapsed_s`` at its end, since the calibration began."""

    number: int
    elapsed_s: float
    cells: list[_Cell]
    temperatures_c: dict[str, float] = {}


class Run:
    """Measures subjects in rounds.

    Args:
        subjects: open operating points.
        settings: checked.
        meters: all there are, best first; each subject's is the first of its device.
        clocks: time.
        watch: disturbances and temperature.
        ledger: what was finished before, and where to keep what will be.
        on_progress: called with what is done, how much of it, and the whole (seconds).
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        settings: Settings,
        meters: Sequence[EnergyMeter],
        clocks: Clocks,
        watch: Watch,
        ledger: NoLedger,
        on_progress: Callable[[str, float, float], None],
    ) -> None:
        self.subjects, self.settings, self.clocks, self.ledger = subjects, settings, clocks, ledger
        self._on_progress = on_progress
        chosen = [_meters_for(subject.device, meters) for subject in subjects]
        self.sources = [ladder[0].source if ladder else "unmeasurable" for ladder in chosen]
        self._check_sources = [ladder[1].source if len(ladder) > 1 else "" for ladder in chosen]
        first = {ladder[0].source: ladder[0] for ladder in chosen if ladder}
        self.meters = list({**first, **{meter.source: meter for ladder in chosen for meter in ladder[:2]}}.values())
        self.seconds = settings.seconds_per_cell or self._cell_seconds(list(first.values()))
        rounds = ledger.entries("round", _Round)
        rests = ledger.entries("rests", _Round)
        self._closing = ledger.entries("idle", _Round)
        self.visits = [_visit(cell) for one in [*rounds, *self._closing] for cell in one.cells]
        self.resting = [_visit(cell) for one in rests for cell in one.cells]
        self.rounds, self._rest_rounds = len(rounds), len(rests)
        finished = [*rounds, *self._closing, *rests]
        self.began_s = clocks.wall() - max((one.elapsed_s for one in finished), default=0.0)
        self.bench = Bench(
            subjects,
            warmup=settings.warmup,
            clocks=clocks,
            watch=watch,
            meters=self.meters,
            chosen=list(first.values()),
            origin_s=self.began_s,
        )
        self.warmth = Warmth(
            watch,
            band_c=settings.temperature_band_c,
            wait_s=settings.temperature_wait_s,
            wall=clocks.wall,
            sleep=clocks.sleep,
            work=self._work,
            reference=rounds[0].temperatures_c if rounds else None,
        )
        self.stopped = ""
        self.rests_ms: tuple[float, ...] = ()
        self.kept: list[Visit] = []
        self.left_out: dict[int, Counter[str]] = {}
        self._judge()

    def elapsed_s(self) -> float:
        """Seconds since the calibration began, those of earlier sessions included."""
        return self.clocks.wall() - self.began_s

    def measure(self, on_round: Callable[[int], None] = lambda number: None) -> None:
        """Round after round until every median is known well enough, or time or rounds are used up."""
        if not self.rounds and self.bench.watch.temperatures():  # the first round should not be the coldest
            for number in range(len(self.subjects)):
                self.bench.visit(number, 0, self.seconds)
        while pending := self._pending():
            random = self._random(_ROUNDS, self.rounds)
            self._round("round", self.rounds, order(pending, random, idle=bool(self.meters)))
            self.rounds += 1
            on_round(self.rounds - 1)
        if self.meters and not self._closing:  # so that the last cells too lie between two idle ones
            self._round("idle", self.rounds, [IDLE])

    def rest(self) -> None:
        """Rounds in which each point answers after a rest, for the duty-cycle fit."""
        budget_s = _RESTING_SHARE * self.settings.budget_s
        medians = [median_interval(self._of(number), 1.0).value for number in range(len(self.subjects))]
        if not self.settings.rests_ms or (plan := duty.plan(self.settings.rests_ms, medians, budget_s)) is None:
            return
        self.rests_ms = plan.rests_ms
        ends = self.clocks.wall() + budget_s
        resumed = self._rest_rounds > 0
        while self._rest_rounds < duty.MOST_ROUNDS:
            if self._rest_rounds >= duty.LEAST_ROUNDS and (resumed or self.clocks.wall() >= ends):
                break
            number = self._rest_rounds
            pairs = [(subject, rest) for subject in range(len(self.subjects)) for rest in plan.rests_ms]
            random = self._random(_RESTS, number)
            cells = [pairs[int(place)] for place in random.permutation(len(pairs))]
            visits = [self.bench.visit(IDLE, number, self.seconds)] if self.meters else []
            for subject, rest_ms in cells:
                # The warm-up is at the same rest: what came before must not show in the first answer that counts.
                rested = self.bench.visit(
                    subject, number, 0.0, rest_s=rest_ms / 1e3, answers=plan.answers, warmup=duty.WARMUP
                )
                visits.append(rested)
                self._tell(f"after rests, round {number + 1}")
            self.resting += visits
            self._rest_rounds += 1
            self.ledger.append("rests", _Round(number, self.elapsed_s(), [_cell(visit) for visit in visits]))

    def figures(self, number: int) -> Figures:
        """The latencies of one subject, summed up."""
        return figures(self._of(number), self.subjects[number].batch_size, self.widening)

    def energies(self, number: int) -> Checked | None:
        """What its meter told of one subject, beside a second meter of the same device; None where it told nothing."""

        def told(source: str) -> Energies | None:
            return energies(self._of(number), self._idle(), self.subjects[number].batch_size, source, self.widening)

        first = told(self.sources[number])
        second = told(self._check_sources[number]) if self._check_sources[number] else None
        return None if first is None else checked(first, second)

    def duty(self, number: int, p50_ms: float, net_j: float | None) -> Duty | None:
        """The duty-cycle fit of one subject; None where it was not measured."""
        good, _ = kept(self.resting)
        visits = [visit for visit in good if visit.subject == number]
        if len({visit.rest_ms for visit in visits}) < 2 or len({visit.round for visit in visits}) < 2:
            return None
        idle = [visit for visit in [*self._idle(), *good] if visit.subject == IDLE]
        joules = [self._net_joules(visit, idle, self.sources[number]) for visit in visits]
        return duty.fit(visits, p50_ms, self.subjects[number].batch_size, net_j, joules)

    def row(self, number: int, accuracy: Accuracy, accuracy_source: str) -> Row:
        """The table's row of one subject."""
        subject, found = self.subjects[number], self.figures(number)
        told = self.energies(number)
        power, energy, net = told.energies if told else (None, None, None)
        kept_visits = [visit for visit in self.kept if visit.subject == number]
        disturbed = len(kept_visits) < 2
        by_round = dict(zip((visit.round for visit in self._of(number)), round_medians(self._of(number)), strict=True))
        return Row(
            subnet=subject.subnet,
            backend=subject.backend,
            device=subject.device,
            precision=subject.precision,
            batch_size=subject.batch_size,
            threads=subject.threads,
            macs=subject.macs,
            accuracy=accuracy.value,
            # Rounding may lift a bound past 0, 1 or the value.
            accuracy_low=max(0.0, min(accuracy.low, accuracy.value)),
            accuracy_high=min(1.0, max(accuracy.high, accuracy.value)),
            accuracy_source=accuracy_source,
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
            power_w=power.value if power else None,
            power_low_w=max(0.0, power.low) if power else None,
            power_high_w=power.high if power else None,
            energy_j=energy.value if energy else None,
            energy_low_j=max(0.0, energy.low) if energy else None,
            energy_high_j=energy.high if energy else None,
            net_energy_j=net.value if net else None,
            net_energy_low_j=net.low if net else None,
            net_energy_high_j=net.high if net else None,
            energy_source=self.sources[number] if energy else "unmeasurable",
            energy_check_j=told.check_j if told else None,
            energy_check_source=self._check_sources[number] if told and told.check_j is not None else "",
            energy_suspect=told is not None and told.suspect,
            duty=self.duty(number, found.p50_ms.value, net.value if net else None),
            round_p50_ms=tuple(by_round.get(one) for one in range(self.rounds)),
            quantiles_ms=found.quantiles_ms,
            discarded=dict(sorted(self.left_out.get(number, {}).items())),
            disturbed=disturbed,
        )

    def idle_power(self) -> tuple[Interval | None, str]:
        """Watts while nothing is asked of the machine, and by which meter: the first subject's."""
        return idle_power(self._idle(), self.sources[0], self.widening), self.sources[0]

    def _pending(self) -> list[int]:
        """The subjects of the next round; none when it is enough, and then :attr:`stopped` says why."""
        settings, everyone = self.settings, list(range(len(self.subjects)))
        if self.rounds < settings.min_rounds:
            return everyone
        loose = [
            number
            for number in everyone
            if median_interval(self._of(number), self.widening).relative_half_width > settings.rel_precision
        ]
        if not loose:
            self.stopped = "precision"
        elif self.elapsed_s() * (1 + 1 / self.rounds) > self._rounds_s():
            self.stopped = "budget"
        elif self.rounds >= settings.max_rounds:
            self.stopped = "rounds"
        return [] if self.stopped else loose

    def _round(self, kind: str, number: int, cells: Sequence[int]) -> None:
        matched = kind != "round" or self.warmth.settle()
        visits = []
        for cell in cells:
            visit = self.bench.visit(cell, number, self.seconds)
            visits.append(visit._replace(disturbance=visit.disturbance._replace(off_temperature=not matched)))
            self._tell(f"round {number + 1}")
        self.visits += visits
        self._judge()
        done = _Round(number, self.elapsed_s(), [_cell(visit) for visit in visits], self.warmth.reference)
        self.ledger.append(kind, done)

    def _judge(self) -> None:
        """Which visits count, and how much alike neighbouring rounds are."""
        self.kept, self.left_out = kept(self.visits)
        self.widening = widening([round_medians(self._of(number)) for number in range(len(self.subjects))])

    def _of(self, number: int) -> list[Visit]:
        """The kept visits of a subject; all of them where fewer than two would be left."""
        good = [visit for visit in self.kept if visit.subject == number]
        return good if len(good) >= 2 else [visit for visit in self.visits if visit.subject == number]

    def _idle(self) -> list[Visit]:
        good = [visit for visit in self.kept if visit.subject == IDLE]
        return good or [visit for visit in self.visits if visit.subject == IDLE]

    def _net_joules(self, visit: Visit, idle: Sequence[Visit], source: str) -> float | None:
        meter = next((meter for meter in self.meters if meter.source == source), None)
        if meter is None or visit.wall_s < _UPDATES_PER_CELL * meter.update_period_s:
            return None
        return net_joules(visit, idle, source)

    def _work(self) -> None:
        """One answer of the largest subject."""
        largest = max(self.subjects, key=lambda subject: subject.macs * subject.batch_size)
        largest.engine.infer(largest.batch)

    def _rounds_s(self) -> float:
        resting = _RESTING_SHARE if self.settings.rests_ms else 0.0
        return (1 - SWITCHING_SHARE - resting) * self.settings.budget_s

    def _cell_seconds(self, chosen: Sequence[EnergyMeter]) -> float:
        everyone = range(len(self.subjects))
        cells = len(order(everyone, np.random.Generator(np.random.PCG64(0)), idle=bool(self.meters)))
        seconds = min(_LONGEST_S, max(_SHORTEST_S, self._rounds_s() / (_EXPECTED_ROUNDS * cells)))
        wanted = max((_UPDATES_PER_CELL * meter.update_period_s for meter in chosen), default=0.0)
        return max(seconds, min(wanted, _LONGEST_FOR_METER_S))

    def _random(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.settings.seed, stream, number]))

    def _tell(self, what: str) -> None:
        budget_s = self.settings.budget_s
        self._on_progress(what, min(self.elapsed_s(), budget_s), budget_s)


def _meters_for(device: str, meters: Sequence[EnergyMeter]) -> list[EnergyMeter]:
    """The best meter whose domain holds the device, and those to check it by: of the same domain, and no models.

    A processor's counter says nothing of an accelerator's energy, and a board's is no check of its processor's.
    """
    kind = "GPU" if device.upper().startswith(("GPU", "CUDA")) else "CPU"
    best = next((meter for meter in meters if meter.device in (kind, "system")), None)
    if best is None:
        return []
    others = [m for m in meters if m is not best and m.device == best.device and not m.source.startswith("modelled")]
    return [best, *others]


def _cell(visit: Visit) -> _Cell:
    return _Cell(**{**visit._asdict(), "latencies_ms": visit.latencies_ms.tolist(), "energies": dict(visit.energies)})


def _visit(cell: _Cell) -> Visit:
    values: dict[str, Any] = {name: getattr(cell, name) for name in Visit._fields}
    return Visit(**{**values, "latencies_ms": np.asarray(cell.latencies_ms, np.float64)})
