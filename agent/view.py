"""The agent at a glance, as ``gearshift top`` and the web page show it: one value, made whenever someone looks.

* :class:`View`: status, headrooms, the calibrated points, recent latency, the last minutes, switches and faults.
* :class:`Viewer`: remembers what a status does not hold: a sample every second, the last switches and faults.

Knows nothing of HTTP or terminals.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec

from agent import events
from agent.core import Agent
from agent.headroom import Headroom, headrooms
from agent.resident import EngineKey, engine_key
from agent.tallies import quantile_ms
from agent.values import Event, Status
from calibration.table import Row, frontier

HISTORY = 180  # samples
SAMPLE_S = 1.0  # least time between two samples
WINDOW_S = 10.0  # over which recent latencies are taken
_LAST = 8  # switches and faults


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, in words; ``times`` counts equal ones in a row, and ``unix_s`` is the last."""

    unix_s: float
    name: str
    words: str
    times: int = 1


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """One switch."""

    unix_s: float
    origin: str | None
    to: str
    reason: str
    bound: str
    ms: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One calibrated operating point, at its smallest batch; ``useful`` = no other is both as quick and as accurate."""

    point: str
    subnet: str
    accuracy: float
    latency_p50_ms: float
    latency_p99_ms: float
    work_w: float | None
    energy_j: float | None
    energy_source: str
    useful: bool
    resident: bool
    current: bool


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of the answers in the last ``window_s`` seconds, from arrival; None where there was none."""

    window_s: float
    answers: int
    p50_ms: float | None
    tail_ms: float | None  # at the goals' percentile
    percentile: float
    deadline_ms: float | None
    miss_rate: float | None


class Sample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One moment of the last minutes; None where nothing is known."""

    unix_s: float
    p50_ms: float | None
    tail_ms: float | None
    power_w: float | None
    temperature_c: float | None
    charge: float | None
    rate_hz: float | None
    point: str | None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one glance. ``instance`` is another after a restart."""

    unix_s: float
    instance: str
    version: str
    status: Status
    headrooms: tuple[Headroom, ...]
    points: tuple[Point, ...]
    latency: Latency
    history: tuple[Sample, ...]
    switches: tuple[Changed, ...]  # newest first
    faults: tuple[Told, ...]  # newest first


class Viewer:
    """Watches one agent; make it before the agent starts, so that nothing is missed.

    Args:
        agent: watched.
        version: of the program.
        clock: monotonic seconds, for samples.
    """

    def __init__(self, agent: Agent, version: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        self.agent = agent
        self.switches_by_bound: Counter[str] = Counter()
        self.switch_ms = 0.0  # summed
        self._version, self._clock = version, clock
        self._instance = f"{time.time_ns():x}"
        self._counts: deque[tuple[float, list[int]]] = deque([(clock(), agent.tallies.totals())])
        self._history: deque[Sample] = deque(maxlen=HISTORY)
        self._switches: deque[Changed] = deque(maxlen=_LAST)
        self._faults: deque[Told] = deque(maxlen=_LAST)
        agent.on_event(self._on_event)
        agent.on_tick(self.sample)

    def sample(self) -> None:
        """Takes a sample if the last one is old enough; called once a control period."""
        now_s = self._clock()
        if self._history and now_s - self._counts[-1][0] < SAMPLE_S - 0.05:
            return
        self._counts.append((now_s, self.agent.tallies.totals()))
        while len(self._counts) > 2 and now_s - self._counts[1][0] >= WINDOW_S:
            self._counts.popleft()
        status = self.agent.status()
        conditions = status.conditions
        recent = _difference(self._counts[-1][1], self._counts[-2][1])
        self._history.append(
            Sample(
                unix_s=round(time.time(), 1),
                p50_ms=_short(quantile_ms(recent, 0.5)),
                tail_ms=_short(quantile_ms(recent, status.goals.deadline_percentile)),
                power_w=_short(conditions.power_w if conditions else None),
                temperature_c=_short(conditions.temperature_c if conditions else None),
                charge=_short(conditions.battery_charge if conditions else None),
                rate_hz=_short(conditions.arrival_rate_hz if conditions else None),
                point=status.point,
            )
        )

    def view(self) -> View:
        """Everything now; callable from any thread."""
        status = self.agent.status()
        latency = self._latency(status)
        return View(
            unix_s=time.time(),
            instance=self._instance,
            version=self._version,
            status=status,
            headrooms=headrooms(status.goals, status.conditions, latency.tail_ms),
            points=self._points(status),
            latency=latency,
            history=tuple(self._history),
            switches=tuple(reversed(self._switches)),
            faults=tuple(reversed(self._faults)),
        )

    def _latency(self, status: Status) -> Latency:
        since_s, before = self._counts[0]
        recent = _difference(self.agent.tallies.totals(), before)
        share = status.goals.deadline_percentile
        return Latency(
            window_s=round(self._clock() - since_s, 1),
            answers=sum(recent),
            p50_ms=quantile_ms(recent, 0.5),
            tail_ms=quantile_ms(recent, share),
            percentile=share,
            deadline_ms=status.goals.deadline_ms,
            miss_rate=status.conditions.miss_rate if status.conditions else None,
        )

    def _points(self, status: Status) -> tuple[Point, ...]:
        resident = {(e.subnet, e.backend, e.precision, e.threads) for e in status.engines if e.resident}
        every = self.agent.table.rows  # another table after measuring again
        rows = _smallest(every)
        useful = {row.point for row in frontier(rows)}

        def told(row: Row) -> Point:
            return Point(
                point=row.point,
                subnet=row.subnet,
                accuracy=row.accuracy,
                latency_p50_ms=row.latency_p50_ms,
                latency_p99_ms=row.latency_p99_ms,
                work_w=row.power_w,
                energy_j=row.energy_j,
                energy_source=row.energy_source,
                useful=row.point in useful,
                resident=tuple(engine_key(row)) in resident,
                current=row.point == status.point,
            )

        in_use = [row for row in every if row.point == status.point and row not in rows]
        return tuple(told(row) for row in sorted([*rows, *in_use], key=lambda row: row.latency_p50_ms))

    def _on_event(self, event: Event) -> None:
        if event.name == "switch":
            detail = event.detail
            if detail["from"] is not None:  # the first engine is no switch
                self.switches_by_bound[detail["bound"]] += 1
                self.switch_ms += detail["ms"]
            self._switches.append(
                Changed(
                    unix_s=time.time(),
                    origin=detail["from"],
                    to=detail["to"],
                    reason=detail["reason"],
                    bound=detail["bound"],
                    ms=detail["ms"],
                )
            )
        elif events.is_fault(event.name):
            words = events.words(event.name, event.detail)
            before = self._faults[-1] if self._faults else None
            times = 1
            if before is not None and (before.name, before.words) == (event.name, words):
                self._faults.pop()
                times += before.times
            self._faults.append(Told(unix_s=time.time(), name=event.name, words=words, times=times))


def _smallest(rows: Sequence[Row]) -> list[Row]:
    """Each engine's row with the smallest batch: the latency of one request."""
    found: dict[EngineKey, Row] = {}
    for row in sorted(rows, key=lambda row: row.batch_size):
        found.setdefault(engine_key(row), row)
    return list(found.values())


def _difference(now: list[int], before: list[int]) -> list[int]:
    return [mine - theirs for mine, theirs in zip(now, before, strict=True)]


def _short(value: float | None) -> float | None:
    """Four significant digits: a sample is for a picture."""
    return None if value is None else float(f"{value:.4g}")
