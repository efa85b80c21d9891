"""Load and deadline: the most accurate rung that keeps up and answers in time."""

from __future__ import annotations

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.load import LoadModel, load_model
from policies.rungs import PerTable, RungPolicy, Where, require
from policies.slack import slack_plan


class _Fault(msgspec.Struct, frozen=True):
    """The constraint that a rung would break, in words; urgent when it is being broken already."""

    bound: str
    words: str
    urgent: bool = False


class Throughput(RungPolicy):
    """The most accurate rung that the load leaves room for and that answers before the deadline.

    A rung is feasible when, with every latency scaled by the measured slowdown,

    * it is busy for at most ``rho_max`` of the time,
    * its latency at the deadline's percentile plus the mean wait of an M/G/1 queue (:mod:`policies.queueing`) fits in
      the deadline,
    * the requests waiting now are worked off within the deadline.

    An unknown arrival rate leaves the latency alone against the deadline; without a deadline only the load counts; an
    unknown slowdown is 1. When no rung is feasible the fastest is used, as best effort. One server is assumed, and
    full batches where the batch size is above 1. Decides from the present alone, without memory.

    Args:
        rho_max: largest share of the time that inference may take, above 0 and below 1.
    """

    name = "throughput"
    looks_at = ("arrival_rate_hz", "queue_depth", "slowdown")

    def __init__(self, goals: Goals, *, rho_max: float = 0.7, where: Where | None = None) -> None:
        super().__init__(goals, where=where)
        require(0 < rho_max < 1, self.name, "rho_max", rho_max, "a share above 0 and below 1")
        self.rho_max = rho_max
        self._load: PerTable[LoadModel] = PerTable(lambda table: load_model(self._rungs(table), goals))

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The most accurate feasible rung, with a slack plan when there is a deadline; urgent when answers are late."""
        rungs, load = self._rungs(table), self._load(table)
        slowdown = conditions.slowdown if conditions.slowdown is not None else 1.0
        fault: _Fault | None = None  # of the rung above the chosen one
        refused, urgent = "", False
        for chosen in range(len(rungs.points) - 1, -1, -1):
            found = self._fault(chosen, load, conditions, slowdown)
            if found is None:
                label = rungs.labels[chosen]
                reason = (
                    f"{label}, since {refused}" if fault else self._praise(chosen, load, conditions, slowdown, label)
                )
                break
            fault, refused, urgent = found, f"{rungs.labels[chosen]} {found.words}", urgent or found.urgent
        else:
            reason, urgent = f"best effort with {rungs.labels[0]}, even {refused}", True
        return rungs.choose(
            chosen,
            f"throughput: {reason}",
            fault.bound if fault else "none",
            urgent=urgent,
            slack_plan=slack_plan(rungs, chosen, slowdown) if self.goals.deadline_ms is not None else (),
        )

    def _fault(self, index: int, load: LoadModel, conditions: Conditions, slowdown: float) -> _Fault | None:
        """Why a rung will not do; None when it will."""
        rate, deadline_ms = conditions.arrival_rate_hz or 0.0, self.goals.deadline_ms
        busy = load.busy(index, rate, slowdown)
        if busy > self.rho_max:
            most = 100 * self.rho_max
            return _Fault("throughput", f"would be {100 * busy:.0f} % busy at {rate:.1f}/s, above {most:.0f} %")
        if deadline_ms is None:
            return None
        wait_ms = load.wait_ms(index, rate, slowdown)
        tail_ms = load.tail_ms(index, conditions.arrival_rate_hz, slowdown)
        if tail_ms + wait_ms > deadline_ms:
            return _Fault("deadline", f"needs {tail_ms:.1f} ms + {wait_ms:.1f} ms wait of {deadline_ms:g} ms")
        waiting = conditions.queue_depth or 0
        backlog_ms = waiting / load.batch_size * load.mean_ms(index, None, slowdown)  # back to back
        if backlog_ms > deadline_ms:
            words = f"would take {backlog_ms:.0f} ms for the {waiting} waiting, above {deadline_ms:g} ms"
            return _Fault("deadline", words, urgent=True)
        return None

    def _praise(self, index: int, load: LoadModel, conditions: Conditions, slowdown: float, label: str) -> str:
        """Why the best rung is fine."""
        rate, deadline_ms = conditions.arrival_rate_hz, self.goals.deadline_ms
        words = []
        if rate is not None:
            words.append(f"{100 * load.busy(index, rate, slowdown):.0f} % busy at {rate:.1f}/s")
        if deadline_ms is not None:
            share = 100 * self.goals.deadline_percentile
            words.append(f"p{share:g} {load.tail_ms(index, rate, slowdown):.1f} ms of {deadline_ms:g} ms")
        return f"{label} keeps up, {', '.join(words) or 'arrival rate unknown and no deadline'}"
