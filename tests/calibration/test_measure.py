"""The protocol on a machine whose every latency and joule is known."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from calibration import wording
from calibration.compare import compare
from calibration.disturbance import Watch
from calibration.measure import Settings, calibrate
from calibration.rounds import IDLE, order
from calibration.switching import closed_walk
from calibration.table import QUANTILES
from subnets.data import digits
from subnets.errors import InputError, UnavailableError

QUIET = Settings(budget_s=20.0)


@pytest.fixture
def still(tmp_path):
    """A machine that tells nothing of disturbances."""
    return Watch(tmp_path / "no such root")


@pytest.fixture
def run(bundle, fakes, still):
    """Calibrates the bundle on a fake machine; returns (table, time)."""

    def calibrated(time=None, backends=None, **arguments):
        time = time or fakes.Time()
        arguments = {"settings": QUIET, "meters": [fakes.Meter(time)], "watch": still, "threads": 1, **arguments}
        backends = backends or [fakes.Backend(time)]
        return calibrate(arguments.pop("bundle", bundle), backends, clocks=time.clocks(), **arguments), time

    return calibrated


def test_every_operating_point_is_measured_at_its_true_latency(run, fakes):
    table, _ = run(batch_sizes=(1, 4))
    assert len(table.rows) == 3 * 2 * 2
    for row in table.rows:
        true = fakes.steady_ms[row.subnet] * row.batch_size / (2 if row.precision == "bf16" else 1)
        assert row.latency_p50_ms == pytest.approx(true)
        assert row.latency_p99_ms == pytest.approx(true)
        assert row.throughput_per_s == pytest.approx(1e3 * row.batch_size / true)
        assert row.cpu_s == pytest.approx(true / 1e3 / row.batch_size)
        assert row.load_ms == pytest.approx(fakes.load_ms[row.subnet])


def test_energy_is_gross_and_above_idle_with_its_source(run, fakes):
    table, _ = run()
    for row in table.rows:
        seconds = row.latency_p50_ms / 1e3
        assert row.power_w == pytest.approx(fakes.busy_w)
        assert row.energy_j == pytest.approx(fakes.busy_w * seconds)
        assert row.net_energy_j == pytest.approx((fakes.busy_w - fakes.idle_w) * seconds)
        assert row.energy_source == "rapl-package"
        assert row.energy_low_j <= row.energy_j <= row.energy_high_j
    assert table.idle_power_w == pytest.approx(fakes.idle_w)
    assert table.power_source == "rapl-package"


def test_a_model_of_the_whole_machine_is_given_only_the_engines_own_work(run, fakes):
    from sensors.root import Root
    from sensors.spec_curve import SpecCurveModel, modelled_power_w

    table, _ = run(meters=[SpecCurveModel(Root(Path("/nowhere")))])
    processors = os.cpu_count()
    low, value, high = modelled_power_w(1 / processors, processors)  # one processor at work all the time
    row = table.row("s50@fake:f32:b1")
    assert (row.power_w, row.power_low_w, row.power_high_w) == pytest.approx((value, low, high))
    assert table.idle_power_w == pytest.approx(modelled_power_w(0, processors)[1])
    assert row.energy_source == "modelled:spec-curve"


def test_a_models_bounds_reach_the_table_and_bound_the_net_energy_by_scenario(run, fakes):
    time = fakes.Time()
    table, _ = run(time, meters=[fakes.Meter(time, "modelled:spec-curve", gain=0.4)])
    row = table.row("s50@fake:f32:b1")
    net = (fakes.busy_w - fakes.idle_w) * 2e-3
    assert row.energy_low_j == pytest.approx(0.6 * row.energy_j)
    assert row.energy_high_j == pytest.approx(1.4 * row.energy_j)
    assert (row.net_energy_low_j, row.net_energy_high_j) == pytest.approx((0.6 * net, 1.4 * net))
    assert row.energy_source == table.power_source == "modelled:spec-curve"


def test_without_a_meter_energy_is_unknown_and_not_zero(run):
    table, time = run(meters=[])
    assert all(row.energy_j is None and row.power_w is None and row.net_energy_j is None for row in table.rows)
    assert {row.energy_source for row in table.rows} == {"unmeasurable"}
    assert table.idle_power_w is None and table.power_source == "unmeasurable"
    assert not [entry for entry in time.log if entry == ("sleep", table.protocol.seconds_per_cell)]  # no idle cells


def test_a_counter_that_never_moves_has_measured_nothing(run, fakes):
    time = fakes.Time()

    class Stuck(fakes.Meter):
        def energy(self, before, after):
            return type(super().energy(before, after))(0.0, 0.0, 1.0, after.time_s - before.time_s, self.source)

    table, _ = run(time, meters=[Stuck(time)])
    assert table.rows[0].energy_j is None and table.rows[0].energy_source == "unmeasurable"


def test_an_accelerators_counter_says_nothing_of_the_processor(run, fakes):
    time = fakes.Time()
    board, package = fakes.Meter(time, "nvml-counter"), fakes.Meter(time, "rapl-package")
    board.device = "GPU"
    table, _ = run(time, meters=[board, package])
    assert {row.energy_source for row in table.rows} == {"rapl-package"}
    assert (board.entered, package.entered) == (0, 1)


def test_the_switch_cost_is_the_first_answer_over_the_settled_one(run, fakes):
    table, _ = run()
    for family in ("f32", "bf16"):
        for a, b in itertools.permutations(fakes.steady_ms, 2):
            from_, to = f"{a}@fake:{family}:b1", f"{b}@fake:{family}:b1"
            assert table.switch_ms(from_, to) == pytest.approx(fakes.cold_ms[b])
    assert len(table.switches) == 2 * 3 * 2
    assert {s.from_point.partition(":")[2] for s in table.switches} == {"f32:b1", "bf16:b1"}


def test_it_stops_when_every_median_is_known_well_enough(run, fakes):
    table, _ = run(fakes.Time(jitter=0.02))
    assert table.protocol.stopped == "precision" and table.protocol.rounds == 6
    for row in table.rows:
        assert (row.latency_p50_high_ms - row.latency_p50_low_ms) / 2 <= 0.03 * row.latency_p50_ms
        assert row.rounds == 6


def test_it_stops_when_the_budget_is_spent(run, fakes):
    time = fakes.Time(jitter=0.2)
    table, _ = run(time, settings=Settings(budget_s=20.0, rel_precision=1e-4))
    assert table.protocol.stopped == "budget"
    assert 6 <= table.protocol.rounds <= 30
    assert table.protocol.wall_s < 22.0


def test_at_least_six_rounds_are_made_however_small_the_budget(run):
    table, _ = run(settings=Settings(budget_s=0.01))
    assert table.protocol.rounds == 6 and all(row.rounds == 6 and row.samples >= 30 for row in table.rows)


def test_drift_widens_the_interval_and_does_not_favour_any_point(run, fakes):
    still_table, _ = run(settings=Settings(budget_s=20.0, max_rounds=6))
    table, _ = run(fakes.Time(drift=0.02), settings=Settings(budget_s=20.0, max_rounds=6))
    for row in table.rows:
        assert row.latency_p50_high_ms - row.latency_p50_low_ms > 0
    ratio = [row.latency_p50_ms / still_table.row(row.point).latency_p50_ms for row in table.rows]
    assert max(ratio) / min(ratio) < 1.06


def test_the_same_seed_measures_in_the_same_order(run, fakes):
    logs = [run(fakes.Time(), settings=Settings(budget_s=5.0, seed=seed))[1].log for seed in (7, 7, 8)]
    assert logs[0] == logs[1] != logs[2]


def test_every_engine_is_closed_even_when_one_fails(run, fakes):
    time = fakes.Time()
    backend = fakes.Backend(time)

    def fail(subnet):
        if len(time.log) > 500:
            raise RuntimeError("broken")

    time.on_infer = fail
    with pytest.raises(RuntimeError, match="broken"):
        run(time, [backend])
    assert backend.engines and all(engine.closed == 1 for engine in backend.engines)


def test_disturbed_cells_are_left_out_and_counted(run, fakes, tmp_path):
    (tmp_path / "proc/pressure").mkdir(parents=True)
    pressure = tmp_path / "proc/pressure/cpu"
    stalled = 0.0

    def write():
        pressure.write_text(f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled * 1e6:.0f}\nfull total=0\n")

    write()
    time = fakes.Time()
    runs = 0

    def disturb(subnet):
        nonlocal stalled, runs
        runs += 1
        if 3000 < runs <= 3300:  # a neighbour for a while: slower, and the kernel says so
            time.work(3.0)
            stalled += 0.003
            write()

    time.on_infer = disturb
    table, _ = run(time, watch=Watch(tmp_path), settings=Settings(budget_s=20.0, max_rounds=8, rel_precision=1e-9))
    assert table.protocol.discarded_cells["pressure"] >= 1
    assert (
        min(row.rounds for row in table.rows) == table.protocol.rounds - 1
        or table.protocol.discarded_cells["pressure"] > 1
    )
    for row in table.rows:
        assert row.latency_p99_ms == pytest.approx(fakes.steady_ms[row.subnet] / (2 if row.precision == "bf16" else 1))
    assert table.protocol.pressure == 0.0


def test_where_nothing_undisturbed_is_left_the_point_is_still_measured_and_the_reason_counted(run, fakes, tmp_path):
    folder = tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle"
    folder.mkdir(parents=True)
    time = fakes.Time()
    count = folder / "core_throttle_count"
    time.on_infer = lambda subnet: None if len(time.log) % 40 else count.write_text(str(len(time.log)))
    count.write_text("0")
    table, _ = run(time, watch=Watch(tmp_path))
    assert table.protocol.discarded_cells == {"throttled": 6 * table.protocol.rounds}
    assert table.row("s25@fake:f32:b1").latency_p50_ms == pytest.approx(1.0)


def test_a_point_that_is_known_well_enough_is_left_alone(run, fakes):
    """s100 alone is noisy from round to round: the rounds after the first six are its own."""
    time = fakes.Time()
    mood = np.random.default_rng(0)

    def noise(subnet):
        if subnet == "s100":
            time.work(4.0 * (0.3 * (1 + np.sin(time.now_s)) + 0.02 * mood.random()))

    time.on_infer = noise
    table, _ = run(time, settings=Settings(budget_s=60.0, max_rounds=12, rests_ms=()))
    assert table.protocol.stopped == "rounds" and table.protocol.rounds == 12
    rounds = {row.subnet: row.rounds for row in table.rows}
    assert rounds == {"s25": 6, "s50": 6, "s100": 12}
    quiet, noisy = table.row("s25@fake:f32:b1"), table.row("s100@fake:f32:b1")
    assert quiet.half_width <= 0.03 < noisy.half_width
    assert quiet.round_p50_ms[6:] == (None,) * 6 and None not in noisy.round_p50_ms
    (remark,) = [remark for remark in wording.remarks(table) if "known less well" in remark]
    assert "s100@fake:f32:b1" in remark and "s25" not in remark


def test_after_a_switch_the_second_and_the_tenth_answer_are_kept_too(run, fakes):
    table, _ = run()
    for switch in table.switches:
        steady = table.row(switch.to_point).latency_p50_ms
        assert switch.first_ms == pytest.approx(steady + fakes.cold_ms[switch.to_point.partition("@")[0]])
        assert switch.second_ms == switch.tenth_ms == pytest.approx(steady)


def test_rounds_that_begin_too_warm_are_left_out_and_the_wait_for_them_is_told(run, fakes, tmp_path):
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("x86_pkg_temp\n")
    (zone / "temp").write_text("50000\n")
    time = fakes.Time()
    hot = {"until": None}
    real_sleep = time.sleep

    def sleep(seconds):
        real_sleep(seconds)
        if time.now_s > 4 and hot["until"] is None:
            hot["until"] = time.now_s + 3.0
            (zone / "temp").write_text("70000\n")
        if hot["until"] is not None and time.now_s > hot["until"]:
            (zone / "temp").write_text("50500\n")

    time.sleep = sleep
    settings = Settings(budget_s=20.0, max_rounds=8, rel_precision=1e-9, rests_ms=(), temperature_wait_s=0.5)
    table, _ = run(time, watch=Watch(tmp_path), settings=settings)
    assert table.protocol.temperatures_c == {"temperature_c": 50.0}
    assert table.protocol.discarded_cells["temperature"] >= 7  # six points and an idle cell, of one round or more
    assert 0.5 <= table.protocol.temperature_waited_s < 4
    for row in table.rows:
        assert row.discarded["temperature"] >= 1 and not row.disturbed
        assert row.rounds == table.protocol.rounds - row.discarded["temperature"]
        assert row.round_p50_ms.count(None) == row.discarded["temperature"]


def test_measured_twice_nine_of_ten_rows_agree_even_on_a_machine_that_drifts(run, fakes):
    """A neighbour's load comes and goes over seconds, so the medians of neighbouring rounds resemble each other."""
    overlapping = rows = 0
    for seed in range(3):
        tables = []
        for day in range(2):
            time = fakes.Time(jitter=0.03, seed=2 * seed + day)
            phases = np.random.default_rng(100 + 2 * seed + day).uniform(0, 6.28, 3)

            def load(subnet, time=time, phases=phases):
                waves = sum(
                    np.sin(time.now_s / period + phase) for period, phase in zip((7, 3, 1.3), phases, strict=True)
                )
                time.work(fakes.steady_ms[subnet] * 0.02 * (3 + waves))

            time.on_infer = load
            tables.append(run(time, settings=Settings(budget_s=10.0, rests_ms=(), walks=3))[0])
        difference = compare(*tables)
        overlapping += difference.overlapping
        rows += len(difference.changes)
    assert overlapping >= 0.9 * rows


