"""``gearshift calibrate`` on the real OpenVINO backend: options, resuming, a full disk."""

import errno
import json
import os

import msgspec
import pytest

from calibration import read

BUDGET = ("--budget", "0.2s", "--backend", "openvino", "--precision", "f32", "--threads", 1)


def test_it_measures_and_leaves_only_the_table(gearshift, bundle, tmp_path):
    result = gearshift("calibrate", bundle, *BUDGET, "--data", "digits", "--json", "j.json")
    assert result.code == 0, result.err
    table = read(tmp_path / "toy.table.json")
    assert json.loads((tmp_path / "j.json").read_text())["rows"][0]["latency_p50_ms"] == table.rows[0].latency_p50_ms
    assert not list(tmp_path.glob("*.partial"))
    for row in table.rows:
        assert len(row.round_p50_ms) == table.protocol.rounds and row.quantiles_ms
        assert row.latency_ms_at(1.0) >= row.latency_p50_ms


def test_precision_with_a_per_cent_sign_is_how_well_medians_are_to_be_known(gearshift, bundle, tmp_path):
    result = gearshift("calibrate", bundle, *BUDGET, "--precision", "20%", "--data", "digits")
    assert result.code == 0, result.err
    table = read(tmp_path / "toy.table.json")
    assert table.protocol.rel_precision == pytest.approx(0.2)
    assert {row.precision for row in table.rows} == {"f32"}


@pytest.mark.parametrize("given", [("200%",), ("2%", "3%"), ("two%",)])
def test_precisions_that_make_no_sense_are_refused(gearshift, bundle, given):
    options = [part for text in given for part in ("--precision", text)]
    result = gearshift("calibrate", bundle, *options)
    assert result.code == 2 and given[0] in result.err and "Traceback" not in result.err


@pytest.fixture
def interrupted(gearshift, bundle, tmp_path, monkeypatch):
    """A calibration stopped by Ctrl-C after its third round."""
    from calibration.run import Run

    real, done = Run._round, []

    def round_(self, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(Run, "_round", round_)
    result = gearshift("calibrate", bundle, *BUDGET, "--data", "digits")
    assert result.code == 130 and not (tmp_path / "toy.table.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    partial = tmp_path / "toy.table.json.partial"
    assert partial.read_bytes().count(b'"kind":"round"') == 3
    return partial


def test_interrupted_it_goes_on_where_it_was(gearshift, bundle, tmp_path, interrupted):
    result = gearshift("calibrate", bundle, *BUDGET, "--data", "digits")
    assert result.code == 0, result.err
    table = read(tmp_path / "toy.table.json")
    assert table.protocol.sessions == 2 and table.protocol.rounds >= 6
    assert "Resumed" in result.out and not interrupted.exists()


def test_other_settings_are_not_mixed_in_unless_it_starts_over(gearshift, refused, bundle, tmp_path, interrupted):
    other = ("--budget", "0.3s", *BUDGET[2:], "--data", "digits")
    assert "settings.budget_s is 0.3, was 0.2" in refused("calibrate", bundle, *other)
    assert interrupted.exists()
    assert gearshift("calibrate", bundle, *other, "--fresh").code == 0
    assert read(tmp_path / "toy.table.json").protocol.sessions == 1


def test_a_full_disk_is_one_sentence(refused, bundle, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("calibration.ledger.os.fsync", full)
    assert "toy.table.json.partial: no room to write it" in refused("calibrate", bundle, *BUDGET, "--data", "digits")


def test_a_place_that_cannot_be_written_is_known_before_anything_is_measured(refused, bundle, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("calibrate", bundle, *BUDGET, "--out", tmp_path / "file" / "t.json")


def test_a_table_of_before_still_loads(gearshift, table_file):
    """What this version adds is left out of the file: an older one wrote it."""
    raw = msgspec.json.decode(table_file.read_bytes())
    for row in raw["rows"]:
        for name in ("duty", "round_p50_ms", "quantiles_ms", "discarded", "disturbed", "energy_check_j"):
            row.pop(name, None)
        row.pop("energy_check_source", None)
    for name in ("widening", "temperatures_c", "temperature_band_c", "temperature_waited_s", "rests_ms", "sessions"):
        raw["protocol"].pop(name, None)
    raw["protocol"].pop("tables", None)
    table_file.write_bytes(msgspec.json.encode(raw))
    assert gearshift("table", "show", table_file).code == 0
