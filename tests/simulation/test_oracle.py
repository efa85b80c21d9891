import itertools
import math

import msgspec
import numpy as np
import pytest

from calibration.table import Duty
from policies.base import Goals, SlackStep
from policies.registry import create
from simulation.battery import Battery
from simulation.fluid import Problem, upper_bound
from simulation.oracle import Bound, bound
from simulation.plant import Plant, Thermal, Throttle
from simulation.replay import simulate
from simulation.scripts import Script, Step, broken, choices
from simulation.trace import load, load_all
from subnets.errors import InputError

pytest.importorskip("scipy")

OPTIONS = {"queue_limit": 20}


@pytest.fixture
def ladder(make_table, row):
    """Three subnets with service times that vary; answering better costs ever more, and one minds resting."""
    duty = Duty(
        rests_ms=(20.0,),
        latency_ms=(26.0,),
        settle_ms=20.0,
        extra_ms=9.0,
        extra_low_ms=9.0,
        extra_high_ms=9.0,
        rounds=4,
        samples=40,
        extra_net_energy_j=0.02,
    )
    return make_table(
        row("s25", 10.0, 0.70, 0.02, latency_p99_ms=14.0),
        row("s50", 20.0, 0.80, 0.06, latency_p99_ms=27.0, duty=duty),
        row("s100", 45.0, 0.86, 0.20, latency_p99_ms=60.0),
        idle_power_w=0.5,
    )


def _battery(joules, duration_s, **changes):
    """A battery whose resistances lose little at about 2 W."""
    like = Battery(r0_ohm=0.05, r1_ohm=0.02, c1_f=duration_s, charger_w=5.0, **changes)
    return msgspec.structs.replace(like, capacity_ah=like.capacity_ah * joules / like.energy_j)


def _runs(table, trace, goals, plant, names=("composite", "throughput"), **options):
    for name in names:
        outcome = simulate(table, trace, create(name, goals), goals, plant, **options)
        if not broken(outcome, goals):
            yield name, outcome.accuracy_sum


def _exhaustive(table, trace, goals, plant, epochs, problem, **options):
    """The best of all scripts that choose anew in each epoch, by trying every one."""
    best = 0.0
    offered = choices(problem, table)
    for plan in itertools.product(offered, repeat=epochs):
        steps = [
            Step(time_s=k * trace.duration_s / epochs, point=choice.point, slack_plan=choice.plan)
            for k, choice in enumerate(plan)
        ]
        outcome = simulate(table, trace, Script(steps), goals, plant, **options)
        if not broken(outcome, goals):
            best = max(best, outcome.accuracy_sum)
    return best


def _problem(table, trace, goals, plant, **changes):
    settings = {"seed": 0, "period_s": 1.0, "queue_limit": 20, "charge_tolerance": 0.0, "temperature_tolerance_c": 0.0}
    return Problem(table, trace, goals, plant, **{**settings, **changes})


