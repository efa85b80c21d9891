import math

import msgspec
import numpy as np
import pytest

from calibration import table as tables
from policies.registry import create
from simulation import arena
from simulation.replay import simulate
from simulation.scenarios import RESERVE, SCENARIOS, build, of_trace, usable
from simulation.synthetic import MADE_UP, synthetic_table
from simulation.trace import Trace, load
from subnets.errors import InputError

SHORT_S = 60.0


@pytest.fixture(scope="module")
def gpu():
    return synthetic_table()


def _run(scenario, policy, **options):
    return simulate(
        scenario.table,
        scenario.trace,
        create(policy, scenario.goals, options),
        scenario.goals,
        scenario.plant,
        seed=scenario.seed,
        queue_limit=scenario.queue_limit,
        sensors=scenario.sensors,
    )


@pytest.fixture(params=["gpu", "toy"])
def either(request, gpu, table):
    return gpu if request.param == "gpu" else table


def test_the_made_up_table_says_so_and_is_a_valid_one(gpu, tmp_path):
    assert {row.energy_source for row in gpu.rows} | {row.accuracy_source for row in gpu.rows} == {MADE_UP}
    assert gpu.host.cpu == gpu.power_source == MADE_UP
    tables.write(gpu, tmp_path / "gpu.json")
    assert tables.read(tmp_path / "gpu.json") == gpu == synthetic_table()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_seed_gives_the_same_scenario_and_another_seed_another(gpu, name):
    first, again, other = (build(name, gpu, seed, SHORT_S) for seed in (3, 3, 4))
    for field in Trace.__struct_fields__:
        assert np.array_equal(getattr(first.trace, field), getattr(again.trace, field))
    assert not np.array_equal(first.trace.arrivals_s, other.trace.arrivals_s)
    assert (first.goals, first.plant) == (again.goals, again.plant)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_smallest_subnet_keeps_every_limit_so_every_scenario_is_feasible(either, name):
    scenario = build(name, either, 0, SHORT_S)
    outcome = _run(scenario, "smallest")
    assert not arena.limits_broken(scenario, outcome)
    assert outcome.on_time >= 0.95 * outcome.requests


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ("dull", "deadlines")])
def test_the_largest_subnet_fails_where_a_choice_is_asked_for(gpu, name):
    scenario = build(name, gpu, 0, 120.0)
    outcome = _run(scenario, "largest")
    assert arena.limits_broken(scenario, outcome) or outcome.on_time < 0.9 * outcome.requests


def test_on_a_dull_day_the_largest_subnet_is_all_it_takes(either):
    scenario = build("dull", either, 0, SHORT_S)
    outcome = _run(scenario, "largest")
    assert not arena.limits_broken(scenario, outcome) and outcome.on_time >= 0.99 * outcome.requests
    assert scenario.trace.duration_s == 2 * SHORT_S


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_loads_deadlines_and_batteries_follow_the_table(gpu, factor):
    slower = msgspec.structs.replace(
        gpu,
        rows=tuple(
            msgspec.structs.replace(
                row,
                **{name: factor * getattr(row, name) for name in row.__struct_fields__ if name.startswith("latency_p")},
                throughput_per_s=row.throughput_per_s / factor,
            )
            for row in gpu.rows
        ),
        idle_power_w=1e-9,
    )
    plain, scaled = (build("drain", table, 1, 600.0 * s) for table, s in ((gpu, 0.1), (slower, 0.1 * factor)))
    assert scaled.goals.deadline_ms == pytest.approx(factor * plain.goals.deadline_ms)
    assert len(scaled.trace.arrivals_s) == pytest.approx(len(plain.trace.arrivals_s), rel=0.05)


def test_the_box_idles_at_no_more_than_a_fifth_of_the_work_and_gross_figures_agree(gpu):
    big = build("heat", msgspec.structs.replace(gpu, idle_power_w=1000.0), 0, SHORT_S).table
    rate = len(build("heat", gpu, 0, SHORT_S).trace.arrivals_s) / SHORT_S
    largest = max(big.select(batch_size=1), key=lambda row: row.macs)
    assert big.idle_power_w == pytest.approx(0.2 * rate * largest.net_energy_j, rel=0.05)
    for row in big.rows:
        assert row.energy_j == pytest.approx(row.net_energy_j + big.idle_power_w / row.throughput_per_s)
        assert row.power_w == pytest.approx(row.energy_j * row.throughput_per_s)


def test_a_table_without_energies_has_no_heat_and_no_battery(make_table, row):
    plain = make_table(row("s50", 100.0, 0.8, None), row("s100", 400.0, 0.9, None), idle_power_w=None)
    assert usable(plain) == ("dull", "burst", "slowdown", "deadlines")
    for name in usable(plain):
        scenario = build(name, plain, 0, SHORT_S)
        assert scenario.plant.battery is None and scenario.plant.thermal is None
    with pytest.raises(InputError, match="'heat' needs the energy of every operating point"):
        build("heat", plain)


def test_a_wrong_name_is_told_with_the_nearest(gpu):
    with pytest.raises(InputError, match="did you mean 'burst'"):
        build("bursts", gpu)


def test_bursts_ask_for_more_than_the_largest_subnet_can_answer(gpu):
    scenario = build("burst", gpu, 0, 300.0)
    counts, _ = np.histogram(scenario.trace.arrivals_s, bins=300, range=(0.0, 300.0))
    fastest, slowest = (1000.0 / row.latency_p50_ms for row in (gpu.rows[0], gpu.rows[-3]))
    assert slowest < counts.max() < fastest


def test_a_recorded_load_keeps_its_shape_at_the_tables_scale(gpu):
    recorded = load("onoff:rate=2,low=0.2,on_s=600,off_s=600,hours=2,seed=1")
    scenario = of_trace(recorded, gpu, 0, 240.0)
    assert scenario.trace.duration_s == 240.0
    ours, theirs = (
        np.histogram(trace.arrivals_s, bins=12, range=(0.0, trace.duration_s))[0]
        for trace in (scenario.trace, recorded)
    )
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
    capacity = 1000.0 / min(row.latency_p50_ms for row in gpu.select(batch_size=1))
    assert ours.max() / 20.0 < capacity
    assert len(scenario.trace.arrivals_s) > 5 * len(recorded.arrivals_s)
    battery = scenario.plant.battery
    assert battery is not None and battery.initial_charge == 1.0 and scenario.goals.reserve == RESERVE


def test_a_recorded_load_as_it_is_stays_as_it_is(gpu):
    recorded = load("poisson:rate=2,hours=0.1,seed=1")
    scenario = of_trace(recorded, gpu, 0, as_is=True)
    assert scenario.trace is recorded
    assert math.isclose(scenario.goals.last_until_s, recorded.duration_s)


def test_a_trace_without_requests_is_refused(gpu, make_trace):
    with pytest.raises(InputError, match="holds no arrivals"):
        of_trace(make_trace([], 60.0), gpu)


def test_published_recordings_become_scenarios(recorded, gpu):
    for file in sorted((recorded / "arrivals").glob("*.csv")):
        scenario = of_trace(load(str(file)), gpu, 0, SHORT_S)
        assert not arena.limits_broken(scenario, _run(scenario, "smallest"))
