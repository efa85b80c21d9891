"""Slack plans: which point to use for a batch with little time left, without asking the policy.

Slack is the time from now to the deadline of the batch's oldest request. A step asks for the p99 latency of its point,
scaled by the slowdown; the quickest point is the first step and asks for nothing, since a late answer from it is as
early as can be. (Zhang et al., SuperServe, NSDI 2025, use slack as the one number that orders choices.)
"""

from __future__ import annotations

from policies.base import SlackStep
from policies.rungs import Order, Rungs


def slack_plan(rungs: Rungs, ceiling: int, slowdown: float) -> tuple[SlackStep, ...]:
    """Steps over the rungs at or below ``ceiling``, ascending; a rung slower at p99 than a better one is left out.

    Empty when only one point would be left.
    """
    steps: list[SlackStep] = []
    for index in range(ceiling, -1, -1):
        needed_ms = rungs.rows[index].latency_p99_ms * slowdown
        if not steps or needed_ms < steps[-1].slack_ms:
            steps.append(SlackStep(needed_ms, rungs.points[index]))
    steps[-1] = SlackStep(0.0, steps[-1].point)
    return tuple(reversed(steps)) if len(steps) > 1 else ()


def fit_plan(plan: tuple[SlackStep, ...], order: Order, point: str, slowdown: float | None) -> tuple[SlackStep, ...]:
    """The plan of another ceiling made to end at ``point``: its steps from there up go, ``point`` itself is added.

    Empty when nothing but ``point`` would be left.
    """
    if not plan:
        return ()
    top, needed_ms = order.rank[point], order.row[point].latency_p99_ms * (slowdown if slowdown is not None else 1.0)
    below = tuple(step for step in plan if order.rank[step.point] < top and step.slack_ms < needed_ms)
    return (*below, SlackStep(needed_ms, point)) if below else ()
