"""What rests cost, as policies see it: slower and dearer at low rates, never under load."""

import msgspec
import pytest

from calibration.table import Duty
from policies import Conditions, Goals, create
from policies.lindley import Action, solve
from policies.load import load_model
from policies.rested import Rested
from policies.rungs import Where, rungs_of
from policies.watts import power_model

EXTRA_MS, EXTRA_J = 9.0, 0.02
DUTY = Duty(
    rests_ms=(20.0, 80.0),
    latency_ms=(8.0, 11.0),
    settle_ms=20.0,
    extra_ms=EXTRA_MS,
    extra_low_ms=EXTRA_MS,
    extra_high_ms=EXTRA_MS,
    rounds=4,
    samples=40,
    extra_net_energy_j=EXTRA_J,
)


@pytest.fixture(scope="module")
def resting(make_table, make_row):
    """Two rungs; both need nine milliseconds more after a long rest."""
    rows = [make_row("s25", 1, 0.90, 2.0, 2.6, 7.0), make_row("s100", 4, 0.95, 10.0, 13.0, 10.0)]
    return make_table([msgspec.structs.replace(row, duty=DUTY) for row in rows])


def test_the_ladder_is_as_slow_and_dear_as_its_rows_say(resting):
    rows = rungs_of(resting, Where()).rows
    rested = Rested(rows)
    for rate in (0.0, 1.0, 30.0, 80.0, 1e6):
        assert rested.slower(rate) == tuple(row.latency_ms_at(rate) / row.latency_p50_ms for row in rows)
        assert rested.dearer_j(rate) == pytest.approx([row.net_energy_j_at(rate) - row.net_energy_j for row in rows])
    assert rested.slower(0.0) == pytest.approx((5.5, 1.9)) and rested.dearer_j(0.0) == pytest.approx((0.02, 0.02))
    assert rested.slower(None) == (1.0, 1.0) and rested.dearer_j(None) == (0.0, 0.0)


def test_a_batch_is_asked_for_as_often_as_it_fills(resting):
    eight = [msgspec.structs.replace(row, batch_size=8) for row in resting.rows]
    assert Rested(eight).slower(80.0) == Rested(resting.rows).slower(10.0)


def test_load_and_power_are_those_of_the_rate(resting):
    rungs = rungs_of(resting, Where())
    load, power = load_model(rungs, Goals()), power_model(rungs, resting.idle_power_w)
    assert load.tail_ms(1, 0.0, 2.0) == pytest.approx(2.0 * 1.9 * 13.0)
    assert load.tail_ms(1, None, 2.0) == load.tail_ms(1, 1e6, 2.0) == pytest.approx(2.0 * 13.0)
    assert load.busy(1, 10.0, 1.0) == pytest.approx(10.0 * load.mean_s[1] * rungs.rows[1].latency_ms_at(10.0) / 10.0)
    assert power.inference_w(1, 1.0) == pytest.approx(rungs.rows[1].net_energy_j_at(1.0))
    assert power.inference_w(1, 1e6) == pytest.approx(100.0 * rungs.rows[1].net_energy_j)


@pytest.mark.parametrize("name", ["throughput", "effective", "slackfit", "maxacc", "alert", "composite", "mdp"])
def test_a_deadline_that_rests_would_break_is_kept_by_a_quicker_rung(resting, name):
    policy = create(name, Goals(deadline_ms=18.0))
    assert chosen(policy, resting, 2.0) == "s25"  # 19 ms after a rest
    assert chosen(policy, resting, 2.0, without=True) == "s100"
    assert chosen(create(name, Goals(deadline_ms=40.0)), resting, 2.0) == "s100"


def chosen(policy, table, rate, without=False):
    """The subnet for a request that comes when nothing waits."""
    if without:
        table = msgspec.structs.replace(
            table, rows=tuple(msgspec.structs.replace(row, duty=None) for row in table.rows)
        )
    policy.reset()
    for t in range(60):
        decision = policy.decide(
            Conditions(time_s=float(t), arrival_rate_hz=rate, queue_depth=0, slowdown=1.0), table, None
        )
    points = [step.point for step in decision.slack_plan if step.slack_ms <= policy.goals.deadline_ms - 0.1]
    return (points[-1] if points else decision.point).partition("@")[0]


def test_only_a_request_that_finds_the_server_idle_is_slower():
    quick, slow = Action(0.8, 1, 0.002, 0.0026, rested=5.0), Action(0.95, 1, 0.010, 0.013, rested=3.0)
    steady = [msgspec.structs.replace(one, rested=1.0) for one in (quick, slow)]
    rested, unaware = solve([slow, quick], 20.0, 0.025), solve([steady[1], steady[0]], 20.0, 0.025)
    assert unaware.actions[0] == 0 and rested.actions[0] == 1  # 30 ms after a rest, with 25 allowed
    assert rested.actions[3] == 0  # whoever waited a little finds it warm
    assert rested.gain < unaware.gain
