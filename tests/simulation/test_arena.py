import concurrent.futures

import msgspec
import pytest

from simulation import arena, scenarios
from simulation.arena import BEST_STATIC, Bounded, Contender, Contest, Played, run
from simulation.arena_report import html
from simulation.regret import Bounds
from simulation.standings import bounds_of, standings
from simulation.synthetic import synthetic_table
from simulation.trace import load
from subnets.errors import InputError

NAMES = ("composite", "smallest", "largest", BEST_STATIC)


@pytest.fixture(scope="module")
def contest():
    return Contest(
        table=synthetic_table(),
        contenders=tuple(map(Contender.parse, NAMES)),
        seeds=(0, 1),
        scenarios=("drain", "burst"),
        duration_s=20.0,
        bounded=False,
    )


@pytest.fixture(scope="module")
def results(contest, tmp_path_factory):
    return run(contest, tmp_path_factory.mktemp("arena"))


def _files(folder):
    return {file.name: file.read_bytes() for file in (folder / "cells").iterdir()}


def test_every_policy_meets_every_scenario_and_seed_once(contest, results):
    met = [(result.scenario, result.seed, result.policy) for result in results]
    assert len(met) == len(set(met)) == 2 * 2 * len(NAMES)
    for scenario in contest.scenarios:
        for seed in contest.seeds:
            same = [r.outcome.requests for r in results if (r.scenario, r.seed) == (scenario, seed)]
            assert len(set(same)) == 1, "common random numbers: all meet the same requests"


def test_two_runs_write_the_same_bytes(contest, results, tmp_path):
    again = run(contest, tmp_path / "a")
    assert again == results
    other = run(contest, tmp_path / "b")
    assert _files(tmp_path / "a") == _files(tmp_path / "b") and len(other) == len(_files(tmp_path / "a"))


def test_a_killed_arena_goes_on_from_what_is_there(contest, results, tmp_path, monkeypatch):
    computed = []
    play = arena.play

    def dies(shard):
        computed.append(shard)
        if len(computed) == 5:
            raise KeyboardInterrupt
        return play(shard)

    monkeypatch.setattr(arena, "play", dies)
    with pytest.raises(KeyboardInterrupt):
        run(contest, tmp_path)
    assert len(_files(tmp_path)) == 4
    seen = []
    assert run(contest, tmp_path, progress=lambda done, total: seen.append((done, total))) == results
    assert len(computed) == 5 + len(results) - 4
    assert seen[0] == (4, len(results)) and seen[-1] == (len(results), len(results))


def test_a_damaged_result_is_computed_again(contest, results, tmp_path):
    run(contest, tmp_path)
    before = _files(tmp_path)
    victim = next((tmp_path / "cells").iterdir())
    victim.write_bytes(victim.read_bytes()[:100])
    assert run(contest, tmp_path) == results
    assert _files(tmp_path) == before


def test_processes_give_what_one_process_gives(contest, results, tmp_path):
    import multiprocessing

    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert run(contest, tmp_path, executor=pool) == results


def test_a_local_dask_cluster_gives_what_one_process_gives(contest, results, tmp_path):
    distributed = pytest.importorskip("distributed")
    from simulation.cluster import connected

    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, connected(cluster.scheduler_address) as executor:
        assert run(contest, tmp_path, executor=executor, cells_per_shard=3) == results


def test_no_cluster_at_the_address_is_one_sentence(monkeypatch):
    pytest.importorskip("distributed")
    from simulation import cluster

    monkeypatch.setattr(cluster, "_CONNECT_S", 0.2)
    with pytest.raises(InputError, match="no Dask scheduler answers at"), cluster.connected("tcp://127.0.0.1:1"):
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"table": msgspec.structs.replace(synthetic_table(), idle_power_w=4.0)},
        {"duration_s": 21.0},
        {"seeds": (2, 3)},
        {"contenders": tuple(map(Contender.parse, ("composite:rho_max=0.5", "composite:rho_max=0.6")))},
    ],
)
def test_other_inputs_are_other_cells(contest, change):
    before = {cell.key for shard in arena._shards(contest, 1) for cell in shard.cells}
    other = {cell.key for shard in arena._shards(msgspec.structs.replace(contest, **change), 1) for cell in shard.cells}
    assert not before & other


def test_other_code_is_other_cells(contest, monkeypatch):
    before = {cell.key for shard in arena._shards(contest, 1) for cell in shard.cells}
    monkeypatch.setattr(arena, "_code", lambda: "other")
    assert not before & {cell.key for shard in arena._shards(contest, 1) for cell in shard.cells}


