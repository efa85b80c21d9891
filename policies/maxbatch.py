"""MaxBatch: SlackFit's baseline that thinks of throughput first."""

from __future__ import annotations

from collections.abc import Sequence

from calibration.table import Row
from policies.fitting import Fitting, Need


class MaxBatch(Fitting):
    """The largest batch that any subnet finishes within the slack, then the most accurate subnet for it.

    ::

        b = largest with l(smallest subnet, b) <= slack,   subnet = argmax accuracy over l(subnet, b) <= slack

    SlackFit without buckets. Source: a baseline of Khare et al., SuperServe, NSDI 2025, appendix A.5.
    """

    name = "maxbatch"

    def _choices(self, rows: Sequence[Row], need: Need, deadline_ms: float) -> list[tuple[float, Row]]:
        return [
            (
                slack_ms,
                max(
                    (row for row in rows if need(row) <= slack_ms),
                    key=lambda row: (row.batch_size, row.accuracy, -need(row)),
                ),
            )
            for slack_ms in sorted({need(row) for row in rows})
        ]
