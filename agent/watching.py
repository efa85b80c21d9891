"""What is looked after once a control period, beside deciding: clocks, journal, state file, hung engines, the table.

Each watch may append a fault, which ``explain`` then tells. Knows nothing of requests or policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.answering import Answering
from agent.clocks import JumpWatch
from agent.control import ControlLoop
from agent.drift import Drift
from agent.figures import LoadFigures
from agent.guard import Guard
from agent.hung import HangWatch
from agent.journal import Journal
from agent.pool import EnginePool
from agent.recalibration import Recalibration
from agent.state import Keeper
from calibration.table import Row, Table


class Watching:
    """All watches of an agent.

    Args:
        control: has them called.
        pool, guard, answering, figures: the agent's.
        table: the rows in use, at any time.
        journal, keeper: or None.
        wall: seconds since 1970.
        clock: the agent's.
        on_event: called with (name, detail).
        accept: takes up rows that were measured again; None = drift is only told.
    """

    def __init__(
        self,
        control: ControlLoop,
        *,
        pool: EnginePool,
        guard: Guard,
        answering: Answering,
        figures: LoadFigures,
        table: Callable[[], Table],
        journal: Journal | None,
        keeper: Keeper | None,
        wall: Callable[[], float],
        clock: Callable[[], float],
        on_event: Callable[[str, dict[str, Any]], None],
        accept: Callable[[Mapping[str, Row]], None] | None,
    ) -> None:
        self._journal, self._keeper = journal, keeper
        self.jumps = JumpWatch(wall, on_event)
        self.hangs = HangWatch(answering.under_way, answering.abandon, control.apply, guard, pool, figures, clock)
        self.drift = Drift(table(), on_event)
        figures.on_ran = self.drift.ran
        self.recalibration: Recalibration | None = None
        control.watches += [self.jumps.watch, self._watch_journal, self.drift.watch]
        if accept is not None:
            self.recalibration = Recalibration(
                self.drift,
                table,
                measure=answering.measure,
                allowed=lambda: guard.limit is None and not (control.conditions and control.conditions.throttled),
                accept=accept,
                on_event=on_event,
                clock=clock,
            )
            control.watches.append(self.recalibration.watch)
        if keeper is not None:
            control.watches.append(keeper.watch)
        control.watches.append(self.hangs.watch)  # the last one: it raises when there is nothing left to go on with

    def counters(self) -> dict[str, int]:
        """What was counted, by field of :class:`agent.values.Counters`."""
        return {
            "journal_stops": self._journal.stops if self._journal is not None else 0,
            "state_failures": self._keeper.failures if self._keeper is not None else 0,
            "clock_jumps": self.jumps.jumps,
            "rows_drifted": self.drift.rows_drifted,
        }

    def close(self) -> None:
        """Ends what runs in the background."""
        if self.recalibration is not None:
            self.recalibration.close()
        if self._keeper is not None:
            self._keeper.close()

    def _watch_journal(self, now_s: float, faults: list[str]) -> None:
        """Says as long as it lasts that nothing is recorded."""
        if self._journal is not None and (why := self._journal.status().stopped):
            faults.append(f"journal stopped: {why}")
