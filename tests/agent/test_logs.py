"""Log lines: words, priorities, and the form that fits where they go."""

import io
import json
import logging
import os

import pytest

from agent import events, logs

SWITCH = {"from": "s100@x:f32:b1", "to": "s50@x:f32:b1", "reason": "too hot", "bound": "thermal", "ms": 0.2}
FAILED = {"subnet": "s50", "backend": "x", "precision": "f32", "threads": 1, "error": "gone", "backoff_s": 2.0}


@pytest.fixture(autouse=True)
def _root_logger_as_before():
    root, own = logging.getLogger(), logging.getLogger(logs.LOGGER)
    before, levels = root.handlers[:], (root.level, own.level)
    yield
    root.handlers[:] = before
    root.setLevel(levels[0])
    own.setLevel(levels[1])


def environment_of(file, offset=0):
    found = os.fstat(file.fileno())
    return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + offset}"}


def test_events_are_sentences():
    assert events.words("switch", SWITCH) == "s100@x:f32:b1 → s50@x:f32:b1: too hot"
    assert events.words("switch", SWITCH | {"from": None}) == "starting with s50@x:f32:b1: too hot"
    assert events.words("engine_failed", FAILED) == "engine s50 (x, f32) failed: gone; out for 2 s"
    assert events.words("engine_failed", FAILED | {"backoff_s": 0.0}).endswith("it stays in service")
    assert events.words("hold", {"subnet": "s25", "for_s": 60.0, "reason": "test"}) == "hold: s25 for 60 s (test)"
    assert events.words("would_switch", {"to": "s25", "reason": "too hot"}) == "would switch to s25: too hot"
    assert events.words("hold_expired", {}) == "hold expired"
    assert events.words("engine_hung", FAILED | {"backoff_s": 30.0}) == "engine s50 (x, f32) hung: gone; out for 30 s"
    assert events.words("sensor_failed", {"error": "no bus"}) == "sensor failed: no bus"
    restored = {"hold": "s25", "policy": True}
    assert events.words("state_restored", restored) == "goes on with the hold of s25 and the state of the policy"
    assert events.words("state_restored", restored | {"hold": None}) == "goes on with the state of the policy"
    assert events.words("something_new", {"a": 1, "b": "c"}) == "something new: a 1, b c"


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("switch", logging.INFO),
        ("hold", logging.INFO),
        ("engine_failed", logging.ERROR),
        ("policy_failed", logging.ERROR),
        ("journal_stopped", logging.ERROR),
        ("sensor_failed", logging.WARNING),
        ("sensor_lost", logging.WARNING),
        ("over_budget", logging.WARNING),
        ("hard_limit", logging.ERROR),
        ("hard_limit_left", logging.INFO),
        ("engine_hung", logging.ERROR),
        ("state_failed", logging.ERROR),
        ("state_restored", logging.INFO),
        ("clock_jumped", logging.WARNING),
        ("table_drifted", logging.WARNING),
        ("stopped", logging.INFO),
    ],
)
def test_faults_are_louder_than_what_is_wanted(name, level):
    assert events.level_of(name) == level


def test_only_the_journals_own_stream_is_taken_for_it(tmp_path):
    with (tmp_path / "stderr").open("w") as stream:
        assert logs.goes_to_the_journal(stream, environment_of(stream))
        assert not logs.goes_to_the_journal(stream, environment_of(stream, offset=1))
        assert not logs.goes_to_the_journal(stream, {})
    assert not logs.goes_to_the_journal(stream, {"JOURNAL_STREAM": "1:2"})  # closed by now
    assert not logs.goes_to_the_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})


def written(tmp_path, form, *, journal):
    with (tmp_path / "stderr").open("w+") as stream:
        logs.configure(form, stream=stream, environment=environment_of(stream) if journal else {})
        logs.tell("switch", SWITCH)
        logs.tell("engine_failed", FAILED)
        logs.tell("sensor_lost", {"quantity": "power_w", "why": "unplugged"})
        logging.getLogger("uvicorn.error").info("not wanted")
        logging.getLogger("uvicorn.error").error("a library's\nown words")
        stream.seek(0)
        return stream.read().splitlines()


def test_in_the_journal_every_line_has_its_syslog_priority(tmp_path):
    assert written(tmp_path, "auto", journal=True) == [
        "<6>s100@x:f32:b1 → s50@x:f32:b1: too hot",
        "<3>engine s50 (x, f32) failed: gone; out for 2 s",
        "<4>power_w is unknown now: unplugged",
        "<3>a library's",
        "<3>own words",
    ]


def test_in_a_file_every_record_has_time_and_level(tmp_path):
    first, second, *_ = written(tmp_path, "text", journal=False)
    time, level, rest = first.split(" ", 2)
    assert (level, rest) == ("INFO", "s100@x:f32:b1 → s50@x:f32:b1: too hot")
    assert len(time) == len("2026-01-31T12:00:00.000+00:00")
    assert second.split(" ", 2)[1] == "ERROR"


@pytest.mark.parametrize("journal", [False, True])
def test_json_is_one_object_a_line_with_the_events_details(tmp_path, journal):
    lines = written(tmp_path, "json", journal=journal)
    if journal:
        assert [line[:3] for line in lines] == ["<6>", "<3>", "<4>", "<3>"]
        lines = [line[3:] for line in lines]
    switch, failed, _, library = map(json.loads, lines)
    assert (switch["level"], switch["event"], switch["detail"]) == ("info", "switch", SWITCH)
    assert failed["message"] == "engine s50 (x, f32) failed: gone; out for 2 s"
    assert (library["logger"], library["message"]) == ("uvicorn.error", "a library's\nown words")
    assert "event" not in library


def test_a_free_text_cannot_forge_a_line_or_move_the_cursor(tmp_path):
    with (tmp_path / "stderr").open("w+") as stream:
        logs.configure("text", stream=stream, environment={})
        logs.tell("hold", {"subnet": "s25", "for_s": 1.0, "reason": "a\n2026 ERROR engine failed \x1b[2J"})
        stream.seek(0)
        (line,) = stream.read().splitlines()
    assert line.endswith(r"hold: s25 for 1 s (a\n2026 ERROR engine failed \x1b[2J)")


def test_a_terminal_gets_the_time_of_day_and_faults_in_colour():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    handler = logs.configure("auto", stream=stream, environment={})
    handler._console._color_system = None  # the words alone
    logs.tell("engine_failed", FAILED)
    time, rest = stream.getvalue().split(" ", 1)
    assert len(time) == len("12:00:00") and rest == "engine s50 (x, f32) failed: gone; out for 2 s\n"


def test_a_clean_close_is_not_told_twice(tmp_path):
    with (tmp_path / "stderr").open("w+") as stream:
        logs.configure("text", stream=stream, environment={})
        logs.tell("closed", {"drained": True})
        logs.tell("closed", {"drained": False})
        stream.seek(0)
        assert stream.read().count("closed") == 1
