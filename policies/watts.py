"""What a rung will draw at a given arrival rate, from the table alone.

At ``rate`` images per second a rung spends ``min(rate, throughput)`` times its net energy per image above idle: a
device that cannot keep up is busy all the time and no more. Where the table knows what a rest costs, the energy is that
of the rate (:mod:`policies.rested`). Knows nothing of batteries or heat.
"""

from __future__ import annotations

import operator

import msgspec

from policies.rested import Rested
from policies.rungs import Rungs, net_energy_j


class PowerModel(msgspec.Struct, frozen=True, kw_only=True):
    """Energy per rung, index as in :class:`~policies.rungs.Rungs`; a column is None unless every rung has it."""

    idle_w: float | None
    net_energy_j: tuple[float, ...] | None  # per image, above idle, back to back
    cpu_s: tuple[float, ...] | None  # processor seconds per image
    busy_w: tuple[float, ...] | None  # the whole domain, back to back
    throughput_hz: tuple[float, ...]  # images per second, back to back
    rested: Rested

    def net_j(self, rate_hz: float) -> tuple[float, ...] | None:
        """Joules above idle for an image at this arrival rate; None when energies are unknown."""
        if self.net_energy_j is None or not self.rested.matters:
            return self.net_energy_j
        return tuple(map(operator.add, self.net_energy_j, self.rested.dearer_j(rate_hz)))

    def inference_w(self, index: int, rate_hz: float) -> float | None:
        """Power above idle at this arrival rate; None when energies are unknown."""
        net_j = self.net_j(rate_hz)
        return None if net_j is None else min(rate_hz, self.throughput_hz[index]) * net_j[index]

    def difference_w(self, index: int, other: int, rate_hz: float | None) -> float | None:
        """How much more ``index`` draws than ``other``; back to back when the rate is unknown."""
        if rate_hz is None:
            return None if self.busy_w is None else self.busy_w[index] - self.busy_w[other]
        mine, theirs = self.inference_w(index, rate_hz), self.inference_w(other, rate_hz)
        return None if mine is None or theirs is None else mine - theirs


def power_model(rungs: Rungs, idle_w: float | None) -> PowerModel:
    """The columns of a ladder; ``idle_w`` is the table's idle power."""
    return PowerModel(
        idle_w=idle_w,
        net_energy_j=_all(tuple(net_energy_j(row, idle_w) for row in rungs.rows)),
        cpu_s=_all(tuple(row.cpu_s or None for row in rungs.rows)),
        busy_w=_all(tuple(row.power_w for row in rungs.rows)),
        throughput_hz=tuple(row.throughput_per_s for row in rungs.rows),
        rested=Rested(rungs.rows),
    )


def _all(values: tuple[float | None, ...]) -> tuple[float, ...] | None:
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else None
