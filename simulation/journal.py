"""The agent's journal: read, and turned into a trace.

A journal is JSON Lines. Each line is an object with ``kind``, ``t_mono_ns`` and ``t_unix_ns``; the first is ``meta``,
and every restart, reload and rotation writes another ``meta``. A torn last line (the power went) is skipped; a broken
line elsewhere is an error with its number. Rotated parts (``.jsonl.gz``) are given in order of time.

* :func:`read` -> :class:`Journal` of :class:`Meta`, :class:`Recorded` decisions, :class:`Batch` and switches.
* :func:`trace`: arrivals, deadlines, slowdown and mains of a journal.

What it decided is replayed by :mod:`simulation.verify`.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from policies.base import Conditions
from simulation.trace import MAX_ARRIVALS, Floats, Trace
from subnets.errors import InputError

SCHEMA = 1
MAX_JOURNAL_BYTES = 2 * 2**30
_MAX_LINE_BYTES = 2**20


class PolicyRecord(msgspec.Struct, frozen=True):
    """Which policy was running, with which options, and its state when the session began."""

    name: str
    options: dict[str, Any] = {}
    state: dict[str, Any] = {}


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """The header of one session: what was running. Fields that a replay does not need are left out."""

    t_mono_ns: int
    t_unix_ns: int
    schema: int
    bundle_key: str = ""
    table_key: str = ""
    policy: PolicyRecord | None = None
    goals: dict[str, Any] = {}
    points: tuple[str, ...] = ()  # the policy could choose from these rows; empty = from all
    clock: str = ""  # sessions with the same one have their monotonic times on one scale


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One decision with everything the policy saw."""

    t_mono_ns: int
    t_unix_ns: int
    conditions: Conditions
    current: str | None
    point: str
    reason: str
    bound: str = ""
    asked: str = ""  # "failed", "forgot", "late" or "busy" where the policy gave no answer, as agent.journal says


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One answered batch."""

    t_mono_ns: int
    t_unix_ns: int
    arrived_ns: int  # on the monotonic clock
    n: int
    point: str
    queue_ms: float
    infer_ms: float
    deadline_ms: float | None = None
    ok: bool = True


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """From one start of the agent to the next; ``offset_s`` is its start after the journal's."""

    meta: Meta
    offset_s: float
    decisions: tuple[Recorded, ...]
    batches: tuple[Batch, ...]


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """One or more sessions in order of time."""

    name: str
    sessions: tuple[Session, ...]
    torn: bool  # the last line was incomplete and was skipped

    @property
    def decisions(self) -> int:
        """How many decisions were recorded."""
        return sum(len(session.decisions) for session in self.sessions)


class _Kind(msgspec.Struct):
    kind: str


def read(paths: Sequence[Path | str]) -> Journal:
    """The journal in one file, or in rotated parts given oldest first.

    Raises:
        InputError: a file is missing, does not begin with a ``meta`` line, or has a broken line before its last.
    """
    sessions: list[tuple[Meta, list[Recorded], list[Batch]]] = []
    torn = False
    for part, path in enumerate(map(Path, paths)):
        for place, line, last in _lines(path):
            try:
                kind = msgspec.json.decode(line, type=_Kind).kind
                if kind == "meta":
                    sessions.append((msgspec.json.decode(line, type=Meta), [], []))
                elif not sessions:
                    raise InputError(
                        f"{place}: a journal begins with a line of kind 'meta'; give the oldest part first"
                    )
                elif kind == "decision":
                    sessions[-1][1].append(msgspec.json.decode(line, type=Recorded))
                elif kind == "batch":
                    sessions[-1][2].append(msgspec.json.decode(line, type=Batch))
            except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
                if last and part == len(paths) - 1:
                    torn = True
                    continue
                raise InputError(
                    f"{place}: not a journal line ({error}); remove the line to go on without it"
                ) from None
            if kind == "meta" and sessions[-1][0].schema != SCHEMA:
                raise InputError(f"{place}: journal schema {sessions[-1][0].schema}, expected {SCHEMA}")
    if not sessions:
        raise InputError(f"{paths[0]}: holds no journal line; expected JSON Lines that begin with kind 'meta'")
    found: list[Session] = []
    for meta, decisions, batches in sessions:
        if (offset_s := _offset_s(meta, found)) is None:
            raise InputError(f"{paths[0]}: a session starts before the one it follows; give rotated parts oldest first")
        found.append(Session(meta=meta, offset_s=offset_s, decisions=tuple(decisions), batches=tuple(batches)))
    return Journal(name=Path(paths[-1]).name, sessions=tuple(found), torn=torn)


