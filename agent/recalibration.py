"""Measures drifted rows again while nobody wants the engines, and makes a new table of what was found.

A *cell* is a few answers back to back with one engine, as in a calibration; it is broken off, and counts for nothing,
as soon as a request comes, which so waits for one inference at most. After each cell comes a rest nineteen times as
long. Rows take turns in random order, until each median is known as well as the table's were. Then a row either is off
by more than the tolerance and more than chance explains (the test of ``gearshift verify``), and its latencies are
replaced; or it holds when the machine is quiet, so not the table was wrong but the machine is busy, and it is left
alone for a day. Energies stay as calibrated: nothing here measures them.

Knows nothing of policies or files: the new table is handed over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from agent.drift import TOLERANCE, Drift
from calibration.disturbance import Disturbance
from calibration.rounds import Visit, order
from calibration.statistics import Interval, shift, widening
from calibration.summary import Figures, figures, median_interval, round_medians
from calibration.table import QUANTILES, Row, Table
from subnets.errors import GearshiftError

LEAST_ROUNDS, MOST_ROUNDS = 8, 20
WARMUP, LEAST_ANSWERS, MOST_ANSWERS = 3, 10, 30
REST = 19.0  # times a cell's length: at most a twentieth of the time is taken
AGAIN_S = 86_400.0  # until a row that was found to hold is doubted again
_CELL_S = 0.05
_PATIENCE_S = 1.0  # between two looks whether it is quiet now
_CONFIDENCE = 0.99


class Recalibration:
    """Measures in a thread of its own, which lives while something is to be measured.

    Args:
        drift: which rows are out.
        table: the rows that are in use, at any time.
        measure: has an operating point answer so often, back to back; the latencies in ms, fewer than asked for when
            somebody wanted the engine, None when its engine is not in memory.
        allowed: whether now is a time to measure at all (not throttled, no hard limit).
        accept: takes up new rows, by point.
        on_event: called with (name, detail) for ``table_confirmed`` and ``recalibration_failed``.
        clock: the agent's.
        seed: of the order.
    """

    def __init__(
        self,
        drift: Drift,
        table: Callable[[], Table],
        *,
        measure: Callable[[Row, int], list[float] | None],
        allowed: Callable[[], bool],
        accept: Callable[[Mapping[str, Row]], None],
        on_event: Callable[[str, dict[str, Any]], None],
        clock: Callable[[], float],
        seed: int = 0,
    ) -> None:
        self._drift, self._table, self._measure, self._allowed = drift, table, measure, allowed
        self._accept, self._on_event, self._clock = accept, on_event, clock
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._confirmed: dict[str, float] = {}  # point -> when
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, now_s: float, faults: list[str]) -> None:
        """Begins to measure when there is something to measure; one call a control period."""
        if (self._thread is None or not self._thread.is_alive()) and self.pending():
            self._thread = threading.Thread(target=self._run, name="gearshift-recalibrate", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stops measuring."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)  # it may be waiting for an engine that hangs

    def pending(self) -> list[Row]:
        """The rows that are out and were not found to hold within the last day."""
        now_s = self._clock()
        points = {d.point for d in self._drift.drifted if now_s - self._confirmed.get(d.point, -AGAIN_S) >= AGAIN_S}
        return [row for row in self._table().rows if row.point in points]

    def round(self, visits: dict[str, list[Visit]]) -> float:
        """One cell of each row that is pending and not yet known well enough, and what follows once all are.

        Args:
            visits: by point, to be added to.

        Returns:
            Seconds to wait before the next round.
        """
        pending = self.pending()
        todo = [row for row in pending if not _known(visits.get(row.point, []), row)]
        if not todo:
            self._conclude(pending, visits)
            return _PATIENCE_S
        for number in order(range(len(todo)), self._random, idle=False):
            if self._stop.is_set() or not self._allowed():
                return _PATIENCE_S
            row = todo[number]
            answers = WARMUP + int(min(MOST_ANSWERS, max(LEAST_ANSWERS, 1000 * _CELL_S / row.latency_p50_ms)))
            began_s = self._clock()
            latencies = self._measure(row, answers)
            passed_s = self._clock() - began_s
            if latencies is None or len(latencies) < answers:
                return _PATIENCE_S
            done = visits.setdefault(row.point, [])
            done.append(_visit(len(done), began_s, passed_s, latencies[WARMUP:]))
            if self._stop.wait(REST * passed_s):
                break
        return 0.0

    def _run(self) -> None:
        visits: dict[str, list[Visit]] = {}
        while not self._stop.is_set() and self.pending():
            try:
                wait_s = self.round(visits)
            except Exception as error:  # a fault of its own must not end the answers
                self._on_event("recalibration_failed", {"error": f"{type(error).__name__}: {error}"})
                return
            self._stop.wait(wait_s)

    def _conclude(self, rows: list[Row], visits: dict[str, list[Visit]]) -> None:
        """Replaces the rows that are off, and confirms the others."""
        wider = widening([round_medians(visits[row.point]) for row in rows])
        new: dict[str, Row] = {}
        for row in rows:
            found = figures(visits.pop(row.point), row.batch_size, wider)
            then = Interval(row.latency_p50_ms, row.latency_p50_low_ms, row.latency_p50_high_ms)
            moved = shift(then, row.rounds, found.p50_ms, found.rounds, 1 - (1 - _CONFIDENCE) / len(rows))
            if moved.low > 1 + TOLERANCE or moved.high < 1 / (1 + TOLERANCE):
                new[row.point] = _replaced(row, found)
            else:
                self._confirmed[row.point] = self._clock()
                self._on_event("table_confirmed", {"point": row.point, "ratio": round(moved.ratio, 3)})
        if new:
            try:
                self._accept(new)
            except GearshiftError as error:  # the disk is full: as before, and tried again in a day
                self._confirmed |= dict.fromkeys(new, self._clock())
                self._on_event("recalibration_failed", {"error": str(error)})


def retabled(table: Table, rows: Mapping[str, Row]) -> Table:
    """The table with these rows in place of those of the same names; it says when they were measured again."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    remeasured = {**table.protocol.remeasured, **dict.fromkeys(rows, now)}
    protocol = msgspec.structs.replace(table.protocol, remeasured=remeasured)
    return msgspec.structs.replace(table, rows=tuple(rows.get(row.point, row) for row in table.rows), protocol=protocol)


def _known(visits: list[Visit], row: Row) -> bool:
    """Whether a median is known about as well as the table's own, or as well as can be expected."""
    if len(visits) < LEAST_ROUNDS:
        return False
    found = median_interval(visits, 1.0)
    return len(visits) >= MOST_ROUNDS or (found.high - found.low) / 2 / found.value <= max(0.03, row.half_width)


def _visit(number: int, began_s: float, passed_s: float, latencies_ms: list[float]) -> Visit:
    return Visit(
        subject=0,
        round=number,
        rest_ms=0.0,
        middle_s=began_s + passed_s / 2,
        wall_s=sum(latencies_ms) / 1000,
        cpu_s=0.0,
        latencies_ms=np.asarray(latencies_ms, np.float64),
        energies={},
        disturbance=Disturbance(),
    )


def _replaced(row: Row, found: Figures) -> Row:
    """The row with other latencies; what was not measured stays as it was."""
    return msgspec.structs.replace(
        row,
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
        round_p50_ms=(),
        quantiles_ms=found.quantiles_ms if len(found.quantiles_ms) == len(QUANTILES) else (),
        discarded={},
        disturbed=False,
    )
