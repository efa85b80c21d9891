"""The agent's clock, which goes on over restarts; and what a wall clock that is set could break.

* :class:`AgentClock`: monotonic seconds. Where a state file tells what it read before, it goes on from there, the time
  between included; so whatever was remembered with a time on it (a hold, a policy's state, until when the battery must
  last) still means the same, after a start of the machine as well.
* :class:`JumpWatch`: tells when the wall clock was set, or the machine has slept.
* :class:`Horizon`: until when the battery must last, as an absolute time that no reload and no restart moves.

Knows nothing of policies.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent import quantities

LEAST_JUMP_S = 2.0  # a wall clock that is slewed moves by 0.5 ms a second


def boot() -> str:
    """Names the time since the machine was started: within it, the monotonic clock is one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()[:13]
    except OSError:
        return ""


class ClockReading(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all clocks read at one instant."""

    name: str  # of the agent's clock
    boot: str
    agent_s: float
    monotonic_s: float
    unix_s: float


class AgentClock:
    """Seconds that never go back; call it to read it.

    Args:
        before: what the clocks read in an earlier run; None = begin with the monotonic clock.
        wall, monotonic, booted: where time comes from.
    """

    def __init__(
        self,
        before: ClockReading | None = None,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        booted: str | None = None,
    ) -> None:
        self.wall, self._monotonic = wall, monotonic
        self._boot = boot() if booted is None else booted
        self.name, self._ahead_s = self._boot, 0.0
        if before is not None and before.boot == self._boot:
            self.name, self._ahead_s = before.name, before.agent_s - before.monotonic_s
        elif before is not None:
            # A machine without a battery for its clock may start in the past: then no time has passed, as far as known.
            passed_s = max(0.0, wall() - before.unix_s)
            self.name, self._ahead_s = before.name, before.agent_s + passed_s - monotonic()

    def __call__(self) -> float:
        """The time in seconds."""
        return self._monotonic() + self._ahead_s

    @property
    def read(self) -> Callable[[], float]:
        """What to call in a hurry for the same time."""
        return self if self._ahead_s else self._monotonic

    def reading(self) -> ClockReading:
        """All clocks now."""
        monotonic_s = self._monotonic()
        return ClockReading(
            name=self.name,
            boot=self._boot,
            agent_s=monotonic_s + self._ahead_s,
            monotonic_s=monotonic_s,
            unix_s=self.wall(),
        )


class JumpWatch:
    """Compares wall clock and agent's clock, one call a control period.

    Args:
        wall: seconds since 1970.
        on_event: called with (name, detail) for ``clock_jumped``.
    """

    def __init__(self, wall: Callable[[], float], on_event: Callable[[str, dict[str, Any]], None]) -> None:
        self.jumps = 0
        self._wall, self._on_event = wall, on_event
        self._apart_s: float | None = None

    def watch(self, now_s: float, faults: list[str]) -> None:
        """Tells a jump since the last call, and appends it to ``faults``."""
        before_s, self._apart_s = self._apart_s, self._wall() - now_s
        if before_s is None or abs(by_s := self._apart_s - before_s) < LEAST_JUMP_S:
            return
        self.jumps += 1
        faults.append(f"clock jumped: the wall clock by {by_s:+.0f} s (it was set, or the machine slept)")
        self._on_event("clock_jumped", {"by_s": round(by_s, 1)})


class Until(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``last_until`` and the time it came to, on the agent's clock."""

    said: str
    until_s: float


class Horizon:
    """Turns a ``last_until`` into a time on the agent's clock, and keeps to it.

    A duration counts from when it was first said, over reloads and restarts, until that time is over; said again by a
    new start after that, it counts anew. A time of day is the next one by the wall clock whenever it is asked for.

    Args:
        clock: the agent's.
        before: what was kept in an earlier run.
    """

    def __init__(self, clock: AgentClock, before: Until | None = None) -> None:
        self._clock = clock
        self.kept = before if before is not None and before.until_s > clock() else None

    def until_s(self, said: str | float | None) -> float | None:
        """The time on the agent's clock; None where nothing was said.

        Raises:
            InputError: it is neither a duration nor a time of day.
        """
        if said is None:
            self.kept = None
            return None
        if self.kept is None or self.kept.said != str(said) or is_time_of_day(said):
            now = datetime.datetime.fromtimestamp(self._clock.wall())
            until_s = self._clock() + quantities.seconds_until(said, now)
            self.kept = Until(said=str(said), until_s=until_s)
        return self.kept.until_s


def is_time_of_day(said: str | float) -> bool:
    """Whether a ``last_until`` follows the wall clock."""
    return re.fullmatch(r"\s*\d{1,2}:\d{2}\s*", str(said)) is not None
