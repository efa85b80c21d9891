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

KINDS = ("greedy", "threshold", "progressive", "latency", "uniform")


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


def wants(kind, traced, scores):
    """What a kind needs besides: a loss that grows with the scores cut off, a latency that is not in step with MACs."""

    def loss(widths):
        return sum(float(s.sort().values[: s.numel() - widths[name]].sum()) for name, s in scores.items())

    def latency_ms(widths):
        return 1e-6 * traced.macs(widths) + 1e-3 * sum(widths.values())

    return {"progressive": {"loss": loss}, "latency": {"latency_ms": latency_ms}}.get(kind, {})


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
    more = wants(case["kind"], traced, scores)
    ladder = allocate(case["kind"], traced, scores, budgets, limits, **more)
    cost = more.get("latency_ms", traced.macs)
    assert ladder.names == tuple(f"s{budget}" for budget in sorted(case["budgets"]))
    for smaller, larger in itertools.pairwise(ladder):
        assert all(smaller.widths[name] <= larger.widths[name] for name in traced.full)
    last = traced.layers[-1].input_group
    for budget, spec in zip(sorted(budgets), ladder, strict=True):
        assert cost(spec.widths) <= budget * cost(traced.full)
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
    more = wants(kind, traced, scores)
    assert allocate(kind, traced, scores, [1.0], Limits(align=2), **more)[0].widths == traced.full


@pytest.mark.parametrize("kind", ["greedy", "threshold", "progressive"])
def test_channels_that_score_nothing_go_first(kind):
    traced = traced_net("tinynet")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}
    scores["layer3.0.conv1"][::2] = 0.0
    expected = {**traced.full, "layer3.0.conv1": 16}
    budget = traced.macs(expected) / traced.macs(traced.full)
    (spec,) = allocate(kind, traced, scores, [budget], Limits(align=4), **wants(kind, traced, scores))
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
        allocate(kind, traced, scores, budgets, Limits(**{"align": 4, **limits}), **wants(kind, traced, scores))


def test_an_unknown_allocation_is_refused():
    with pytest.raises(
        InputError, match="allocation 'magic' is unknown; use one of greedy, threshold, progressive, latency, uniform"
    ):
        allocate("magic", traced_net("tinynet"), {}, [1.0], Limits())


@pytest.mark.parametrize(("kind", "message"), [("latency", "name a --backend"), ("progressive", "held-out images")])
def test_what_a_kind_needs_must_be_given(kind, message):
    traced = traced_net("tinynet")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}
    with pytest.raises(InputError, match=message):
        allocate(kind, traced, scores, [0.5], Limits(align=4))


def test_greedy_without_macs_takes_the_smallest_score_whatever_it_saves():
    traced = traced_net("tinynet")
    scores = {group.name: torch.full((group.width,), 2.0) for group in traced.groups}
    scores["layer1.0.conv1"][:] = 1.0  # costs least in MACs of all
    (spec,) = allocate("greedy", traced, scores, [0.99], Limits(align=4, floor=0.0), per_mac=False)
    assert {name for name, width in traced.full.items() if spec.widths[name] < width} == {"layer1.0.conv1"}


def test_a_threshold_per_mac_spares_cheap_channels():
    traced = traced_net("tinynet")
    scores = {group.name: torch.linspace(1, 2, group.width) for group in traced.groups}
    plain, priced = (
        allocate("threshold", traced, scores, [0.6], Limits(align=1), per_mac=way)[0].widths for way in (False, True)
    )
    cost = {g.name: traced.macs(traced.full) - traced.macs({**traced.full, g.name: g.width - 1}) for g in traced.groups}
    dear, cheap = max(cost, key=cost.get), min(cost, key=cost.get)
    assert priced[dear] < plain[dear] and priced[cheap] > plain[cheap]


def test_uniform_keeps_the_same_share_of_every_group_and_ignores_scores():
    traced = traced_net("resnet20")
    (spec, _) = allocate("uniform", traced, {}, [0.254, 1.0], Limits(align=1))
    assert {width / traced.full[name] for name, width in spec.widths.items()} == {0.5}
    assert traced.macs(spec.widths) / traced.macs(traced.full) == pytest.approx(0.253, abs=0.002)


def test_a_measured_cost_is_asked_for_only_where_something_near_has_changed():
    traced = traced_net("resnet20")
    scores = random_scores(traced, 3, 1.0)
    asked = []

    def latency_ms(widths):
        asked.append(tuple(widths.values()))
        return traced.macs(widths) / 1e6

    ladder = allocate("latency", traced, scores, [0.4, 1.0], Limits(align=4), latency_ms=latency_ms)
    assert traced.macs(ladder[0].widths) <= 0.4 * traced.macs(traced.full)
    removals = sum((traced.full[name] - width) // 4 for name, width in ladder[0].widths.items())
    every = 2 * len(traced.groups) * removals  # two reaches for every group in every step
    assert len(set(asked)) < every / 2


def test_widths_that_save_no_time_are_stepped_over():
    """An engine that pads to sixteen: the next multiple of eight is free, so the cut goes to the one after it."""
    traced = traced_net("resnet20")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}

    def padded_ms(widths):
        return sum(-(-width // 16) for width in widths.values()) / 10

    (spec,) = allocate("latency", traced, scores, [0.7], Limits(align=8, floor=0.25), latency_ms=padded_ms)
    cut = {name: width for name, width in spec.widths.items() if width < traced.full[name]}
    assert cut and all(width % 16 == 0 for width in cut.values())


def test_progressive_takes_what_the_loss_says_against_the_scores():
    traced = traced_net("tinynet")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}
    precious = "layer2.0.conv1"

    def loss(widths):
        return 1.0 if widths[precious] == 16 else 50.0

    ladder = allocate("progressive", traced, scores, [0.5, 1.0], Limits(align=4, floor=0.25), loss=loss)
    assert ladder[0].widths[precious] == 16
    assert all(loss(spec.widths) == 1.0 for spec in ladder)


def test_progressive_selects_again_by_loss_alone_where_the_budget_is_met():
    """Of the cuts that meet the budget at once, the one that loses least, though another is cheaper by the MAC."""
    traced = traced_net("tinynet")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}
    whole = traced.macs(traced.full)

    def loss(widths):
        gone = {name for name, width in widths.items() if width < traced.full[name]}
        return {frozenset(): 1.0, frozenset({"layer3.0.conv1"}): 1.1}.get(frozenset(gone), 1.2)

    limits = Limits(align=16, floor=0.25)
    meeting = [
        name
        for name, steps in limits.widths(traced).items()
        if len(steps) > 1 and traced.macs({**traced.full, name: steps[1]}) <= 0.97 * whole
    ]
    assert "layer3.0.conv1" in meeting and len(meeting) > 1
    ladder = allocate("progressive", traced, scores, [0.97], limits, loss=loss)
    assert {name for name, width in ladder[0].widths.items() if width < traced.full[name]} == {"layer3.0.conv1"}


def test_a_loss_that_is_no_number_is_never_chosen():
    traced = traced_net("tinynet")
    scores = {group.name: torch.ones(group.width) for group in traced.groups}

    def loss(widths):
        return float("nan") if widths["layer3.0.conv1"] < 32 else 1.0

    ladder = allocate("progressive", traced, scores, [0.8], Limits(align=4, floor=0.25), loss=loss)
    assert ladder[0].widths["layer3.0.conv1"] == 32