def test_a_row_tells_its_distribution(run, fakes):
    table, _ = run(fakes.Time(jitter=0.1))
    for row in table.rows:
        assert len(row.quantiles_ms) == len(QUANTILES) and list(row.quantiles_ms) == sorted(row.quantiles_ms)
        assert row.quantiles_ms[QUANTILES.index(0.5)] == pytest.approx(row.latency_p50_ms)
        assert row.quantiles_ms[QUANTILES.index(0.99)] == pytest.approx(row.latency_p99_ms)


def test_progress_never_exceeds_the_whole(run):
    seen = []
    run(on_progress=lambda what, done, total: seen.append((what, done, total)))
    assert all(0 <= done <= total for _, done, total in seen)
    assert {what.partition(" ")[0] for what, _, _ in seen} == {"building", "round", "after", "switch"}


class TestAccuracy:
    def test_the_bundles_figure_is_taken_and_said_to_be_so(self, run):
        table, _ = run()
        assert table.row("s25@fake:f32:b1").accuracy == 0.9
        assert table.row("s25@fake:f32:b1").accuracy_source == "bundle: test, n=1000"
        assert table.row("s25@fake:bf16:b1").accuracy_source == "bundle: test, n=1000, not measured at this precision"

    def test_without_any_figure_it_says_what_to_do(self, run, bare_bundle):
        with pytest.raises(InputError, match="records no accuracy for subnet 's25'; give --data"):
            run(bundle=bare_bundle)

    def test_a_bundle_of_digits_is_measured_without_being_asked(self, run, digits_bundle):
        table, _ = run(bundle=digits_bundle)
        assert {row.accuracy_source for row in table.rows} == {f"measured: test, n={len(digits().test)}"}


