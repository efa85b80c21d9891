"""The guard: nothing that fails stops the answers, and nothing that failed stays untold.

* an engine that fails is *quarantined* with a growing back-off; the next smaller one answers, else the next larger;
* sensors that cannot be read are unknown;
* a policy that raises, or names a point the table lacks, yields to the *safe choice*: the cheapest operating point
  that keeps the minimum accuracy and the deadline.

Every failure is counted, told as an event and shown in ``status``. Knows nothing of threads, pools or requests.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from agent.pool import EngineKey, engine_key
from calibration.table import Row, Table
from policies.base import Conditions, Decision, Goals, Policy

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 300.0
_FIELDS = {field.name: field for field in msgspec.structs.fields(Conditions)}
_SHARES = frozenset({"battery_charge", "cpu_load", "pressure"})


class Readings(Protocol):
    """One reading of all sensors."""

    def values(self) -> Mapping[str, Any]:
        """{field of Conditions: value or None}; other keys are ignored."""


class Sensors(Protocol):
    """Anything that can be read, e.g. ``sensors.SensorSet``."""

    def read(self) -> Readings:
        """Reads all sensors now."""


class _Failures:
    """What is known of one engine's failures."""

    def __init__(self) -> None:
        self.total = self.in_a_row = 0
        self.until_s = -math.inf
        self.error = ""


class Guard:
    """Counts failures and says what may answer.

    Args:
        table: the operating points.
        ladder: subnet names, smallest first.
        goals: what the safe choice keeps.
        clock: monotonic seconds.
        on_event: called with (name, detail).
    """

    def __init__(
        self,
        table: Table,
        ladder: tuple[str, ...],
        goals: Goals,
        *,
        clock: Callable[[], float],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._table, self._rank = table, {name: index for index, name in enumerate(ladder)}
        self._clock, self._on_event = clock, on_event
        self._lock = threading.Lock()
        self._failures: dict[EngineKey, _Failures] = {}
        self._alternatives: dict[str, tuple[Row, ...]] = {}
        self._known: set[str] = set()  # quantities the last reading had
        self._told: dict[str, str] = {}  # kind of failure -> last message, to tell each once
        self.engine_failures = self.sensor_failures = self.policy_failures = 0
        self.goals = goals

    # -- engines

    def quarantine(self, key: EngineKey, error: Exception) -> None:
        """Keeps an engine from answering for a while: one second, doubled with each failure in a row.

        A failure during the quarantine is counted and does not lengthen it: when nothing answers, every request would.
        """
        now_s = self._clock()
        with self._lock:
            seen = self._failures.setdefault(key, _Failures())
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

    def note(self, key: EngineKey, error: Exception) -> None:
        """Counts a failure of an engine that stays in service, because nothing else could answer either."""
        with self._lock:
            seen = self._failures.setdefault(key, _Failures())
            seen.total += 1
            seen.error = str(error)
            self.engine_failures += 1
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
        goals, rows = self.goals, self._table.rows
        accurate = [row for row in rows if goals.min_accuracy is None or row.accuracy >= goals.min_accuracy]
        fitting = [row for row in accurate if goals.deadline_ms is None or row.latency_p99_ms <= goals.deadline_ms]
        if fitting:
            by_energy = all(row.energy_j is not None for row in fitting)
            return min(fitting, key=lambda r: (r.energy_j if by_energy else 0.0, r.latency_p50_ms))
        return min(accurate or rows, key=lambda row: row.latency_p50_ms)

    # -- sensors

    def read(self, sensors: Sensors | None, faults: list[str]) -> dict[str, Any]:
        """What the sensors say, by field of Conditions; a value that makes no sense is unknown.

        Args:
            sensors: None = there are none.
            faults: what failed is appended here.
        """
        if sensors is None:
            return {}
        try:
            snapshot = sensors.read()
            values = dict(snapshot.values())
        except Exception as error:  # whatever it is, it must not stop the answers
            self.sensor_failures += 1
            faults.append(f"sensors unreadable: {error}")
            self._tell("sensor_failed", {"error": f"{type(error).__name__}: {error}"})
            return {}
        clean = {name: value for name, value in values.items() if name in _FIELDS and _sensible(name, value)}
        self._tell_lost(clean, snapshot)
        odd = sorted(n for n in values.keys() - clean.keys() if n in _FIELDS and values[n] is not None)
        if odd:
            self.sensor_failures += 1
            faults.append(f"not sensible, taken as unknown: {', '.join(f'{n}={values[n]!r}' for n in odd)}")
            self._tell("sensor_failed", {"error": faults[-1]})
        else:
            self._told.pop("sensor_failed", None)
        return clean

    def _tell_lost(self, values: Mapping[str, Any], snapshot: Readings) -> None:
        """Tells when a quantity that was known no longer is, with the sensor's reason where it gives one."""
        known = {name for name, value in values.items() if value is not None}
        for name in sorted(self._known - known):
            why = [r.why for r in getattr(snapshot, "readings", ()) if r.name == name and r.why]
            self.sensor_failures += 1
            self._on_event("sensor_lost", {"quantity": name, "why": "; ".join(why) or "no longer reported"})
        self._known = known

    # -- policy

    def decide(
        self, policy: Policy, conditions: Conditions, table: Table, current: str | None, faults: list[str]
    ) -> Decision:
        """The policy's decision, or the safe choice when it fails."""
        try:
            decision = policy.decide(conditions, table, current)
            table.row(decision.point)
            for step in decision.slack_plan:
                table.row(step.point)
        except Exception as error:  # whatever it is, it must not stop the answers
            self.policy_failures += 1
            faults.append(f"policy '{policy.name}' failed: {error}")
            self._tell("policy_failed", {"policy": policy.name, "error": f"{type(error).__name__}: {error}"})
            reason = f"policy '{policy.name}' failed ({error}); this is the safe choice"
            return Decision(point=self.safe_choice().point, reason=reason, bound="fallback")
        self._told.pop("policy_failed", None)
        return decision

    def _tell(self, name: str, detail: dict[str, Any]) -> None:
        """Tells a failure that lasts once, and again when its message changes."""
        if self._told.get(name) != detail["error"]:
            self._told[name] = detail["error"]
            self._on_event(name, detail)


def _sensible(name: str, value: object) -> bool:
    """Whether a reading can be what the field says: None, a bool where one belongs, else a finite number."""
    if value is None:
        return True
    if name in ("on_mains", "throttled"):
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if name in _SHARES:
        return 0 <= value <= 1
    return not (name in ("battery_energy_j", "power_w") and value < 0)
