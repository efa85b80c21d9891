"""Decisions written down: what the clairvoyant may do in an epoch, and a policy that does what is written.

* :class:`Step`, :class:`Script`: decisions written down beforehand, as a policy.
* :class:`Choice`, :func:`choices`: what may be done in an epoch; :class:`Recorder`: what a policy did.
* :func:`broken`: the hard limits that an outcome broke.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from calibration.table import Table
from policies.base import Conditions, Decision, Goals, Policy, SlackStep
from policies.rungs import Where, rungs_of
from simulation.fluid import Problem
from simulation.outcome import Outcome
from simulation.replay import deadlines_s
from subnets.bundle import Strict
from subnets.errors import InputError

_FACTORS = (1.0, 1.5, 2.5)


class Step(Strict, frozen=True, kw_only=True):
    """From ``time_s`` on, this operating point and slack plan."""

    time_s: float
    point: str
    slack_plan: tuple[SlackStep, ...] = ()


class Script(Policy):
    """Does what is written down, whatever the conditions.

    Args:
        steps: in order of time, the first from time 0.

    Raises:
        InputError: there is no step.
    """

    name = "script"

    def __init__(self, steps: Sequence[Step]) -> None:
        if not steps:
            raise InputError("a script needs at least one step")
        self._decisions = [
            (step.time_s, Decision(point=step.point, reason="as written down", slack_plan=step.slack_plan))
            for step in steps
        ]
        self._at = 0

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The last step whose time has come."""
        decisions, now = self._decisions, conditions.time_s + 1e-9
        while self._at + 1 < len(decisions) and decisions[self._at + 1][0] <= now:
            self._at += 1
        return decisions[self._at][1]

    def reset(self) -> None:
        """Begins anew."""
        self._at = 0


def broken(
    outcome: Outcome, goals: Goals, *, charge_tolerance: float = 0.0, temperature_tolerance_c: float = 0.0
) -> tuple[str, ...]:
    """The hard limits that a run broke: ``temperature``, ``battery`` (it was to last, with its reserve), ``power``."""
    found = []
    peak_c, limit_c = outcome.peak_temperature_c, goals.temperature_limit_c
    if peak_c is not None and limit_c is not None and peak_c > limit_c + temperature_tolerance_c:
        found.append("temperature")
    if goals.last_until_s is not None and outcome.battery_at_goal is not None:
        until_s = min(goals.last_until_s, outcome.duration_s)
        died = outcome.time_to_empty_s is not None and outcome.time_to_empty_s < until_s
        if died or outcome.battery_at_goal < goals.reserve - charge_tolerance:
            found.append("battery")
    if goals.max_power_w is not None and (outcome.peak_power_w or 0.0) > goals.max_power_w:
        found.append("power")
    return tuple(found)


class Choice(msgspec.Struct, frozen=True):
    """A ceiling, and below it a plan whose steps ask for these times at slowdown 1; or what a policy once decided."""

    point: str
    plan: tuple[SlackStep, ...] = ()
    recorded: tuple[tuple[str, tuple[SlackStep, ...]], ...] = ()  # of each tick; then the fields above do not count

    def at(self, tick: int, slowdown: float) -> tuple[str, tuple[SlackStep, ...]]:
        """Operating point and slack plan at a tick."""
        if self.recorded:
            return self.recorded[tick]
        return self.point, tuple(SlackStep(step.slack_ms * slowdown, step.point) for step in self.plan)


class Recorder(Policy):
    """Lets another policy decide and keeps what it decided, with its time."""

    name = "recorder"

    def __init__(self, inner: Policy) -> None:
        self._inner = inner
        self.decided: list[tuple[float, str, tuple[SlackStep, ...]]] = []

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The other's decision."""
        decision = self._inner.decide(conditions, table, current)
        self.decided.append((conditions.time_s, decision.point, decision.slack_plan))
        return decision

    def reset(self) -> None:
        """The other forgets, and so does the record."""
        self._inner.reset()
        self.decided.clear()


def choices(problem: Problem, table: Table) -> list[Choice]:
    """Every operating point on the frontier of its batch size, and slack plans over them.

    A plan asks, before it takes a point, for the median or a multiple of the 99th percentile of its time: with more,
    it goes down while the queue is still short.
    """
    rows = [row for row in table.rows if problem.table.index[row.point] in problem.allowed]
    part = msgspec.structs.replace(table, rows=tuple(rows))
    found: list[Choice] = []
    for size in sorted({row.batch_size for row in rows}):
        rungs = rungs_of(part, Where(batch_size=size))
        found += [Choice(point) for point in rungs.points]
        if deadlines_s(problem.trace, problem.goals) is not None:
            for ceiling in range(1, len(rungs.points)):
                ladder = rungs.rows[: ceiling + 1]
                asked = [[row.latency_p50_ms for row in ladder]]
                asked += [[factor * row.latency_p99_ms for row in ladder] for factor in _FACTORS]
                plans = dict.fromkeys(tuple(map(SlackStep, [0.0, *times[1:]], rungs.points)) for times in asked)
                found += [Choice(rungs.points[ceiling], plan) for plan in plans]
    return found
