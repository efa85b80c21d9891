"""A fleet's tables: one kind of machine is merged, others are kept apart, and the interval holds for one machine."""

import csv
import io

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.export import COLUMNS, as_csv, as_parquet
from calibration.merge import One, combined, kind, merge, why_apart
from calibration.paired import neighbours, paired
from calibration.statistics import half_width
from calibration.table import Duty, Switch
from subnets.errors import InputError, UnavailableError

INTERVALS = st.tuples(st.floats(0.1, 100), st.floats(1.001, 1.5), st.integers(2, 30)).map(
    lambda of: One(of[0], of[0] / of[1], of[0] * of[1], of[2])
)


class TestCombined:
    @given(st.lists(INTERVALS, min_size=1, max_size=6))
    def test_the_mean_lies_between_and_within_its_interval(self, ones):
        found = combined(ones)
        values = [one.value for one in ones]
        assert min(values) * (1 - 1e-9) <= found.value <= max(values) * (1 + 1e-9)
        assert found.low <= found.value * (1 + 1e-9) and found.value <= found.high * (1 + 1e-9)

    @given(st.lists(INTERVALS, min_size=2, max_size=6), st.randoms())
    def test_the_order_does_not_matter(self, ones, random):
        shuffled = list(ones)
        random.shuffle(shuffled)
        assert combined(shuffled) == pytest.approx(combined(ones))

    def test_one_table_stays_as_it_is(self):
        assert combined([One(2.0, 1.9, 2.1, 8)]) == (2.0, 1.9, 2.1)

    def test_tables_that_agree_know_more_together(self):
        two = combined([One(2.0, 1.9, 2.1, 8)] * 2)
        assert 1.9 < two.low < two.value < two.high < 2.1

    def test_tables_that_disagree_widen_the_interval_beyond_either(self):
        found = combined([One(2.0, 1.98, 2.02, 8), One(2.4, 2.38, 2.42, 8)])
        assert found.low < 1.98 and found.high > 2.42

    def test_more_rounds_weigh_more(self):
        found = combined([One(1.0, 0.9, 1.1, 30), One(2.0, 1.8, 2.2, 10)])
        assert np.log(found.value) == pytest.approx(0.25 * np.log(2.0))

    def test_it_holds_for_a_machine_not_yet_seen_as_often_as_it_says(self):
        random = np.random.default_rng(2)
        held = 0
        for _ in range(1000):
            machines = np.exp(0.1 * random.standard_normal(6))  # each machine's true median
            ones = []
            for true in machines[:5]:
                rounds = true * np.exp(0.02 * random.standard_normal(8))
                value, width = float(np.exp(np.log(rounds).mean())), np.exp(half_width(list(np.log(rounds))))
                ones.append(One(value, value / width, value * width, 8))
            found = combined(ones)
            held += found.low <= machines[5] <= found.high
        assert held / 1000 > 0.93


class TestMerge:
    def test_tables_of_one_kind_become_one_and_rounds_add_up(self, make_table, make_row):
        a = make_table([make_row(rounds=8, samples=100), make_row(subnet="s50")])
        b = make_table([make_row(rounds=24, samples=300, latency_p50_ms=2.05), make_row(subnet="s100")])
        ((of, found),) = merge([a, b]).items()
        assert of == kind(a) == kind(b)
        assert [row.subnet for row in found.rows] == ["s25", "s50", "s100"]
        row = found.row("s25@openvino:f32:b1")
        assert (row.rounds, row.samples, found.protocol.tables) == (32, 400, 2)
        assert row.latency_p50_low_ms <= row.latency_p50_ms <= row.latency_p50_high_ms

    def test_other_machines_bundles_and_threads_are_kept_apart_and_it_says_why(self, make_table):
        a = make_table()
        host = msgspec.structs.replace(a.host, cpu="B")
        apart = [
            (msgspec.structs.replace(a, host=host), "cpu is 'B'"),
            (msgspec.structs.replace(a, bundle_key="f" * 16), "is not 'toy'"),
            (
                msgspec.structs.replace(a, protocol=msgspec.structs.replace(a.protocol, threads=4)),
                "engines had 4 threads, and 2",
            ),
            (
                msgspec.structs.replace(a, host=msgspec.structs.replace(a.host, libraries={})),
                "different backend libraries",
            ),
        ]
        assert len(merge([a, *(table for table, _ in apart)])) == 5
        for table, why in apart:
            assert why in why_apart(a, table)
        assert why_apart(a, a) == ""

    def test_what_does_not_change_figures_does_not_part_machines(self, make_table):
        a = make_table()
        b = msgspec.structs.replace(a, host=msgspec.structs.replace(a.host, python="3.13", system="other"))
        assert len(merge([a, b])) == 1

    def test_energies_of_different_meters_are_not_averaged(self, make_table, make_row):
        joules = {"energy_low_j": 0.9, "energy_high_j": 4.4, "power_w": 5.0, "power_low_w": 4.0, "power_high_w": 6.0}
        rows = [
            make_row(energy_j=1.0, energy_source="rapl-package", **joules),
            make_row(energy_j=4.0, energy_source="modelled:spec-curve", **joules),
        ]
        (found,) = merge([make_table([row]) for row in rows]).values()
        assert (found.rows[0].energy_j, found.rows[0].energy_source) == (1.0, "rapl-package")

    def test_the_accuracy_is_that_of_the_most_images(self, make_table, make_row):
        sure = make_row(accuracy=0.91, accuracy_low=0.905, accuracy_high=0.915, accuracy_source="measured: test, n=9")
        (found,) = merge([make_table([make_row()]), make_table([sure])]).values()
        assert found.rows[0].accuracy == 0.91 and found.rows[0].accuracy_source == "measured: test, n=9"

    def test_switches_are_averaged_over_the_tables_that_have_them(self, make_table):
        a = make_table()
        points = [row.point for row in a.rows]
        other = Switch(from_point=points[0], to_point=points[1], first_ms=5.0, extra_ms=1.5, tenth_ms=2.0)
        (found,) = merge([a, msgspec.structs.replace(a, switches=(other,))]).values()
        assert found.switch_ms(*points) == pytest.approx(1.0)
        assert [switch.tenth_ms for switch in found.switches] == [2.0, None]

    @given(count=st.integers(1, 4))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_merged_table_can_be_written_and_read(self, make_table, tmp_path, count):
        from calibration import read, write

        (found,) = merge([make_table()] * count).values()
        write(found, tmp_path / "m.json")
        assert read(tmp_path / "m.json") == found

    def test_nothing_to_merge_is_an_error(self):
        with pytest.raises(InputError, match="no table"):
            merge([])


