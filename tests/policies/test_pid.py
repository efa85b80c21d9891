"""The power budget of the kernel's allocator, and how it is met on average."""

import math

import pytest

from policies import Conditions, Goals
from policies.pid import Pid
from subnets.errors import InputError

LIMIT = Goals(temperature_limit_c=85.0)


def test_below_the_switch_on_temperature_nothing_binds(table):
    decision = Pid(LIMIT).decide(Conditions(time_s=0, temperature_c=60.0, arrival_rate_hz=80.0), table, None)
    assert (decision.point[:4], decision.bound) == ("s100", "none")


def test_the_budget_is_the_kernels_formula(table):
    # control at 83, on at 70: k_pu = 2 * 6.5 / 13 = 1 W a degree, k_po = 0.5; no integral yet
    policy = Pid(LIMIT, sustainable_w=6.5)
    for temperature, watts in ((80.0, 9.5), (82.0, 7.5), (84.0, 6.0)):
        policy.reset()
        moment = Conditions(time_s=0, temperature_c=temperature, arrival_rate_hz=100.0)  # s100 draws 10 W
        assert f"{temperature:.1f} °C of 83 °C allows {watts:.1f} W" in policy.decide(moment, table, None).reason


def test_the_integral_grows_only_above_the_control_temperature(table):
    policy, current = Pid(LIMIT, sustainable_w=6.5), "s25@openvino:bf16:b1"
    for t in range(20):
        policy.decide(Conditions(time_s=float(t), temperature_c=80.0, arrival_rate_hz=100.0), table, current)
    assert policy.state()["integral_w"] == 0.0
    for t in range(20, 31):
        policy.decide(Conditions(time_s=float(t), temperature_c=84.0, arrival_rate_hz=100.0), table, current)
    # 11 s of one degree at k_i = k_pu / 10, here with k_pu = 2 k_po = 1 W a degree
    assert policy.state()["integral_w"] == pytest.approx(-1.1)
    policy.decide(Conditions(time_s=40.0, temperature_c=60.0, arrival_rate_hz=100.0), table, current)
    assert policy.state()["integral_w"] == 0.0


def test_sigma_delta_meets_a_budget_between_two_rungs_on_average(table):
    # at 100/s: s50 5.0 W, s75 6.9 W; the cap of 6 W lies between
    policy, current, joules = Pid(Goals(max_power_w=6.0), stay_s=5.0), None, 0.0
    watts = {"s25": 3.8, "s50": 5.0, "s75": 6.9, "s100": 10.0}
    used = []
    for t in range(2000):
        current = policy.decide(Conditions(time_s=float(t), arrival_rate_hz=100.0), table, current).point
        used.append(current.partition("@")[0])
        joules += watts[used[-1]]
    assert set(used[20:]) == {"s50", "s75"}
    assert joules / 2000 == pytest.approx(6.0, abs=0.05)


@pytest.mark.parametrize("resistance", [6.0, 9.0])
def test_in_a_closed_loop_the_temperature_stays_at_the_set_point(table, resistance):
    policy, current, temperature, hottest = Pid(LIMIT), None, 25.0, 0.0
    rows, power = {row.point: row for row in table.rows}, 3.0
    for t in range(4000):
        moment = Conditions(time_s=float(t), temperature_c=round(temperature, 1), power_w=power, arrival_rate_hz=100.0)
        current = policy.decide(moment, table, current).point
        power = 3.0 + min(100.0, rows[current].throughput_per_s) * rows[current].net_energy_j
        end = 25.0 + resistance * power
        temperature = end + (temperature - end) * math.exp(-1 / 200)
        if t > 1500:
            hottest = max(hottest, temperature)
    assert 78.0 < hottest < 85.0


def test_at_the_limit_the_fastest_is_used_at_once(table):
    decision = Pid(LIMIT).decide(Conditions(time_s=0, temperature_c=85.0, arrival_rate_hz=80.0), table, None)
    assert decision.point.startswith("s25")
    assert decision.urgent


def test_impossible_options_are_refused():
    with pytest.raises(InputError, match="on_c is 1"):
        Pid(LIMIT, on_c=1.0)
    with pytest.raises(InputError, match="sustainable_w is 0"):
        Pid(LIMIT, sustainable_w=0.0)
