"""Configuration: sources, their order, and errors that name the place."""

import datetime
import json
import re
import time
import tomllib

import pytest
from click.testing import CliRunner

import cli
from agent import config, quantities, template
from agent.clocks import AgentClock, Horizon
from agent.config import Config
from subnets.errors import InputError


def write(folder, text, name="agent.toml"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_stronger_sources_win_key_by_key(tmp_path):
    path = write(
        tmp_path, '[agent]\npolicy = "static"\nqueue_limit = 1\nthreads = 1\n[serve]\nport = 1\nhost = "::1"\n'
    )
    write(tmp_path, "[agent]\nqueue_limit = 2\nthreads = 2\n[serve]\nport = 2\n", "conf.d/10-a.toml")
    write(tmp_path, "[agent]\nthreads = 3\n[policy.options]\nup_votes = 3\n", "conf.d/20-b.toml")
    environment = {"GEARSHIFT_SERVE_PORT": "4", "GEARSHIFT_AGENT_THREADS": "4", "GEARSHIFT_CACHE": "/x", "HOME": "/"}
    loaded = config.load(path, environment=environment, flags={"agent.threads": 5, "agent.backend": None})
    assert (loaded.agent.policy, loaded.agent.queue_limit, loaded.agent.threads) == ("static", 2, 5)
    assert (loaded.serve.port, loaded.serve.host, loaded.agent.backend) == (4, "::1", "")
    assert loaded.policy.options == {"up_votes": 3}


def test_without_any_source_the_defaults_hold():
    assert config.load(None) == Config()


def test_paths_in_a_file_are_relative_to_it_and_those_of_flags_are_not(tmp_path):
    path = write(tmp_path, '[agent]\nbundle = "b"\njournal = "/abs"\n[serve]\nsocket = "s"\n')
    loaded = config.load(path, flags={"agent.table": "t"})
    assert (loaded.agent.bundle, loaded.serve.socket) == (str(tmp_path / "b"), str(tmp_path / "s"))
    assert (loaded.agent.journal, loaded.agent.table) == ("/abs", "t")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[agent]\npolcy = 'x'", ["agent.toml", "agent.polcy", "did you mean 'policy'?"]),
        ("[agnt]\n", ["agent.toml", "section 'agnt'", "did you mean 'agent'?"]),
        ("[agent]\nzzzzzz = 1", ["known: bundle, table"]),
        ("[agent]\nthreads = 'two'", ["agent.toml", "agent.threads"]),
        ("[agent]\nthreads = 0", ["agent.toml", "agent.threads is 0", "from 1"]),
        ("[serve]\nport = 70000", ["agent.toml", "serve.port is 70000"]),
        ("[agent]\nmemory_budget = '5 bananas'", ["agent.toml", "agent.memory_budget", "5 bananas", "MB"]),
        ("[goals]\ndeadline = 'soon'", ["agent.toml", "goals.deadline", "soon"]),
        ("[goals]\nmin_accuracy = 90.0", ["agent.toml", "min_accuracy is 90.0", "share"]),
        ("[goals]\nlast_until = '25:00'", ["agent.toml", "goals.last_until", "18:00"]),
        ("[agent", ["agent.toml", "not TOML"]),
    ],
)
def test_an_error_names_file_key_and_what_to_write(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        config.load(write(tmp_path, text))
    for word in words:
        assert word in str(error.value)


def test_an_error_in_an_override_variable_or_flag_names_that(tmp_path):
    path = write(tmp_path, "")
    with pytest.raises(InputError, match=r"GEARSHIFT_SERVE_PORT: serve\.port"):
        config.load(path, environment={"GEARSHIFT_SERVE_PORT": "many"})
    with pytest.raises(InputError, match=r"GEARSHIFT_AGENT_POLCY: .*did you mean 'policy'"):
        config.load(path, environment={"GEARSHIFT_AGENT_POLCY": "x"})
    with pytest.raises(InputError, match=r"--deadline: goals\.deadline"):
        config.load(path, flags={"goals.deadline": "never"})
    extra = write(tmp_path, "[serve]\nprt = 1", "conf.d/x.toml")
    with pytest.raises(InputError, match=f"{extra}.*did you mean 'port'"):
        config.load(path)
    with pytest.raises(InputError, match="config init"):
        config.load(tmp_path / "none.toml")


def test_differences_name_key_default_value_and_source(tmp_path):
    path = write(tmp_path, "[serve]\nport = 1\n[goals]\nreserve = 0.05\n")
    extra = write(tmp_path, "[policy.options]\nup_votes = 3\n", "conf.d/a.toml")
    found = {d.key: (d.default, d.value, d.source) for d in config.differences(path)}
    assert found == {"serve.port": (8700, 1, str(path)), "policy.options.up_votes": (None, 3, str(extra))}


def test_the_template_holds_every_key_and_is_valid_with_and_without_comment_signs(tmp_path):
    text = template.template()
    assert config.load(write(tmp_path, text)) == Config()
    shown = tomllib.loads(re.sub(r"(?m)^# (?=\w+ =)", "", text))
    for section in Config.__struct_fields__:
        if section != "policy":
            assert set(shown[section]) == set(type(getattr(Config(), section)).__struct_fields__)
    config._convert("template.toml", shown)


def test_the_template_says_what_every_key_is_for():
    keys = [line for line in template.template().splitlines() if re.match(r"# \w+ = ", line)]
    assert len(keys) > 50
    assert [line for line in keys if not re.fullmatch(r"# \w+ = (?:\"[^\"]*\"|[\w.]+) +# \S.+", line)] == []


def test_config_check_reads_overrides_and_environment_as_run_would(tmp_path, monkeypatch):
    def check(*arguments):
        return CliRunner().invoke(cli.gearshift, ["config", *arguments], catch_exceptions=False).stdout

    path = str(write(tmp_path, "[serve]\nport = 1\n"))
    assert "sound" in check("check", path)
    monkeypatch.setenv("GEARSHIFT_SERVE_PORT", "70000")
    with pytest.raises(InputError, match=r"GEARSHIFT_SERVE_PORT: serve\.port is 70000"):
        check("check", path)
    monkeypatch.setenv("GEARSHIFT_SERVE_PORT", "7")
    assert json.loads(check("diff", path, "--json", "-"))[0]["source"] == "GEARSHIFT_SERVE_PORT"
    extra = write(tmp_path, "[agent]\npolicy = 'composit'\n", "conf.d/10-policy.toml")
    with pytest.raises(InputError, match="did you mean 'composite'"):
        check("check", path)
    extra.write_text("[agent]\nqueue = 1\n")
    with pytest.raises(InputError, match=r"10-policy\.toml: unknown key 'agent\.queue'; did you mean 'queue_limit'"):
        check("check", path)


def test_goals_are_put_on_the_agents_clock(tmp_path):
    path = write(tmp_path, "[goals]\ndeadline = '50ms'\nlast_until = '2h'\nmin_accuracy = 0.9\n")
    horizon = Horizon(AgentClock(monotonic=lambda: 1000.0))
    goals = config.load(path).goals.goals(horizon.until_s)
    assert (goals.deadline_ms, goals.last_until_s, goals.min_accuracy) == (50.0, 8200.0, 0.9)


def test_hard_limits_follow_from_the_goals_unless_they_are_said(tmp_path):
    path = write(tmp_path, "[goals]\ntemperature_limit_c = 80.0\nmax_power_w = 8.0\n[guard]\nbrownout_power_w = 9.0\n")
    loaded = config.load(path, environment={"GEARSHIFT_GUARD_CRITICAL_TEMPERATURE_C": "85"})
    limits = loaded.guard.limits(loaded.goals.goals())
    assert (limits.critical_temperature_c, limits.brownout_power_w, limits.reserve) == (85.0, 9.0, 0.05)
    with pytest.raises(InputError, match=r"agent.toml: brownout_power_w is 7, below the goal of 8"):
        config.load(write(tmp_path, "[goals]\nmax_power_w = 8.0\n[guard]\nbrownout_power_w = 7.0\n"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("10m", 600.0), ("1.5h", 5400.0), (2, 2.0), ("3 d", 259200.0), ("1e1s", 10.0)]
)
def test_durations(text, seconds):
    assert quantities.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "-1s", "0", "nan", "inf", "1 fortnight", "1e999s", "1,5h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InputError):
        quantities.seconds(text)


def test_sizes():
    assert (quantities.size_bytes("250MB"), quantities.size_bytes("1KiB"), quantities.size_bytes(7)) == (
        250_000_000,
        1024,
        7,
    )


def test_a_time_of_day_is_the_next_one(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        noon = datetime.datetime(2026, 1, 31, 12, 0)
        assert quantities.seconds_until("18:30", noon) == 6.5 * 3600
        assert quantities.seconds_until("11:00", noon) == 23 * 3600
        assert quantities.seconds_until("12:00", noon) == 24 * 3600
        assert quantities.seconds_until("90m", noon) == 5400
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_moment_that_has_been_is_the_last_such_time_of_day_or_an_iso_time(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        noon = datetime.datetime(2026, 1, 31, 12, 0)
        told = {
            text: datetime.datetime.fromtimestamp(quantities.time_past(text, noon)).isoformat()
            for text in ("11:30", "11:30:15", "12:30", "2026-01-02 03:04", "2026-01-31T14:00:00+03:00")
        }
        assert list(told.values()) == [
            "2026-01-31T11:30:00",
            "2026-01-31T11:30:15",
            "2026-01-30T12:30:00",  # yesterday's
            "2026-01-02T03:04:00",
            "2026-01-31T11:00:00",
        ]
        for wrong, why in (
            ("noon", "neither a time of day"),
            ("2027-01-01", "lies in the future"),
            ("25:00", "neither"),
        ):
            with pytest.raises(InputError, match=why):
                quantities.time_past(wrong, noon)
    finally:
        monkeypatch.undo()
        time.tzset()
