"""The product's default: a slow ceiling for heat, battery and power, and a fast choice by slack below it."""

from __future__ import annotations

from typing import Any

from calibration.table import Table
from policies.base import Conditions, Decision, Goals, Policy
from policies.battery import Battery
from policies.crowd import Crowd
from policies.dwell import Dwell
from policies.fast import Fast
from policies.hysteresis import Hysteresis
from policies.power import Power
from policies.queueplan import QueuePlans
from policies.rungs import Where, require
from policies.strictest import Strictest
from policies.thermal import Thermal
from policies.throughput import Throughput


class Composite(Policy):
    """A guard, a slow ceiling, a fast choice by slack, and damping: each part can be used alone.

    ::

        Fast(Dwell(Hysteresis(Strictest([load, Thermal, Battery, Power]))))

    1. *Guard*: what is broken already (temperature at the limit, power above the cap, charge at the reserve) makes a
       decision urgent, and an urgent decision goes down past all damping.
    2. *Slow ceiling*: the strictest of heat, forecast by an identified model (:class:`~policies.thermal.Thermal`),
       battery, planned to the end (:class:`~policies.battery.Battery`), and power cap. Load only takes away what is of
       no use (:class:`~policies.crowd.Crowd`); without a deadline it is a ceiling like the others
       (:class:`~policies.throughput.Throughput`).
    3. *Fast choice*: the slack plan of the solved queue below that ceiling (:class:`~policies.fast.Fast`), for the
       dispatcher to apply to each batch, so that a burst needs no switch of the ceiling.
    4. *Damping*: the ceiling goes down after one vote, up after ten in a row and ten seconds, and not at all while the
       goals' switches per hour are used up.

    Each part stays silent where the goals wish for nothing or the sensors know nothing.

    Args:
        rho_max: largest share of the time that inference may take where there is no deadline (throughput).
        h_lo: headroom below which heat steps down, until the device is identified (thermal).
        h_hi: headroom above which heat may step up again, until then (thermal).
        forecast_s: how far ahead the temperature is looked at, in seconds (thermal).
        margin_c: how far below the limit the forecast should stay, in degrees Celsius (thermal).
        reference_c: temperature of headroom 1, in degrees Celsius (thermal).
        settle_s: least time between two steps, in seconds (thermal).
        clear_s: time without throttling before a step up, in seconds (thermal).
        mix_s: shortest stay on the upper of two mixed rungs, in seconds; 0 never mixes (battery).
        caution: least factor on the arrival rate that the slack plan is made for, from 1; grows while more answers are
            late than the deadline's percentile allows.
        up_votes: decisions in a row before going up, from 1.
        down_votes: decisions in a row before going down, from 1.
        dwell_s: shortest stay before going up, in seconds.
        switches_per_hour: most switches in any hour before ups are held back; as the goals say when left out.
    """

    name = "composite"
    looks_at = tuple(
        dict.fromkeys(
            (
                *Throughput.looks_at,
                *Thermal.looks_at,
                *Battery.looks_at,
                *Power.looks_at,
                *Crowd.looks_at,
                "miss_rate",
            )
        )
    )

    def __init__(
        self,
        goals: Goals,
        *,
        rho_max: float = 0.7,
        h_lo: float = 0.15,
        h_hi: float = 0.35,
        forecast_s: float = 30.0,
        margin_c: float = 0.5,
        reference_c: float = 25.0,
        settle_s: float = 10.0,
        clear_s: float = 60.0,
        mix_s: float = 600.0,
        caution: float = 2.0,
        up_votes: int = 10,
        down_votes: int = 1,
        dwell_s: float = 10.0,
        switches_per_hour: int | None = None,
        where: Where | None = None,
    ) -> None:
        self.goals = goals.check()
        require(1 <= caution < float("inf"), self.name, "caution", caution, "a factor from 1")
        plans = QueuePlans(goals, where or Where())
        throughput = Throughput(goals, rho_max=rho_max, where=where)
        self.members: tuple[Policy, ...] = (
            throughput if goals.deadline_ms is None else Crowd(goals, plans, where=where),
            Thermal(
                goals,
                h_lo=h_lo,
                h_hi=h_hi,
                forecast_s=forecast_s,
                margin_c=margin_c,
                reference_c=reference_c,
                settle_s=settle_s,
                clear_s=clear_s,
                where=where,
            ),
            Battery(goals, mix_s=mix_s, where=where),
            Power(goals, where=where),
        )
        voting = Hysteresis(Strictest(self.members), up_votes=up_votes, down_votes=down_votes)
        most = switches_per_hour
        if most is None and goals.switches_per_hour is not None:
            most = max(1, goals.switches_per_hour - 1)  # whoever goes up must still be free to come down
        self._chain = Fast(Dwell(voting, up_s=dwell_s, switches_per_hour=most), plans, caution=caution)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The damped ceiling, and the plan below it."""
        return self._chain.decide(conditions, table, current)

    def reset(self) -> None:
        """Every part forgets."""
        self._chain.reset()

    def state(self) -> dict[str, Any]:
        """The states of all parts."""
        return self._chain.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._chain.restore(state)
