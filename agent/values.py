"""What the agent hands out: frozen values with no live object inside.

* :class:`Answer`: logits with the operating point that gave them and why it was in use.
* :class:`Hold`: an operator's override.
* :class:`Event`: something worth telling (a switch, a fault, a hold).
* :class:`Explanation`: one decision with the conditions it was made under.
* :class:`Status`: everything an operator asks for at one glance.
"""

from __future__ import annotations

from typing import Any

import msgspec

from backends.base import Batch
from policies.base import Conditions, Goals


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Logits for one request.

    ``queue_ms`` is the wait for the engine, ``infer_ms`` the time from there to the logits, a failed first attempt
    included. ``reason`` is why this operating point was in use, ``bound`` the constraint behind it. Accuracy and energy
    are the table's.
    """

    logits: Batch  # float32 [N, classes]
    subnet: str
    point: str
    queue_ms: float
    infer_ms: float
    reason: str
    bound: str
    accuracy: float  # expected, share 0..1
    energy_j: float | None  # gross, for the whole request; None = unmeasurable here
    energy_source: str  # as in calibration.table.Row.energy_source


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's override: this subnet until then, whatever the policy says."""

    subnet: str
    reason: str
    since_s: float  # on the agent's clock
    until_s: float
    remaining_s: float = 0.0  # filled in when reported


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something worth telling, e.g. ``switch``, ``engine_failed``, ``hold``; ``detail`` holds JSON types only."""

    name: str
    time_s: float  # on the agent's clock
    detail: dict[str, Any] = {}


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One decision. Equal decisions in a row are told once, with the latest conditions and their number.

    ``decided`` is what the policy wanted, ``applied`` what answers; where they differ ``applied_why`` says why.
    """

    since_unix_s: float
    until_unix_s: float
    ticks: int  # control periods it lasted
    decided: str
    applied: str | None
    reason: str
    bound: str
    applied_why: str
    conditions: Conditions
    applied_bound: str = ""  # what bound where another point was applied than decided
    faults: tuple[str, ...] = ()  # what failed on the way to this decision, or is failing: "what: how"


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One resident or quarantined engine."""

    subnet: str
    backend: str
    precision: str
    threads: int
    resident: bool
    current: bool
    memory_bytes: int | None
    load_ms: float | None
    failures: int
    quarantined_s: float  # seconds left; 0 when it may answer
    last_error: str


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Counted since the start."""

    requests: int
    images: int
    late: int  # answered after their deadline
    refused: int  # turned away at once: queue full, closing, or hopeless
    failed: int  # no engine could answer
    rescued: int  # answered by another engine than the one asked first
    switches: int
    engine_failures: int
    sensor_failures: int  # readings
    policy_failures: int  # decisions that failed or came too late
    engine_hangs: int = 0
    limits_reached: int = 0  # hard limits
    journal_stops: int = 0
    state_failures: int = 0  # of the file that restarts go on from: not read, or not written
    clock_jumps: int = 0  # of the wall clock
    rows_drifted: int = 0  # operating points found to be off the table for long
    expired: int = 0  # given up because their deadline had passed before their turn
    superseded: int = 0  # a newer one of their stream took their place


class JournalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the journal fares."""

    path: str
    written: int
    dropped: int
    stopped: str  # why it stopped writing, empty while it writes


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent is doing and why."""

    state: str  # "starting", "running", "degraded" (no engine answers) or "closing"
    subnet: str | None
    backend: str | None
    precision: str | None
    point: str | None
    reason: str
    bound: str
    policy: str
    goals: Goals
    conditions: Conditions | None
    hold: Hold | None
    dry_run: bool
    bundle: str
    bundle_key: str
    expected_accuracy: float | None
    uptime_s: float
    queue_depth: int
    engines: tuple[EngineStatus, ...]
    counters: Counters
    slowdown: dict[str, float]  # per operating point that answered lately
    journal: JournalStatus | None
    drifted: dict[str, float] = {}  # operating points off the table for long: measured over calibrated latency
