"""How many channels each group keeps at each budget: nested widths from scores.

* :func:`greedy`: from the full network, again and again the chunk of channels whose loss per saved MAC is smallest
  (AutoSlim's greedy pass with scores in place of evaluations).
* :func:`threshold`: one global threshold on normalised scores, lowered until the budget is met (the DAC 2020 paper).

Both only ever shrink on the way down, so the ladder is nested by construction. Widths are multiples of ``align``, since
unaligned widths cost engines as much as the next multiple or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
import torch

from subnets.errors import InputError
from subnets.groups import Traced
from subnets.importance import Scores
from subnets.spec import Ladder, SubnetSpec

SPACES = ("interiors", "stages")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an allocation may do.

    ``space``: ``interiors`` cuts only channels inside blocks; ``stages`` also the residual stages between them.
    ``floor``: smallest share of a group that stays; ``last_floor``: the same for the classifier's input.
    """

    align: int = 8
    space: str = "stages"
    floor: float = 0.125
    last_floor: float = 0.5

    def widths(self, traced: Traced) -> dict[str, list[int]]:
        """Allowed widths per group, widest first."""
        if self.space not in SPACES:
            raise InputError(f"space '{self.space}' is unknown; use one of {', '.join(SPACES)}")
        if self.align < 1:
            raise InputError(f"align {self.align} is too small; give at least 1")
        last = traced.layers[-1].input_group
        allowed = {}
        for group in traced.groups:
            if group.coupled and self.space == "interiors":
                allowed[group.name] = [group.width]
                continue
            share = self.last_floor if group.name == last else self.floor
            lowest = max(1, min(group.width, math.ceil(share * group.width - 1e-9)))
            steps = [w for w in range(self.align, group.width, self.align) if w >= lowest]
            allowed[group.name] = [group.width, *reversed(steps)]
        return allowed


def _names(budgets: Sequence[float]) -> list[tuple[str, float]]:
    if not budgets or any(not 0 < budget <= 1 for budget in budgets):
        raise InputError(f"budgets {list(budgets)} must be shares of the full network's MACs, above 0 and up to 1")
    ordered = sorted(set(budgets), reverse=True)
    names = [f"s{round(100 * budget)}" for budget in ordered]
    if len(set(names)) != len(names):
        raise InputError(f"budgets {list(budgets)} lie closer than one percent; keep them apart")
    return list(zip(names, ordered, strict=True))


def _unreachable(name: str, budget: float, traced: Traced, widths: Mapping[str, int]) -> InputError:
    share = traced.macs(widths) / traced.macs(traced.full)
    return InputError(
        f"budget {budget:g} ({name}) cannot be met: the floors leave {share:.1%} of the MACs; "
        "allow more with --space stages, a smaller --floor or a smaller --align"
    )


def greedy(traced: Traced, scores: Scores, budgets: Sequence[float], limits: Limits) -> Ladder:
    """Removes chunks by smallest score per saved MAC; a subnet is recorded when its budget is reached.

    Raises:
        InputError: a budget makes no sense or cannot be met.
    """
    allowed = {name: list(widths) for name, widths in limits.widths(traced).items()}
    ranked = {name: torch.cat([torch.zeros(1), s.sort(descending=True).values.cumsum(0)]) for name, s in scores.items()}
    widths = traced.full
    whole = traced.macs(widths)
    found: list[SubnetSpec] = []
    for name, budget in _names(budgets):
        while traced.macs(widths) > budget * whole:
            best: tuple[float, str] | None = None
            now = traced.macs(widths)
            for group, steps in allowed.items():
                if len(steps) < 2:
                    continue
                saved = now - traced.macs({**widths, group: steps[1]})
                lost = float(ranked[group][steps[0]] - ranked[group][steps[1]])
                price = lost / saved
                if best is None or price < best[0]:
                    best = (price, group)
            if best is None:
                raise _unreachable(name, budget, traced, widths)
            allowed[best[1]].pop(0)
            widths = {**widths, best[1]: allowed[best[1]][0]}
        found.append(SubnetSpec(name, dict(widths)))
    return Ladder(found[::-1])


def threshold(traced: Traced, scores: Scores, budgets: Sequence[float], limits: Limits) -> Ladder:
    """Keeps channels whose normalised score lies above one global threshold, widths rounded up to ``align``.

    Raises:
        InputError: a budget makes no sense or cannot be met.
    """
    allowed = limits.widths(traced)
    normalised = {name: s / s.mean().clamp_min(torch.finfo(s.dtype).tiny) for name, s in scores.items()}
    levels = torch.cat([torch.zeros(1), torch.cat(list(normalised.values())).sort().values])
    whole = traced.macs(traced.full)

    def widths_at(level: float) -> dict[str, int]:
        kept = {}
        for group in traced.groups:
            count = int((normalised[group.name] > level).sum())
            kept[group.name] = min((w for w in allowed[group.name] if w >= count), default=group.width)
        return kept

    found = []
    for name, budget in _names(budgets):
        low, high = 0, len(levels) - 1
        while low < high:  # the lowest threshold that meets the budget; MACs fall as it rises
            middle = (low + high) // 2
            if traced.macs(widths_at(float(levels[middle]))) <= budget * whole:
                high = middle
            else:
                low = middle + 1
        widths = traced.full if budget == 1 else widths_at(float(levels[low]))
        if traced.macs(widths) > budget * whole:
            raise _unreachable(name, budget, traced, widths)
        found.append(SubnetSpec(name, widths))
    return Ladder(found[::-1])


ALLOCATIONS: Mapping[str, Callable[[Traced, Scores, Sequence[float], Limits], Ladder]] = {
    "greedy": greedy,
    "threshold": threshold,
}


def allocate(kind: str, traced: Traced, scores: Scores, budgets: Sequence[float], limits: Limits) -> Ladder:
    """The ladder that an allocation of that kind gives.

    Raises:
        InputError: the kind or a budget is unknown or impossible.
    """
    if kind not in ALLOCATIONS:
        raise InputError(f"allocation '{kind}' is unknown; use one of {', '.join(ALLOCATIONS)}")
    return ALLOCATIONS[kind](traced, scores, budgets, limits)
