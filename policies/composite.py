"""The product's default: load, heat, battery and power together, down at once and up slowly."""

from __future__ import annotations

from typing import Any

from calibration.table import Table
from policies.base import Conditions, Decision, Goals, Policy
from policies.battery import Battery
from policies.dwell import Dwell
from policies.hysteresis import Hysteresis
from policies.power import Power
from policies.rungs import Where
from policies.strictest import Strictest
from policies.thermal import Thermal
from policies.throughput import Throughput


class Composite(Policy):
    """The strictest ceiling of throughput and deadline, heat, battery and power cap; switches are damped.

    ``Dwell(Hysteresis(Strictest([Throughput, Thermal, Battery, Power])))``: each member stays silent where the goals
    wish for nothing or the sensors know nothing. With the defaults the decision is never above any member's ceiling:
    going down takes one vote and no stay, going up ten votes in a row and ten seconds.

    Args:
        rho_max: largest share of the time that inference may take (throughput).
        h_lo: headroom below which heat steps down (thermal).
        h_hi: headroom above which heat may step up again (thermal).
        forecast_s: how far ahead the temperature is looked at, in seconds (thermal).
        reference_c: temperature of headroom 1, in degrees Celsius (thermal).
        settle_s: least time between two steps, in seconds (thermal).
        clear_s: time without throttling before a step up, in seconds (thermal).
        mix_s: shortest stay on the upper of two mixed rungs, in seconds; 0 never mixes (battery).
        up_votes: decisions in a row before going up, from 1.
        down_votes: decisions in a row before going down, from 1.
        dwell_s: shortest stay before going up, in seconds.
        switches_per_hour: most switches in any hour before ups are held back; no limit when left out.
    """

    name = "composite"
    looks_at = tuple(dict.fromkeys((*Throughput.looks_at, *Thermal.looks_at, *Battery.looks_at, *Power.looks_at)))

    def __init__(
        self,
        goals: Goals,
        *,
        rho_max: float = 0.7,
        h_lo: float = 0.15,
        h_hi: float = 0.35,
        forecast_s: float = 30.0,
        reference_c: float = 25.0,
        settle_s: float = 10.0,
        clear_s: float = 60.0,
        mix_s: float = 60.0,
        up_votes: int = 10,
        down_votes: int = 1,
        dwell_s: float = 10.0,
        switches_per_hour: int | None = None,
        where: Where | None = None,
    ) -> None:
        self.goals = goals.check()
        self.members: tuple[Policy, ...] = (
            Throughput(goals, rho_max=rho_max, where=where),
            Thermal(
                goals,
                h_lo=h_lo,
                h_hi=h_hi,
                forecast_s=forecast_s,
                reference_c=reference_c,
                settle_s=settle_s,
                clear_s=clear_s,
                where=where,
            ),
            Battery(goals, mix_s=mix_s, where=where),
            Power(goals, where=where),
        )
        voting = Hysteresis(Strictest(self.members), up_votes=up_votes, down_votes=down_votes)
        self._chain = Dwell(voting, up_s=dwell_s, switches_per_hour=switches_per_hour)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The strictest ceiling, or the point held until going up is settled."""
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