class TestChoices:
    def test_backends_that_cannot_be_used_are_left_out(self, run, fakes):
        time = fakes.Time()
        table, _ = run(time, [fakes.Backend(time, "absent", ok=False), fakes.Backend(time, "present")])
        assert {row.backend for row in table.rows} == {"present"}

    def test_with_no_usable_backend_the_reason_is_given(self, run, fakes):
        with pytest.raises(UnavailableError, match="absent: no such processor"):
            run(backends=[fakes.Backend(fakes.Time(), "absent", ok=False)])

    def test_a_precision_that_only_one_backend_has_is_measured_there(self, run, fakes):
        time = fakes.Time()
        backends = [fakes.Backend(time, "a"), fakes.Backend(time, "b", precisions=("f32",))]
        table, _ = run(time, backends, precisions=["bf16"])
        assert {(row.backend, row.precision) for row in table.rows} == {("a", "bf16")}

    def test_a_precision_nobody_has_is_refused(self, run):
        with pytest.raises(InputError, match="precision 'int4' is not offered here; choose among fake: f32, bf16"):
            run(precisions=["f32", "int4"])

    @pytest.mark.parametrize("sizes", [(), (0,), (-3, 1)])
    def test_impossible_batch_sizes_are_refused(self, run, sizes):
        with pytest.raises(InputError, match="batch sizes"):
            run(batch_sizes=sizes)

    @pytest.mark.parametrize(
        "changes",
        [
            {"rel_precision": 0.0},
            {"rel_precision": 1.5},
            {"budget_s": 0},
            {"min_rounds": 9, "max_rounds": 8},
            {"rests_ms": (9.0, 4.0)},
            {"rests_ms": (0.0,)},
        ],
    )
    def test_impossible_settings_are_refused(self, changes):
        with pytest.raises(InputError):
            Settings(**changes).check()


