"""How many channels each group keeps at each budget: nested widths from scores.

* :func:`greedy`: from the full network, again and again the chunk of channels whose loss per saved cost is smallest
  (AutoSlim's greedy pass with scores in place of evaluations). The cost is MACs, or measured milliseconds.
* :func:`threshold`: one global threshold on scores, lowered until the budget is met (the DAC 2020 paper).
* :func:`uniform`: the same share of every group (slimmable networks, Yu et al. 2019), the control for all others.
* ``progressive``: cuts that scores propose and the loss on held-out images decides (:mod:`subnets.progressive`).

All only ever shrink on the way down, so the ladder is nested by construction. Widths are multiples of ``align``, since
unaligned widths cost engines as much as the next multiple or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import torch

from subnets.errors import InputError
from subnets.groups import Traced
from subnets.importance import Scores
from subnets.importance import per_mac as priced_per_mac
from subnets.spec import Ladder, SubnetSpec

SPACES = ("interiors", "stages")
ALLOCATIONS = ("greedy", "threshold", "progressive", "latency", "uniform")

Widths = Mapping[str, int]


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


def budget_names(budgets: Sequence[float]) -> list[tuple[str, float]]:
    """(subnet name, budget), largest first: ``s25`` for 0.25.

    Raises:
        InputError: a budget is no share, or two would have the same name.
    """
    if not budgets or any(not 0 < budget <= 1 for budget in budgets):
        raise InputError(f"budgets {list(budgets)} must be shares of the full network's cost, above 0 and up to 1")
    ordered = sorted(set(budgets), reverse=True)
    names = [f"s{round(100 * budget)}" for budget in ordered]
    if len(set(names)) != len(names):
        raise InputError(f"budgets {list(budgets)} lie closer than one percent; keep them apart")
    return list(zip(names, ordered, strict=True))


def unreachable(name: str, budget: float, share: float, unit: str) -> InputError:
    """The refusal of a budget below what the floors leave."""
    return InputError(
        f"budget {budget:g} ({name}) cannot be met: the floors leave {share:.1%} of the {unit}; "
        "allow more with --space stages, a smaller --floor or a smaller --align"
    )


class Cut(msgspec.Struct, frozen=True):
    """One way to shrink: what it saves, and its score lost for each unit saved."""

    group: str
    widths: dict[str, int]
    saved: float
    price: float


class Pricing:
    """Prices the cuts that are possible from given widths.

    What a cut saves depends only on its group and on those that share a layer with it, so it is asked for again only
    when one of these has changed: a cost that is measured is measured far less often.

    Args:
        traced: the network's groups.
        scores: per channel; a cut loses those of the least important channels.
        limits: which widths are allowed.
        cost: of given widths, e.g. MACs or ms.
        per_cost: whether a price is per unit of cost saved, or the lost score alone.
        reach: how many widths further a single cut may go; above 1 where the next one may save nothing.
    """

    def __init__(
        self,
        traced: Traced,
        scores: Scores,
        limits: Limits,
        *,
        cost: Callable[[Widths], float],
        per_cost: bool = True,
        reach: int = 1,
    ) -> None:
        self._allowed = limits.widths(traced)
        self._ranked = {
            name: torch.cat([torch.zeros(1), value.sort(descending=True).values.cumsum(0)])
            for name, value in scores.items()
        }
        self._cost, self._per_cost, self._reach = cost, per_cost, reach
        self._near: dict[str, set[str]] = {group.name: {group.name} for group in traced.groups}
        for layer in traced.layers:
            pair = {name for name in (layer.input_group, layer.output_group) if name}
            for name in pair:
                self._near[name] |= pair
        self._saved: dict[tuple[object, ...], float] = {}

    def cuts(self, widths: Widths) -> Iterator[Cut]:
        """Every cut that saves something."""
        for group, allowed in self._allowed.items():
            steps = [width for width in allowed if width < widths[group]][: self._reach]
            for width in steps:
                smaller = {**widths, group: width}
                around = tuple(sorted((name, widths[name]) for name in self._near[group]))
                key = (group, width, around)
                if key not in self._saved:
                    self._saved[key] = self._cost(widths) - self._cost(smaller)
                saved = self._saved[key]
                if saved > 0:
                    lost = float(self._ranked[group][widths[group]] - self._ranked[group][width])
                    chunk = widths[group] - width
                    yield Cut(group, smaller, saved, lost / saved if self._per_cost else lost / chunk)


def greedy(
    traced: Traced,
    scores: Scores,
    budgets: Sequence[float],
    limits: Limits,
    *,
    cost: Callable[[Widths], float] | None = None,
    unit: str = "MACs",
    per_cost: bool = True,
    reach: int = 1,
) -> Ladder:
    """Removes chunks by smallest score per saved cost; a subnet is recorded when its budget is reached.

    Args:
        traced: the network's groups.
        scores: per channel.
        budgets: shares of the full network's cost.
        limits: which widths are allowed.
        cost: MACs by default.
        unit: of the cost, for messages.
        per_cost: False takes the smallest score per channel, whatever it saves.
        reach: how many widths one removal may go at once.

    Raises:
        InputError: a budget makes no sense or cannot be met.
    """
    cost = cost or traced.macs
    pricing = Pricing(traced, scores, limits, cost=cost, per_cost=per_cost, reach=reach)
    widths: dict[str, int] = traced.full
    whole = cost(widths)
    found: list[SubnetSpec] = []
    for name, budget in budget_names(budgets):
        while cost(widths) > budget * whole:
            best = min(pricing.cuts(widths), key=lambda cut: cut.price, default=None)
            if best is None:
                raise unreachable(name, budget, cost(widths) / whole, unit)
            widths = best.widths
        found.append(SubnetSpec(name, dict(widths)))
    return Ladder(found[::-1])


def threshold(traced: Traced, scores: Scores, budgets: Sequence[float], limits: Limits) -> Ladder:
    """Keeps channels whose score lies above one global threshold, widths rounded up to ``align``.

    Scores must be comparable between groups (:func:`subnets.importance.normalised`).

    Raises:
        InputError: a budget makes no sense or cannot be met.
    """
    allowed = limits.widths(traced)
    levels = torch.cat([torch.zeros(1), torch.cat(list(scores.values())).sort().values])

    def widths_at(index: int) -> dict[str, int]:
        level = float(levels[index])
        kept = {}
        for group in traced.groups:
            count = int((scores[group.name] > level).sum())
            kept[group.name] = min((w for w in allowed[group.name] if w >= count), default=group.width)
        return kept

    return _fitted(traced, budgets, len(levels), widths_at)


def uniform(traced: Traced, scores: Scores, budgets: Sequence[float], limits: Limits) -> Ladder:
    """The same share of every group, rounded to the nearest allowed width; scores play no part.

    Raises:
        InputError: a budget makes no sense or cannot be met.
    """
    allowed = limits.widths(traced)
    count = 1 + 8 * max(group.width for group in traced.groups)

    def widths_at(index: int) -> dict[str, int]:
        share = 1 - index / (count - 1)
        return {name: min(steps, key=lambda w: abs(w - share * steps[0])) for name, steps in allowed.items()}

    return _fitted(traced, budgets, count, widths_at)


def _fitted(traced: Traced, budgets: Sequence[float], count: int, widths_at: Callable[[int], dict[str, int]]) -> Ladder:
    """For each budget the first of ``count`` ever smaller choices of widths that meets it."""
    whole = traced.macs(traced.full)
    found = []
    for name, budget in budget_names(budgets):
        low, high = 0, count - 1
        while low < high:
            middle = (low + high) // 2
            if traced.macs(widths_at(middle)) <= budget * whole:
                high = middle
            else:
                low = middle + 1
        widths = traced.full if budget == 1 else widths_at(low)
        if traced.macs(widths) > budget * whole:
            raise unreachable(name, budget, traced.macs(widths) / whole, "MACs")
        found.append(SubnetSpec(name, widths))
    return Ladder(found[::-1])


def allocate(
    kind: str,
    traced: Traced,
    scores: Scores,
    budgets: Sequence[float],
    limits: Limits,
    *,
    per_mac: bool | None = None,
    loss: Callable[[Widths], float] | None = None,
    latency_ms: Callable[[Widths], float] | None = None,
) -> Ladder:
    """The ladder that an allocation of that kind gives.

    Args:
        kind: one of :data:`ALLOCATIONS`.
        traced: the network's groups and costs.
        scores: per channel.
        budgets: shares of the full network's MACs; of its milliseconds for ``latency``.
        limits: which widths are allowed.
        per_mac: whether a channel's score counts per MAC; None is the kind's own way (greedy and progressive do).
        loss: of given widths on held-out images, for ``progressive``.
        latency_ms: of given widths on the device, for ``latency``.

    Raises:
        InputError: the kind or a budget is unknown or impossible, or what the kind needs is not given.
    """
    if kind == "greedy":
        return greedy(traced, scores, budgets, limits, per_cost=per_mac is not False)
    if kind == "threshold":
        return threshold(traced, priced_per_mac(scores, traced) if per_mac else scores, budgets, limits)
    if kind == "uniform":
        return uniform(traced, scores, budgets, limits)
    if kind == "latency":
        if latency_ms is None:
            raise InputError("allocation 'latency' needs something that measures; name a --backend")
        # Engines pad widths to their vector length, so the next width may save nothing: look one further.
        return greedy(traced, scores, budgets, limits, cost=latency_ms, unit="milliseconds", reach=2)
    if kind == "progressive":
        if loss is None:
            raise InputError("allocation 'progressive' needs held-out images; give data with training images")
        from subnets.progressive import progressive

        return progressive(traced, scores, budgets, limits, loss=loss, per_mac=per_mac is not False)
    raise InputError(f"allocation '{kind}' is unknown; use one of {', '.join(ALLOCATIONS)}")
