"""The journal: every condition, decision, switch and answer as JSON Lines, a trace in itself.

::

    journal.jsonl                        being written; its first line is a meta record
    journal-20260131T120000Z-000001.jsonl.gz   older, compressed; the oldest are deleted beyond ``keep``

Each line has ``kind``, ``t_mono_ns`` and ``t_unix_ns``; the structs below are the kinds. Callers only append to a
bounded queue: a background thread encodes, writes and rotates. A full queue drops and counts, a full disk stops the
journal and says so; neither ever delays or fails an answer. A file that an earlier run left
is set aside at the next start without the line that a power loss may have torn.
"""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agent.values import JournalStatus
from policies.base import Conditions

SCHEMA = 1
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


class DecisionLine(Record, tag="decision", kw_only=True, omit_defaults=True):
    """What the policy decided; where a hold, the guard or a dry run changed it, what was applied and why."""

    conditions: Conditions
    current: str | None
    point: str
    reason: str
    bound: str = ""
    applied: str = ""
    applied_why: str = ""


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


class Journal:
    """Writes records to a directory.

    Args:
        folder: made when missing.
        max_bytes: size at which a file is compressed and a new one begun.
        keep: how many compressed files stay.
        queue_limit: records that may wait for the disk.
        on_stop: called with the reason when writing had to stop.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 16 * 2**20,
        keep: int = 16,
        queue_limit: int = 8192,
        on_stop: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.folder, self.path = folder, folder / "journal.jsonl"
        self._max_bytes, self._keep, self._limit, self._on_stop = max_bytes, keep, queue_limit, on_stop
        self._queue: deque[tuple[Record, dict[str, Any] | None]] = deque()
        self._encoder = msgspec.json.Encoder()
        self._meta: Meta | None = None
        self._file: Any = None
        self._size = 0
        self._written = self._dropped = 0
        self._stopped = ""
        self._closing = threading.Event()
        self._flushing = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, on_stop: Callable[[str], None] | None = None) -> None:
        """Begins writing in the background; a file left by an earlier run is set aside first."""
        if on_stop is not None:
            self._on_stop = on_stop
        self._thread = threading.Thread(target=self._run, name="gearshift-journal", daemon=True)
        self._thread.start()

    def write(self, record: Record, *, state: dict[str, Any] | None = None) -> None:
        """Queues a record; drops it when too many wait or the journal has stopped.

        Args:
            record: stamped here with both times, and not to be changed by the caller afterwards.
            state: with a decision, the policy's state before it: a file may begin here.
        """
        if len(self._queue) >= self._limit or self._stopped:
            self._dropped += 1
            return
        record.t_mono_ns, record.t_unix_ns = time.monotonic_ns(), time.time_ns()
        self._queue.append((record, state))

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
            if self._file is not None:
                self._file.close()
                self._file = None

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            self.flush()

    def _drain(self) -> None:
        if self._stopped:
            self._dropped += len(self._queue)
            self._queue.clear()
            return
        try:
            lines: list[bytes] = []
            while self._queue:
                record, state = self._queue.popleft()
                if isinstance(record, Meta):
                    self._meta = record
                elif state is not None and self._size > self._max_bytes:
                    self._put(lines)
                    lines = []
                    self._rotate()
                    lines.append(self._header(record, state))
                line = self._encoder.encode(record)
                self._size += len(line) + 1
                lines.append(line)
            self._put(lines)
        except (OSError, ValueError, TypeError, msgspec.MsgspecError) as error:
            self._stop(f"{self.path}: {error}")

    def _put(self, lines: list[bytes]) -> None:
        if not lines:
            return
        if self._file is None:
            self._open()
        self._file.write(b"\n".join(lines) + b"\n")
        self._file.flush()
        self._written += len(lines)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            self._set_aside()
        self._file = self.path.open("ab")

    def _rotate(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._set_aside()
        self._size = 0

    def _set_aside(self) -> None:
        """Compresses the file under a name that sorts by age, then deletes the oldest beyond ``keep``."""
        older = sorted(self.folder.glob("journal-*.jsonl.gz"))
        number = int(older[-1].name.removesuffix(".jsonl.gz").rsplit("-", 1)[1]) + 1 if older else 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.path.stat().st_mtime))
        target = self.folder / f"journal-{stamp}-{number:06d}.jsonl.gz"
        partial = target.with_suffix(".partial")
        with self.path.open("rb") as source, gzip.open(partial, "wb", compresslevel=6) as packed:
            for line in source:
                if line.endswith(b"\n"):  # what a power loss tore off tells nothing
                    packed.write(line)
        partial.replace(target)
        self.path.unlink()
        for old in [*older, target][: -self._keep]:
            old.unlink(missing_ok=True)

    def _header(self, first: Record, state: dict[str, Any]) -> bytes:
        """The meta line of a new file: the run's own, with the policy's state as of its first decision."""
        if self._meta is None:
            raise ValueError("a journal begins with a meta record")
        policy = {**self._meta.policy, "state": state}
        meta = msgspec.structs.replace(self._meta, policy=policy, t_mono_ns=first.t_mono_ns, t_unix_ns=first.t_unix_ns)
        return self._encoder.encode(meta)

    def _stop(self, why: str) -> None:
        self._stopped = why
        self._dropped += len(self._queue)
        self._queue.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full: what could be written is written
                self._file.close()
            self._file = None
        self._on_stop(why)
