import json

import pytest

TINY = ("--scenario", "burst", "--scenario", "heat", "--duration", "20s", "--seeds", "1", "--workers", "1")


def test_an_arena_prints_writes_and_resumes(gearshift, tmp_path):
    pytest.importorskip("scipy")
    arguments = ("arena", "synthetic-gpu", *TINY, "--policy", "composite", "--policy", "smallest", "--out", "out")
    first = gearshift(*arguments, "--json", "a.json")
    assert first.code == 0, first.err
    assert "The table is made up" in first.out and "arena.html" in first.out
    told = json.loads((tmp_path / "a.json").read_text())
    assert {policy["name"] for policy in told["policies"]} == {"composite", "smallest"}
    names = {"name", "requests", "on_time", "mean_accuracy", "energy_j", "switches", "regret"}
    assert all(names <= policy.keys() for policy in told["policies"])
    assert all(row["lp"] >= row["dp"] > 0 for row in told["scenarios"])
    assert (tmp_path / "out" / "arena.html").read_text().startswith("<!doctype html>")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}
    again = gearshift(*arguments, "--json", "-")
    assert json.loads(again.out) == told
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "cells").iterdir()}


def test_a_folder_of_traces_is_played_by_file(gearshift, tmp_path):
    (tmp_path / "loads").mkdir()
    for name in ("one", "two"):
        (tmp_path / "loads" / f"{name}.csv").write_text("arrival_s\n1\n2\n3\n5\n8\n")
    options = ("--trace", "loads", "--policy", "smallest", "--seeds", "1", "--workers", "1", "--duration", "10s")
    result = gearshift("arena", "synthetic-gpu", *options, "--no-oracle", "--out", "out", "--json", "-")
    told = json.loads(result.out)
    assert [row["name"] for row in told["scenarios"]] == ["one.csv", "two.csv"]
    assert told["policies"][0]["regret"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.json",), "nowhere.json: no such table"),
        (("synthetic-gpu", "--scenario", "hat"), "did you mean 'heat'"),
        (("synthetic-gpu", "--policy", "compost"), "did you mean 'composite'"),
        (("synthetic-gpu", "--trace", "empty"), "an empty folder"),
        (("synthetic-gpu", "--trace", "nowhere.csv"), "no such trace file"),
        (
            ("synthetic-gpu", *TINY, "--no-oracle", "--policy", "smallest", "--reference", "largest"),
            "does not take part",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence(refused, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    assert message in refused("arena", *arguments, "--out", "out")


def test_tune_prints_lines_for_the_configuration(gearshift, tmp_path):
    pytest.importorskip("optuna")
    options = ("--table", "synthetic-gpu", "--scenario", "burst", "--duration", "20s", "--seeds", "1", "--workers", "1")
    result = gearshift(
        "tune", "throughput", *options, "--trials", "2", "--no-oracle", "--search", "rho_max=0.5:0.9", "--out", "tuned"
    )
    assert result.code == 0, result.err
    assert result.out == (tmp_path / "tuned" / "policy.toml").read_text()
    assert 'policy = "throughput"' in result.out and "rho_max = " in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--search", "rho_max"), "write KEY=LOW:HIGH"),
        (("--search", "rho=0.1:0.2"), "no option 'rho'"),
        (("--trace", "short.csv", "--held-out", "nowhere.csv"), "nowhere.csv: no such trace file"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence(refused, tmp_path, arguments, message):
    (tmp_path / "short.csv").write_text("arrival_s\n1\n2\n3\n")
    assert message in refused("tune", "throughput", "--table", "synthetic-gpu", *arguments, "--out", "out")
