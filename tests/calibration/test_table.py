"""The table as a file: whole, damaged, of another machine; and two of them compared."""

import copy
import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration import frontier, read, write
from calibration.compare import compare
from calibration.table import Host
from subnets.errors import InputError, MismatchError

DUTY = {
    "rests_ms": [4.0],
    "latency_ms": [2.5],
    "settle_ms": 9.0,
    "extra_ms": 1.0,
    "extra_low_ms": 0.5,
    "extra_high_ms": 1.5,
    "rounds": 4,
    "samples": 9,
}


@pytest.fixture
def written(make_table, tmp_path):
    path = tmp_path / "t.json"
    write(make_table(), path)
    return path


def test_what_is_written_is_read_back(make_table, written):
    assert read(written) == make_table()


def test_a_missing_table_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="no such table; make one with 'gearshift calibrate BUNDLE'"):
        read(tmp_path / "none.json")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_table_is_refused_in_one_sentence_or_still_a_table(written, data):
    content = written.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 40))
    patch = data.draw(st.binary(max_size=40))
    damaged = written.with_name("damaged.json")
    damaged.write_bytes(content[:start] + patch + content[start + length :])
    try:
        table = read(damaged)
    except InputError as error:
        assert str(damaged) in str(error) and "\n" not in str(error).replace(repr(patch), "")
    else:
        assert all(row.latency_p50_low_ms <= row.latency_p50_ms <= row.latency_p50_high_ms for row in table.rows)


def _changed(written, change):
    raw = json.loads(written.read_bytes())
    change(raw)
    written.write_text(json.dumps(raw))
    return written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(schema=9), "not a table of schema 1"),
        (lambda t: t.update(rows=[]), "has no rows"),
        (lambda t: t["rows"].append(copy.deepcopy(t["rows"][0])), "appears twice"),
        (lambda t: t["rows"][0].update(latency_p50_ms=0.0), "latency_p50_ms"),
        (lambda t: t["rows"][0].update(energy_j=0.0), "energy_j"),
        (lambda t: t["rows"][0].update(accuracy=1.2), "accuracy"),
        (lambda t: t["rows"][0].update(latency_p50_ms=7.0), "latency_p50_ms of s25@openvino:f32:b1 is not within"),
        (lambda t: t["rows"][0].update(latency_p99_high_ms=1e400), "damaged|not within"),
        (lambda t: t["rows"][0].update(surprise=1), "surprise"),
        (lambda t: t["rows"][0].update(duty=DUTY | {"extra_ms": 9.0}), "duty.extra_ms of s25@openvino:f32:b1 is not"),
        (lambda t: t["rows"][0].update(duty=DUTY | {"settle_ms": 0.0}), "settle_ms"),
        (lambda t: t["rows"][0].update(round_p50_ms=[1.0, -1.0]), "round_p50_ms"),
        (lambda t: t["rows"][0].pop("load_ms"), "load_ms"),
        (lambda t: t["switches"][0].update(to_point="elsewhere"), "a switch names"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(written, change, message):
    with pytest.raises(InputError, match=message):
        read(_changed(written, change))


def test_a_table_of_another_bundle_is_refused_by_name(make_table):
    table = make_table()
    table.check(bundle_key="0123456789abcdef")
    with pytest.raises(MismatchError, match=r"of bundle 'toy' \(0123456789abcdef\), not of 'other' \(ffff\)"):
        table.check(bundle_key="ffff", bundle_name="other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpu": "B"}, "cpu is 'B', the table's is 'A'"),
        ({"cores": 4}, "cores is '4'"),
        ({"accelerator": "X"}, "accelerator is 'X'"),
        ({"libraries": {"openvino": "2"}}, "openvino is 2, the table's is 1"),
    ],
)
def test_a_table_of_another_machine_is_refused_by_what_differs(make_table, changes, message):
    table = make_table()
    table.check(host=table.host)
    with pytest.raises(MismatchError, match=message):
        table.check(host=msgspec.structs.replace(table.host, **changes))


