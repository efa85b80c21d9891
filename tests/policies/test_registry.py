"""Policies by name, and the command that lists them."""

import json

import msgspec
import pytest
from click.testing import CliRunner

from cli.policies import command
from policies import Conditions, Goals, create, names
from policies.base import Conditions as Fields
from policies.registry import describe
from policies.rungs import Where
from subnets.errors import InputError


def test_there_are_the_policies_of_the_documentation():
    simple = ("smallest", "largest", "static", "throughput", "thermal", "battery", "power")
    contenders = ("ladder", "aimd", "pid", "maxacc", "maxbatch", "slackfit", "effective", "alert")
    assert names() == (*simple, *contenders, "lyapunov", "bandit", "mdp", "composite")


def test_options_and_goals_arrive_and_texts_are_read_as_numbers(table):
    policy = create("throughput", Goals(deadline_ms=5.0), {"rho_max": "0.5", "batch_size": "8", "precision": "bf16"})
    assert policy.rho_max == 0.5
    assert policy.where == Where(batch_size=8, precision="bf16")
    assert policy.goals.deadline_ms == 5.0
    assert policy.decide(Conditions(time_s=0), table, None).point.endswith(":b8")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("termal", {}, r"no policy 'termal'; did you mean 'thermal'\? there are smallest, largest"),
        ("zzz", {}, "no policy 'zzz'; there are smallest"),
        ("thermal", {"h_low": 0.1}, r"policy thermal has no option 'h_low'; did you mean 'h_lo'\? it takes h_lo"),
        ("thermal", {"h_lo": "warm"}, "policy thermal: option h_lo is 'warm'; give a number"),
        ("thermal", {"h_lo": 7}, r"policy thermal: option h_lo is 7\.0; give a share"),
        ("composite", {"up_votes": 2.5}, r"option up_votes is 2\.5; give a whole number"),
        ("thermal", {"degrees_per_watt": True}, "option degrees_per_watt is True; give a number or nothing"),
        ("smallest", {"goals": 1}, "policy smallest has no option 'goals'"),
        ("smallest", {"where": "b1"}, "policy smallest has no option 'where'"),
    ],
)
def test_what_is_wrong_is_named_with_a_guess_and_the_list(name, options, message):
    with pytest.raises(InputError, match=message):
        create(name, None, options)


def test_impossible_goals_are_refused():
    with pytest.raises(InputError, match="deadline_ms is -1"):
        create("composite", Goals(deadline_ms=-1.0))


@pytest.mark.parametrize("info", describe(), ids=lambda info: info.name)
def test_every_policy_and_option_says_what_it_is_for(info):
    assert info.summary.endswith(".")
    assert set(info.looks_at) <= set(msgspec.structs.asdict(Fields(time_s=0)))
    assert all(option.meaning.endswith(".") for option in info.options)
    assert {"backend", "precision", "batch_size"} <= {option.name for option in info.options}


def test_defaults_are_told_as_they_are():
    thermal = next(info for info in describe() if info.name == "thermal")
    defaults = {option.name: option.default for option in thermal.options}
    assert (defaults["h_lo"], defaults["h_hi"], defaults["forecast_s"]) == (0.15, 0.35, 30.0)


def test_the_command_lists_all_of_them_as_json_and_as_a_table(tmp_path):
    file = tmp_path / "policies.json"
    done = CliRunner().invoke(command, ["--json", str(file)])
    assert done.exit_code == 0, done.output
    listed = json.loads(file.read_text())["policies"]
    assert [policy["name"] for policy in listed] == list(names())
    assert {option["name"] for option in listed[0]["options"]} == {"backend", "precision", "batch_size"}
    shown = CliRunner().invoke(command, [])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in names())


def test_the_command_has_help_with_an_example():
    assert "gearshift policies --json -" in CliRunner().invoke(command, ["--help"]).output