class TestOrder:
    @pytest.mark.parametrize("count", [1, 2, 6, 7, 12, 40])
    def test_each_round_visits_every_subject_once_and_idles_before_every_six(self, count):
        random = np.random.default_rng(1)
        cells = order(range(count), random, idle=True)
        assert sorted(cell for cell in cells if cell != IDLE) == list(range(count))
        assert cells[0] == IDLE and cells.count(IDLE) == -(-count // 6)
        longest = max(len(list(group)) for active, group in itertools.groupby(cells, lambda c: c != IDLE) if active)
        assert longest <= 6

    def test_orders_differ_between_rounds_and_reach_every_place(self):
        random = np.random.default_rng(1)
        rounds = [order(range(5), random, idle=False) for _ in range(400)]
        places = np.array([[cells.index(subject) for subject in range(5)] for cells in rounds])
        assert len({tuple(cells) for cells in rounds}) > 100
        assert np.abs(places.mean(axis=0) - 2).max() < 0.3  # nobody is favoured with early or late places


class TestWalks:
    @pytest.mark.parametrize("count", [2, 3, 4, 9])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_closed_walk_takes_every_ordered_pair_exactly_once(self, count, seed):
        walk = closed_walk(count, np.random.default_rng(seed))
        assert walk[0] == walk[-1]
        assert sorted(itertools.pairwise(walk)) == sorted(itertools.permutations(range(count), 2))

    def test_one_alone_has_nowhere_to_go(self):
        assert closed_walk(1, np.random.default_rng(0)) == [0]
