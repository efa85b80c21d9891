"""The policies that always say the same, and the power cap."""

import msgspec
import pytest

from policies import Conditions, Goals
from policies.largest import Largest
from policies.power import Power
from policies.smallest import Smallest
from policies.static import Static
from subnets.errors import InputError

NOW = Conditions(time_s=0.0)


def subnet(policy, table, conditions=NOW, current=None):
    return policy.decide(conditions, table, current).point.partition("@")[0]


def test_smallest_and_largest_are_the_ends_of_the_ladder(table):
    assert subnet(Smallest(Goals()), table) == "s25"
    assert subnet(Largest(Goals()), table) == "s100"
    assert subnet(Smallest(Goals(min_accuracy=0.93)), table) == "s75"


def test_static_keeps_a_point_or_the_fastest_row_of_a_subnet(table):
    point = "s50@openvino:f32:b1"
    assert Static(Goals(), point=point).decide(NOW, table, None).point == point
    assert Static(Goals(), subnet="s50").decide(NOW, table, None).point == "s50@openvino:bf16:b1"


def test_static_stands_against_the_wished_accuracy_and_says_so(table):
    decision = Static(Goals(min_accuracy=0.94), subnet="s50").decide(NOW, table, None)
    assert decision.point.startswith("s50")
    assert "92.5 %, below the wished 94.0 %" in decision.reason


@pytest.mark.parametrize("options", [{}, {"point": "a", "subnet": "b"}])
def test_static_takes_exactly_one_name(options):
    with pytest.raises(InputError, match="exactly one"):
        Static(Goals(), **options)


@pytest.mark.parametrize(
    ("options", "guess"),
    [
        ({"subnet": "S50"}, "did you mean 's50'"),
        ({"point": "s50@openvino:bf16:b2"}, "did you mean 's50@openvino:bf16:b"),
    ],
)
def test_static_with_an_unknown_name_guesses_the_right_one(table, options, guess):
    with pytest.raises(InputError, match=guess):
        Static(Goals(), **options).decide(NOW, table, None)


@pytest.mark.parametrize(("cap", "expected"), [(10.0, "s100"), (9.9, "s75"), (7.0, "s25"), (3.0, "s25")])
def test_the_cap_is_held_against_the_power_at_work(table, cap, expected):
    assert subnet(Power(Goals(max_power_w=cap)), table) == expected


def test_a_cap_that_nothing_keeps_is_best_effort_and_urgent(table):
    decision = Power(Goals(max_power_w=3.0)).decide(NOW, table, None)
    assert decision.urgent
    assert "s25 draws 7.0 W, above the cap of 3 W" in decision.reason


def test_what_others_draw_is_taken_off_the_cap(table):
    policy = Power(Goals(max_power_w=10.5))
    measured = Conditions(time_s=0.0, power_w=12.0)  # 2 W beyond s100's 10 W
    decision = policy.decide(measured, table, "s100@openvino:bf16:b1")
    assert decision.point.startswith("s50")  # 8 + 2 W
    assert decision.urgent
    assert "2.0 W of others" in decision.reason


def test_without_a_cap_or_without_powers_nothing_binds(table, make_table, make_row):
    assert subnet(Power(Goals()), table) == "s100"
    row = msgspec.structs.replace(make_row("s25", 1, 0.9, 2.0, 3.0, 7.0), power_w=None)
    decision = Power(Goals(max_power_w=1.0)).decide(NOW, make_table([row]), None)
    assert decision.bound == "none"
    assert "no powers" in decision.reason
