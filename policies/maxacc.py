"""MaxAcc: SlackFit's baseline that thinks of accuracy first."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.table import Row
from policies.fitting import Fitting, Need


class MaxAcc(Fitting):
    """The most accurate subnet that fits the slack, then the largest batch of it that still does.

    ::

        subnet = argmax accuracy over l(subnet, smallest b) <= slack,   b = largest with l(subnet, b) <= slack

    Greedy for the oldest request: in a burst it spends on accuracy what the next ones would have needed. Source: a
    baseline of Khare et al., SuperServe, NSDI 2025, appendix A.5.
    """

    name = "maxacc"

    def _choices(self, rows: Sequence[Row], need: Need, deadline_ms: float) -> list[tuple[float, Row]]:
        return [
            (
                slack_ms,
                max(
                    (row for row in rows if need(row) <= slack_ms),
                    key=lambda row: (row.accuracy, row.batch_size, -need(row)),
                ),
            )
            for slack_ms in sorted({need(row) for row in rows})
        ]
