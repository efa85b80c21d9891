"""One thermal node, identified from noisy samples, and the policy that acts on its forecast."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Conditions, Goals
from policies.heat import HeatMemory, HeatModel, identified, observe
from policies.thermal import Thermal


def node(resistance, time_constant_s, ambient_c):
    """The three rates of a node, by its definition."""
    return HeatModel(
        (
            (ambient_c - 50.0) / time_constant_s,
            -1.0 / time_constant_s,
            resistance / time_constant_s,
        ),
        (0.0,) * 6,
    )


def step(temperature, watts, resistance, time_constant_s, ambient_c, seconds):
    end = ambient_c + resistance * watts
    return end + (temperature - end) * math.exp(-seconds / time_constant_s)


def learn(seconds, *, resistance=6.0, time_constant_s=300.0, ambient_c=25.0, step_c=1.0, seed=0, watts=None):
    """Feeds a node with alternating power, seen through noise and rounding."""
    noise, memory, temperature = random.Random(seed), HeatMemory(), ambient_c
    for t in range(seconds):
        power = (4.0 + 6.0 * ((t // 250) % 2)) if watts is None else watts
        temperature = step(temperature, power, resistance, time_constant_s, ambient_c, 1.0)
        shown = temperature + noise.gauss(0, 0.3)
        observe(memory, float(t), round(shown / step_c) * step_c, power, 10.0)
    return memory, temperature


def test_an_estimate_that_no_device_can_have_leaves_the_last_possible_one_standing():
    memory, _ = learn(3000)
    before = identified(memory)
    memory.estimate = (0.1, 0.002, -0.01)  # would heat itself, and cool under load
    after = identified(memory)
    assert before is not None and after is not None
    assert after.time_constant_s == before.time_constant_s == pytest.approx(300.0, rel=0.3)
    assert after.degrees_per_watt == before.degrees_per_watt == pytest.approx(6.0, rel=0.3)
    assert identified(HeatMemory(windows=100, span_c=(20.0, 60.0))) is None, "nothing possible was seen yet"


@given(
    temperature=st.floats(0, 100),
    watts=st.floats(0, 40),
    resistance=st.floats(0.5, 10),
    time_constant_s=st.floats(20, 2000),
    ambient_c=st.floats(-10, 50),
    ahead_s=st.floats(0, 600),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_forecast_is_the_exact_solution(temperature, watts, resistance, time_constant_s, ambient_c, ahead_s):
    model = node(resistance, time_constant_s, ambient_c)
    expected = step(temperature, watts, resistance, time_constant_s, ambient_c, ahead_s)
    assert model.forecast_c(temperature, watts, ahead_s) == pytest.approx(expected, abs=1e-6)
    assert model.degrees_per_watt == pytest.approx(resistance)
    assert model.time_constant_s == pytest.approx(time_constant_s)
    if (watts_held := (temperature - ambient_c) / resistance) >= 0:
        assert model.sustainable_w(temperature) == pytest.approx(watts_held, abs=1e-6)


@pytest.mark.parametrize("time_constant_s", [90.0, 300.0, 600.0])
@pytest.mark.parametrize("step_c", [0.1, 1.0])
def test_a_node_is_found_through_noise_and_whole_degrees(time_constant_s, step_c):
    memory, temperature = learn(2400, time_constant_s=time_constant_s, step_c=step_c)
    model = identified(memory)
    assert model is not None
    assert model.degrees_per_watt == pytest.approx(6.0, rel=0.1)
    assert model.time_constant_s == pytest.approx(time_constant_s, rel=0.1)
    for watts in (3.0, 7.0, 11.0):
        expected = step(temperature, watts, 6.0, time_constant_s, 25.0, 30.0)
        assert model.forecast_c(temperature, watts, 30.0) == pytest.approx(expected, abs=0.5)


def test_what_has_not_been_seen_is_in_doubt():
    memory, temperature = learn(600, time_constant_s=90.0, watts=4.0)  # one power only, others unknown
    model = identified(memory)
    if model is not None:
        assert model.doubt_c(temperature, 10.0, 30.0) > 5 * model.doubt_c(temperature, 4.0, 30.0)
    told, _ = learn(600, time_constant_s=90.0)
    assert identified(told).doubt_c(temperature, 10.0, 30.0) < 0.5


def test_too_little_or_impossible_is_no_model():
    assert identified(HeatMemory()) is None
    assert identified(learn(60)[0]) is None  # six windows
    still = HeatMemory()
    for t in range(2000):
        observe(still, float(t), 40.0, 5.0, 10.0)  # nothing ever changes
    assert identified(still) is None
    cooling = HeatMemory()
    for t in range(2000):  # more power, less heat: no device does that
        observe(cooling, float(t), 60.0 - 10 * math.sin(t / 100), 5 + 3 * math.sin(t / 100 + 0.3), 10.0)
    model = identified(cooling)
    assert model is None or model.rates[2] > 0


def test_a_gap_in_the_samples_teaches_nothing():
    memory, _ = learn(1200)
    before = memory.estimate
    observe(memory, 5000.0, 25.0, 4.0, 10.0)  # it has cooled, nobody knows how
    observe(memory, 5011.0, 25.0, 4.0, 10.0)
    assert memory.estimate == before


def closed_loop(policy, table, *, resistance=5.5, time_constant_s=300.0, seconds=7200, rate_hz=80.0, seed=1):
    """A box under load: what each rung draws at this rate warms it; temperatures as seen in whole degrees."""
    noise, rows = random.Random(seed), {row.point: row for row in table.rows}
    temperature, current, seen, power = 25.0, None, [], 3.0
    for t in range(seconds):
        ambient_c = 25.0 + 30.0 * math.sin(math.pi * t / seconds)
        moment = Conditions(
            time_s=float(t),
            temperature_c=float(round(temperature + noise.gauss(0, 0.3))),
            power_w=power * noise.gauss(1, 0.02),
            arrival_rate_hz=rate_hz,
        )
        current = policy.decide(moment, table, current).point
        row = rows[current]
        power = 3.0 + min(rate_hz, row.throughput_per_s) * row.net_energy_j
        temperature = step(temperature, power, resistance, time_constant_s, ambient_c, 1.0)
        seen.append((temperature, row.accuracy, current))
    return seen


def test_the_forecast_steps_down_before_the_limit_and_not_after(table):
    # at 80/s s100 draws 8.6 W: 47 degrees over surroundings that rise to 55; the limit is at 85
    policy = Thermal(Goals(temperature_limit_c=85.0))
    seen = closed_loop(policy, table)
    hottest = max(temperature for temperature, _, _ in seen)
    assert 80.0 < hottest < 85.0  # near the limit, never at it
    first = next(t for t, (_, _, point) in enumerate(seen) if not point.startswith("s100") and t > 1000)
    assert seen[first][0] < 85.0
    moves = sum(a[2] != b[2] for a, b in pairwise(seen))
    assert moves <= 120  # in two hours: turns of a minute or more


def test_the_identified_model_uses_the_room_that_a_fixed_headroom_wastes(table):
    goals = Goals(temperature_limit_c=85.0)
    known = closed_loop(Thermal(goals), table)
    # without power there is nothing to identify with: the ladder of headrooms is walked
    walked = closed_loop(_Blind(Thermal(goals)), table)
    assert max(temperature for temperature, _, _ in walked) < 85.0
    assert sum(accuracy for _, accuracy, _ in known) > sum(accuracy for _, accuracy, _ in walked)


class _Blind:
    """Hides power and rate from a policy."""

    def __init__(self, policy):
        self.policy = policy

    def decide(self, conditions, table, current):
        moment = Conditions(time_s=conditions.time_s, temperature_c=conditions.temperature_c)
        return self.policy.decide(moment, table, current)