def test_what_does_not_change_measurements_is_no_mismatch(make_table):
    table = make_table()
    table.check(host=msgspec.structs.replace(table.host, python="3.13", memory_bytes=1, libraries={"torch": "9"}))


def test_an_unknown_switch_costs_nothing_and_noise_below_zero_neither(make_table, make_row):
    table = make_table()
    a, b = (row.point for row in table.rows)
    assert table.switch_ms(a, b) == 0.5
    below = msgspec.structs.replace(table.switches[0], extra_ms=-0.2)
    assert make_table(switches=(below,)).switch_ms(a, b) == 0.0
    assert make_table(switches=()).switch_ms(a, b) == 0.0


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=12, unique_by=lambda pair: pair[0])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_frontier_is_what_no_other_point_beats(make_row, pairs):
    rows = [make_row(subnet=f"s{k}", latency_p50_ms=ms, accuracy=share) for k, (ms, share) in enumerate(pairs)]
    worth = {
        row.subnet
        for row in rows
        if not any(o is not row and o.latency_p50_ms <= row.latency_p50_ms and o.accuracy >= row.accuracy for o in rows)
    }
    assert {row.subnet for row in frontier(rows)} == worth


class TestCompare:
    def test_points_are_paired_by_name_and_ratios_are_b_over_a(self, make_table, make_row):
        a = make_table(
            [make_row(energy_j=2.0, energy_low_j=1.8, energy_high_j=2.2, energy_source="hwmon"), make_row(subnet="s50")]
        )
        b = make_table(
            [
                make_row(subnet="s100"),
                make_row(
                    latency_p50_ms=3.0,
                    latency_p50_low_ms=2.8,
                    latency_p50_high_ms=3.2,
                    energy_j=2.1,
                    energy_low_j=1.9,
                    energy_high_j=2.3,
                    energy_source="hwmon",
                    accuracy=0.8,
                    accuracy_low=0.78,
                    accuracy_high=0.82,
                ),
            ]
        )
        difference = compare(a, b)
        (change,) = difference.changes
        assert change.point == "s25@openvino:f32:b1"
        assert change.latency_ratio == pytest.approx(1.5) and not change.latency_overlaps
        assert change.energy_ratio == pytest.approx(1.05) and change.energy_overlaps
        assert not change.accuracy_overlaps
        assert difference.only_a == ("s50@openvino:f32:b1",) and difference.only_b == ("s100@openvino:f32:b1",)
        assert difference.same_bundle and difference.host == ()

    def test_joules_of_different_meters_are_not_compared(self, make_table, make_row):
        joules = {"energy_j": 2.0, "energy_low_j": 1.8, "energy_high_j": 2.2}
        a = make_table([make_row(**joules, energy_source="rapl-package")])
        b = make_table([make_row(**joules, energy_source="modelled:spec-curve")])
        (change,) = compare(a, b).changes
        assert change.energy_ratio is None and change.energy_overlaps is None

    def test_it_counts_the_rows_whose_medians_agree_and_what_all_share(self, make_table, make_row):
        a = make_table()
        off = {"latency_p50_ms": 4.1, "latency_p50_low_ms": 4.0, "latency_p50_high_ms": 4.2}
        b = make_table([make_row(latency_p50_ms=2.05), make_row(subnet="s100", **off)])
        difference = compare(a, b)
        assert (difference.overlapping, len(difference.changes)) == (1, 2)
        assert difference.common_ratio == pytest.approx((2.05 / 2.0 * 4.1 / 2.05) ** 0.5)
        assert compare(a, make_table([make_row(subnet="s9")])).common_ratio is None

    def test_a_table_does_not_differ_from_itself(self, make_table):
        table = make_table()
        difference = compare(table, table)
        assert all(c.latency_ratio == 1 and c.latency_overlaps and c.accuracy_overlaps for c in difference.changes)
        assert len(difference.changes) == len(table.rows) and not difference.only_a and not difference.only_b

    def test_other_hosts_are_named(self, make_table):
        other = Host(cpu="B", cores=2, memory_bytes=1, system="", python="", libraries={})
        assert compare(make_table(), make_table(host=other)).host == ("cpu is 'B', the table's is 'A'",)
