"""Goals: what is refused at once, what a table cannot keep, and what is maximised."""

import re

import pytest

from policies import Conditions, Goals, create
from policies.feasible import contradictions
from policies.rungs import Where, rungs_of
from subnets.errors import InputError


@pytest.mark.parametrize(
    ("goals", "words"),
    [
        ({"deadline_percentile": 1.0}, r"deadline_percentile is 1\.0; give a share from 0\.5"),
        ({"deadline_percentile": 99.0}, r"deadline_percentile is 99"),
        ({"switches_per_hour": 0}, r"switches_per_hour is 0; give a whole number from 1, or choose the policy static"),
        ({"maximise": "speed"}, r"maximise is 'speed'; give one of accuracy, answers_per_joule"),
        ({"deadline_ms": float("nan")}, r"deadline_ms is nan"),
        ({"reserve": 1.0}, r"reserve is 1\.0"),
    ],
)
def test_impossible_wishes_are_refused_with_their_value(goals, words):
    with pytest.raises(InputError, match=words):
        Goals(**goals).check()


def test_possible_goals_contradict_nothing(table):
    goals = Goals(deadline_ms=50, min_accuracy=0.93, max_power_w=10, last_until_s=3600, reserve=0.1)
    assert contradictions(goals, table, battery_energy_j=40_000, arrival_rate_hz=10.0) == ()


@pytest.mark.parametrize(
    ("goals", "words"),
    [
        ({"min_accuracy": 0.99}, r"min_accuracy 99 % cannot be kept: the most accurate row has 94\.5 %"),
        ({"deadline_ms": 2.0}, r"goal deadline_ms 2 cannot be kept: the quickest row needs 2\.6 ms \(p99\)"),
        (
            {"deadline_ms": 10.0, "min_accuracy": 0.94},
            r"goals min_accuracy 94 % and deadline_ms 10 contradict each other: of the rows that are accurate enough, "
            r"the quickest row needs 13\.0 ms",
        ),
        (
            {"max_power_w": 8.5, "min_accuracy": 0.93},
            r"goals min_accuracy 93 % and max_power_w 8\.5 contradict each other: .* draws 9\.0 W",
        ),
        ({"max_power_w": 5.0}, r"goal max_power_w 5 cannot be kept: the thriftiest row draws 7\.0 W"),
    ],
)
def test_what_the_table_cannot_keep_is_said_in_one_sentence(table, goals, words):
    (found,) = contradictions(Goals(**goals), table, Where(batch_size=1))
    assert re.search(words, found), found


def test_deadline_and_power_may_contradict_each_other(make_table, make_row):
    table = make_table([make_row("small", 1, 0.9, 10.0, 12.0, 5.0), make_row("wide", 2, 0.95, 2.0, 3.0, 20.0)])
    (found,) = contradictions(Goals(deadline_ms=5.0, max_power_w=10.0), table)
    assert found == "goals deadline_ms 5 and max_power_w 10 contradict each other: no row keeps both"


def test_a_battery_that_cannot_last_is_told_with_both_powers(table):
    goals = Goals(last_until_s=7200, reserve=0.1, battery_capacity_j=30_000)
    # 27 kJ over two hours is 3.75 W; idle 3 W and 50 answers of 7.5 mJ (s25 in batches of 8) need 3.38 W: that lasts
    assert contradictions(goals, table, battery_energy_j=30_000, arrival_rate_hz=50.0) == ()
    (found,) = contradictions(goals, table, battery_energy_j=25_000, arrival_rate_hz=50.0)
    assert "22.0 kJ above the reserve for 2.0 h is 3.06 W, the thriftiest row needs 3.38 W" in found
    (late,) = contradictions(goals, table, battery_energy_j=30_000, now_s=8000.0)
    assert "is over" in late


@pytest.mark.parametrize("name", ["composite", "alert", "mdp", "slackfit", "effective"])
def test_an_infeasible_deadline_gives_the_best_effort_and_says_so(table, name):
    policy = create(name, Goals(deadline_ms=1.0))
    decision = policy.decide(Conditions(time_s=0, arrival_rate_hz=5.0), table, None)
    quickest = decision.slack_plan[0].point if decision.slack_plan else decision.point
    assert quickest.startswith("s25@openvino:bf16")  # of any batch size: few run on the smallest that holds them
    assert "best effort" in decision.reason


def test_answers_per_joule_leaves_out_what_gives_fewer(table, make_table, make_row):
    # right answers a joule above idle: s25 0.9 / 8 mJ, s50 0.925 / 20 mJ, ...: the smallest is the thriftiest
    assert rungs_of(table, Where(), None, "answers_per_joule").labels == ("s25",)
    assert rungs_of(table, Where(), 0.92, "answers_per_joule").labels == ("s50",)
    # where the middle one is the thriftiest, the small one stays for when load asks for it
    rows = [
        make_row("a", 1, 0.5, 4.0, 5.0, 9.0),
        make_row("b", 2, 0.9, 5.0, 6.0, 7.0),
        make_row("c", 3, 0.91, 9.0, 9.9, 9.0),
    ]
    found = rungs_of(make_table(rows), Where(), None, "answers_per_joule")
    assert found.labels == ("a", "b")
    assert "b gives most right answers a joule" in found.choose(1, "x").reason


@pytest.mark.parametrize("name", ["composite", "throughput", "mdp", "lyapunov", "bandit", "ladder", "alert"])
def test_every_policy_obeys_what_is_to_be_maximised(table, name):
    goals = Goals(deadline_ms=60.0, maximise="answers_per_joule", min_accuracy=0.92)
    decision = create(name, goals).decide(Conditions(time_s=0, arrival_rate_hz=5.0), table, None)
    assert decision.point.startswith("s50")


def test_a_softer_percentile_allows_a_better_rung(table):
    moment = Conditions(time_s=0, arrival_rate_hz=0.0)
    strict, soft = (
        create("throughput", Goals(deadline_ms=11.0, deadline_percentile=share)).decide(moment, table, None)
        for share in (0.99, 0.5)
    )
    assert (strict.point[:4], soft.point[:4]) == ("s75@", "s100")