def test_a_recorded_load_is_known_by_its_content(contest, tmp_path):
    one, other = (load(f"poisson:rate=3,hours=0.01,seed={seed}") for seed in (1, 2))
    other = msgspec.structs.replace(other, name=one.name)
    keys = [
        {
            cell.key
            for shard in arena._shards(msgspec.structs.replace(contest, scenarios=(), traces=(trace,)), 1)
            for cell in shard.cells
        }
        for trace in (one, other)
    ]
    assert not keys[0] & keys[1]
    found = run(msgspec.structs.replace(contest, scenarios=(), traces=(one,), seeds=(0,)), tmp_path)
    assert {result.scenario for result in found} == {one.name}


def test_the_best_static_is_the_best_rung_that_keeps_the_limits(contest):
    scenario = contest.scenario("drain", 0)
    points = [row.point for row in scenario.table.select(batch_size=1)]
    runs = {p: arena.outcome_of(scenario, Contender(name=p, policy="static", options={"point": p})) for p in points}
    kept = {point: run.accuracy_sum for point, run in runs.items() if not arena.limits_broken(scenario, run)}
    assert 0 < len(kept) < len(points)
    assert arena.outcome_of(scenario, Contender.parse(BEST_STATIC)).accuracy_sum == max(kept.values())


def test_timelines_are_kept_for_the_first_seed_alone(results):
    assert {(r.seed, r.outcome.timeline is None) for r in results} == {(0, False), (1, True)}


def test_the_heat_above_the_limit_is_counted_in_degrees_and_seconds(contest):
    """60 s, the last 20 at 3 degrees above the limit: worked out by hand on a made-up timeline."""
    scenario = scenarios.build("heat", contest.table, 0, 20.0)
    outcome = arena.outcome_of(scenario, Contender.parse("largest"))
    limit = scenario.goals.temperature_limit_c
    line = msgspec.structs.replace(
        outcome.timeline, time_s=(0.0, 20.0, 40.0), temperature_c=(limit - 9.0, limit, limit + 3.0)
    )
    made = msgspec.structs.replace(outcome, timeline=line, duration_s=60.0, peak_temperature_c=limit + 3.0)
    assert arena._degree_seconds(made, scenario.goals) == pytest.approx(60.0)
    assert arena.limits_broken(scenario, made) == ("temperature",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("composite:rho_max", "'rho_max' is no option"),
        ("compost", "did you mean 'composite'"),
        ("composite:rho=0.5", "no option 'rho'"),
        ("composite:rho_max=7", "rho_max is 7"),
        ("best-static:point=x", "takes no options"),
        ("clairvoyant", "name another policy"),
    ],
)
def test_a_contender_that_cannot_be_is_refused_before_the_first_run(contest, tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        run(msgspec.structs.replace(contest, contenders=(Contender.parse(text),)), tmp_path)
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contenders": ()}, "at least one policy"),
        ({"scenarios": ("heat", "heat")}, "scenario 'heat' is given twice"),
        ({"seeds": (1, 1)}, "seed '1' is given twice"),
    ],
)
def test_an_empty_or_doubled_contest_is_refused(contest, change, message):
    with pytest.raises(InputError, match=message):
        msgspec.structs.replace(contest, **change)


# What the results say, on results written by hand.


@pytest.fixture(scope="module")
def told(results):
    """Two scenarios, two seeds; 1000 requests each; the clairvoyant would get 800 right, which the LP puts at 808."""
    outcome = next(result.outcome for result in results if result.seed == 0)
    reached = {"a": {"x": 760, "y": 720}, "b": {"x": 700, "y": 740}, "c": {"x": 810, "y": 790}}
    made = []
    for scenario in ("x", "y"):
        for seed in (0, 1):
            made.append(Bounded(scenario=scenario, seed=seed, bounds=Bounds(lp=808.0, dp=800.0)))
            for policy, right in reached.items():
                changed = msgspec.structs.replace(
                    outcome, requests=1000, accuracy_sum=float(right[scenario] + seed), switches=3, duration_s=1800.0
                )
                hot = policy == "c" and scenario == "x"
                empty = policy == "b" and scenario == "y"
                made.append(
                    Played(
                        scenario=scenario,
                        seed=seed,
                        policy=policy,
                        outcome=changed,
                        broken=("temperature",) * hot + ("battery",) * empty,
                        degree_seconds=40.0 * hot,
                        lasted=not empty,
                    )
                )
    return made


