"""The agent: answers in-process, thread-safe, with one engine at a time, while a control loop decides which.

::

    infer(batch) ──► line (earliest deadline first, bounded) ──► current engine ──► Answer
                                                                     ▲ one atomic reference
    sensors, own figures ──► policy ──► hold ──► guard ──► switch          (control loop, its own thread)

Puts the parts together and holds what an operator asks for; the parts do the work. Knows nothing of HTTP, files of
configuration or processes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any

import msgspec

from agent.answering import Answering
from agent.clocks import AgentClock, Horizon
from agent.continuity import Continuity
from agent.control import ControlLoop
from agent.figures import LoadFigures
from agent.guard import Guard
from agent.journal import EventLine, Journal
from agent.limits import HardLimits
from agent.overview import Parts, status_of, usable_rows
from agent.pool import EnginePool
from agent.recalibration import retabled
from agent.run_record import RunRecord
from agent.sensing import Sensing, Sensors
from agent.state import Keeper
from agent.tallies import Tallies
from agent.values import Answer, Event, Explanation, Hold, Status
from agent.watching import Watching
from backends.base import Backend, Batch
from calibration.table import Row, Table
from policies.base import Goals, Policy
from subnets import Bundle
from subnets.errors import InputError

DRAIN_S = 30.0


class Agent:
    """Keeps engines resident and answers with the one the policy wants.

    Args:
        bundle: whose subnets answer.
        table: what their operating points were measured to do; its rows for backends not given are ignored.
        backends: by name, e.g. ``{"openvino": ...}``.
        policy: asked once a control period.
        goals: what is to be kept.
        sensors: anything whose ``read().values()`` names fields of Conditions; None = nothing is known.
        journal: started and closed with the agent; None = no record.
        clock: monotonic seconds; the keeper's when left out.
        control_period_s: between two decisions.
        memory_budget_bytes: for all resident engines together.
        queue_limit: requests that may wait before new ones are refused.
        points: the operating points that may be used; None = all of the table.
        dry_run: decide and journal, but keep answering with the safe choice.
        policy_options: what the policy was made with, for the journal.
        version: of the program, for the journal.
        limits: hard ones; None = what the goals imply.
        keeper: of hold and policy state over restarts, with a clock that goes on; None = nothing is kept.
        wall: seconds since 1970.
        recalibrate: have rows that are off the table for long measured again in quiet moments, and call this with the
            new table to be stored; None = they are only told.
        admission: refuse a request at once whose deadline cannot be kept (:mod:`agent.hopeless`).
        drop_late: give up a request whose deadline passes before its turn, instead of answering it late.
        touch: warm an engine after a switch while nobody wants it (:mod:`agent.answering`).

    Raises:
        InputError: no row of the table can be used, or a number makes no sense.
    """

    def __init__(
        self,
        bundle: Bundle,
        table: Table,
        *,
        backends: Mapping[str, Backend],
        policy: Policy,
        goals: Goals,
        sensors: Sensors | None,
        journal: Journal | None = None,
        clock: Callable[[], float] | None = None,
        control_period_s: float = 1.0,
        memory_budget_bytes: int | None = None,
        queue_limit: int = 64,
        points: Collection[str] | None = None,
        dry_run: bool = False,
        policy_options: Mapping[str, Any] | None = None,
        version: str = "",
        limits: HardLimits | None = None,
        keeper: Keeper | None = None,
        wall: Callable[[], float] = time.time,
        recalibrate: Callable[[Table], None] | None = None,
        admission: bool = False,
        drop_late: bool = False,
        touch: bool = True,
    ) -> None:
        if control_period_s <= 0 or queue_limit < 0:
            raise InputError(
                f"control_period {control_period_s} must be above 0 and queue_limit {queue_limit} at least 0"
            )
        clock = clock or (keeper.clock if keeper is not None else AgentClock())
        self.bundle, self.goals = bundle, goals.check()
        self.horizon = keeper.horizon if keeper is not None else Horizon(AgentClock())
        self.table = usable_rows(bundle, table, backends, points)
        self._journal, self._clock = journal, clock
        self._whole_table, self._store = table, recalibrate or (lambda table: None)
        self._callbacks: list[Callable[[Event], None]] = []
        self._on_tick: list[Callable[[], None]] = []
        self._figures = LoadFigures()
        self._pool = EnginePool(
            bundle, self.table, backends, memory_budget_bytes=memory_budget_bytes, clock=clock, on_event=self._emit
        )
        self._guard = Guard(
            self.table,
            bundle.ladder.names,
            goals,
            limits=limits or HardLimits.of(goals),
            clock=clock,
            on_event=self._emit,
        )
        self._sensing = Sensing(sensors, on_event=self._emit)
        self._control = ControlLoop(
            self.table,
            self._pool,
            self._guard,
            self._figures,
            policy,
            self._sensing,
            queue_depth=lambda: self._answering.waiting_images,
            journal=journal,
            clock=clock,
            period_s=control_period_s,
            dry_run=dry_run,
            on_event=self._emit,
        )
        self._answering = Answering(
            bundle.input.shape,
            self.table,
            self._pool,
            self._guard,
            self._control,
            self._figures,
            journal=journal,
            clock=clock.read if isinstance(clock, AgentClock) else clock,
            deadline_ms=goals.deadline_ms,
            queue_limit=queue_limit,
            admission=admission,
            drop_late=drop_late,
            touch=touch,
        )
        self._control.watches += [lambda now_s, faults: self._answering.accounts.settle()]
        record = RunRecord(
            bundle.name,
            table,
            self.table,
            policy_options or {},
            version=version,
            clock=getattr(clock, "name", ""),
            dry_run=dry_run,
        )
        self._continuity = Continuity(
            record,
            self._control,
            journal=journal,
            keeper=keeper,
            goals=lambda: self.goals,
            table=lambda: self.table,
            on_event=self._emit,
        )
        self._watching = Watching(
            self._control,
            pool=self._pool,
            guard=self._guard,
            answering=self._answering,
            figures=self._figures,
            table=lambda: self.table,
            journal=journal,
            keeper=keeper,
            wall=wall,
            clock=clock,
            on_event=self._emit,
            accept=self._retable if recalibrate is not None else None,
        )
        self._state = "starting"
        self._started_s = clock()

    # -- life

    def start(self) -> Agent:
        """Loads and warms the first engine, then answers and decides.

        Raises:
            EngineError: no engine could be loaded.
        """
        if self._journal is not None:
            self._journal.start(on_event=self._emit)
        self._continuity.begin()
        try:
            preparing = threading.Thread(target=self._pool.prepare, name="gearshift-prepare")
            preparing.start()
            self._control.start()
            preparing.join()
        except BaseException:
            self.close(drain_s=0)
            raise
        self._state = "running"
        return self

    def close(self, drain_s: float = DRAIN_S) -> None:
        """Refuses new requests, answers those that wait, then frees everything; closing twice is harmless."""
        if self._state == "closed":
            return
        self._state = "closing"
        drained = self._answering.close(drain_s)
        self._control.stop()
        self._watching.close()
        self._emit("closed", {"drained": drained})
        self._pool.close()
        if self._journal is not None:
            self._journal.close()
        self._state = "closed"

    def __enter__(self) -> Agent:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- answering

    def infer(
        self,
        batch: Batch,
        *,
        deadline_ms: float | None = None,
        subnet: str | None = None,
        min_accuracy: float | None = None,
        stream: str | None = None,
    ) -> Answer:
        """Answers with the current engine, in the caller's thread if nobody else is being answered.

        Those who wait are answered earliest deadline first, together where the operating point has a larger batch.

        Args:
            batch: preprocessed images, float32 [N, C, H, W]; any N, larger batches are split.
            deadline_ms: from now to the answer; None = the goal's, if there is one.
            subnet: answer with this one, whatever is current.
            min_accuracy: share 0..1; only subnets at least this accurate may answer, whatever is current.
            stream: name of a camera: while a frame of it waits, a newer one takes its place.

        Raises:
            InputError: wrong shape or type, values that are not finite, no such subnet, none so accurate.
            Superseded: a newer request of the same stream came while this one waited.
            Expired: the deadline passed before its turn (only with ``drop_late``).
            Busy: too many requests wait, the deadline cannot be kept (only with ``admission``), or the agent is
                closing; the two above are special cases.
            EngineError: no engine could answer.
        """
        return self._answering.infer(
            batch, deadline_ms=deadline_ms, subnet=subnet, min_accuracy=min_accuracy, stream=stream
        )

    def submit(
        self,
        batch: Batch,
        *,
        deadline_ms: float | None = None,
        subnet: str | None = None,
        min_accuracy: float | None = None,
        stream: str | None = None,
    ) -> Future[Answer]:
        """As :meth:`infer`, without blocking the caller: the answer comes in another thread.

        A future that is cancelled while it waits costs no inference. Raises what can be told at once; the future raises
        the rest.
        """
        return self._answering.submit(
            batch, deadline_ms=deadline_ms, subnet=subnet, min_accuracy=min_accuracy, stream=stream
        )

    # -- operating

    @property
    def ready(self) -> bool:
        """Whether it answers requests now."""
        return self._state == "running" and self._pool.answering

    @property
    def waiting(self) -> int:
        """How many requests wait for an engine now."""
        return self._answering.depth

    @property
    def tallies(self) -> Tallies:
        """What was answered so far, per operating point."""
        self._answering.accounts.settle()
        return self._answering.accounts.tallies

    @property
    def hopeless(self) -> str:
        """Why nothing answers any more and only a new process would; empty while that is not so."""
        return self._watching.hangs.hopeless

    @property
    def classes(self) -> int:
        """How many logits an answer has; 0 before the first engine is loaded."""
        active = self._pool.current
        return active.resident.classes if active is not None else len(self.bundle.labels)

    def hold(self, subnet: str, for_s: float, reason: str) -> Hold:
        """Answers with one subnet for a while, whatever the policy says.

        Raises:
            InputError: no such subnet, or a time that is not above 0.
        """
        if not 0 < for_s < float("inf"):
            raise InputError(f"a hold of {for_s} s makes no sense; give a time above 0, e.g. 10m")
        self._control.point_of(subnet)
        now_s = self._clock()
        hold = Hold(subnet=subnet, reason=reason, since_s=now_s, until_s=now_s + for_s, remaining_s=for_s)
        self._control.hold(hold, told="hold")
        self._continuity.keep()
        return hold

    def release(self) -> None:
        """Ends a hold before its time; without one it does nothing."""
        if self._control.held is not None:
            self._control.hold(None, told="release")
            self._continuity.keep()

    def reconfigure(
        self,
        *,
        policy: Policy | None = None,
        policy_options: Mapping[str, Any] | None = None,
        goals: Goals | None = None,
        limits: HardLimits | None = None,
    ) -> None:
        """Takes up another policy or other goals without a pause.

        A policy of the same name and options goes on from the state of the one before.

        Raises:
            InputError: the goals contradict themselves; nothing has changed then.
        """
        if goals is not None:
            self.goals = self._guard.goals = goals.check()
            self._guard.limits = limits or HardLimits.of(goals)
            self._answering.deadline_ms = goals.deadline_ms
        before, record = self._control.policy, self._continuity.record
        options = record.options
        if policy is not None:
            record.options = dict(policy_options or {})
        alike = policy is not None and policy.name == before.name and record.options == options
        self._control.replace_policy(policy or before, self._continuity.head, carry=alike)
        self._emit("reconfigured", {"policy": self._control.policy.name, "goals": msgspec.to_builtins(self.goals)})
        self._continuity.keep()

    def tick(self) -> Explanation:
        """One control period now, beside the regular ones."""
        return self._control.tick()

    def on_event(self, callback: Callable[[Event], None]) -> None:
        """Calls back with every switch, fault and hold, from whichever thread saw it; it must be quick and must not
        call the agent."""
        self._callbacks.append(callback)

    def on_tick(self, callback: Callable[[], None]) -> None:
        """Calls back after every control period that succeeded: what a watchdog is to be fed from. Must be quick."""
        self._on_tick.append(callback)
        self._control.on_tick = self._ticked

    def explain(self, last: int = 1) -> list[Explanation]:
        """The last decisions that differed from the one before, oldest first."""
        return self._control.explain(last)

    def status(self) -> Status:
        """What it is doing and why."""
        parts = Parts(
            pool=self._pool,
            guard=self._guard,
            sensing=self._sensing,
            control=self._control,
            answering=self._answering,
            figures=self._figures,
            watching=self._watching,
            journal=self._journal,
        )
        now_s, state = self._clock(), self._state
        return status_of(
            parts, self.bundle, self.table, self.goals, state=state, now_s=now_s, started_s=self._started_s
        )

    def _ticked(self) -> None:
        for callback in self._on_tick:
            with contextlib.suppress(Exception):  # the listener's own affair
                callback()

    def _retable(self, rows: Mapping[str, Row]) -> None:
        """Takes up rows that were measured again, once the new table is stored."""
        whole = retabled(self._whole_table, rows)
        self._store(whole)
        self._whole_table, self.table = whole, retabled(self.table, rows)
        for part in (self._guard, self._pool, self._answering, self._watching.drift):
            part.retable(self.table)
        self._continuity.record.retable(whole, self.table)
        self._control.retable(self.table, self._continuity.head)
        self._emit("table_remeasured", {"rows": {point: row.latency_p50_ms for point, row in rows.items()}})
        self._continuity.keep()

    def _emit(self, name: str, detail: dict[str, Any]) -> None:
        """Journals an event and tells whoever listens; a listener that fails harms nobody."""
        if self._journal is not None and name != "switch":  # a switch has a line of its own
            self._journal.write(EventLine(name=name, detail=detail))
        if name == "hold_expired":
            self._continuity.keep_soon()
        event = Event(name=name, time_s=self._clock(), detail=detail)
        for callback in tuple(self._callbacks):
            try:
                callback(event)
            except Exception:  # the listener's own affair
                continue
