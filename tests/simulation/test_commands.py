import json

import pytest
from click.testing import CliRunner

from calibration import table as tables
from cli.simulate import command as simulate
from cli.trace import command as trace
from subnets.errors import InputError

SHORT = ("--trace", "poisson:rate=1,hours=0.02", "--deadline", "500ms")


@pytest.fixture
def table_file(table, tmp_path):
    path = tmp_path / "table.json"
    tables.write(table, path)
    return str(path)


def _run(command, *arguments):
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_has_one_entry_a_policy_with_the_documented_names(table_file):
    policies = json.loads(_run(simulate, table_file, *SHORT, "--json", "-"))["policies"]
    assert [policy["name"] for policy in policies] == ["composite", "largest", "smallest"]
    names = {"name", "requests", "on_time", "mean_accuracy", "energy_j", "switches"}
    assert all(names <= policy.keys() for policy in policies)
    assert len({policy["requests"] for policy in policies}) == 1
    assert policies[1]["mean_accuracy"] == pytest.approx(0.9) and policies[2]["mean_accuracy"] == pytest.approx(0.8)


def test_the_terminal_gets_one_row_a_policy_and_the_report_is_written(table_file, tmp_path):
    report = tmp_path / "report.html"
    options = ("--battery", "2Wh", "--policy", "battery", "--last-until", "1min", "--report", str(report))
    shown = _run(simulate, table_file, *SHORT, *options)
    assert [line.split()[0] for line in shown.splitlines()[2:]] == ["battery", "largest", "smallest"]
    assert report.read_text().startswith("<!doctype html>") or "<html" in report.read_text()


def test_only_leaves_the_baselines_out_and_options_reach_their_policy(table_file):
    given = ("--policy", "static", "--option", "static.subnet=s50", "--only", "--json", "-")
    (policy,) = json.loads(_run(simulate, table_file, *SHORT, *given))["policies"]
    assert policy["name"] == "static" and policy["mean_accuracy"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "compost"), "composite"),
        (("--option", "static.subnet=s50"), "policy of this run"),
        (("--option", "nonsense"), "policy.key=value"),
        (("--unknown", "heat"), "no sensor 'heat'"),
        (("--min-accuracy", "90"), "min_accuracy"),
        (("--battery", "2Wh", "--battery-start", "2"), "initial_charge"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(table_file, arguments, message):
    with pytest.raises(InputError, match=message):
        _run(simulate, table_file, *SHORT, *arguments)


def test_units_are_understood_and_wrong_ones_named(table_file):
    result = CliRunner().invoke(simulate, [table_file, *SHORT, "--battery", "2parsec"])
    assert result.exit_code == 2 and "one of Wh" in result.output
    slow = json.loads(_run(simulate, table_file, *SHORT[:2], "--deadline", "0.05s", "--json", "-"))["policies"]
    assert {policy["on_time"] for policy in slow} == {0}  # 50 ms is less than either point takes


def test_verify_replays_a_journal_and_fails_when_a_decision_differs(table_file, tmp_path):
    point = "s100@toy:f32:b1"
    times = {"t_mono_ns": 0, "t_unix_ns": 0}
    meta = {"kind": "meta", **times, "schema": 1, "policy": {"name": "largest", "options": {}}, "goals": {}}
    from policies.base import Conditions
    from policies.registry import create

    said = create("largest").decide(Conditions(time_s=0.0), tables.read(table_file), None)
    decision = {"kind": "decision", **times, "conditions": {"time_s": 0.0}, "current": None}
    decision |= {"point": point, "reason": said.reason, "bound": said.bound}
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps(meta) + "\n" + json.dumps(decision) + "\n")
    assert "1 decisions replayed, 0 differ" in _run(simulate, table_file, "--trace", str(path), "--verify")
    path.write_text(json.dumps(meta) + "\n" + json.dumps({**decision, "reason": "other"}) + "\n")
    result = CliRunner().invoke(simulate, [table_file, "--trace", str(path), "--verify"])
    assert result.exit_code == 1 and "reason was 'other'" in result.output
    assert "this table" not in result.output  # an old journal does not know its table


def test_verify_says_that_a_journal_was_made_with_another_table(table_file, tmp_path):
    times = {"t_mono_ns": 0, "t_unix_ns": 0}
    meta = {"kind": "meta", **times, "schema": 1, "policy": {"name": "largest", "options": {}}, "goals": {}}
    decision = {"kind": "decision", **times, "conditions": {"time_s": 0.0}, "current": None}
    decision |= {"point": "s50@toy:f32:b1", "reason": "then", "bound": ""}
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps({**meta, "table_key": "0123abcd"}) + "\n" + json.dumps(decision) + "\n")
    result = CliRunner().invoke(simulate, [table_file, "--trace", str(path), "--verify"])
    assert result.exit_code == 1 and "none were made with this table but with 0123abcd" in result.output


def test_a_trace_is_made_shown_and_read_back(tmp_path):
    path = tmp_path / "day.json"
    _run(trace, "make", "day:hours=0.1,rate=3,seed=2", "--out", str(path))
    shown = _run(trace, "show", str(path))
    assert "6 min" in shown and "ambient_c" in shown and "▁" in shown
    facts = json.loads(_run(trace, "show", str(path), "--json", "-"))
    assert facts["duration_s"] == 360.0 and facts["arrivals"] > 500


def test_the_help_lists_every_generator():
    shown = _run(trace, "--help")
    assert "poisson:rate=1" in shown and "day:" in shown
