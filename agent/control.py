"""The control loop: every period, sensors and own figures → the policy → hold → guard → switch.

::

    tick()   read, decide, journal, apply          every control period
    apply()  the last decision again               when a hold comes or goes, an engine was loaded or has failed

Only :meth:`ControlLoop.tick` asks the policy, so that its state advances once a period and a replay of the journal
decides the same. Knows nothing of requests: it says who is current, the core asks it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from agent.deciding import Deciding
from agent.explained import Explained
from agent.figures import LoadFigures
from agent.guard import Guard
from agent.journal import DecisionLine, Journal, SwitchLine
from agent.pool import Active, EnginePool
from agent.resident import EngineKey, Resident, engine_key
from agent.sensing import Sensing
from agent.values import Explanation, Hold
from calibration.table import Row, Table
from policies.base import Conditions, Decision, Policy
from subnets.errors import EngineError, InputError


class ControlLoop:
    """Decides and switches.

    Args:
        table: the operating points to choose from.
        pool: where engines are, and where ``current`` is set.
        guard: what stands between failures and answers.
        figures: the agent's own.
        policy: asked once a period.
        sensing: what the sensors say.
        queue_depth: called for the number of waiting requests.
        journal: or None.
        clock: monotonic seconds.
        period_s: between two ticks.
        dry_run: decide and tell, but stay where the safe choice put it.
        on_event: called with (name, detail).
    """

    def __init__(
        self,
        table: Table,
        pool: EnginePool,
        guard: Guard,
        figures: LoadFigures,
        policy: Policy,
        sensing: Sensing,
        *,
        queue_depth: Callable[[], int],
        journal: Journal | None,
        clock: Callable[[], float],
        period_s: float,
        dry_run: bool,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.dry_run = dry_run
        self.conditions: Conditions | None = None
        self.held: Hold | None = None
        self.switches = 0
        self.on_tick: Callable[[], None] = lambda: None
        self.watches: list[Callable[[float, list[str]], None]] = []
        self._table, self._pool, self._guard, self._figures = table, pool, guard, figures
        self._sensing, self._queue_depth, self._journal, self._clock = sensing, queue_depth, journal, clock
        self._period_s, self._on_event = period_s, on_event
        self._deciding = Deciding(policy, limit_s=period_s / 2, safe_choice=guard.safe_choice, on_event=on_event)
        self.policy_state: dict[str, Any] = self._deciding.state() or {}  # before the last decision
        self._rows = {row.point: row for row in table.rows}
        self._ticking, self._applying = threading.Lock(), threading.RLock()
        self._decision: Decision | None = None
        self._wanted: tuple[str, float] = ("", 0.0)  # the point being waited for, and since when
        self._explained = Explained()
        self._requested: set[EngineKey] = set()
        self._stop, self._settled = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def policy(self) -> Policy:
        """The one that is asked."""
        return self._deciding.policy

    @property
    def policy_failures(self) -> int:
        """How often it gave no decision, or none in time."""
        return self._deciding.failures

    def start(self) -> None:
        """Decides once and waits until an engine answers, then goes on in the background.

        Raises:
            EngineError: no engine of the table could be loaded.
        """
        self.tick()
        while self._pool.current is None and self._untried():
            self._settled.clear()
            self.apply()
            if self._pool.current is None:
                self._settled.wait()
        if self._pool.current is None:
            causes = {self._guard.history(key)[1] for key in self._guard.failed_keys}
            raise EngineError(f"no engine could be loaded: {'; '.join(sorted(causes))}")
        self._thread = threading.Thread(target=self._run, name="gearshift-control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the background thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._deciding.close()
        self._sensing.close()

    def tick(self) -> Explanation:
        """One control period: reads, asks the policy, applies, journals."""
        with self._ticking:
            faults: list[str] = []
            now_s = self._clock()
            active = self._pool.current
            point = active.point if active is not None else None
            for watch in self.watches:
                watch(now_s, faults)
            values = self._sensing.read(now_s, faults)
            own = {
                "time_s": now_s,
                "arrival_rate_hz": self._figures.arrival_rate_hz(now_s),
                "queue_depth": self._queue_depth(),
                "slowdown": self._figures.slowdown(now_s, point),
                "miss_rate": self._figures.miss_rate(now_s),
            }
            conditions = Conditions(**{**values, **own})
            # In a dry run the policy must see the consequences of its own decisions, or it repeats the first one.
            current = self._decision.point if self.dry_run and self._decision is not None else point
            decision, state, asked = self._deciding.decide(conditions, self._table, current, faults)
            self.policy_state = self.policy_state if state is None else state
            self._guard.check(conditions, faults)
            if self.dry_run and (self._decision is None or self._decision.point != decision.point):
                self._on_event("would_switch", {"to": decision.point, "reason": decision.reason})
            with self._applying:
                self.conditions, self._decision = conditions, decision
                applied, why = self.apply()
            faults += self._guard.faults()
            active = self._pool.current
            differs = applied != decision.point
            overruled = active is not None and (differs or self._guard.limit is not None)
            bound = active.bound if active is not None and overruled else ""
            if self._journal is not None:
                line = DecisionLine(
                    conditions=conditions,
                    current=current,
                    point=decision.point,
                    reason=decision.reason,
                    bound=decision.bound,
                    applied=(applied or "") if differs else "",
                    applied_why=why if differs else "",
                    applied_bound=bound,
                    asked=asked,
                )
                self._journal.write(line, state=state)
            unix_s = time.time()
            made = Explanation(
                since_unix_s=unix_s,
                until_unix_s=unix_s,
                ticks=1,
                decided=decision.point,
                applied=applied,
                reason=decision.reason,
                bound=decision.bound,
                applied_why=why,
                applied_bound=bound,
                conditions=conditions,
                faults=tuple(faults),
            )
            return self._explained.add(made)

    def apply(self) -> tuple[str | None, str]:
        """Brings the last decision, the hold and the guard together and switches where they ask for it.

        Returns:
            The operating point that answers now (None before the first engine), and why it is not the decided one.
        """
        with self._applying:
            decision = self._decision
            if decision is None:
                return None, "nothing decided yet"
            target, why = self._target(decision)
            active = self._pool.current
            usable = [r for r in self._guard.alternatives(target.point) if not self._guard.quarantined_s(engine_key(r))]
            if usable and usable[0].point != target.point:
                left_s = self._guard.quarantined_s(engine_key(target))
                error = self._guard.history(engine_key(target))[1]
                why = f"{target.point} is quarantined for {left_s:.0f} s ({error})"
            for index, row in enumerate(usable):
                resident = self._pool.resident(engine_key(row))
                if resident is not None:
                    self._activate(row, resident, decision, why)
                    break
                if index == 0:
                    self._request(row)
                    why = f"{row.point} is being loaded" + (f"; {why}" if why else "")
                    if self._pool.answering:
                        break  # it answers until then
            active = self._pool.current
            if active is not None and active.point == decision.point:
                why = ""
            return (active.point if active is not None else None), why

    def hold(self, hold: Hold | None, *, told: str) -> None:
        """Sets or lifts the override and applies it at once."""
        with self._applying:
            self.held = hold
            detail: dict[str, Any] = {} if hold is None else {"subnet": hold.subnet, "reason": hold.reason}
            if hold is not None:
                detail["for_s"] = round(hold.until_s - self._clock(), 3)
            self._on_event(told, detail)
            self.apply()

    def replace_policy(self, policy: Policy, record: Callable[[], None], *, carry: bool) -> None:
        """Asks another policy from the next tick on.

        Args:
            policy: it.
            record: runs before that tick, so no decision precedes it.
            carry: have it go on from the state of the one before.
        """
        with self._ticking:
            state = self._deciding.state()
            if policy is not self.policy:
                self._deciding.replace(policy)
                if state and carry:
                    self.restore_policy(state)
            self.policy_state = self._deciding.state() or {}
            record()

    def retable(self, table: Table, record: Callable[[], None]) -> None:
        """Decides by another table from the next tick on; ``record`` runs before it, as in :meth:`replace_policy`."""
        with self._ticking:
            self._table, self._rows = table, {row.point: row for row in table.rows}
            record()
        self.apply()

    def restore_policy(self, state: dict[str, Any]) -> str:
        """Has the policy go on from a state; why it begins anew instead, or nothing."""
        try:
            self.policy.restore(state)
        except Exception as error:  # of another version, perhaps
            self.policy.reset()
            return f"the kept state of policy '{self.policy.name}' is not used ({error}); it begins anew"
        self.policy_state = state
        return ""

    def point_of(self, subnet: str) -> Row:
        """The operating point of a subnet that is most like the one in use.

        Raises:
            InputError: the table has no row of that subnet.
        """
        rows = [row for row in self._table.rows if row.subnet == subnet]
        if not rows:
            names = ", ".join(dict.fromkeys(row.subnet for row in self._table.rows))
            raise InputError(f"subnet '{subnet}' is not in the table; it has {names}")
        active = self._pool.current
        like = active.row if active is not None else self._guard.safe_choice()

        def unlike(row: Row) -> tuple[bool, bool, float]:
            return engine_key(row)[1:] != engine_key(like)[1:], row.batch_size != like.batch_size, row.latency_p50_ms

        return min(rows, key=unlike)

    def explain(self, last: int) -> list[Explanation]:
        """The last decisions that differed, oldest first."""
        return self._explained.last(last)

    # -- inside

    def _run(self) -> None:
        due_s = time.monotonic() + self._period_s
        while not self._stop.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + self._period_s, time.monotonic())
            try:
                self.tick()
            except Exception as error:  # a fault of our own: tell it, keep answering, leave the watchdog unfed
                self._on_event("control_failed", {"error": f"{type(error).__name__}: {error}"})
            else:
                self.on_tick()

    def _target(self, decision: Decision) -> tuple[Row, str]:
        """The row that a hard limit, hold or dry run makes of a decision, and why it differs."""
        if self.held is not None and self._clock() >= self.held.until_s:
            self.held = None
            self._on_event("hold_expired", {})
        if self._guard.limit is not None:
            return self._guard.safe_choice(), f"hard limit: {self._guard.limit.reason}"
        if self.held is not None:
            return self.point_of(self.held.subnet), f"hold: {self.held.reason}"
        if self.dry_run:
            return self._guard.safe_choice(), "dry run: decisions are told, not applied"
        return self._rows[decision.point], ""

    def _activate(self, row: Row, resident: Resident, decision: Decision, why: str) -> None:
        before = self._pool.current
        as_decided = row.point == decision.point
        limit, held = self._guard.limit, self.held is not None
        bound = limit.bound if limit is not None else "hold" if held else "fallback"
        active = Active(
            resident=resident,
            row=row,
            point=row.point,
            reason=decision.reason if as_decided and not why else why or decision.reason,
            bound=decision.bound if as_decided and not why else bound,
            slack_plan=decision.slack_plan if as_decided else (),
        )
        if not self._pool.activate(active):
            return  # it has just been evicted; the next apply asks for it again
        if before is not None and before.point == row.point:
            return
        now_s = self._clock()
        since_s = self._wanted[1] if self._wanted[0] == row.point else now_s
        self._wanted = ("", 0.0)
        ms = (now_s - since_s) * 1000
        source = before.point if before is not None else None
        self.switches += before is not None
        if self._journal is not None:
            self._journal.write(SwitchLine(from_=source, to=row.point, reason=active.reason, ms=ms))
        told = {"from": source, "to": row.point, "reason": active.reason, "bound": active.bound, "ms": round(ms, 3)}
        self._on_event("switch", told)
        self._prefetch(resident.key)

    def _request(self, row: Row) -> None:
        key = engine_key(row)
        if self._wanted[0] != row.point:
            self._wanted = (row.point, self._clock())
        if key not in self._requested:
            self._requested.add(key)
            self._pool.request(key).add_done_callback(lambda done: self._loaded(key, done))

    def _loaded(self, key: EngineKey, done: Future[Resident]) -> None:
        with self._applying:
            self._requested.discard(key)
            if not done.cancelled() and not self._stop.is_set():
                error = done.exception()
                if error is not None and not self._guard.quarantined_s(key):
                    self._guard.quarantine(key, EngineError(str(error)))
                self.apply()
        self._settled.set()

    def _untried(self) -> bool:
        """Whether some engine has not failed yet."""
        return bool(set(self._pool.keys) - set(self._guard.failed_keys))

    def _prefetch(self, here: EngineKey) -> None:
        """Neighbours on the ladder first, of the same backend, precision and threads."""
        alike = [
            key for key in self._pool.keys if key[1:] == here[1:] and key != here and not self._guard.history(key)[0]
        ]  # what has failed is loaded only when it is wanted
        self._pool.keeper = engine_key(self._guard.safe_choice())
        self._pool.prefetch(sorted(alike, key=lambda key: self._pool.distance(key, here)))