def test_regret_is_against_the_linear_program_unless_that_lies_too_high():
    assert Bounds(lp=102.0, dp=100.0).measure == 102.0
    assert Bounds(lp=104.0, dp=100.0).measure == 100.0
    assert Bounds(lp=104.0).measure == 104.0
    assert Bounds(lp=104.0, dp=100.0).regret(90.0) == pytest.approx(0.1)
    assert Bounds(lp=0.0, dp=0.0).regret(0.0) == 0.0


def test_the_clairvoyant_reaches_what_any_policy_reached_within_the_limits(told):
    found = bounds_of(told)
    assert found["x", 0].dp == 800.0, "810 was reached on x, but over the limit"
    high = [
        msgspec.structs.replace(cell, outcome=msgspec.structs.replace(cell.outcome, accuracy_sum=804.0))
        if isinstance(cell, Played) and (cell.policy, cell.scenario) == ("a", "x")
        else cell
        for cell in told
    ]
    assert bounds_of(high)["x", 1].dp == 804.0 and bounds_of(high)["x", 1].lp == 808.0
    assert Bounds(lp=808.0, infeasible="too small").raised([700.0]).dp == 700.0
    assert Bounds(lp=808.0).raised([]).dp is None


def test_standings_say_what_was_computed_by_hand(told):
    found = standings(told, "a")
    by_name = {standing.name: standing for standing in found.policies}
    a = by_name["a"]
    x, y = 1 - 760.5 / 808, 1 - 720.5 / 808
    assert a.regret.mean == pytest.approx((x + y) / 2) and a.regret_median == pytest.approx((x + y) / 2)
    assert a.regret_worst == pytest.approx(y)
    assert a.switches_per_hour == pytest.approx(6.0)
    assert found.scenarios[0].gap == pytest.approx(0.01)
    assert (a.hits, a.feasible, a.violations) == (4, 4, 0)
    assert (by_name["b"].hits, by_name["b"].violations) == (2, 2)
    assert by_name["c"].degree_seconds == pytest.approx(80.0)


def test_who_breaks_a_limit_ranks_below_all_who_keep_them(told):
    found = standings(told)
    assert [standing.name for standing in found.policies] == ["a", "c", "b"]
    assert found.winner == found.reference == "a"


def test_a_limit_that_nobody_could_keep_is_not_broken(told):
    made = [
        msgspec.structs.replace(cell, broken=("battery",), lasted=False)
        if isinstance(cell, Played)
        else msgspec.structs.replace(cell, bounds=Bounds(lp=808.0, infeasible="too small a battery"))
        for cell in told
    ]
    assert {(s.feasible, s.hits, s.violations) for s in standings(made).policies} == {(0, 0, 0)}
    clairvoyant = [
        msgspec.structs.replace(cell, bounds=Bounds(lp=808.0, dp=800.0)) if isinstance(cell, Bounded) else cell
        for cell in made
    ]
    assert {(s.feasible, s.hits, s.violations) for s in standings(clairvoyant).policies} == {(4, 0, 4)}


def test_comparisons_are_paired_and_losses_are_shown(told):
    found = standings(told, "a")
    b, c = found.comparisons
    assert b.difference.mean == pytest.approx((60 - 20) / 2 / 808)
    assert c.difference.mean == pytest.approx((-50 - 70) / 2 / 808)
    assert c.verdict in ("better", "undecided") and c.p_holm >= c.difference.p
    assert [(loss.scenario, loss.winner) for loss in found.losses] == [("y", "c")], "on x it broke the limit"


def test_a_reference_that_does_not_take_part_is_refused(told):
    with pytest.raises(InputError, match="'d' does not take part"):
        standings(told, "d")


def test_the_report_holds_every_policy_and_loads_nothing(contest, results):
    found = standings(results)
    page = html(found, results, table="synthetic-gpu", synthetic=True, seeds=contest.seeds)
    assert "nothing in it was measured" in page
    assert all(name in page for name in NAMES)
    assert "http" not in page.replace("http-equiv", "") and "src=" not in page
    assert page.count("<svg") >= 2 + 2 * len(contest.scenarios)


def test_without_bounds_quality_decides_and_regret_is_unknown(results):
    found = standings(results)
    assert not found.bounded and all(standing.regret is None for standing in found.policies)
    told = found.to_json()["policies"]
    names = {"name", "requests", "on_time", "mean_accuracy", "energy_j", "switches", "regret"}
    assert all(names <= policy.keys() and policy["regret"] is None for policy in told)
