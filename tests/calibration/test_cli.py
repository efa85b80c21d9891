"""The commands: what they write and print, and one sentence where something is wrong."""

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from calibration import read, write
from cli import calibrate as calibrate_file
from cli import evaluate as evaluate_file
from cli import table as table_file
from subnets.bundle import Bundle
from subnets.data import digits
from subnets.errors import InputError


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=True)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def fake_backends(fakes, monkeypatch):
    """Every backend is a fake one on a clock of its own; so is the calibration's clock."""
    import backends.registry
    import calibration.measure

    time = fakes.Time()
    monkeypatch.setattr(backends.registry, "all_backends", lambda: [fakes.Backend(time)])
    monkeypatch.setattr(backends.registry, "create", lambda name: fakes.Backend(time, name))
    monkeypatch.setattr(calibration.measure, "Clocks", time.clocks)
    monkeypatch.setattr("sensors.meters", lambda: (fakes.Meter(time),))
    return time


class TestCalibrate:
    def test_it_writes_a_table_that_can_be_read_and_prints_it(self, invoke, bundle, fake_backends, tmp_path):
        result = invoke(calibrate_file.command, bundle.path, "--budget", "5s", "--report", "r.html", "--threads", 1)
        assert result.exit_code == 0, result.output
        table = read(tmp_path / "toy.table.json")
        assert len(table.rows) == 6 and table.bundle_key == bundle.key
        for text in ("s25@fake:f32:b1", "rapl-package", "Idle power: 2.00 W", "Written: toy.table.json, r.html"):
            assert text in result.output
        assert "s25@fake:f32:b1" in (tmp_path / "r.html").read_text()

    def test_json_has_the_promised_names(self, invoke, bundle, fake_backends):
        result = invoke(calibrate_file.command, bundle.path, "--budget", "5", "--json", "-", "--out", "t.json")
        row = json.loads(result.stdout)["rows"][0]
        promised = (
            "subnet backend device precision batch_size latency_p50_ms latency_p99_ms throughput_per_s power_w "
            "energy_j energy_source memory_bytes load_ms accuracy"
        )
        assert set(promised.split()) <= set(row)

    def test_choices_reach_the_table(self, invoke, bundle, fake_backends):
        arguments = (
            "--backend",
            "mine",
            "--precision",
            "bf16",
            "--batch-size",
            2,
            "--batch-size",
            1,
            "--out",
            "t.json",
        )
        invoke(calibrate_file.command, bundle.path, "--budget", "5s", "--rel-precision", "5%", "--seed", 3, *arguments)
        table = read("t.json")
        assert {row.point.partition("@")[2] for row in table.rows} == {"mine:bf16:b1", "mine:bf16:b2"}
        assert (table.protocol.seed, table.protocol.rel_precision, table.protocol.budget_s) == (3, 0.05, 5.0)

    @pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("2m", 120), ("1.5min", 90), ("1h", 3600), ("45", 45)])
    def test_durations_are_read_with_their_unit(self, text, seconds):
        assert calibrate_file._duration(None, None, text) == seconds

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--budget", "soon"), ("--budget", "0s"), ("--rel-precision", "0%"), ("--rel-precision", "150%")],
    )
    def test_impossible_values_are_refused_by_name(self, invoke, bundle, option, value):
        result = invoke(calibrate_file.command, bundle.path, option, value)
        assert result.exit_code == 2 and value in result.output

    def test_a_folder_that_is_no_bundle_is_refused(self, invoke, tmp_path):
        with pytest.raises(InputError, match="not a bundle"):
            invoke(calibrate_file.command, tmp_path)


class TestEvaluate:
    @pytest.mark.parametrize("record", [True, False])
    def test_accuracies_are_printed_and_recorded_only_when_asked(self, invoke, digits_bundle, fake_backends, record):
        arguments = ["--record"] if record else []
        result = invoke(evaluate_file.command, digits_bundle.path, "--data", "digits", "--json", "e.json", *arguments)
        assert result.exit_code == 0 and "Through fake at f32." in result.output
        subnets = json.loads(Path("e.json").read_text())["subnets"]
        assert [subnet["name"] for subnet in subnets] == ["s25", "s50", "s100"]
        assert set(subnets[0]) == {"name", "macs", "parameters", "accuracy", "accuracy_low", "accuracy_high", "n"}
        assert {subnet["n"] for subnet in subnets} == {len(digits().test)}
        recorded = Bundle.open(digits_bundle.path).manifest.subnets[0].accuracy
        assert (recorded is not None) == record
        if record:
            assert recorded.value == pytest.approx(subnets[0]["accuracy"])


class TestTable:
    def test_show_prints_what_calibrate_printed(self, invoke, make_table):
        write(make_table(), path := Path("t.json"))
        result = invoke(table_file.command, "show", path)
        assert "s25@openvino:f32:b1" in result.output and "2.00 ±5.0%" in result.output
        assert "unknown" in result.output and "Idle power: unknown" in result.output

    def test_diff_shows_ratios_and_whether_they_mean_anything(self, invoke, make_table, make_row, tmp_path):
        write(make_table(), tmp_path / "a.json")
        slower = make_row(latency_p50_ms=4.0, latency_p50_low_ms=3.9, latency_p50_high_ms=4.1)
        table = make_table([slower])
        host = msgspec.structs.replace(table.host, cpu="B")
        write(msgspec.structs.replace(table, host=host, bundle_key="f" * 16), tmp_path / "b.json")
        result = invoke(table_file.command, "diff", "a.json", "b.json")
        assert "2.000" in result.output and "differs" in result.output
        assert "Only in A: s100@openvino:f32:b1." in result.output
        assert "different bundles" in result.output and "cpu is 'B'" in result.output
        found = json.loads(invoke(table_file.command, "diff", "a.json", "b.json", "--json", "-").stdout)
        assert found["changes"][0]["latency_ratio"] == pytest.approx(2.0)
        assert found["changes"][0]["latency_overlaps"] is False