DUTY = Duty(
    rests_ms=(4.0,),
    latency_ms=(2.5,),
    settle_ms=9.0,
    extra_ms=1.0,
    extra_low_ms=0.5,
    extra_high_ms=1.5,
    rounds=4,
    samples=9,
)


class TestExport:
    def test_each_row_is_one_line_with_every_name(self, make_table, make_row):
        table = make_table([make_row(duty=DUTY, energy_j=0.5), make_row(subnet='s,"50\n')])
        lines = list(csv.DictReader(io.StringIO(as_csv([table, table]).decode())))
        assert len(lines) == 4 and tuple(lines[0]) == COLUMNS
        assert float(lines[0]["latency_p50_ms"]) == 2.0 and float(lines[0]["duty_extra_ms"]) == 1.0
        assert lines[0]["host_key"] == table.host.key and lines[0]["memory_bytes"] == ""
        assert lines[1]["subnet"] == 's,"50\n' and lines[1]["duty_extra_ms"] == lines[1]["energy_j"] == ""

    def test_parquet_has_the_same_rows_with_types(self, make_table, make_row):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        table = make_table([make_row(duty=DUTY, memory_bytes=12), make_row(subnet="s50")])
        found = parquet.read_table(pyarrow.BufferReader(as_parquet([table])))
        assert tuple(found.column_names) == COLUMNS and found.num_rows == 2
        assert found.column("memory_bytes").to_pylist() == [12, None]
        assert found.column("duty_extra_ms").to_pylist() == [1.0, None]
        types = {name: str(found.schema.field(name).type) for name in ("rounds", "energy_j", "subnet", "disturbed")}
        assert types == {"rounds": "int64", "energy_j": "double", "subnet": "string", "disturbed": "bool"}

    def test_without_pyarrow_it_says_how_to_get_it(self, make_table, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UnavailableError, match=r"pip install 'gearshift\[parquet\]'"):
            as_parquet([make_table()])


class TestPaired:
    def test_what_disturbs_both_cancels(self, make_row):
        mood = [1.0, 1.5, 0.8, 1.2, 2.0, 0.9]
        a = make_row(round_p50_ms=tuple(2.0 * m for m in mood))
        b = make_row(subnet="s50", round_p50_ms=tuple(2.1 * m * (1 + 1e-3 * (-1) ** k) for k, m in enumerate(mood)))
        found = paired(a, b)
        assert found.ratio == pytest.approx(1.05, rel=1e-3)
        assert found.differs and found.high / found.low < 1.01 and found.rounds == 6
        assert half_width(a.round_p50_ms) > 0.3  # by their own intervals nothing could have been told

    def test_only_rounds_that_both_have_count(self, make_row):
        a = make_row(round_p50_ms=(1.0, None, 1.0, 1.0, 1.0))
        b = make_row(subnet="s50", round_p50_ms=(2.0, 9.0, None, 2.0, 2.0))
        assert paired(a, b).ratio == pytest.approx(2.0) and paired(a, b).rounds == 3
        assert paired(a, make_row(subnet="s50", round_p50_ms=(1.0, 1.0))) is None
        assert paired(a, make_row(subnet="s50")) is None

    def test_rounds_alike_widen_it(self, make_row):
        a = make_row(round_p50_ms=(1.0, 1.1, 1.0, 1.1))
        b = make_row(subnet="s50", round_p50_ms=(1.0, 1.0, 1.0, 1.0))
        narrow, wide = paired(a, b), paired(a, b, 2.0)
        assert np.log(wide.high / wide.low) == pytest.approx(2 * np.log(narrow.high / narrow.low))

    def test_each_pair_of_neighbours_once(self, make_table, make_row):
        rounds = {"round_p50_ms": (1.0, 1.0, 1.0)}
        rows = [
            make_row(subnet="s25", macs=1, **rounds),
            make_row(subnet="s50", macs=2, latency_p50_ms=2.05, **rounds),
            make_row(subnet="s25", macs=1, precision="bf16", latency_p50_ms=1.95, **rounds),
        ]
        pairs = {
            (pair.first.removesuffix(":b1"), pair.second.removesuffix(":b1")) for pair in neighbours(make_table(rows))
        }
        assert pairs == {("s25@openvino:f32", "s50@openvino:f32"), ("s25@openvino:bf16", "s25@openvino:f32")}