SMALL_CASES = {  # trace, goals, plant, epochs
    "a burst": ("onoff:rate=45,low=8,on_s=2,off_s=4,hours=0.001333,seed={seed}", Goals(deadline_ms=90.0), Plant(), 4),
    "a hot box": (
        "poisson:rate=18,hours=0.002333,seed={seed}",
        Goals(temperature_limit_c=29.0),
        Plant(thermal=Thermal(resistance_c_per_w=4.0, capacity_j_per_c=2.0)),
        7,
    ),
    "a small battery": (
        "poisson:rate=12,hours=0.002333,seed={seed}",
        Goals(last_until_s=8.4, reserve=0.2),
        Plant(battery=_battery(14.0, 8.4)),
        7,
    ),
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", sorted(SMALL_CASES))
def test_on_small_cases_the_best_of_all_scripts_lies_between_the_two_programs(make_table, row, case, seed):
    table = make_table(
        row("s50", 12.0, 0.8, 0.03, latency_p99_ms=16.0),
        row("s100", 40.0, 0.9, 0.16, latency_p99_ms=50.0),
        idle_power_w=0.2,
    )
    spec, goals, plant, epochs = SMALL_CASES[case]
    trace = load(spec.format(seed=seed))
    options = {**OPTIONS, "seed": seed, "control_period_s": 1.2}
    found = bound(table, trace, goals, plant, epochs=epochs, **options)
    problem = _problem(table, trace, goals, plant, seed=seed, period_s=1.2)
    best = _exhaustive(table, trace, goals, plant, epochs, problem, **options)
    assert not found.infeasible
    assert found.lp >= best >= found.dp > 0.0
    assert found.dp >= 0.98 * best
    assert best < 0.9 * len(trace.arrivals_s)  # the case does ask for a choice


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scene", ["load", "heat", "battery", "all"])
def test_no_policy_that_keeps_the_limits_passes_either_program(ladder, scene, seed):
    random = np.random.default_rng([seed, len(scene)])
    rate, share, duration_s = random.uniform(5.0, 35.0), random.uniform(0.1, 0.9), 180.0
    specs = [f"diurnal:rate={rate},bursts_per_hour=60,burst_s=5,hours=0.05,seed={seed}"]
    goals, plant = Goals(deadline_ms=200.0), Plant()
    low_w, high_w = 0.5 + 0.02 * rate, 0.5 + 0.2 * min(rate, 20.0)
    mean_w = low_w + share * (high_w - low_w)
    if scene in ("heat", "all"):
        specs.append(f"heat:first=20,then=24,first_s=40,then_s=40,hours=0.05,seed={seed}")
        thermal = Thermal(resistance_c_per_w=20.0, capacity_j_per_c=2.0)
        goals = msgspec.structs.replace(goals, temperature_limit_c=26.0 + 20.0 * mean_w)
        plant = msgspec.structs.replace(plant, thermal=thermal, throttle=Throttle(trip_c=29.0 + 20.0 * mean_w))
    if scene in ("battery", "all"):
        specs.append(f"sun:first=0.2,then=0,first_s=50,then_s=50,hours=0.05,seed={seed}")
        goals = msgspec.structs.replace(goals, last_until_s=duration_s, reserve=0.1)
        plant = msgspec.structs.replace(plant, battery=_battery(duration_s * mean_w / 0.85, duration_s))
    trace = load_all(specs)
    names = ("composite", "largest", "smallest", "throughput")
    contenders = [create(name, goals) for name in names]
    found = bound(ladder, trace, goals, plant, seed=seed, epochs=90, contenders=contenders, **OPTIONS)
    assert found.dp is not None and found.lp >= found.dp
    kept = dict(_runs(ladder, trace, goals, plant, names, seed=seed, **OPTIONS))
    assert "smallest" in kept  # the scene is not impossible
    assert max(kept.values()) <= found.dp


def test_alone_the_dynamic_program_is_as_good_as_any_policy_within_a_hair(ladder):
    trace = load("diurnal:rate=13,bursts_per_hour=60,burst_s=5,hours=0.05,seed=675")
    goals = Goals(deadline_ms=200.0)
    found = bound(ladder, trace, goals, Plant(), **OPTIONS)
    assert max(utility for _, utility in _runs(ladder, trace, goals, Plant(), **OPTIONS)) <= 1.001 * found.dp


def test_an_easy_day_is_bounded_exactly(ladder):
    trace = load("camera:rate=2,hours=0.02")
    found = bound(ladder, trace, Goals(deadline_ms=500.0), Plant())
    assert found.dp == pytest.approx(0.86 * len(trace.arrivals_s)) and found.gap == pytest.approx(0.0, abs=1e-6)
    assert [step.point for step in found.script] == ["s100@toy:f32:b1"]


def test_the_script_gives_what_the_bound_says(ladder):
    trace, goals = load("onoff:rate=60,low=5,hours=0.05,on_s=20,off_s=20,seed=3"), Goals(deadline_ms=150.0)
    found = bound(ladder, trace, goals, Plant(), seed=4, **OPTIONS)
    outcome = simulate(ladder, trace, Script(found.script), goals, Plant(), seed=4, **OPTIONS)
    assert outcome.accuracy_sum == found.dp and outcome.switches > 0
    assert found.gap == pytest.approx(found.lp / found.dp - 1.0) and 0.0 <= found.gap < 0.1


def test_batches_count_in_the_bound(make_table, row):
    rows = [row("s50", 10.0, 0.8, 0.1), row("s50", 16.0, 0.8, 0.05, batch_size=4, latency_p99_ms=22.0)]
    table = make_table(*rows)
    trace, goals = load("poisson:rate=190,hours=0.01,seed=1"), Goals(deadline_ms=60.0)
    found = bound(table, trace, goals, Plant(), **OPTIONS)
    single = bound(make_table(rows[0]), trace, goals, Plant(), **OPTIONS)
    assert single.lp < 0.6 * found.dp  # one at a time is half of what comes
    assert found.dp <= found.lp <= 0.8 * len(trace.arrivals_s) * (1 + 1e-6)
    assert found.gap < 0.05


def test_limits_that_nobody_can_keep_are_told_and_left_out(ladder):
    plant = Plant(thermal=Thermal(resistance_c_per_w=20.0, capacity_j_per_c=1.0), battery=_battery(20.0, 100.0))
    trace = load("poisson:rate=5,hours=0.03,seed=1")  # idle alone warms by 10 degrees and empties the battery
    goals = Goals(deadline_ms=200.0, temperature_limit_c=30.0, last_until_s=108.0)
    found = bound(ladder, trace, goals, plant, **OPTIONS)
    assert "at most 30 °C" in found.infeasible and "lasts 108 s" in found.infeasible
    assert found.lp >= found.dp > 0.0


def test_without_deadline_energy_still_bounds(ladder):
    plant = Plant(battery=_battery(120.0, 100.0))
    trace, goals = load("poisson:rate=10,hours=0.03,seed=1"), Goals(last_until_s=108.0)
    found = bound(ladder, trace, goals, plant, queue_limit=5)
    assert found.dp <= found.lp < 0.85 * len(trace.arrivals_s)
    assert found.gap < 0.1


def test_a_power_cap_takes_its_rows_from_both_programs(ladder):
    powers = [row.power_w for row in ladder.rows]
    trace = load("poisson:rate=5,hours=0.01,seed=1")
    goals = Goals(deadline_ms=500.0, max_power_w=(powers[1] + powers[2]) / 2.0)
    found = bound(ladder, trace, goals, Plant())
    assert found.lp == pytest.approx(0.8 * len(trace.arrivals_s)) == pytest.approx(found.dp)
    largest = simulate(ladder, trace, create("largest", Goals()), Goals(), Plant())
    assert broken(largest, goals) == ("power",)


def test_broken_limits_are_named(ladder):
    plant = Plant(thermal=Thermal(resistance_c_per_w=20.0, capacity_j_per_c=1.0), battery=_battery(60.0, 100.0))
    trace = load("poisson:rate=10,hours=0.03,seed=1")
    goals = Goals(deadline_ms=200.0, temperature_limit_c=40.0, last_until_s=100.0)
    outcome = simulate(ladder, trace, create("largest", Goals()), goals, plant)
    assert broken(outcome, goals) == ("temperature", "battery")
    assert broken(outcome, goals, temperature_tolerance_c=100.0) == ("battery",)
    assert broken(outcome, Goals()) == ()


def test_a_script_does_what_is_written_down_and_starts_anew(ladder):
    plan = (SlackStep(0.0, "s25@toy:f32:b1"), SlackStep(50.0, "s50@toy:f32:b1"))
    script = Script(
        [Step(time_s=0.0, point="s25@toy:f32:b1"), Step(time_s=5.0, point="s50@toy:f32:b1", slack_plan=plan)]
    )
    trace = load("camera:rate=2,hours=0.003")
    first, again = (simulate(ladder, trace, script, Goals(deadline_ms=100.0), Plant()) for _ in range(2))
    assert first == again and first.switches == 1 and first.switch_events[0].time_s == 5.0
    with pytest.raises(InputError, match="at least one step"):
        Script([])


def test_the_bound_holds_at_any_number_of_epochs_and_fewer_bound_less(ladder):
    trace, goals = load("onoff:rate=60,low=5,hours=0.02,on_s=10,off_s=10,seed=3"), Goals(deadline_ms=150.0)
    problem = _problem(ladder, trace, goals, Plant())
    bounds = [upper_bound(problem, epochs)[0] for epochs in (1, 8, 72)]
    best = bound(ladder, trace, goals, Plant(), **OPTIONS).dp
    assert all(value >= best for value in bounds) and bounds[0] > bounds[2]


def test_a_bound_survives_json():
    found = Bound(lp=2.0, dp=1.0, script=(Step(time_s=0.0, point="a"),))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Bound) == found
    assert Bound(lp=1.0, dp=None).gap is None
    assert math.isclose(found.gap, 1.0) and np.isfinite(found.lp)