def _offset_s(meta: Meta, before: Sequence[Session]) -> float | None:
    """When a session starts, after the journal's start; None when that is before the session it follows.

    By the monotonic clock where the two share one, for a wall clock may be set. Where they do not (the machine has
    started anew meanwhile), a wall clock that went back tells nothing: the session then follows at once.
    """
    if not before:
        return 0.0
    last = before[-1]
    if meta.clock and meta.clock == last.meta.clock:
        passed_ns = meta.t_mono_ns - last.meta.t_mono_ns
        return last.offset_s + passed_ns / 1e9 if passed_ns >= 0 else None
    passed_ns = meta.t_unix_ns - last.meta.t_unix_ns
    if passed_ns < 0 and not (meta.clock and last.meta.clock):
        return None
    ends = [decision.t_mono_ns for decision in last.decisions] + [batch.t_mono_ns for batch in last.batches]
    return last.offset_s + max(passed_ns, *(end - last.meta.t_mono_ns for end in ends), 0) / 1e9


def _lines(path: Path) -> Iterator[tuple[str, bytes, bool]]:
    """(place for messages, line, whether it is the last) of each line that is not blank."""
    if not path.is_file():
        raise InputError(f"{path}: no such journal")
    size = 0
    held: tuple[str, bytes] | None = None
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE_BYTES):
                number += 1
                size += len(line)
                if size > MAX_JOURNAL_BYTES:
                    raise InputError(f"{path}: larger than {MAX_JOURNAL_BYTES} bytes; cut it into parts")
                if held is not None:
                    yield *held, False
                held = (f"{path}, line {number}", line) if line.strip() else None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); give another file") from None
    if held is not None:
        yield *held, True


def trace(journal: Journal) -> Trace:
    """What came in while the journal was written: arrivals, measured slowdown, mains.

    Time 0 is the first ``meta`` line. Deadlines are taken where they vary; one for
    all is the goals' to say. Failed batches count: they were asked for. Slowdown and mains are taken from the
    recorded conditions; what was unknown then is left as it was before.

    Raises:
        InputError: it holds neither a batch nor a decision.
    """
    arrivals: list[float] = []
    deadlines: list[float] = []
    times: list[float] = []
    slowdowns: list[float | None] = []
    mains: list[float | None] = []
    for session in journal.sessions:
        start_ns = session.meta.t_mono_ns
        for batch in session.batches:
            # What was under way when a file was rotated arrived before that file's first line.
            at_s = max(0.0, session.offset_s + (batch.arrived_ns - start_ns) / 1e9)
            arrivals += [at_s] * max(0, batch.n)
            deadline_ms = math.inf if batch.deadline_ms is None else max(1e-3, batch.deadline_ms)
            deadlines += [deadline_ms / 1000.0] * max(0, batch.n)
            if len(arrivals) > MAX_ARRIVALS:
                raise InputError(f"{journal.name}: more than {MAX_ARRIVALS} arrivals; cut it into parts")
        for recorded in session.decisions:
            times.append(session.offset_s + max(0, recorded.t_mono_ns - start_ns) / 1e9)
            slowdowns.append(recorded.conditions.slowdown)
            on_mains = recorded.conditions.on_mains
            mains.append(None if on_mains is None else float(on_mains))
    if not arrivals and not times:
        raise InputError(f"{journal.name}: holds neither answers nor decisions; record a longer journal")
    ends = [max(values) for values in (arrivals, times) if values]
    steps, first = np.unique(np.asarray(times, np.float64), return_index=True)
    environment: dict[str, Any] = {}
    for name, values in (("slowdown", slowdowns), ("on_mains", mains)):
        if any(value is not None for value in values):
            environment[name] = _held([values[index] for index in first])
    order = np.argsort(np.asarray(arrivals, np.float64), kind="stable")
    vary = len(set(deadlines)) > 1
    return Trace(
        name=journal.name,
        duration_s=max(1e-3, *ends),
        arrivals_s=np.asarray(arrivals, np.float64)[order],
        deadlines_s=np.asarray(deadlines, np.float64)[order] if vary else None,
        times_s=steps if environment else None,
        **environment,
    )


def _held(values: Sequence[float | None]) -> Floats:
    """Unknown values take the last known one before them, or the first known after."""
    last = next(value for value in values if value is not None)
    held = []
    for value in values:
        last = last if value is None else value
        held.append(last)
    return np.asarray(held, np.float64)
