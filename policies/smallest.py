"""The fastest rung, always: the safe choice, and the baseline that every policy must beat."""

from __future__ import annotations

from calibration.table import Table
from policies.base import Conditions, Decision
from policies.rungs import RungPolicy


class Smallest(RungPolicy):
    """Always the fastest rung that has the wished accuracy."""

    name = "smallest"

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The fastest rung."""
        rungs = self._rungs(table)
        return rungs.choose(0, f"smallest: always {rungs.labels[0]}")
