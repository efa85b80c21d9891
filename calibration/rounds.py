"""One round: every operating point once, in random order, with idle cells between them.

* :class:`Clocks`: time, processor time and sleep; a test gives its own.
* :class:`Visit`: what one cell of one round gave, :class:`Metered`: its energy.
* :func:`order`, :func:`visit_all`.

Random order turns slow drift (heat, neighbours, clocks) into noise instead of a difference between points. Knows
nothing of how visits become rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibration.disturbance import Disturbance, Watch
from calibration.subjects import Subject

if TYPE_CHECKING:
    from sensors import EnergyMeter

IDLE = -1  # in an order, where a subject's number would stand
_ACTIVE_PER_IDLE = 6
_LEAST_INFERENCES = 5


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
    middle_s: float  # wall clock halfway
    wall_s: float
    cpu_s: float
    latencies_ms: NDArray[np.float64]  # one per inference of the whole batch; empty when idle
    energies: Mapping[str, Metered]  # by the meter's source; what a meter could not tell is absent
    disturbance: Disturbance


def order(subjects: int, random: np.random.Generator, *, idle: bool) -> list[int]:
    """A random permutation of the subjects, with an idle cell before every six of them."""
    shuffled = [int(number) for number in random.permutation(subjects)]
    if not idle:
        return shuffled
    cells: list[int] = []
    stretches = math.ceil(subjects / _ACTIVE_PER_IDLE)
    for stretch in np.array_split(np.array(shuffled), stretches):
        cells += [IDLE, *(int(number) for number in stretch)]
    return cells


def visit_all(
    cells: Sequence[int],
    subjects: Sequence[Subject],
    *,
    number: int,
    seconds: float,
    warmup: int,
    clocks: Clocks,
    watch: Watch,
    meters: Sequence[EnergyMeter],
    on_cell: Callable[[], None],
) -> list[Visit]:
    """Measures the cells in order, each for ``seconds`` and at least five inferences after its warm-up."""
    visits = []
    for cell in cells:
        if cell != IDLE:
            for _ in range(warmup):
                subjects[cell].engine.infer(subjects[cell].batch)
        counters = watch.read()
        before = [meter.sample() for meter in meters]
        cpu, started = clocks.cpu(), clocks.wall()
        if cell == IDLE:
            clocks.sleep(seconds)
            latencies: list[float] = []
        else:
            latencies = _latencies(subjects[cell], seconds, clocks.wall)
        ended, used = clocks.wall(), clocks.cpu() - cpu
        energies = {}
        for meter, at_start in zip(meters, before, strict=True):
            told = meter.energy(at_start, meter.sample())
            if told.joules is not None and told.low_j is not None and told.high_j is not None:
                energies[meter.source] = Metered(told.joules, told.low_j, told.high_j, told.seconds)
        visits.append(
            Visit(
                subject=cell,
                round=number,
                middle_s=(started + ended) / 2,
                wall_s=ended - started,
                cpu_s=used,
                latencies_ms=np.asarray(latencies, np.float64),
                energies=energies,
                disturbance=watch.between(counters, watch.read(), ended - started),
            )
        )
        on_cell()
    return visits


def _latencies(subject: Subject, seconds: float, wall: Callable[[], float]) -> list[float]:
    """Milliseconds of each inference, back to back, as the caller sees them."""
    infer, batch = subject.engine.infer, subject.batch
    latencies: list[float] = []
    started = now = wall()
    while now - started < seconds or len(latencies) < _LEAST_INFERENCES:
        infer(batch)
        after = wall()
        latencies.append((after - now) * 1e3)
        now = after
    return latencies
