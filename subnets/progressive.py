"""Progressive search from the largest subnet to the smallest, with re-selection by measured loss.

In each step the scores nominate the few cheapest cuts, each nominee is run on held-out images, and the one that loses
least for what it saves is taken: scores propose, the loss decides. Where that one meets a budget, all nominees that
meet it are selected from again, now by loss alone.

After the progressive search of Yang, He and Fan (TNNLS 2022): ranking, channel groups cut in chunks, re-selection.
Their fine-tuning between steps is left out; batch-norm on batch statistics stands in for it, as in AutoSlim (Yu and
Huang 2019, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from subnets.allocation import Limits, Pricing, Widths, budget_names, unreachable
from subnets.groups import Traced
from subnets.importance import Scores
from subnets.spec import Ladder, SubnetSpec

NOMINEES = 6


def progressive(
    traced: Traced,
    scores: Scores,
    budgets: Sequence[float],
    limits: Limits,
    *,
    loss: Callable[[Widths], float],
    nominees: int = NOMINEES,
    per_mac: bool = True,
) -> Ladder:
    """Nested widths found from the full network downwards.

    Args:
        traced: the network's groups and costs.
        scores: nominate.
        budgets: shares of the full network's MACs.
        limits: what may be cut.
        loss: mean loss of the subnet of these widths on held-out images.
        nominees: how many cuts are tried in each step.
        per_mac: whether a loss counts per MAC saved, or by itself.

    Raises:
        InputError: a budget makes no sense or cannot be met.
    """
    pricing = Pricing(traced, scores, limits, cost=traced.macs, per_cost=per_mac)
    whole = traced.macs(traced.full)
    widths: Mapping[str, int] = traced.full
    tried: dict[tuple[int, ...], float] = {}

    def loss_of(candidate: Widths) -> float:
        key = tuple(candidate[group.name] for group in traced.groups)
        if key not in tried:
            lost = loss(candidate)
            tried[key] = lost if math.isfinite(lost) else math.inf
        return tried[key]

    found = []
    for name, budget in budget_names(budgets):
        while traced.macs(widths) > budget * whole:
            cheapest = sorted(pricing.cuts(widths), key=lambda cut: cut.price)[:nominees]
            if not cheapest:
                raise unreachable(name, budget, traced.macs(widths) / whole, "MACs")
            before = loss_of(widths)
            best = min(cheapest, key=lambda cut: (loss_of(cut.widths) - before) / (cut.saved if per_mac else 1))
            if traced.macs(best.widths) <= budget * whole:
                best = min(
                    (cut for cut in cheapest if traced.macs(cut.widths) <= budget * whole),
                    key=lambda cut: loss_of(cut.widths),
                )
            widths = best.widths
        found.append(SubnetSpec(name, dict(widths)))
    return Ladder(found[::-1])
