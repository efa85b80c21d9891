"""The guard: nothing that fails stops the answers, and nothing that failed stays untold.

* an engine that fails is *quarantined* with a growing back-off; the next smaller one answers, else the next larger;
* while a hard limit is reached (:mod:`agent.limits`), and where the policy decides nothing, the *safe choice* answers:
  the cheapest operating point that keeps the minimum accuracy and the deadline.

Every failure is counted, told as an event and shown in ``status`` and ``explain``. Its relatives:
:mod:`agent.sensing`, :mod:`agent.deciding`. Knows nothing of threads, pools or requests.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from agent.limits import HardLimits, LimitWatch, Reached
from agent.resident import EngineKey, engine_key
from calibration.table import Row, Table
from policies.base import Conditions, Goals

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 300.0
HANG_BACKOFFS_S = (60.0, 600.0, 3600.0)  # the last one ever after


class _Failures:
    """What is known of one engine's failures."""

    def __init__(self) -> None:
        self.total = self.in_a_row = self.hangs = 0
        self.until_s = -math.inf
        self.error = ""


class Guard:
    """Counts failures and says what may answer.

    Args:
        table: the operating points.
        ladder: subnet names, smallest first.
        goals: what the safe choice keeps.
        limits: beyond which it is used.
        clock: monotonic seconds.
        on_event: called with (name, detail).
    """

    def __init__(
        self,
        table: Table,
        ladder: tuple[str, ...],
        goals: Goals,
        *,
        limits: HardLimits,
        clock: Callable[[], float],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._table, self._rank = table, {name: index for index, name in enumerate(ladder)}
        self._clock, self._on_event = clock, on_event
        self._lock = threading.Lock()
        self._failures: dict[EngineKey, _Failures] = {}
        self._alternatives: dict[str, tuple[Row, ...]] = {}
        self._faults: list[str] = []  # since they were last asked for
        self._watch = LimitWatch()
        self.engine_failures = self.engine_hangs = self.limits_reached = 0
        self.goals, self.limits = goals, limits
        self.limit: Reached | None = None  # the one that holds now

    def retable(self, table: Table) -> None:
        """Other figures for the same operating points."""
        self._table, self._alternatives = table, {}

    # -- engines

    def quarantine(self, key: EngineKey, error: Exception) -> None:
        """Keeps an engine from answering for a while: one second, doubled with each failure in a row.

        A failure during the quarantine is counted and does not lengthen it: when nothing answers, every request would.
        """
        now_s = self._clock()
        with self._lock:
            seen = self._failures.setdefault(key, _Failures())
            if seen.until_s > now_s and seen.hangs and seen.error == str(error):
                return  # it hung, and was counted then
            self._faults.append(f"engine failed: {key.subnet}: {error}")
            if seen.until_s > now_s:
                seen.total += 1
                self.engine_failures += 1
                return
            backoff_s = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(seen.in_a_row, 30))
            if now_s - seen.until_s > 10 * backoff_s:  # it had long been well again
                seen.in_a_row, backoff_s = 0, FIRST_BACKOFF_S
            seen.total += 1
            seen.in_a_row += 1
            seen.until_s, seen.error = now_s + backoff_s, str(error)
            self.engine_failures += 1
        detail = {**key._asdict(), "error": str(error), "backoff_s": backoff_s}
        self._on_event("engine_failed", detail)

    def hung(self, key: EngineKey, error: Exception) -> Callable[[], None]:
        """Quarantines an engine that gives no answer at all.

        Returns:
            What takes it back, when the answer comes in this very moment.
        """
        now_s = self._clock()
        with self._lock:
            seen = self._failures.setdefault(key, _Failures())
            before = seen.until_s
            backoff_s = HANG_BACKOFFS_S[min(seen.hangs, len(HANG_BACKOFFS_S) - 1)]
            seen.total, seen.hangs = seen.total + 1, seen.hangs + 1
            seen.until_s, seen.error = now_s + backoff_s, str(error)
            self.engine_hangs += 1
            self._faults.append(f"engine hung: {key.subnet}: {error}")
        self._on_event("engine_hung", {**key._asdict(), "error": str(error), "backoff_s": backoff_s})

        def undo() -> None:
            with self._lock:
                seen.until_s, seen.hangs = before, seen.hangs - 1

        return undo

    def hangs(self, key: EngineKey) -> int:
        """How often an engine gave no answer at all."""
        seen = self._failures.get(key)
        return seen.hangs if seen is not None else 0

    def note(self, key: EngineKey, error: Exception) -> None:
        """Counts a failure of an engine that stays in service, because nothing else could answer either."""
        with self._lock:
            seen = self._failures.setdefault(key, _Failures())
            seen.total += 1
            seen.error = str(error)
            self.engine_failures += 1
            self._faults.append(f"engine failed: {key.subnet}: {error}")
        self._on_event("engine_failed", {**key._asdict(), "error": str(error), "backoff_s": 0.0})

    def quarantined_s(self, key: EngineKey) -> float:
        """Seconds until an engine may answer again; 0 when it may."""
        seen = self._failures.get(key)
        return max(0.0, seen.until_s - self._clock()) if seen is not None else 0.0

    def history(self, key: EngineKey) -> tuple[int, str]:
        """(failures, last error) of an engine."""
        seen = self._failures.get(key)
        return (seen.total, seen.error) if seen is not None else (0, "")

    @property
    def failed_keys(self) -> tuple[EngineKey, ...]:
        """Engines that ever failed."""
        return tuple(self._failures)

    def alternatives(self, point: str) -> tuple[Row, ...]:
        """Every operating point in the order in which to fall back from ``point``, itself first.

        The same subnet at another precision or backend does not come before the next subnet of the same kind: what
        broke one may well break the other. Then smaller subnets downwards, larger ones upwards, then other kinds.
        """
        found = self._alternatives.get(point)
        if found is None:
            row = self._table.row(point)

            def order(other: Row) -> tuple[Any, ...]:
                steps = self._rank[other.subnet] - self._rank[row.subnet]
                another_kind = engine_key(other)[1:] != engine_key(row)[1:]
                return (
                    other.point != point,
                    another_kind,
                    steps > 0,
                    abs(steps),
                    other.batch_size != row.batch_size,
                    other.latency_p50_ms,
                )

            found = self._alternatives[point] = tuple(sorted(self._table.rows, key=order))
        return found

    def safe_choice(self) -> Row:
        """The cheapest point that keeps minimum accuracy and deadline; failing that the nearest to keeping them.

        Cheapest is least energy per image where all rows have it, else least latency. Where no point keeps both, the
        deadline yields: the fastest of those accurate enough; where none is, the fastest of all.
        """
        goals = self.goals
        smallest: dict[EngineKey, Row] = {}  # a batch of one does not wait for others
        for row in sorted(self._table.rows, key=lambda row: row.batch_size):
            smallest.setdefault(engine_key(row), row)
        rows = tuple(smallest.values())
        accurate = [row for row in rows if goals.min_accuracy is None or row.accuracy >= goals.min_accuracy]
        fitting = [row for row in accurate if goals.deadline_ms is None or row.latency_p99_ms <= goals.deadline_ms]
        if fitting:
            by_energy = all(row.energy_j is not None for row in fitting)
            return min(fitting, key=lambda r: (r.energy_j if by_energy else 0.0, r.latency_p50_ms))
        return min(accurate or rows, key=lambda row: row.latency_p50_ms)

    # -- limits

    def check(self, conditions: Conditions, faults: list[str]) -> None:
        """Sets :attr:`limit`, tells when it changes, and appends it to ``faults``."""
        before, self.limit = self.limit, self._watch.check(conditions, self.limits)
        if self.limit is not None:
            faults.append(f"hard limit: {self.limit.reason}")
        if (before.limit if before else "") == (self.limit.limit if self.limit else ""):
            return
        if self.limit is None:
            assert before is not None
            self._on_event("hard_limit_left", {"limit": before.limit})
            return
        self.limits_reached += 1
        detail = {"limit": self.limit.limit, "error": self.limit.reason, "point": self.safe_choice().point}
        self._on_event("hard_limit", detail)

    def faults(self) -> list[str]:
        """What failed since this was last asked, for ``explain``."""
        with self._lock:
            found, self._faults = list(dict.fromkeys(self._faults)), []
        return found
