"""What a policy achieved on a trace: counts and sums that add up, so that shards and seeds can be merged.

* :class:`Sketch`: latencies as a histogram with fixed log-spaced bins; merging is exact.
* :class:`SwitchEvent`, :class:`Timeline`: what happened when, for reports; bounded in size.
* :class:`Outcome`: all of it, with the derived figures as properties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_LOG_RATIO = math.log(1.01)  # a bin is 1 % wide: a quantile is within 0.5 %
_SMALLEST_S = 1e-7


class Sketch(msgspec.Struct, frozen=True):
    """How many values fell into each bin; bin k spans 1.01**k to 1.01**(k+1) seconds."""

    counts: dict[int, int] = {}

    @staticmethod
    def of(values_s: NDArray[np.float64]) -> Sketch:
        """The sketch of these values; values below 0.1 microseconds count as that."""
        if not len(values_s):
            return Sketch()
        bins = np.floor(np.log(np.maximum(values_s, _SMALLEST_S)) / _LOG_RATIO).astype(np.int64)
        lowest = int(bins.min())
        counts = np.bincount(bins - lowest)
        keys = np.flatnonzero(counts)
        return Sketch(dict(zip((keys + lowest).tolist(), counts[keys].tolist(), strict=True)))

    def merge(self, other: Sketch) -> Sketch:
        """Both together."""
        return Sketch(_added(self.counts, other.counts))

    def quantile_s(self, share: float) -> float | None:
        """The value below which ``share`` of the values lie, within 0.5 %; None when there are none."""
        total = sum(self.counts.values())
        if not total:
            return None
        wanted, seen, last = share * total, 0, 0
        for last in sorted(self.counts):
            seen += self.counts[last]
            if seen >= wanted:
                break
        return math.exp((last + 0.5) * _LOG_RATIO)


class SwitchEvent(msgspec.Struct, frozen=True, rename={"from_point": "from", "to_point": "to"}):
    """The policy changed the operating point."""

    time_s: float
    from_point: str
    to_point: str
    reason: str


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """The run in at most a few thousand steps; entry k describes the interval that begins at ``time_s[k]``.

    ``point`` indexes ``points`` and is the one in use at the beginning. None = not modelled or not known.
    """

    points: tuple[str, ...]  # fastest first
    time_s: tuple[float, ...]
    point: tuple[int, ...]
    arrival_rate_hz: tuple[float, ...]
    queue_depth: tuple[int, ...]
    temperature_c: tuple[float, ...] | None
    charge: tuple[float, ...] | None
    power_w: tuple[float, ...] | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one trace, or several merged. Sums add up; extremes take the worse; the first run's timeline stays.

    Every request ends exactly once: ``requests == answered + dropped``. ``energy_j`` is all that was drawn,
    ``net_energy_j`` what answering drew above idle; None where the table does not know, and ``notes`` says why.
    """

    runs: int = 1
    duration_s: float
    requests: int
    answered: int
    on_time: int  # answered within the deadline, or at all where there is none
    dropped_queue: int = 0  # the queue was full
    dropped_late: int = 0  # the deadline had passed before an answer could begin
    dropped_off: int = 0  # the battery was empty
    accuracy_sum: float  # over on-time answers, of their operating point's accuracy
    energy_j: float | None
    net_energy_j: float | None
    switches: int
    slack_choices: int = 0  # batches answered below the ceiling by the slack plan
    seconds_in: dict[str, float]  # subnet -> seconds as the ceiling
    bounds: dict[str, int]  # constraint that bound -> decisions
    latencies: Sketch  # of all answers
    peak_temperature_c: float | None
    peak_power_w: float | None = None  # of the hungriest operating point that answered, as calibrated
    throttled_s: float | None
    over_temperature_s: float | None  # above the goal's limit
    battery_left: float | None  # share 0..1; lowest of the runs
    battery_left_j: float | None
    time_to_empty_s: float | None  # earliest of the runs; None = never
    battery_at_goal: float | None = None  # share 0..1 when it was to last until, or at the end; lowest of the runs
    off_s: float = 0.0  # seconds without power
    notes: tuple[str, ...] = ()
    switch_events: tuple[SwitchEvent, ...] = ()  # the first of them; ``switches`` counts all
    timeline: Timeline | None = None

    @property
    def late(self) -> int:
        """Answered after the deadline."""
        return self.answered - self.on_time

    @property
    def dropped(self) -> int:
        """Never answered."""
        return self.dropped_queue + self.dropped_late + self.dropped_off

    @property
    def mean_accuracy(self) -> float | None:
        """Of on-time answers; None when there were none."""
        return self.accuracy_sum / self.on_time if self.on_time else None

    @property
    def goodput(self) -> float | None:
        """Expected correct answers on time, as a share of all requests."""
        return self.accuracy_sum / self.requests if self.requests else None

    @property
    def time_share(self) -> dict[str, float]:
        """Subnet -> share of the powered time as the ceiling."""
        total = sum(self.seconds_in.values())
        return {subnet: seconds / total for subnet, seconds in self.seconds_in.items()} if total else {}

    def latency_ms(self, share: float) -> float | None:
        """A quantile of the time from arrival to answer; None when nothing was answered."""
        found = self.latencies.quantile_s(share)
        return None if found is None else 1000.0 * found

    def merge(self, other: Outcome) -> Outcome:
        """Both together; associative up to rounding of the sums."""
        sums: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name)
            for name in (
                "runs",
                "duration_s",
                "requests",
                "answered",
                "on_time",
                "dropped_queue",
                "dropped_late",
                "dropped_off",
                "accuracy_sum",
                "switches",
                "slack_choices",
                "off_s",
            )
        }
        known: dict[str, Any] = {
            name: None if None in (mine := getattr(self, name), theirs := getattr(other, name)) else mine + theirs
            for name in ("energy_j", "net_energy_j", "throttled_s", "over_temperature_s")
        }
        return Outcome(
            **sums,
            **known,
            seconds_in=_added(self.seconds_in, other.seconds_in),
            bounds=_added(self.bounds, other.bounds),
            latencies=self.latencies.merge(other.latencies),
            peak_temperature_c=_worse(max, self.peak_temperature_c, other.peak_temperature_c),
            peak_power_w=_worse(max, self.peak_power_w, other.peak_power_w),
            battery_left=_worse(min, self.battery_left, other.battery_left),
            battery_left_j=_worse(min, self.battery_left_j, other.battery_left_j),
            time_to_empty_s=_worse(min, self.time_to_empty_s, other.time_to_empty_s),
            battery_at_goal=_worse(min, self.battery_at_goal, other.battery_at_goal),
            notes=tuple(dict.fromkeys(self.notes + other.notes)),
            switch_events=self.switch_events,
            timeline=self.timeline,
        )

    def summary(self) -> dict[str, Any]:
        """The figures as JSON types, without timeline and sketch."""
        return {
            "requests": self.requests,
            "answered": self.answered,
            "on_time": self.on_time,
            "late": self.late,
            "dropped": self.dropped,
            "dropped_queue": self.dropped_queue,
            "dropped_late": self.dropped_late,
            "dropped_off": self.dropped_off,
            "mean_accuracy": self.mean_accuracy,
            "goodput": self.goodput,
            "energy_j": self.energy_j,
            "net_energy_j": self.net_energy_j,
            "switches": self.switches,
            "slack_choices": self.slack_choices,
            "time_share": self.time_share,
            "bounds": self.bounds,
            "latency_p50_ms": self.latency_ms(0.5),
            "latency_p95_ms": self.latency_ms(0.95),
            "latency_p99_ms": self.latency_ms(0.99),
            "peak_temperature_c": self.peak_temperature_c,
            "peak_power_w": self.peak_power_w,
            "throttled_s": self.throttled_s,
            "over_temperature_s": self.over_temperature_s,
            "battery_left": self.battery_left,
            "battery_left_j": self.battery_left_j,
            "time_to_empty_s": self.time_to_empty_s,
            "battery_at_goal": self.battery_at_goal,
            "off_s": self.off_s,
            "duration_s": self.duration_s,
            "notes": list(self.notes),
        }


def _added(mine: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> dict[Any, Any]:
    both = dict(mine)
    for key, value in theirs.items():
        both[key] = both.get(key, 0) + value
    return dict(sorted(both.items()))


def _worse(choose: Any, mine: float | None, theirs: float | None) -> float | None:
    known = [value for value in (mine, theirs) if value is not None]
    return choose(known) if known else None
