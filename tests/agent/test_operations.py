"""The agent as operators meet it: a dry run as a process with JSON logs, its page, metrics and commands, its past."""

import datetime
import http.client
import json
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from click.testing import CliRunner

import cli
from calibration import table as tables
from calibration.host import fingerprint
from subnets.errors import InputError


class Daemon:
    """``gearshift run`` in a folder of its own."""

    def __init__(self, folder, root, arguments, **settings):
        self.folder, self.log = folder, folder / "stderr.txt"
        folders = {"RUNTIME_DIRECTORY": str(folder / "run"), "GEARSHIFT_CACHE": str(folder / "cache")}
        program = "import sys, cli; sys.argv = ['gearshift', *sys.argv[1:]]; cli.main()"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, "run", *map(str, arguments)],
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=root,
                env={**os.environ, **folders, **settings},
            )

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for(self, event):
        deadline = time.monotonic() + 120
        while not (found := [line for line in self.lines() if line.get("event") == event]):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return found[-1]

    def get(self, path):
        state = json.loads((self.folder / "run" / "agent.json").read_bytes())
        connection = http.client.HTTPConnection(state["host"], state["port"], timeout=60)
        connection.request("GET", path)
        return connection, connection.getresponse()

    def read(self, path):
        connection, reply = self.get(path)
        try:
            return reply.status, reply.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def folder(openvino_bundle, helpers, tmp_path_factory):
    """A folder with a calibration table of a real bundle."""
    made = tmp_path_factory.mktemp("operations")
    table = helpers.make_table(openvino_bundle, backend="openvino", host=fingerprint({"openvino"}))
    rows = tuple(msgspec.structs.replace(row, energy_j=0.001, energy_source="rapl-package") for row in table.rows)
    tables.write(msgspec.structs.replace(table, rows=rows), made / "table.json")
    return made


@pytest.fixture(scope="module")
def daemon(folder, openvino_bundle, root):
    """A dry run that decides five times a second and journals."""
    arguments = [openvino_bundle.path, "--table", folder / "table.json", "--policy", "largest", "--dry-run"]
    arguments += ["--port", "0", "--journal", folder / "journal", "--log-format", "json", "--deadline", "50ms"]
    running = Daemon(folder, root, arguments, GEARSHIFT_AGENT_CONTROL_PERIOD="200ms")
    try:
        running.wait_for("dry_run")
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait(60)


@pytest.fixture
def gearshift(folder, monkeypatch):
    """Runs a command against the daemon; gives what it printed."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder / "run"))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        return CliRunner().invoke(cli.gearshift, list(map(str, arguments)), catch_exceptions=False).stdout

    return run


def test_a_dry_run_says_what_it_would_do_and_answers_with_the_safe_choice(daemon, gearshift):
    assert daemon.wait_for("dry_run")["detail"] == {"point": "s25@openvino:f32:b1"}
    would = daemon.wait_for("would_switch")
    assert would["level"] == "info" and would["message"].startswith("would switch to s100@openvino:f32:b1: ")
    status = json.loads(gearshift("status", "--json", "-"))
    assert status["dry_run"] and status["subnet"] == "s25"
    assert "dry run" in gearshift("status") and "dry run" in gearshift("top", "--once")


def test_the_signal_usr1_logs_the_status(daemon):
    daemon.process.send_signal(signal.SIGUSR1)
    assert daemon.wait_for("status")["detail"]["subnet"] == "s25"


def test_page_view_and_metrics_are_served(daemon):
    assert daemon.read("/ui")[1].startswith(b"<!doctype html>")
    status, body = daemon.read("/gearshift/view")
    assert status == 200 and json.loads(body)["status"]["bundle"] == "tiny"
    status, body = daemon.read("/metrics")
    assert status == 200 and b"gearshift_dry_run 1.0" in body


def test_explain_tells_what_was_decided_what_answered_and_what_else_there_was(daemon, gearshift):
    deadline = time.monotonic() + 20
    while not (told := json.loads(gearshift("explain", "--json", "-"))[0])["applied"]:  # it has just been decided
        assert time.monotonic() < deadline
    assert told["decided"] == "s100@openvino:f32:b1" and told["applied"] == "s25@openvino:f32:b1"
    assert "dry run" in told["applied_why"] and told["source"] == "memory"
    others = {one["subnet"]: one for one in told["alternatives"]}
    assert list(others) == ["s100", "s75", "s50", "s25"]
    assert (others["s100"]["role"], others["s25"]["role"]) == ("decided", "applied")
    assert others["s75"]["deadline_ms"] == 50.0 and others["s75"]["energy_j"] == 0.001
    text = gearshift("explain")
    assert "applied     s25@openvino:f32:b1: dry run" in text
    assert "s75" in text and "5.00 points less accurate" in text
    assert "W and mJ: rapl-package" in text


def test_explain_at_a_time_asks_the_memory_first(daemon, gearshift):
    (told,) = json.loads(gearshift("explain", "--json", "-"))
    deadline = time.monotonic() + 60
    while (now := json.loads(gearshift("explain", "--json", "-"))[0])["ticks"] < told["ticks"] + 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    at = datetime.datetime.fromtimestamp(now["until_unix_s"]).isoformat()
    (found,) = json.loads(gearshift("explain", "--at", at, "--json", "-"))
    assert found["source"] == "memory" and found["decided"] == "s100@openvino:f32:b1"
    with pytest.raises(InputError, match="the journal begins at"):
        gearshift("explain", "--at", "2020-01-01T00:00")


def test_options_that_do_not_go_together_are_refused(gearshift):
    with pytest.raises(InputError, match="exclude each other"):
        gearshift("explain", "--last", "2", "--at", "12:00")
    with pytest.raises(InputError, match="--journal is for --at"):
        gearshift("explain", "--journal", "somewhere")


def test_sigterm_ends_it_although_somebody_watches_and_its_past_can_still_be_explained(daemon, gearshift, folder):
    """Last in this file: it ends the daemon."""
    connection, reply = daemon.get("/ui/events")
    assert reply.readline().startswith(b"data: ")
    (told,) = json.loads(gearshift("explain", "--json", "-"))
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(60) == 0
    connection.close()
    assert daemon.lines()[-1]["event"] == "stopped"
    at = datetime.datetime.fromtimestamp(told["until_unix_s"] + 0.05).isoformat()
    journal = ("--at", at, "--journal", folder / "journal")
    (found,) = json.loads(gearshift("explain", *journal, "--table", folder / "table.json", "--json", "-"))
    assert found["source"] == str(folder / "journal" / "journal.jsonl")
    assert (found["decided"], found["applied"]) == (told["decided"], told["applied"])
    assert found["goals"]["deadline_ms"] == 50.0 and len(found["alternatives"]) == 4
    assert "give it with --table" in gearshift("explain", *journal)
