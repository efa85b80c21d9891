"""A calibration table laid out for a tight loop: plain lists indexed by operating point, in seconds and joules.

:class:`CompiledTable` also settles what is known of energy, and says in sentences what is not. Knows nothing of time
or queues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from calibration.table import Row, Table
from policies.base import SlackStep
from policies.rungs import same_engine
from subnets.errors import InputError

_Z99 = 2.3263478740408408  # standard normal quantile of 0.99


class CompiledTable:
    """Operating points sorted fastest first; every list has one entry a point.

    Service times are lognormal with the row's median and 99th percentile. ``batch_j`` is what one batch draws above
    ``base_w``: above idle where idle power is known, else gross; 0 where nothing is known (see ``notes``). After a rest
    of g seconds the median is ``rest_s`` and the energy ``rest_j`` larger, each times ``1 - exp(-g / settle_s)``
    (:class:`calibration.table.Duty`); 0 where the table does not know. ``smaller`` leads to the same engine with the
    next smaller batch size, -1 at the smallest.
    """

    def __init__(self, table: Table) -> None:
        rows = sorted(table.rows, key=lambda row: (row.latency_p50_ms, row.point))
        for row in rows:
            if not (row.latency_p50_ms > 0 and math.isfinite(row.latency_p50_ms) and row.batch_size >= 1):
                raise InputError(
                    f"operating point '{row.point}': latency_p50_ms is {row.latency_p50_ms} and batch_size "
                    f"{row.batch_size}; both must be above 0; calibrate again"
                )
        self.points = tuple(row.point for row in rows)
        self.index = {point: place for place, point in enumerate(self.points)}
        self.subnets = [row.subnet for row in rows]
        self.batch = [row.batch_size for row in rows]
        self.median_s = [row.latency_p50_ms / 1000.0 for row in rows]
        self.sigma = [math.log(max(1.0, row.latency_p99_ms / row.latency_p50_ms)) / _Z99 for row in rows]
        self.rest_s = [0.0 if row.duty is None else row.duty.extra_ms / 1000.0 for row in rows]
        self.settle_s = [1.0 if row.duty is None else row.duty.settle_ms / 1000.0 for row in rows]
        self.accuracy = [row.accuracy for row in rows]
        extra = {(switch.from_point, switch.to_point): max(0.0, switch.extra_ms) / 1000.0 for switch in table.switches}
        self.power_w = [row.power_w for row in rows]
        self.smaller = [_smaller(rows, place) for place in range(len(rows))]
        self.switch_s = [[extra.get((a, b), 0.0) for b in self.points] for a in self.points]
        net = [_net_energy_j(row, table.idle_power_w) for row in rows]
        self.base_w = table.idle_power_w or 0.0
        self.net_known = None not in net
        self.energy_known = self.net_known and table.idle_power_w is not None
        drawn = net if table.idle_power_w is not None or self.net_known else [row.energy_j for row in rows]
        self.batch_j = [(energy or 0.0) * row.batch_size for energy, row in zip(drawn, rows, strict=True)]
        rested = [0.0 if row.duty is None else row.duty.extra_net_energy_j or 0.0 for row in rows]
        self.rest_j = [
            joules * size if energy else 0.0 for joules, size, energy in zip(rested, self.batch, drawn, strict=True)
        ]
        self.notes = tuple(_notes(table, drawn, self.net_known))

    def place(self, point: str) -> int:
        """The index of an operating point.

        Raises:
            InputError: a policy chose a point that the table lacks.
        """
        found = self.index.get(point)
        if found is None:
            raise InputError(f"the policy chose '{point}', which is not in the table; it has {', '.join(self.points)}")
        return found

    def plan(self, steps: Sequence[SlackStep], ceiling: int) -> list[tuple[float, int]]:
        """A slack plan as (least slack in seconds, point), most slack first; nothing more accurate than the ceiling."""
        found = []
        for step in sorted(steps, key=lambda step: step.slack_ms, reverse=True):
            place = self.place(step.point)
            found.append((step.slack_ms / 1000.0, place if self.accuracy[place] <= self.accuracy[ceiling] else ceiling))
        return found


def _smaller(rows: Sequence[Row], place: int) -> int:
    """Where the same engine stands with the next smaller batch size, or -1."""
    mine = rows[place]
    same = [
        (row.batch_size, other)
        for other, row in enumerate(rows)
        if row.batch_size < mine.batch_size and same_engine(row, mine)
    ]
    return max(same)[1] if same else -1


def _net_energy_j(row: Row, idle_power_w: float | None) -> float | None:
    """Energy per image above idle, computed from gross energy where only that is given."""
    if row.net_energy_j is not None:
        return max(0.0, row.net_energy_j)
    if row.energy_j is None or idle_power_w is None or row.throughput_per_s <= 0:
        return None
    return max(0.0, row.energy_j - idle_power_w / row.throughput_per_s)


def _notes(table: Table, drawn: Sequence[float | None], net_known: bool) -> list[str]:
    unknown = sum(energy is None for energy in drawn)
    notes = []
    if unknown:
        notes.append(
            f"the table knows no energy for {unknown} of {len(drawn)} operating points: energy is unknown, and "
            "a battery drains without them"
        )
    if table.idle_power_w is None:
        what = "above idle" if net_known else "while answering"
        notes.append(
            "the table knows no idle power: total energy and heat are unknown, and a battery drains only by what is "
            f"drawn {what}"
            if unknown < len(drawn)
            else "the table knows no idle power: total energy and heat are unknown"
        )
    modelled = dict.fromkeys(row.energy_source for row in table.rows if row.energy_source.startswith("modelled"))
    if modelled and any(value is not None for value in drawn):
        notes.append(f"energies and powers follow from the table's, which are {', '.join(modelled)} and not measured")
    return notes
