"""Whether a table still holds: what drifted is named, either way; what did not is named as seldom as promised."""

import msgspec
import numpy as np
import pytest

from calibration.disturbance import Watch
from calibration.measure import Settings, calibrate
from calibration.statistics import Interval, positive_interval, shift
from calibration.verify import verify
from subnets.errors import InputError, UnavailableError


@pytest.fixture
def machine(bundle, fakes, tmp_path):
    """(calibrate, verify) on a fake machine; ``slower`` multiplies the latencies of a subnet while verifying."""

    def measure(jitter=0.02, seed=0):
        time = fakes.Time(jitter=jitter, seed=seed)
        return calibrate(
            bundle,
            [fakes.Backend(time)],
            settings=Settings(budget_s=20.0, rests_ms=()),
            meters=[fakes.Meter(time)],
            watch=Watch(tmp_path / "nothing"),
            clocks=time.clocks(),
            threads=1,
        )

    def again(table, slower=None, jitter=0.02, seed=1, backend=None, **arguments):
        time = fakes.Time(jitter=jitter, seed=seed)
        steady = fakes.steady_ms

        def drift(subnet):
            time.now_s += ((slower or {}).get(subnet, 1.0) - 1) * steady[subnet] / 1e3
            time.busy_s += ((slower or {}).get(subnet, 1.0) - 1) * steady[subnet] / 1e3

        time.on_infer = drift
        return verify(
            table,
            bundle,
            [backend or fakes.Backend(time)],
            meters=[fakes.Meter(time)],
            watch=Watch(tmp_path / "nothing"),
            clocks=time.clocks(),
            **{"rows": 6, "seed": seed, **arguments},
        )

    return measure, again


def test_right_after_calibrating_it_holds_in_latency_and_energy(machine):
    measure, again = machine
    verdict = again(measure())
    assert verdict.holds and verdict.rows == verdict.of == 6
    assert {finding.quantity for finding in verdict.findings} == {"latency_p50_ms", "energy_j"}
    assert all(finding.confirmed for finding in verdict.findings)
    assert all(finding.ratio == pytest.approx(1, abs=0.01) for finding in verdict.findings)


def test_a_row_that_became_slower_is_named_and_no_other(machine):
    measure, again = machine
    verdict = again(measure(), slower={"s50": 1.3})
    assert not verdict.holds
    # The bf16 engine takes half the time, so the same delay weighs double there.
    assert {finding.point for finding in verdict.drifted} == {"s50@fake:f32:b1", "s50@fake:bf16:b1"}


def test_a_row_that_became_faster_is_named_too(machine):
    measure, again = machine
    verdict = again(measure(), slower={"s100": 0.8})
    assert {finding.point.partition("@")[0] for finding in verdict.drifted} == {"s100"}
    assert all(finding.ratio < 1 for finding in verdict.drifted)


def test_what_is_off_by_less_than_the_tolerance_is_no_drift(machine):
    measure, again = machine
    table = measure()
    slower = {"s25": 1.03, "s50": 1.03, "s100": 1.03}
    assert again(table, slower=slower).holds
    assert not again(table, slower=slower, tolerance=0.0).holds


def test_a_sample_is_drawn_by_the_seed_and_only_its_engines_are_loaded(machine, fakes):
    measure, again = machine
    table = measure()
    drawn = [{finding.point for finding in again(table, rows=2, seed=seed).findings} for seed in (3, 3, 4, 5)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2 and len(set(map(frozenset, drawn))) > 1


def test_a_modelled_energy_is_left_to_the_processor_time_it_follows_from(machine):
    measure, again = machine
    table = measure()
    modelled = [msgspec.structs.replace(row, energy_source="modelled:spec-curve") for row in table.rows]
    verdict = again(msgspec.structs.replace(table, rows=tuple(modelled)))
    assert {finding.quantity for finding in verdict.findings} == {"latency_p50_ms"}


def test_a_backend_or_precision_that_is_gone_cannot_be_verified(machine, fakes):
    measure, again = machine
    table = measure()
    with pytest.raises(UnavailableError, match=r"rows of fake, which cannot be used here \(no such processor\)"):
        again(table, backend=fakes.Backend(fakes.Time(), ok=False))
    with pytest.raises(UnavailableError, match="rows of fake in bf16, not offered here"):
        again(table, backend=fakes.Backend(fakes.Time(), precisions=("f32",)))


@pytest.mark.parametrize("changes", [{"rows": 0}, {"rounds": 3}, {"tolerance": 1.0}, {"false_alarm": 0.0}])
def test_impossible_numbers_are_refused(machine, changes):
    measure, again = machine
    with pytest.raises(InputError, match="cannot be"):
        again(measure(), **changes)


def test_false_alarms_over_all_rows_are_as_rare_as_promised():
    """Whole verifications of ten undrifted rows, with noise between rounds; no row may be named in 95 of 100."""
    random = np.random.default_rng(5)
    alarms, trials, rows = 0, 800, 10
    for _ in range(trials):
        alarm = False
        for _ in range(rows):
            a, b = (np.exp(0.05 * random.standard_normal(rounds)) for rounds in (12, 8))
            then, now = (positive_interval(float(np.exp(np.log(x).mean())), list(x)) for x in (a, b))
            moved = shift(then, 12, now, 8, 1 - 0.05 / rows)
            alarm |= moved.low > 1 or moved.high < 1
        alarms += alarm
    assert alarms / trials < 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)
    assert alarms > 0, "a test that never fires promises nothing"


class TestShift:
    def test_it_is_welchs_interval_on_logarithms(self):
        stats = pytest.importorskip("scipy.stats")
        random = np.random.default_rng(1)
        a, b = np.exp(0.1 * random.standard_normal(9)), 1.2 * np.exp(0.3 * random.standard_normal(6))
        then, now = (positive_interval(float(np.exp(np.log(x).mean())), list(x)) for x in (a, b))
        expected = stats.ttest_ind(np.log(b), np.log(a), equal_var=False).confidence_interval(0.95)
        found = shift(then, 9, now, 6)
        # Degrees of freedom are rounded down, so ours is never narrower.
        assert np.log(found.low) <= expected.low + 1e-9 and np.log(found.high) >= expected.high - 1e-9
        assert np.log([found.low, found.high]) == pytest.approx(list(expected), abs=0.01)

    def test_one_round_tells_nothing(self):
        assert shift(Interval(1, 0, 9), 1, Interval(1, 0.9, 1.1), 8)[1:] == (0.0, float("inf"))

    def test_no_spread_at_all_tells_everything(self):
        assert shift(Interval(1, 1, 1), 6, Interval(2, 2, 2), 6) == (2.0, 2.0, 2.0)
