"""Which rows are rungs."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import Goals
from policies.hull import concave_hull
from policies.rungs import PerTable, Where, rungs_of
from policies.smallest import Smallest
from subnets.errors import InputError


def test_rungs_are_the_frontier_at_the_smallest_batch_fastest_first(table):
    rungs = rungs_of(table, Where())
    assert rungs.labels == ("s25", "s50", "s75", "s100")
    assert {row.batch_size for row in rungs.rows} == {1}
    assert all(row.precision == "bf16" for row in rungs.rows)  # the f32 row is slower and no better


def test_where_picks_batch_size_and_precision(table):
    assert {row.batch_size for row in rungs_of(table, Where(batch_size=8)).rows} == {8}
    assert [row.point for row in rungs_of(table, Where(precision="f32")).rows] == ["s50@openvino:f32:b1"]


def test_where_that_matches_nothing_says_what_there_is(table):
    with pytest.raises(InputError, match=r"no rows with precision int8.*openvino:bf16:b1"):
        rungs_of(table, Where(precision="int8"))


def test_rungs_below_the_wished_accuracy_are_left_out(table):
    assert rungs_of(table, Where(), 0.93).labels == ("s75", "s100")


def test_an_accuracy_that_nothing_reaches_keeps_the_best_and_says_so(table):
    rungs = rungs_of(table, Where(), 0.99)
    assert rungs.labels == ("s100",)
    decision = rungs.choose(0, "because")
    assert decision.bound == "accuracy"
    assert "99.0 %" in decision.reason
    assert "94.5 %" in decision.reason


def test_labels_are_points_where_a_subnet_has_two_rungs(make_table, make_row):
    rows = [make_row("s25", 1, 0.9, 2, 3, 5), make_row("s25", 1, 0.91, 3, 4, 6, precision="f32")]
    assert rungs_of(make_table(rows), Where()).labels == ("s25@openvino:bf16:b1", "s25@openvino:f32:b1")


def test_what_is_derived_from_a_table_is_derived_once_and_anew_for_another(make_table, make_row):
    seen = []
    derive = PerTable(lambda table: seen.append(table) or len(table.rows))
    small, large = (make_table([make_row(f"s{i}", 1, 0.9, 2, 3, 5) for i in range(n)]) for n in (1, 2))
    assert [derive(small), derive(small), derive(large), derive(small)] == [1, 1, 2, 1]
    assert len(seen) == 3


def test_a_policy_follows_when_the_table_changes(table, make_table, make_row):
    from policies import Conditions

    policy = Smallest(Goals())
    other = make_table([make_row("s10", 1, 0.5, 1, 2, 5)])
    points = [policy.decide(Conditions(time_s=0), t, None).point for t in (table, other)]
    assert points == ["s25@openvino:bf16:b1", "s10@openvino:bf16:b1"]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=7), st.integers(0, 100))
def test_no_mix_beats_a_mix_of_two_neighbours_on_the_hull(choices, tenths):
    costs, values = [c for c, _ in choices], [v for _, v in choices]
    hull = concave_hull(costs, values)
    assert [costs[i] for i in hull] == sorted({costs[i] for i in hull})
    assert [values[i] for i in hull] == sorted({values[i] for i in hull})
    budget = min(costs) + (max(costs) - min(costs)) * tenths / 100

    def best(indices, pairs):  # the best value at an average cost within the budget, over mixes of two
        found = [values[i] for i in indices if costs[i] <= budget]
        for low, high in pairs:
            if costs[low] <= budget < costs[high]:
                share = (budget - costs[low]) / (costs[high] - costs[low])
                found.append((1 - share) * values[low] + share * values[high])
        return max(found)

    every = range(len(costs))
    brute = best(every, [(i, j) for i in every for j in every])
    assert best(hull, list(pairwise(hull))) == pytest.approx(brute)
