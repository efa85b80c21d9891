"""What of a run outlasts it: the journal's headers, from which a replay begins, and what a restart goes on with.

Knows nothing of requests or engines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.control import ControlLoop
from agent.journal import Journal
from agent.run_record import RunRecord
from agent.state import Keeper, Kept
from calibration.table import Table
from policies.base import Goals


class Continuity:
    """Writes what is needed to go on, and goes on.

    Args:
        record: what this run is made with.
        control: holds the policy and the operator's hold.
        journal, keeper: or None.
        goals, table: those in use, at any time.
        on_event: called with (name, detail) for ``state_restored`` and ``state_failed``.
    """

    def __init__(
        self,
        record: RunRecord,
        control: ControlLoop,
        *,
        journal: Journal | None,
        keeper: Keeper | None,
        goals: Callable[[], Goals],
        table: Callable[[], Table],
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.record = record
        self._control, self._journal, self._keeper = control, journal, keeper
        self._goals, self._table, self._on_event = goals, table, on_event

    def begin(self) -> None:
        """Goes on with what an earlier run has left, and begins a session in the journal."""
        if self._keeper is not None:
            self._keeper.start(self._kept, self._on_event)
            self._restore(self._keeper)
        self.head()

    def head(self) -> None:
        """A header in the journal: the next decision is made with what is in use now."""
        if self._journal is not None:
            policy, state = self._control.policy, self._control.policy_state
            self._journal.write(self.record.meta(policy, state, self._goals()))

    def keep(self) -> None:
        """Hold and policy state, on the disk when this returns."""
        if self._keeper is not None:
            self._keeper.keep()

    def keep_soon(self) -> None:
        """The same with the next control period."""
        if self._keeper is not None:
            self._keeper.keep_soon()

    def _kept(self) -> Kept:
        control = self._control
        policy = self.record.policy_state(control.policy, control.policy_state, self._goals())
        return Kept(bundle_key=self._table().bundle_key, policy=policy, hold=control.held)

    def _restore(self, keeper: Keeper) -> None:
        hold, state = keeper.restored(self._kept())
        if state and (error := self._control.restore_policy(state)):
            state = None
            self._on_event("state_failed", {"error": error})
        if hold is not None and hold.subnet in {row.subnet for row in self._table().rows}:
            self._control.held = hold
        if hold is not None or state:
            self._on_event("state_restored", {"policy": bool(state), "hold": hold.subnet if hold else None})
