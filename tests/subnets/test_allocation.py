"""Widths at each budget: nested, within budget, aligned and above their floors, for any scores."""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnets import architectures
from subnets.allocation import Limits, allocate
from subnets.errors import InputError
from subnets.groups import trace

KINDS = ("greedy", "threshold")


@functools.cache
def traced_net(name):
    arguments = {"width": 8} if name == "tinynet" else {}
    with torch.device("meta"):
        return trace(architectures.build(name, **arguments), (1 if name == "tinynet" else 3, 16, 16))


def random_scores(traced, seed, spread):
    random = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.rand(group.width, generator=random) ** spread * float(torch.rand(1, generator=random) + 0.01)
        for group in traced.groups
    }


cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "name": st.sampled_from(["tinynet", "resnet20"]),
        "seed": st.integers(0, 10_000),
        "spread": st.sampled_from([0.0, 1.0, 6.0]),
        "budgets": st.lists(st.integers(55, 100), min_size=1, max_size=4, unique=True),
        "align": st.sampled_from([1, 2, 4]),
        "floor": st.sampled_from([0.0, 0.125, 0.3]),
        "last_floor": st.sampled_from([0.5, 0.6]),
        "space": st.sampled_from(["stages", "interiors"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(case=cases)
def test_any_ladder_is_nested_within_budget_aligned_and_above_its_floors(case):
    traced = traced_net(case["name"])
    scores = random_scores(traced, case["seed"], case["spread"])
    limits = Limits(align=case["align"], space=case["space"], floor=case["floor"], last_floor=case["last_floor"])
    budgets = [budget / 100 for budget in case["budgets"]]
    ladder = allocate(case["kind"], traced, scores, budgets, limits)
    assert ladder.names == tuple(f"s{budget}" for budget in sorted(case["budgets"]))
    for smaller, larger in itertools.pairwise(ladder):
        assert all(smaller.widths[name] <= larger.widths[name] for name in traced.full)
    last = traced.layers[-1].input_group
    for budget, spec in zip(sorted(budgets), ladder, strict=True):
        assert traced.macs(spec.widths) <= budget * traced.macs(traced.full)
        for group in traced.groups:
            width = spec.widths[group.name]
            if group.coupled and case["space"] == "interiors":
                assert width == group.width
            if width < group.width:
                assert width % case["align"] == 0
                assert width >= (case["last_floor"] if group.name == last else case["floor"]) * group.width - 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_budget_is_the_whole_network(kind):
    traced = traced_net("tinynet")
    scores = {group.name: torch.zeros(group.width) for group in traced.groups}
    assert allocate(kind, traced, scores, [1.0], Limits(align=2))[0].widths == traced.full


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_score_nothing_go_first(kind):
    traced = traced_net("tinynet")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}
    scores["layer3.0.conv1"][::2] = 0.0
    expected = {**traced.full, "layer3.0.conv1": 16}
    budget = traced.macs(expected) / traced.macs(traced.full)
    (spec,) = allocate(kind, traced, scores, [budget], Limits(align=4))
    assert spec.widths == expected


def test_greedy_takes_the_smallest_score_for_each_saved_mac():
    """Replayed by brute force: at every step, every group's next chunk is priced from its lowest scores."""
    traced = traced_net("tinynet")
    scores = random_scores(traced, 7, 2.0)
    limits = Limits(align=4, floor=0.25)
    widths, ladder = dict(traced.full), allocate("greedy", traced, scores, [0.5], limits)
    last = traced.layers[-1].input_group
    while traced.macs(widths) > 0.5 * traced.macs(traced.full):
        prices = {}
        for group in traced.groups:
            smaller = widths[group.name] - 4
            if smaller >= (0.5 if group.name == last else 0.25) * group.width:
                kept = sorted(scores[group.name].tolist(), reverse=True)
                lost = sum(kept[smaller : widths[group.name]])
                saved = traced.macs(widths) - traced.macs({**widths, group.name: smaller})
                prices[group.name] = lost / saved
        widths[min(prices, key=prices.get)] -= 4
    assert ladder[0].widths == widths


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("budgets", "limits", "message"),
    [
        ([0.01], {}, r"budget 0.01 \(s1\) cannot be met: the floors leave"),
        ([0.2], {"space": "interiors"}, "cannot be met"),
        ([0.2], {"align": 64}, "cannot be met: the floors leave 100.0%"),
        ([], {}, "must be shares"),
        ([0.5, 0.0], {}, "must be shares"),
        ([1.2], {}, "must be shares"),
        ([float("nan")], {}, "must be shares"),
        ([0.501, 0.502], {}, "closer than one percent"),
        ([0.5], {"space": "everything"}, "space 'everything' is unknown; use one of interiors, stages"),
        ([0.5], {"align": 0}, "align 0 is too small"),
    ],
)
def test_impossible_wishes_are_refused(kind, budgets, limits, message):
    traced = traced_net("tinynet")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}
    with pytest.raises(InputError, match=message):
        allocate(kind, traced, scores, budgets, Limits(**{"align": 4, **limits}))


def test_an_unknown_allocation_is_refused():
    with pytest.raises(InputError, match="allocation 'magic' is unknown; use one of greedy, threshold"):
        allocate("magic", traced_net("tinynet"), {}, [1.0], Limits())
