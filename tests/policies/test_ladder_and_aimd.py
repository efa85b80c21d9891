"""Two policies that climb rung by rung: with a model check, and without any model."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Goals
from policies.aimd import Aimd
from policies.ladder import Ladder
from subnets.errors import InputError


def subnets(policy, table, moments, current=None):
    shown = []
    for moment in moments:
        current = policy.decide(moment, table, current).point
        shown.append(current.partition("@")[0])
    return shown


def seconds(count, start=0, **fields):
    return [Conditions(time_s=float(start + t), **fields) for t in range(count)]


def test_the_ladder_steps_down_one_rung_at_a_time_and_stays_where_headroom_is_enough(table):
    # at 60/s s100 is 60 % busy and s75 39 %; at 135/s s100 is 135 % busy, s75 88 %, s50 54 %
    policy = Ladder(Goals())
    shown = subnets(policy, table, seconds(30, arrival_rate_hz=60.0) + seconds(30, 30, arrival_rate_hz=135.0))
    assert shown[:30] == ["s100"] * 30
    assert shown[30:33] == ["s75", "s50", "s50"]
    assert shown[32:] == ["s50"] * 28


def test_the_model_check_stops_a_step_up_that_would_have_to_come_back(table):
    # s50 has headroom 0.36 at 158/s, above h_hi; s75 would have -0.03
    policy = Ladder(Goals(), h_hi=0.35)
    policy.restore({**policy.state(), "level": 1})
    shown = subnets(policy, table, seconds(200, arrival_rate_hz=158.0), "s50@openvino:bf16:b1")
    assert shown == ["s50"] * 200
    reason = policy.decide(Conditions(time_s=300.0, arrival_rate_hz=158.0), table, "s50@openvino:bf16:b1").reason
    assert "s75 would leave throughput -0.0" in reason


def test_the_ladder_goes_up_after_votes_and_a_stay(table):
    policy = Ladder(Goals(), up_votes=5, stay_s=20.0)
    policy.restore({**policy.state(), "level": 2})
    shown = subnets(policy, table, seconds(60, 100, arrival_rate_hz=10.0), "s75@openvino:bf16:b1")
    assert shown.index("s100") == 4  # it has stayed since time 0 already


@pytest.mark.parametrize(
    ("goals", "fields"),
    [
        (Goals(temperature_limit_c=80), {"temperature_c": 81.0}),
        (Goals(max_power_w=9), {"power_w": 9.5}),
        (Goals(last_until_s=100), {"battery_charge": 0.04, "arrival_rate_hz": 5.0}),
    ],
)
def test_a_limit_that_is_being_broken_sends_the_ladder_to_the_bottom(table, goals, fields):
    decision = Ladder(goals).decide(Conditions(time_s=0, **fields), table, None)
    assert decision.point.startswith("s25")
    assert decision.urgent


def test_aimd_starts_at_the_bottom_and_adds_a_rung_after_clean_windows(table):
    shown = subnets(Aimd(Goals(deadline_ms=50), window_s=5, clean_windows=2), table, seconds(40, miss_rate=0.0))
    assert [shown.index(name) for name in ("s25", "s50", "s75", "s100")] == [0, 10, 20, 30]


def test_a_violation_halves_the_level_at_most_once_a_window(table):
    policy = Aimd(Goals(deadline_ms=50), window_s=5, clean_windows=2)
    shown = subnets(policy, table, seconds(12, miss_rate=0.2), "s100@openvino:bf16:b1")
    assert shown == ["s50"] * 5 + ["s25"] * 7  # 3 // 2 = 1, then 0


@given(misses=st.lists(st.booleans(), min_size=1, max_size=80))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_aimd_moves_up_by_one_and_down_by_half(table, misses):
    policy, names = Aimd(Goals(deadline_ms=50), window_s=1, clean_windows=1), ["s25", "s50", "s75", "s100"]
    moments = [Conditions(time_s=float(t), miss_rate=1.0 if miss else 0.0) for t, miss in enumerate(misses)]
    levels = [names.index(name) for name in subnets(policy, table, moments)]
    for before, after in pairwise(levels):
        assert after <= before + 1
        assert after >= before // 2


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: Ladder(Goals(), h_lo=0.5, h_hi=0.4), "h_hi is 0.4"),
        (lambda: Ladder(Goals(), up_votes=0), "up_votes is 0"),
        (lambda: Aimd(Goals(), window_s=0.0), r"window_s is 0\.0"),
        (lambda: Aimd(Goals(), clean_windows=0), "clean_windows is 0"),
    ],
)
def test_impossible_options_are_refused(build, word):
    with pytest.raises(InputError, match=word):
        build()
