"""The state file: what a restart goes on with, however the last run ended.

::

    clock        so that every time that was remembered still means the same
    hold         an operator's, until it expires
    last_until   the absolute time
    policy       its state: the battery plan, what heat and load have taught it

Written whole or not at all, whenever a hold comes or goes and every minute. Believed only for the same bundle; the
policy's state only for the same table, policy, options and goals. A file that is damaged is told and left out of
account. Knows nothing of threads of control or sockets.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.clocks import AgentClock, ClockReading, Horizon, Until
from agent.errand import Errand, Late
from agent.values import Hold
from subnets.bundle import write_atomically

SCHEMA = 1
EVERY_S = 60.0
_MAX_BYTES = 16 * 2**20


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PolicyState(_Strict, frozen=True, kw_only=True):
    """A policy's state and what it is only good for."""

    table_key: str
    name: str
    options: dict[str, Any]
    goals: dict[str, Any]  # without last_until_s, which may be a time of day
    state: dict[str, Any]

    def fits(self, other: PolicyState) -> bool:
        """Whether ``other``'s policy can go on from this state."""
        return msgspec.structs.replace(self, state={}) == msgspec.structs.replace(other, state={})


class Kept(_Strict, frozen=True, kw_only=True):
    """What the agent hands over to be kept."""

    bundle_key: str
    policy: PolicyState
    hold: Hold | None  # its times are on the agent's clock


class _File(_Strict, frozen=True, kw_only=True):
    schema: int
    clock: ClockReading
    kept: Kept
    last_until: Until | None


def state_path(said: str, journal: str, bundle: str) -> Path:
    """Where the state of an agent lies: in the folder that was said, ``$STATE_DIRECTORY``, the journal's, or
    ``$XDG_STATE_HOME/gearshift``."""
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "gearshift"
    folder = said or os.environ.get("STATE_DIRECTORY", "").split(":")[0] or journal or home
    return Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', bundle)}.state.json"


class Keeper:
    """Reads the file once, at the start, and writes it from then on.

    Args:
        path: of the file.
        clock: makes the agent's clock of what an earlier run left.
        dry_run: neither write nor restore anything; the clock goes on all the same.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[ClockReading | None], AgentClock] = AgentClock, dry_run: bool = False
    ) -> None:
        self.path, self._dry_run = path, dry_run
        self.failures = 0
        self.ignored = ""  # why a file that is there is not believed
        self._found = self._read()
        self.clock = clock(self._found.clock if self._found else None)
        self.horizon = Horizon(self.clock, self._found.last_until if self._found else None)
        self._on_event: Callable[[str, dict[str, Any]], None] = lambda name, detail: None
        self._make: Callable[[], Kept] | None = None
        self._error = ""
        self._writing = threading.Lock()
        self._errand: Errand[None] = Errand("gearshift-state")
        self._due_s = 0.0

    def start(self, make: Callable[[], Kept], on_event: Callable[[str, dict[str, Any]], None]) -> None:
        """From here on it may be written.

        Args:
            make: what is to be kept; called from any thread.
            on_event: called with (name, detail) for ``state_failed``.
        """
        self._make, self._on_event = make, on_event
        if self.ignored:
            self._on_event("state_failed", {"error": self.ignored})

    def restored(self, now: Kept) -> tuple[Hold | None, dict[str, Any] | None]:
        """(hold, policy's state) of an earlier run, as far as they are of the same things as ``now``."""
        kept = self._found.kept if self._found is not None else None
        if kept is None or self._dry_run or kept.bundle_key != now.bundle_key:
            return None, None
        hold = kept.hold if kept.hold is not None and kept.hold.until_s > self.clock() else None
        return hold, kept.policy.state if kept.policy.fits(now.policy) else None

    def keep(self) -> None:
        """Writes the file now; what the disk refuses is told, not raised."""
        if self._make is None or self._dry_run:
            return
        with self._writing:  # what is kept is asked for inside: nobody may write something older afterwards
            made = _File(schema=SCHEMA, clock=self.clock.reading(), kept=self._make(), last_until=self.horizon.kept)
            try:
                write_atomically(self.path, msgspec.json.encode(made) + b"\n")
            except (OSError, ValueError, TypeError, msgspec.MsgspecError) as error:
                self.failures += 1
                before, self._error = self._error, f"{self.path}: cannot be written ({error})"
                if not before:
                    self._on_event("state_failed", {"error": self._error})
            else:
                self._error = ""

    def keep_soon(self) -> None:
        """Has the file written with the next control period."""
        self._due_s = 0.0

    def watch(self, now_s: float, faults: list[str]) -> None:
        """Writes the file every minute, in another thread, and appends to ``faults`` what is wrong with it."""
        if now_s >= self._due_s:
            self._due_s = now_s + EVERY_S
            with contextlib.suppress(Late):  # a disk may take its time
                self._errand.run(self.keep, 0.0)
        if self._error or self.ignored:
            faults.append(f"state not kept: {self._error}" if self._error else f"state ignored: {self.ignored}")
            self.ignored = ""

    def close(self) -> None:
        """Writes the file for the last time."""
        self._errand.dismiss()
        self.keep()
        self._make = None

    def _read(self) -> _File | None:
        with contextlib.suppress(OSError):
            for left in () if self._dry_run else self.path.parent.glob(f".{self.path.name}-*"):  # killed while writing
                left.unlink(missing_ok=True)
        try:
            if self.path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES} bytes")
            found = msgspec.json.decode(self.path.read_bytes(), type=_File)
            if found.schema != SCHEMA:
                raise ValueError(f"schema {found.schema}, expected {SCHEMA}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            self.failures += 1
            self.ignored = f"{self.path}: not the state of an agent ({error}); starting without it"
            return None
        return found
