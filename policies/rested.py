"""What resting costs at an arrival rate: an engine that runs now and then is slower, and dearer, per answer.

The figures are the table's (:class:`calibration.table.Duty`); here they are worked out for a whole ladder and kept for
as long as the same rate comes, since several parts of one decision ask. Knows nothing of conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibration.table import Row


class Rested:
    """Factors on latency, and joules to add to an image, row by row; 1 and 0 where the table knows of no rests.

    A row with batches of b is asked for b times fewer of them: each is as full as can be.

    Args:
        rows: of a ladder.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)
        self._steady = (1.0,) * len(self._rows), (0.0,) * len(self._rows)
        self.matters = any(row.duty is not None for row in self._rows)
        self._rate_hz: float | None = None
        self._found = self._steady

    def slower(self, rate_hz: float | None) -> tuple[float, ...]:
        """Median latency at this rate over that back to back; back to back where the rate is unknown."""
        return self._at(rate_hz)[0]

    def dearer_j(self, rate_hz: float | None) -> tuple[float, ...]:
        """Joules above idle that an image costs at this rate beyond those back to back."""
        return self._at(rate_hz)[1]

    def _at(self, rate_hz: float | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if not self.matters or rate_hz is None:
            return self._steady
        if rate_hz != self._rate_hz:
            slower, dearer = [], []
            for row in self._rows:
                batches_hz = rate_hz / row.batch_size
                slower.append(row.latency_ms_at(batches_hz) / row.latency_p50_ms)
                net_j = row.net_energy_j_at(batches_hz)
                dearer.append(0.0 if net_j is None or row.net_energy_j is None else net_j - row.net_energy_j)
            self._rate_hz, self._found = rate_hz, (tuple(slower), tuple(dearer))
        return self._found
