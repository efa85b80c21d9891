"""Load and deadline: the most accurate rung that keeps up and answers in time."""

from __future__ import annotations

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals
from policies.queueing import lognormal, mean_wait
from policies.rungs import PerTable, RungPolicy, Rungs, Where, require
from policies.slack import slack_plan


class _Service(msgspec.Struct, frozen=True):
    """Per rung, as calibrated: mean time of a batch, its squared variation, its p99, images per batch."""

    mean_s: tuple[float, ...]
    squared_variation: tuple[float, ...]
    p99_s: tuple[float, ...]
    batch_size: int


class _Fault(msgspec.Struct, frozen=True):
    """The constraint that a rung would break, in words; urgent when it is being broken already."""

    bound: str
    words: str
    urgent: bool = False


class Throughput(RungPolicy):
    """The most accurate rung that the load leaves room for and that answers before the deadline.

    A rung is feasible when, with every latency scaled by the measured slowdown,

    * it is busy for at most ``rho_max`` of the time,
    * its p99 latency plus the mean wait of an M/G/1 queue (:mod:`policies.queueing`) fits in the deadline,
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
        self._service: PerTable[_Service] = PerTable(lambda table: _service(self._rungs(table)))

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The most accurate feasible rung, with a slack plan when there is a deadline; urgent when answers are late."""
        rungs, service = self._rungs(table), self._service(table)
        slowdown = conditions.slowdown if conditions.slowdown is not None else 1.0
        fault: _Fault | None = None  # of the rung above the chosen one
        refused, urgent = "", False
        for chosen in range(len(rungs.points) - 1, -1, -1):
            found = self._fault(chosen, service, conditions, slowdown)
            if found is None:
                label = rungs.labels[chosen]
                reason = (
                    f"{label}, since {refused}" if fault else self._praise(chosen, service, conditions, slowdown, label)
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

    def _fault(self, index: int, service: _Service, conditions: Conditions, slowdown: float) -> _Fault | None:
        """Why a rung will not do; None when it will."""
        rate, deadline_ms = conditions.arrival_rate_hz or 0.0, self.goals.deadline_ms
        mean_s = service.mean_s[index] * slowdown
        batch_rate = rate / service.batch_size
        if batch_rate * mean_s > self.rho_max:
            busy, most = 100 * batch_rate * mean_s, 100 * self.rho_max
            return _Fault("throughput", f"would be {busy:.0f} % busy at {rate:.1f}/s, above {most:.0f} %")
        if deadline_ms is None:
            return None
        wait_ms = 1000 * mean_wait(batch_rate, mean_s, service.squared_variation[index])
        p99_ms = 1000 * service.p99_s[index] * slowdown
        if p99_ms + wait_ms > deadline_ms:
            return _Fault("deadline", f"needs {p99_ms:.1f} ms + {wait_ms:.1f} ms wait of {deadline_ms:g} ms")
        waiting = conditions.queue_depth or 0
        backlog_ms = 1000 * waiting / service.batch_size * mean_s
        if backlog_ms > deadline_ms:
            words = f"would take {backlog_ms:.0f} ms for the {waiting} waiting, above {deadline_ms:g} ms"
            return _Fault("deadline", words, urgent=True)
        return None

    def _praise(self, index: int, service: _Service, conditions: Conditions, slowdown: float, label: str) -> str:
        """Why the best rung is fine."""
        rate, deadline_ms = conditions.arrival_rate_hz, self.goals.deadline_ms
        words = []
        if rate is not None:
            busy = rate / service.batch_size * service.mean_s[index] * slowdown
            words.append(f"{100 * busy:.0f} % busy at {rate:.1f}/s")
        if deadline_ms is not None:
            words.append(f"p99 {1000 * service.p99_s[index] * slowdown:.1f} ms of {deadline_ms:g} ms")
        return f"{label} keeps up, {', '.join(words) or 'arrival rate unknown and no deadline'}"


def _service(rungs: Rungs) -> _Service:
    fits = [lognormal(row.latency_p50_ms / 1000, row.latency_p99_ms / 1000) for row in rungs.rows]
    return _Service(
        mean_s=tuple(mean for mean, _ in fits),
        squared_variation=tuple(variation for _, variation in fits),
        p99_s=tuple(row.latency_p99_ms / 1000 for row in rungs.rows),
        batch_size=rungs.rows[0].batch_size,
    )
