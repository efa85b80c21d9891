"""Whether the table still holds: the agent's own latencies against those that were calibrated, row by row.

The slowdown that policies see (:mod:`agent.figures`) follows within seconds, whatever the reason: heat, other work, a
table that is wrong. Here it is asked whether the reason has come to stay. Each minute with enough answers gives the
median of measured over calibrated latency. A row has *drifted* once this was outside the table's interval, widened by
the tolerance that ``gearshift verify`` allows too, for a quarter of an hour of answers without a break; and holds again
once it was inside for as long. An engine is slower after a rest, so an answer is held against what the table says for
the rest before it (``Row.duty``); where it says nothing, only answers back to back count.

Knows nothing of engines; is told of answers, and looks at a clock only through them.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from calibration.table import Row, Table

LONG_S = 900.0
TOLERANCE = 0.10
_MINUTE_S = 60.0
_LONGEST_MINUTE_S = 600.0  # with so few answers that nothing can be said
_LEAST_ANSWERS = 20
_MOST_ANSWERS = 2000  # of a minute; more tell nothing new
_QUEUED = 20_000  # between two control periods
_BACK_TO_BACK_MS, _BACK_TO_BACK_SHARE = 0.5, 0.2  # a rest of at most so long, or so much of an answer's time


class Drifted(msgspec.Struct, frozen=True, kw_only=True):
    """A row that is out: measured over calibrated median latency, and since when on the agent's clock."""

    point: str
    ratio: float
    since_s: float


class _Watched:
    """One row's minutes."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.low = row.latency_p50_low_ms / row.latency_p50_ms / (1 + TOLERANCE)
        self.high = row.latency_p50_high_ms / row.latency_p50_ms * (1 + TOLERANCE)
        self.ratios: list[float] = []
        self.began_s: float | None = None  # of this minute
        self.side, self.on_side_s, self.since_s = 0, 0.0, 0.0  # -1 below, 0 inside, 1 above
        self.medians: deque[tuple[float, float]] = deque()  # (ratio, seconds), at least LONG_S together where there are
        self.drifted: Drifted | None = None

    def add(self, now_s: float, ratio: float) -> bool:
        """Takes an answer in; whether a minute is over with it."""
        if self.began_s is None or now_s - self.began_s > _LONGEST_MINUTE_S:
            self.began_s, self.ratios = now_s, []
        if len(self.ratios) < _MOST_ANSWERS:
            self.ratios.append(ratio)
        if now_s - self.began_s < _MINUTE_S or len(self.ratios) < _LEAST_ANSWERS:
            return False
        self._judge(now_s, statistics.median(self.ratios), now_s - self.began_s)
        self.began_s, self.ratios = None, []
        return True

    def _judge(self, now_s: float, ratio: float, seconds: float) -> None:
        side = -1 if ratio < self.low else 1 if ratio > self.high else 0
        if side != self.side:
            self.side, self.on_side_s, self.since_s = side, 0.0, now_s - seconds
            self.medians.clear()
        self.on_side_s += seconds
        self.medians.append((ratio, seconds))
        while sum(length for _, length in self.medians) - self.medians[0][1] >= LONG_S:
            self.medians.popleft()
        if self.on_side_s >= LONG_S:
            ratio = statistics.median(ratio for ratio, _ in self.medians)
            self.drifted = Drifted(point=self.row.point, ratio=ratio, since_s=self.since_s) if side else None


class Drift:
    """Watches every row of a table.

    Args:
        table: what answers are held against.
        on_event: called with (name, detail) for ``table_drifted`` and ``table_holds``.
    """

    def __init__(self, table: Table, on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self.rows_drifted = 0
        self._on_event = on_event
        self._answers: deque[tuple[float, str, float, float]] = deque(maxlen=_QUEUED)
        self._ended_s: float | None = None  # the last answer, of whichever engine
        self.retable(table)

    def retable(self, table: Table) -> None:
        """Another table is in use: what was seen says nothing of rows whose latency is another now."""
        before: dict[str, _Watched] = getattr(self, "_watched", {})
        self._watched = {row.point: _Watched(row) for row in table.rows}
        for point, old in before.items():
            new = self._watched.get(point)
            if new is not None and new.row.latency_p50_ms == old.row.latency_p50_ms:
                self._watched[point] = old

    @property
    def drifted(self) -> tuple[Drifted, ...]:
        """The rows that are out now, farthest first."""
        found = [watched.drifted for watched in tuple(self._watched.values()) if watched.drifted is not None]
        return tuple(sorted(found, key=lambda one: -max(one.ratio, 1 / one.ratio)))

    def ran(self, now_s: float, point: str, infer_ms: float, expected_ms: float) -> None:
        """An engine has answered. Called for every inference: it only takes a note.

        Args:
            now_s: when it ended, on the agent's clock.
            point: which operating point.
            infer_ms: how long it took.
            expected_ms: what the table says of the batch sizes that were run.
        """
        self._answers.append((now_s, point, infer_ms, expected_ms))

    def watch(self, now_s: float, faults: list[str]) -> None:
        """Works the notes off, tells what has changed, and appends to ``faults`` what is out."""
        before = {one.point for one in self.drifted}
        while self._answers:
            self._take(*self._answers.popleft())
        out = self.drifted
        new = [one for one in out if one.point not in before]
        if new:
            self.rows_drifted += len(new)
            rows = [{"point": one.point, "ratio": round(one.ratio, 3)} for one in new]
            self._on_event("table_drifted", {"error": self.words(now_s, new), "rows": rows})
        if back := sorted(before - {one.point for one in out}):
            self._on_event("table_holds", {"rows": back})
        if out:
            faults.append(f"table drifted: {self.words(now_s, out)}")

    @staticmethod
    def words(now_s: float, rows: list[Drifted] | tuple[Drifted, ...]) -> str:
        """``s50@openvino:f32:b1 takes 1.42 times what the table says, for 16 min``, for each row."""
        return "; ".join(
            f"{one.point} takes {one.ratio:.2f} times what the table says, for {(now_s - one.since_s) / 60:.0f} min"
            for one in rows
        )

    def _take(self, now_s: float, point: str, infer_ms: float, expected_ms: float) -> None:
        ended_s, self._ended_s = self._ended_s, now_s
        watched = self._watched.get(point)
        if watched is None or ended_s is None or expected_ms != watched.row.latency_p50_ms or infer_ms <= 0:
            return  # several inferences together are no row of the table
        rest_ms = max(0.0, (now_s - ended_s) * 1000 - infer_ms)
        if watched.row.duty is not None:
            expected_ms = watched.row.latency_ms_after(rest_ms)
        elif rest_ms > max(_BACK_TO_BACK_MS, _BACK_TO_BACK_SHARE * expected_ms):
            return
        watched.add(now_s, infer_ms / expected_ms)
