"""One cell of a round: an operating point answers for a while, or nothing happens, and meters and kernel are read.

* :class:`Clocks`: time, processor time and sleep; a test gives its own.
* :class:`Visit`: what one cell of one round gave, :class:`Metered`: its energy.
* :func:`order`: the cells of a round. :class:`Bench`: measures them one by one.

Random order turns slow drift (heat, neighbours, clocks) into noise instead of a difference between points. Knows
nothing of how visits become rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.disturbance import Disturbance, Watch
from calibration.subjects import Subject

if TYPE_CHECKING:
    from sensors import EnergyMeter, MeterSample

IDLE = -1  # in an order, where a subject's number would stand
_ACTIVE_PER_IDLE = 6
_LEAST_ANSWERS = 5
_POLLS_PER_UPDATE = 20  # while waiting for a counter to move
_COARSE = 0.01  # a counter's update period over the cell's length above which windows begin and end on its updates


class Clocks(NamedTuple):
    """Where time comes from: seconds of wall time, of this process's processor time, and a way to let time pass."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep


class Metered(NamedTuple):
    """Energy that a meter told, with its bounds."""

    joules: float
    low_j: float
    high_j: float
    seconds: float


class Visit(NamedTuple):
    """One cell of one round. ``subject`` is a number into the subjects, or :data:`IDLE`."""

    subject: int
    round: int
    rest_ms: float  # slept before each answer; 0: back to back
    middle_s: float  # halfway, since the calibration began
    wall_s: float
    cpu_s: float
    latencies_ms: NDArray[np.float64]  # one per inference of the whole batch, in whole nanoseconds; empty when idle
    energies: Mapping[str, Metered]  # by the meter's source; what a meter could not tell is absent
    disturbance: Disturbance


def order(subjects: Sequence[int], random: np.random.Generator, *, idle: bool) -> list[int]:
    """A random permutation of the subjects, with an idle cell before every six of them."""
    shuffled = [int(number) for number in random.permutation(np.asarray(subjects, np.int64))]
    if not idle:
        return shuffled
    cells: list[int] = []
    stretches = math.ceil(len(shuffled) / _ACTIVE_PER_IDLE)
    for stretch in np.array_split(np.array(shuffled), stretches):
        cells += [IDLE, *(int(number) for number in stretch)]
    return cells


class Bench:
    """Measures single cells.

    A counter that moves in coarse steps (NVML's: every 10 to 100 ms) would be early or late by one step at either end.
    So the window begins when it has just moved, and answers go on until it moves again.

    Args:
        subjects: what can answer.
        warmup: inferences before each cell.
        clocks: time.
        watch: what tells disturbances.
        meters: all that are read.
        chosen: those among them whose figures count, and whose steps therefore bound the windows.
        origin_s: the wall clock when the calibration began; earlier than this process where one is resumed.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        warmup: int,
        clocks: Clocks,
        watch: Watch,
        meters: Sequence[EnergyMeter],
        chosen: Sequence[EnergyMeter],
        origin_s: float,
    ) -> None:
        self.subjects, self.warmup, self.clocks, self.watch = subjects, warmup, clocks, watch
        self.meters, self.chosen, self.origin_s = meters, chosen, origin_s

    def visit(
        self,
        cell: int,
        number: int,
        seconds: float,
        *,
        rest_s: float = 0.0,
        answers: int = _LEAST_ANSWERS,
        warmup: int | None = None,
    ) -> Visit:
        """One cell.

        Args:
            cell: a subject's number, or :data:`IDLE`.
            number: of the round.
            seconds: at least so long.
            rest_s: slept before each answer.
            answers: at least so many.
            warmup: answers before those that count, after the same rests; the bench's own when None.
        """
        clocks = self.clocks
        answer = self._answerer(cell, rest_s)
        if cell != IDLE:
            for _ in range(self.warmup if warmup is None else warmup):
                answer()
        coarse = [meter for meter in self.chosen if _COARSE * seconds < meter.update_period_s < seconds / 2]
        counters = self.watch.read()
        fresh = {meter.source: self._moved(meter, cell, answer) for meter in coarse}
        before = [fresh.get(meter.source) or meter.sample() for meter in self.meters]
        cpu, started = clocks.cpu(), clocks.wall()
        latencies: list[float] = []
        if cell == IDLE:
            clocks.sleep(seconds)
        while cell != IDLE and (clocks.wall() - started < seconds or len(latencies) < answers):
            latencies.append(answer())
        fresh = {meter.source: self._moved(meter, cell, lambda: latencies.append(answer())) for meter in coarse}
        after = [fresh.get(meter.source) or meter.sample() for meter in self.meters]
        ended, used = clocks.wall(), clocks.cpu() - cpu
        energies = {}
        for meter, first, last in zip(self.meters, before, after, strict=True):
            told = meter.energy(first, last)
            if told.joules is not None and told.low_j is not None and told.high_j is not None:
                energies[meter.source] = Metered(told.joules, told.low_j, told.high_j, told.seconds)
        return Visit(
            subject=cell,
            round=number,
            rest_ms=1e3 * rest_s,
            middle_s=(started + ended) / 2 - self.origin_s,
            wall_s=ended - started,
            cpu_s=used,
            latencies_ms=np.array([round(latency, 6) for latency in latencies], np.float64),
            energies=energies,
            disturbance=self.watch.between(counters, self.watch.read(), ended - started),
        )

    def _moved(self, meter: EnergyMeter, cell: int, answer: Callable[[], object]) -> MeterSample:
        """The first sample after a counter moved, reached by answering or, in an idle cell, by sleeping."""

        def pause() -> None:
            self.clocks.sleep(meter.update_period_s / _POLLS_PER_UPDATE)

        return _when_moved(meter, pause if cell == IDLE else answer, self.clocks.wall)

    def _answerer(self, cell: int, rest_s: float) -> Callable[[], float]:
        """Answers once and tells the milliseconds it took, as the caller sees them."""
        if cell == IDLE:
            return lambda: 0.0
        infer, batch = self.subjects[cell].engine.infer, self.subjects[cell].batch
        wall, sleep = self.clocks.wall, self.clocks.sleep

        def answer() -> float:
            if rest_s:
                sleep(rest_s)
            started = wall()
            infer(batch)
            return (wall() - started) * 1e3

        return answer


def _when_moved(meter: EnergyMeter, go_on: Callable[[], object], wall: Callable[[], float]) -> MeterSample:
    """The first sample of a meter that differs from now's; the last one where none does within two updates."""
    first = meter.sample()
    asked = wall()
    while True:
        before = wall()
        go_on()
        sample = meter.sample()
        if sample.why or sample.state != first.state:
            return msgspec.structs.replace(sample, stale_s=wall() - before)
        if wall() - asked > 2 * meter.update_period_s:
            return sample
