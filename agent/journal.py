"""The journal: every condition, decision, switch and answer as JSON Lines, a trace in itself.

Each line has ``kind``, ``t_mono_ns`` and ``t_unix_ns``; the structs below are the kinds. Callers only append to a
bounded queue: a background thread encodes, writes and rotates. A full queue drops and counts. A full disk stops the
journal until there is room again: each is told, and neither ever delays or fails an answer. Wherever a decision is
missing, the next one begins a session with the policy's state, so that every session replays exactly. The files are
:mod:`agent.rolling`'s.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agent.rolling import RollingFile
from agent.values import JournalStatus
from policies.base import Conditions

SCHEMA = 1
RETRY_S, LONGEST_RETRY_S = 10.0, 300.0  # between two attempts to go on after a failure
_POLL_S = 0.2


class Record(msgspec.Struct, kw_only=True, tag_field="kind", gc=False):
    """Base of all lines; the times are filled in when it is queued."""

    t_mono_ns: int = 0
    t_unix_ns: int = 0


class Meta(Record, tag="meta", kw_only=True):
    """What the following lines were made with. ``points`` are the operating points the policy could choose from."""

    schema: int = SCHEMA
    version: str
    bundle: str
    bundle_key: str
    table_key: str
    policy: dict[str, Any]  # name, options, and state: what Policy.restore needs to go on from here
    goals: dict[str, Any]
    host: str
    points: tuple[str, ...] = ()
    dry_run: bool = False
    clock: str = ""  # names the clock of t_mono_ns: sessions with the same name lie on one scale


class DecisionLine(Record, tag="decision", kw_only=True, omit_defaults=True):
    """What the policy decided; where a hold, the guard or a dry run changed it, what was applied and why.

    ``asked`` is empty where the policy answered. ``failed``: it raised and has the state it had before; ``forgot``: it
    raised and began anew; ``late``: it took too long, what it decided is unknown here; ``busy``: it was still at an
    earlier decision and was not asked.
    """

    conditions: Conditions
    current: str | None
    point: str
    reason: str
    bound: str = ""
    applied: str = ""
    applied_why: str = ""
    applied_bound: str = ""
    asked: str = ""


class SwitchLine(Record, tag="switch", kw_only=True):
    """Another operating point answers from here on; ``ms`` since it was first wanted, loading included."""

    from_: str | None = msgspec.field(name="from")
    to: str
    reason: str
    ms: float


class BatchLine(Record, tag="batch", kw_only=True):
    """One request that was answered, or that no engine could answer."""

    arrived_ns: int
    n: int
    point: str
    queue_ms: float
    infer_ms: float
    deadline_ms: float | None
    ok: bool = True


class EventLine(Record, tag="event", kw_only=True):
    """Anything else worth telling."""

    name: str
    detail: dict[str, Any]


class _Queued(NamedTuple):
    record: Record
    state: dict[str, Any] | None  # the policy's, before a decision
    fresh: bool  # a decision before this one is missing


class Journal:
    """Writes records to a directory.

    Args:
        folder: made when missing.
        max_bytes: size at which a file is compressed and a new one begun.
        keep: how many compressed files stay.
        queue_limit: records that may wait for the disk.
        retry_s: after a failure, until writing is tried again; doubled each time up to :data:`LONGEST_RETRY_S`.
        clock: of ``t_mono_ns``, in seconds; the agent's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 16 * 2**20,
        keep: int = 16,
        queue_limit: int = 8192,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.stops = folder, 0
        self._file = RollingFile(folder, keep)
        self._max_bytes, self._limit, self._clock = max_bytes, queue_limit, clock
        self._first_retry_s = self._retry_s = retry_s
        self._on_event: Callable[[str, dict[str, Any]], None] = lambda name, detail: None
        self._queue: deque[_Queued] = deque()
        self._encoder = msgspec.json.Encoder()
        self._meta: Meta | None = None
        self._written = self._dropped = 0
        self._missing = False  # a decision was not queued; the next one that is says so
        self._gap = False  # a decision was not written; the next one begins a session
        self._stopped, self._stopped_s, self._retry_at_s, self._dropped_then = "", 0.0, 0.0, 0
        self._closing = threading.Event()
        self._flushing = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """The file being written."""
        return self._file.path

    def start(self, on_event: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        """Begins writing in the background.

        Args:
            on_event: called with (name, detail) for ``journal_stopped`` and ``journal_resumed``.
        """
        if on_event is not None:
            self._on_event = on_event
        self._thread = threading.Thread(target=self._run, name="gearshift-journal", daemon=True)
        self._thread.start()

    def write(self, record: Record, *, state: dict[str, Any] | None = None) -> None:
        """Queues a record; drops it when too many wait. Decisions come from one thread at a time.

        Args:
            record: stamped here with both times, and not to be changed by the caller afterwards.
            state: with a decision, the policy's state before it: a session may begin here.
        """
        decision = isinstance(record, DecisionLine)
        if len(self._queue) >= self._limit and not isinstance(record, Meta):  # without its meta nothing can be replayed
            self._dropped += 1
            self._missing |= decision
            return
        record.t_mono_ns, record.t_unix_ns = int(self._clock() * 1e9), time.time_ns()
        self._queue.append(_Queued(record, state, decision and self._missing))
        if decision:
            self._missing = False

    def status(self) -> JournalStatus:
        """How it fares."""
        return JournalStatus(path=str(self.path), written=self._written, dropped=self._dropped, stopped=self._stopped)

    def flush(self) -> None:
        """Writes what is queued now."""
        with self._flushing:
            self._drain()

    def close(self) -> None:
        """Writes what is queued and ends the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._flushing:
            self._drain()
            self._file.close()

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            self.flush()

    def _drain(self) -> None:
        lines: list[bytes] = []
        while self._queue:
            queued = self._queue.popleft()
            if isinstance(queued.record, Meta):
                self._meta = queued.record
            if self._stopped and not self._resume(queued):
                self._dropped += 1
                continue
            line, header = self._encoded(queued.record), None
            if isinstance(queued.record, DecisionLine):
                full = self._file.size + sum(map(len, lines)) > self._max_bytes and queued.state is not None
                begins = full or queued.fresh or self._gap
                header = self._header(queued.record, queued.state) if begins else None
                if line is None or (begins and header is None):
                    line, self._gap = None, True
                elif full:
                    self._write(lines)
                    lines = []
                    if self._stopped or not self._rotate():
                        line = None
            if line is None:
                self._dropped += 1
                continue
            self._gap &= header is None and not isinstance(queued.record, Meta)
            lines += [header, line] if header is not None else [line]
        self._write(lines)

    def _encoded(self, record: Record) -> bytes | None:
        try:
            return self._encoder.encode(record)
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError):  # one that is no JSON: not the others' end
            return None

    def _header(self, first: Record, state: dict[str, Any] | None) -> bytes | None:
        """The meta line of a new session: the run's own, with the policy's state as of its first decision."""
        if self._meta is None or state is None:
            return None
        policy = {**self._meta.policy, "state": state}
        meta = msgspec.structs.replace(self._meta, policy=policy, t_mono_ns=first.t_mono_ns, t_unix_ns=first.t_unix_ns)
        return self._encoded(meta)

    def _write(self, lines: list[bytes]) -> bool:
        """Whether whole lines could be written; if not, the journal has stopped."""
        try:
            if lines:
                self._file.append(b"\n".join(lines) + b"\n")
        except OSError as error:
            self._dropped += len(lines)
            self._stop(error)
            return False
        self._written += len(lines)
        return True

    def _rotate(self) -> bool:
        try:
            self._file.rotate()
        except OSError as error:
            self._stop(error)
            return False
        return True

    def _stop(self, error: OSError) -> None:
        self._file.abandon()
        self._gap = True
        first, self._stopped = not self._stopped, f"{self.path}: {error}"
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)
        if first:
            self.stops += 1
            self._stopped_s, self._dropped_then = time.monotonic(), self._dropped
            self._on_event("journal_stopped", {"error": self._stopped})

    def _resume(self, queued: _Queued) -> bool:
        """Tries to go on with a decision; False where it is too early, or the disk is still full.

        The gap is told in the journal itself, before that decision.
        """
        if not isinstance(queued.record, DecisionLine) or time.monotonic() < self._retry_at_s:
            return False
        header = self._header(queued.record, queued.state)
        if header is None:
            return False
        detail = {
            "error": self._stopped,
            "stopped_s": round(time.monotonic() - self._stopped_s, 1),
            "dropped": self._dropped - self._dropped_then,
        }
        told = EventLine(name="journal_resumed", detail=detail)
        told.t_mono_ns, told.t_unix_ns = queued.record.t_mono_ns, queued.record.t_unix_ns
        if not self._write([header, self._encoder.encode(told)]):
            self._dropped -= 2  # they were nobody's records
            return False
        self._stopped, self._gap, self._retry_s = "", False, self._first_retry_s
        self._on_event("journal_resumed", detail)
        return True
