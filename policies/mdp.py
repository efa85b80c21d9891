"""The optimal policy of the queue: which operating point after which wait, from value iteration."""

from __future__ import annotations

import math

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.memory import Smoothed
from policies.queueplan import QueuePlans
from policies.remembering import Remembering
from policies.rungs import Where, require

_HOPELESS = 0.5  # share of the least accuracy, below which answers are late whatever is done


class _Memory(msgspec.Struct, forbid_unknown_fields=True):
    rate_hz: Smoothed = msgspec.field(default_factory=Smoothed)
    bins: tuple[int, int] | None = None


class Mdp(Remembering[_Memory]):
    """A slack plan that is the solved Markov decision process of the queue, for the load of now.

    State: the wait ``w`` of the oldest request when the server becomes free. Actions: the table's rows, (subnet,
    batch). Reward: accuracy of each answer in time. Arrivals are Poisson. :mod:`policies.lindley` has the equations;
    each bin of load and slowdown (15 % wide) is solved when it is first met, and looked up from then on. The best
    action as a function of the slack ``deadline - w`` is handed out as a slack plan, so that the dispatcher applies
    it to each batch. Strong under steady and under bursty load alike as long as the rate does not drift faster than it
    is measured; it looks at neither heat nor energy. Without a deadline, the most accurate row that keeps up.

    Source: Mendoza et al., Model Selection for Latency-Critical Inference Serving (RAMSIS), EuroSys 2024, for the
    formulation with queue length and slack; ours has the wait alone, which for one first-come-first-served server
    and Poisson arrivals says as much.

    Args:
        smooth_s: time constant of the arrival rate, in seconds.
        caution: factor on the arrival rate, from 1.
    """

    name = "mdp"
    looks_at = ("arrival_rate_hz", "slowdown")

    def __init__(
        self, goals: Goals, *, smooth_s: float = 5.0, caution: float = 1.0, where: Where | None = None
    ) -> None:
        self.goals = goals.check()
        require(0 < smooth_s < math.inf, self.name, "smooth_s", smooth_s, "a time above 0 seconds")
        require(1 <= caution < math.inf, self.name, "caution", caution, "a factor from 1")
        self.smooth_s, self.caution = smooth_s, caution
        self._plans = QueuePlans(goals, where or Where())
        self._remember(_Memory)

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The plan of this bin; its most accurate row is the ceiling."""
        memory, shelf = self._memory, self._plans.shelves(table)[0]
        top = len(shelf.points) - 1
        if conditions.arrival_rate_hz is None:
            rate = memory.rate_hz.value or 0.0
        else:
            rate = memory.rate_hz.update(conditions.arrival_rate_hz, conditions.time_s, self.smooth_s)
        slowdown = 1.0 if conditions.slowdown is None else conditions.slowdown
        if self.goals.deadline_ms is None:
            busy = [rate * row.latency_p50_ms / 1000 / row.batch_size * slowdown for row in shelf.rows]
            chosen = max((index for index, share in enumerate(busy) if share < 1), default=0)
            words = f"{shelf.labels[chosen]} is {100 * busy[chosen]:.0f} % busy at {rate:.1f}/s, no deadline"
            return shelf.choose(chosen, f"mdp: {words}", "throughput" if chosen < top else "none")
        memory.bins = self._plans.bins(table, rate * self.caution, slowdown, memory.bins)
        planned = self._plans.plan(table, memory.bins, math.inf)
        row = planned.ceiling
        words = f"mdp: up to {row.point}, {100 * planned.gain:.2f} % right and on time expected at {rate:.1f}/s"
        hopeless = planned.gain < _HOPELESS * shelf.rows[0].accuracy
        if hopeless:
            words = f"{words}; best effort"
        bound = "none" if row.accuracy >= shelf.rows[top].accuracy else "deadline"
        if shelf.short:
            words, bound = f"{words}; {shelf.short}", "accuracy" if bound == "none" else bound
        return Decision(point=row.point, reason=words, bound=bound, urgent=hopeless, slack_plan=planned.steps)
