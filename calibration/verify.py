"""Measures some rows of a table again, and says whether it still holds.

A row has drifted when its median is off by more than a tolerance, and by more than chance explains. Tables of one
machine differ by a few per cent from hour to hour without being wrong, so a test of no difference at all would reject
every table that was measured well enough. The interval of the ratio now / then is Welch's, on logarithms, at a level
that is shared out evenly among all comparisons (Bonferroni): so the chance that any row is named although none is off
by more than the tolerance is at most ``false_alarm``, whichever way it is off and however many rows are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from backends.base import Backend
from calibration.disturbance import Watch
from calibration.ledger import NoLedger
from calibration.measure import gpu_of
from calibration.modelled import with_own_work
from calibration.rounds import Clocks
from calibration.run import Run, Settings
from calibration.statistics import Interval, shift
from calibration.subjects import opened
from calibration.table import Row, Table
from subnets.bundle import Bundle, Strict
from subnets.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from sensors import EnergyMeter

_LEAST_ROUNDS = 4


class Finding(Strict, frozen=True, kw_only=True):
    """One quantity of one row, then and now; the ratio is now / then, its bounds at the corrected level."""

    point: str
    quantity: str  # "latency_p50_ms" or "energy_j"
    then: float
    now: float
    ratio: float
    ratio_low: float
    ratio_high: float | None  # None: unbounded
    drifted: bool
    confirmed: bool  # the whole interval lies within the tolerance; neither: too little is known to tell


class Verdict(Strict, frozen=True, kw_only=True):
    """Whether the table holds, and why."""

    holds: bool
    findings: tuple[Finding, ...]
    rows: int  # looked at
    of: int  # in the table
    rounds: int
    tolerance: float
    false_alarm: float  # for all comparisons together

    @property
    def drifted(self) -> tuple[Finding, ...]:
        """What no longer holds."""
        return tuple(finding for finding in self.findings if finding.drifted)


def verify(
    table: Table,
    bundle: Bundle,
    backends: Sequence[Backend],
    *,
    rows: int = 6,
    rounds: int = 8,
    tolerance: float = 0.10,
    false_alarm: float = 0.01,
    seed: int = 0,
    meters: Sequence[EnergyMeter] = (),
    clocks: Clocks | None = None,
    watch: Watch | None = None,
    on_progress: Callable[[str, float, float], None] = lambda what, done, total: None,
) -> Verdict:
    """Measures ``rows`` rows of a table again, drawn by ``seed``, in the table's own way.

    Latencies are always compared, energies where the same meter tells them; a modelled energy follows from the
    processor time and is left out.

    Args:
        table: of this bundle and machine: :meth:`Table.check` is the caller's.
        bundle: what it is of.
        backends: at least those of its rows.
        rows: how many; all where the table has no more.
        rounds: cells of each.
        tolerance: share by which a median may be off, up or down.
        false_alarm: chance of naming any row when none is off by more than that.
        seed: draws the rows and their order.
        meters, clocks, watch, on_progress: as for :func:`calibration.measure.calibrate`.

    Raises:
        InputError: a number is impossible.
        UnavailableError: a backend or precision of the table cannot be used here any more.
    """
    if rows < 1 or rounds < _LEAST_ROUNDS:
        raise InputError(f"{rows} rows in {rounds} rounds cannot be; give 1 row and {_LEAST_ROUNDS} rounds or more")
    if not 0 <= tolerance < 1 or not 0 < false_alarm < 0.5:
        raise InputError(
            f"tolerance {tolerance:g} and false alarm rate {false_alarm:g} cannot be; "
            "give shares from 0 to below 1, and above 0 to below 0.5"
        )
    clocks, watch = clocks or Clocks(), watch or Watch(gpu=gpu_of(backends))
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(table.rows))[:rows]
    chosen = {table.rows[int(place)].point: table.rows[int(place)] for place in sorted(drawn)}
    protocol = table.protocol
    settings = Settings(
        min_rounds=rounds,
        max_rounds=rounds,
        warmup=protocol.warmup,
        rests_ms=(),
        seconds_per_cell=protocol.seconds_per_cell or None,
        seed=seed,
    )
    with opened(
        bundle,
        _pairs(chosen.values(), bundle, backends),
        batch_sizes=protocol.batch_sizes,
        threads=next(iter(chosen.values())).threads,
        seed=protocol.seed,
        clock=clocks.wall,
        on_step=lambda what: on_progress(what, 0, 1),
        only=chosen,
    ) as subjects:
        meters = with_own_work(meters, clocks.wall, clocks.cpu)
        run = Run(subjects, settings, meters, clocks, watch, NoLedger(), lambda what, done, total: None)
        with ExitStack() as running:
            for meter in run.meters:
                running.enter_context(meter)
            run.measure(on_round=lambda number: on_progress(f"round {number + 1}", number + 1, rounds))
        compared = [
            one for number, subject in enumerate(subjects) for one in _compared(chosen[subject.point], run, number)
        ]
    confidence = 1 - false_alarm / len(compared)
    findings = tuple(_finding(*one, confidence=confidence, tolerance=tolerance) for one in compared)
    return Verdict(
        holds=not any(finding.drifted for finding in findings),
        findings=findings,
        rows=len(chosen),
        of=len(table.rows),
        rounds=rounds,
        tolerance=tolerance,
        false_alarm=false_alarm,
    )


Compared = tuple[str, str, Interval, int, Interval, int]  # point, quantity, then and its rounds, now and its rounds


def _pairs(rows: Iterable[Row], bundle: Bundle, backends: Sequence[Backend]) -> list[tuple[Backend, str]]:
    """The (backend, precision) pairs of the rows, each checked to be still there."""
    by_name = {backend.name: backend for backend in backends}
    pairs = []
    for name, precision in dict.fromkeys((row.backend, row.precision) for row in rows):
        backend = by_name.get(name)
        availability = backend.available() if backend else None
        if backend is None or availability is None or not availability.ok:
            why = availability.why if availability else "no such backend"
            raise UnavailableError(f"the table has rows of {name}, which cannot be used here ({why}); calibrate again")
        if precision not in backend.precisions_for(bundle):
            raise UnavailableError(f"the table has rows of {name} in {precision}, not offered here; calibrate again")
        pairs.append((backend, precision))
    return pairs


def _compared(row: Row, run: Run, number: int) -> Iterator[Compared]:
    now = run.figures(number)
    then = Interval(row.latency_p50_ms, row.latency_p50_low_ms, row.latency_p50_high_ms)
    yield row.point, "latency_p50_ms", then, row.rounds, now.p50_ms, now.rounds
    told = run.energies(number)
    known = row.energy_j is not None and row.energy_low_j is not None and row.energy_high_j is not None
    if told is None or not known or run.sources[number] != row.energy_source or "modelled" in row.energy_source:
        return
    assert row.energy_j is not None and row.energy_low_j is not None and row.energy_high_j is not None
    joules = Interval(row.energy_j, row.energy_low_j, row.energy_high_j)
    yield row.point, "energy_j", joules, row.rounds, told.energies.energy_j, now.rounds


def _finding(
    point: str,
    quantity: str,
    then: Interval,
    then_rounds: int,
    now: Interval,
    now_rounds: int,
    *,
    confidence: float,
    tolerance: float,
) -> Finding:
    moved = shift(then, then_rounds, now, now_rounds, confidence)
    return Finding(
        point=point,
        quantity=quantity,
        then=then.value,
        now=now.value,
        ratio=moved.ratio,
        ratio_low=moved.low,
        ratio_high=moved.high if moved.high < math.inf else None,
        drifted=moved.low > 1 + tolerance or moved.high < 1 / (1 + tolerance),
        confirmed=1 / (1 + tolerance) <= moved.low and moved.high <= 1 + tolerance,
    )
