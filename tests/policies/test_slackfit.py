"""Slack plans over (subnet, batch): SlackFit and its two baselines, against brute force over the table."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Goals
from policies.maxacc import MaxAcc
from policies.maxbatch import MaxBatch
from policies.slackfit import SlackFit
from subnets.errors import InputError

NOW = Conditions(time_s=0)


def at(decision, slack_ms):
    """What a dispatcher does with a plan."""
    step = decision.slack_plan[0]
    for other in decision.slack_plan:
        if other.slack_ms <= slack_ms:
            step = other
    return step.point


def useful(table, deadline_ms):
    return [row for row in table.rows if row.precision == "bf16" and row.latency_p99_ms <= deadline_ms]


@given(slack_ms=st.floats(2.6, 100))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_the_baselines_are_what_brute_force_over_the_table_gives(table, slack_ms):
    goals = Goals(deadline_ms=100.0)
    fitting = [row for row in useful(table, 100.0) if row.latency_p99_ms <= slack_ms]
    accurate = max(fitting, key=lambda row: (row.accuracy, row.batch_size))
    crowded = max(fitting, key=lambda row: (row.batch_size, row.accuracy))
    assert at(MaxAcc(goals).decide(NOW, table, None), slack_ms) == accurate.point
    assert at(MaxBatch(goals).decide(NOW, table, None), slack_ms) == crowded.point


@given(slack_ms=st.floats(0, 100), slowdown=st.floats(0.5, 3))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_what_slackfit_takes_fits_the_slack_whenever_anything_does(table, slack_ms, slowdown):
    decision = SlackFit(Goals(deadline_ms=100.0)).decide(Conditions(time_s=0, slowdown=slowdown), table, None)
    needed_ms = table.row(at(decision, slack_ms)).latency_p99_ms * slowdown
    assert needed_ms <= max(slack_ms, 2.6 * slowdown) + 1e-9


def test_slackfit_prefers_the_larger_batch_in_a_bucket(table):
    # edges 2.6, 27.7, 52.9, 78: below 27.7 ms fits s25 in batches of 8 (15.6 ms), and s100 alone (13 ms)
    decision = SlackFit(Goals(deadline_ms=100.0), buckets=4).decide(NOW, table, None)
    names = [step.point.replace("@openvino:bf16", "") for step in decision.slack_plan]
    assert names == ["s25:b1", "s25:b8", "s75:b8", "s100:b8"]
    assert decision.point == "s100@openvino:bf16:b8"


def test_rows_that_never_fit_the_deadline_are_left_out(table):
    decision = SlackFit(Goals(deadline_ms=14.0)).decide(NOW, table, None)
    assert {step.point.rpartition(":")[2] for step in decision.slack_plan} == {"b1"}
    assert decision.point.startswith("s100")


def test_a_slow_machine_needs_more_slack_for_the_same_row(table):
    plans = [
        SlackFit(Goals(deadline_ms=100.0)).decide(Conditions(time_s=0, slowdown=slowdown), table, None).slack_plan
        for slowdown in (1.0, 1.2)
    ]
    least = [{step.point: step.slack_ms for step in plan} for plan in plans]
    shared = least[0].keys() & least[1].keys()
    assert len(shared) >= 3
    assert all(math.isclose(least[1][point], 1.2 * least[0][point]) for point in shared)


def test_without_a_deadline_there_is_no_slack_and_the_best_is_used(table):
    decision = SlackFit(Goals()).decide(NOW, table, None)
    assert (decision.point, decision.slack_plan) == ("s100@openvino:bf16:b1", ())
    assert "no deadline" in decision.reason


def test_one_bucket_is_no_choice():
    with pytest.raises(InputError, match="buckets is 1"):
        SlackFit(Goals(), buckets=1)
