"""The most accurate rung, always: what one does without an agent."""

from __future__ import annotations

from calibration.table import Table
from policies.base import Conditions, Decision
from policies.rungs import RungPolicy


class Largest(RungPolicy):
    """Always the most accurate rung."""

    name = "largest"

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The most accurate rung."""
        rungs = self._rungs(table)
        return rungs.choose(len(rungs.points) - 1, f"largest: always {rungs.labels[-1]}")
