"""One operating point by name, always."""

from __future__ import annotations

import difflib

from calibration.table import Row, Table, frontier
from policies.base import Conditions, Decision, Goals, Policy
from policies.rungs import PerTable, Where
from subnets.errors import InputError


class Static(Policy):
    """Always the point or subnet that was named.

    A name is an order: it stands even when the goals wish for something else, and the reason says so.

    Args:
        point: an operating point of the table, such as s50@openvino:bf16:b1.
        subnet: a subnet; its fastest row at the batch size is used. Give this or a point.
    """

    name = "static"

    def __init__(
        self, goals: Goals, *, point: str | None = None, subnet: str | None = None, where: Where | None = None
    ) -> None:
        self.goals = goals.check()
        if (point is None) == (subnet is None):
            raise InputError("policy static: give exactly one of the options 'point' and 'subnet'")
        self.point, self.subnet, self.where = point, subnet, where or Where()
        self._row: PerTable[Row] = PerTable(self._find)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The named point.

        Raises:
            InputError: the table does not have it.
        """
        row = self._row(table)
        reason = f"static: always {row.point}"
        wished = self.goals.min_accuracy
        if wished is not None and row.accuracy < wished:
            reason += f", although its accuracy is {100 * row.accuracy:.1f} %, below the wished {100 * wished:.1f} %"
            return Decision(point=row.point, reason=reason, bound="hold")
        return Decision(point=row.point, reason=reason)

    def _find(self, table: Table) -> Row:
        if self.point is not None:
            found = {row.point: row for row in table.rows}
            if self.point in found:
                return found[self.point]
            raise InputError(_missing("point", self.point, list(found)))
        rows = table.select(backend=self.where.backend, precision=self.where.precision)
        size = (
            self.where.batch_size if self.where.batch_size is not None else min((r.batch_size for r in rows), default=0)
        )
        matching = [row for row in rows if row.batch_size == size]
        mine = frontier(row for row in matching if row.subnet == self.subnet)
        if not mine:
            raise InputError(_missing("subnet", str(self.subnet), sorted({row.subnet for row in matching})))
        return mine[0]


def _missing(option: str, value: str, known: list[str]) -> str:
    close = difflib.get_close_matches(value, known, n=1)
    guess = f"did you mean '{close[0]}'? It" if close else "it"
    return f"policy static: the table has no {option} '{value}'; {guess} has {', '.join(known) or 'none that matches'}"
