"""``gearshift top``: what is drawn, in which space, and how it behaves on a terminal."""

import copy
import fcntl
import http.server
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest

from agent.lifecycle import Instance, RunningAgent
from cli._top import screen

POINTS = [("s25", 0.878, 0.37), ("s50", 0.8991, 0.43), ("s75", 0.9072, 0.53), ("s100", 0.9136, 0.58)]
VIEW = {
    "unix_s": 1_760_000_000.0,
    "instance": "1",
    "version": "1.2.3",
    "status": {
        "state": "running",
        "subnet": "s50",
        "point": "s50@openvino:f32:b1",
        "reason": "thermal: 71.0 °C, s75 would bring 76.2 °C in 10 min, 75 °C allowed " * 3,
        "bound": "thermal",
        "policy": "composite",
        "bundle": "resnet20-cifar10",
        "dry_run": False,
        "uptime_s": 4000.0,
        "expected_accuracy": 0.8991,
        "hold": None,
        "conditions": {"arrival_rate_hz": 45.0},
        "queue_depth": 2,
        "goals": {"max_power_w": 4.0, "temperature_limit_c": 75.0},
        "counters": {"requests": 12345, "late": 0, "refused": 3, "failed": 0, "switches": 7, "engine_failures": 1},
        "journal": {"stopped": ""},
    },
    "headrooms": [
        {"name": "battery", "headroom": 0.5, "says": "62 %, reserve 5 %"},
        {"name": "thermal", "headroom": 0.08, "says": "71 of 75 °C"},
        {"name": "power", "headroom": None, "says": "no power meter here"},
        {"name": "latency", "headroom": -0.2, "says": "24 of 20 ms"},
    ],
    "points": [
        {"point": f"{name}@x", "subnet": name, "accuracy": accuracy, "latency_p50_ms": ms, "useful": True}
        | {"resident": name != "s100", "current": name == "s50"}
        for name, accuracy, ms in POINTS
    ],
    "latency": {"p50_ms": 0.61, "tail_ms": 24.0, "percentile": 0.99, "deadline_ms": 20.0},
    "history": [[1.76e9 + k, 0.6, 10.0 + k, 2.5, 60.0 + k / 4, 0.62, 45.0, "s50@x"] for k in range(40)],
    "switches": [
        {"unix_s": 1.76e9 - k, "origin": "s75@x" if k else None, "to": "s50@x", "reason": "too hot " * 9}
        for k in range(8)
    ],
    "faults": [{"unix_s": 1.76e9, "words": "engine s100 (x, f32) failed: gone", "times": 3}],
}


def drawn(width, height, notice="", **changes):
    view = copy.deepcopy(VIEW)
    for path, value in changes.items():
        *folders, key = path.split("__")
        place = view
        for folder in folders:
            place = place[folder]
        place[key] = value
    return screen(view, width, height, notice)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (132, 43), (60, 20), (40, 12), (200, 60), (20, 5)])
def test_it_never_draws_beyond_the_terminal(width, height):
    lines = drawn(
        width, height, "the agent was restarted", status__hold={"subnet": "s50", "remaining_s": 9, "reason": "x"}
    )
    assert 0 < len(lines) <= height
    assert max(line.cell_len for line in lines) <= width
    assert not any("\n" in line.plain for line in lines)


def test_in_80_by_24_everything_is_there():
    text = "\n".join(line.plain for line in drawn(80, 24))
    for words in (
        "resnet20-cifar10",
        "89.91 % expected accuracy",
        "thermal: 71.0 °C",
        "62 %, reserve 5 %",
        "no power meter here",
        "median 0.61 p99 24 of 20 ms",
        "45 images/s, 2 waiting",
        "◉ s50",
        "● s75",
        "○ s100",  # not in memory
        "last switches",
        "s75 → s50",
        "engine s100 (x, f32) failed: gone (3 times)",
        "requests 12345",
        "switches 7",
        "engine failures 1",
    ):
        assert words in text, words


def test_the_bars_share_one_scale_and_what_is_beyond_its_limit_is_red():
    rows = {line.plain.split()[0]: line for line in drawn(80, 24)[4:9] if line.plain}
    assert rows["battery"].plain.count("█") == 15  # half of thirty
    assert rows["latency"].plain.count("█") == 0
    assert any(span.style == "red" for span in rows["latency"].spans)
    assert any(span.style == "yellow" for span in rows["thermal"].spans)
    assert "·" * 30 in rows["power"].plain


def test_holds_dry_runs_and_notices_are_said_first():
    held = drawn(80, 24, status__hold={"subnet": "s25", "remaining_s": 90.0, "reason": "a test"})
    assert any("held at s25 for 2 min more: a test" in line.plain for line in held[:6])
    assert "dry run" in drawn(80, 24, status__dry_run=True)[0].plain
    assert drawn(80, 24, "no answer")[0].plain == "no answer"


def test_an_agent_that_knows_nothing_yet_is_drawn_too():
    view = copy.deepcopy(VIEW)
    view["status"] |= {
        "subnet": None,
        "point": None,
        "expected_accuracy": None,
        "conditions": None,
        "state": "starting",
    }
    view |= {"history": [], "switches": [], "faults": []}
    view["latency"] |= {"p50_ms": None, "tail_ms": None, "deadline_ms": None}
    text = "\n".join(line.plain for line in screen(view, 80, 24))
    assert "no engine" in text and "median - p99 - ms" in text


class Terminal:
    """A command at the other end of a pseudo-terminal of 80 by 24."""

    def __init__(self, environment, *arguments):
        self.main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        program = "import sys, cli; sys.argv = ['gearshift', *sys.argv[1:]]; cli.main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdin=other, stdout=other, stderr=other, env=environment
        )
        os.close(other)
        self.text = ""

    def wait_for(self, words):
        deadline = time.monotonic() + 60
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.main], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.main, 65536).decode(errors="replace")
                except OSError:  # the other end has closed
                    assert words in self.text, self.text
        return self

    def press(self, keys):
        os.write(self.main, keys)
        return self

    def end(self):
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.main, 65536).decode(errors="replace")
                except OSError:
                    break
        return self.process.wait(60)


@pytest.fixture
def terminal(running):
    """``gearshift top`` on a terminal, ended afterwards whatever has happened."""
    made = Terminal(running.environment, "top", "--interval", "0.1s")
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait(60)
    os.close(made.main)


@pytest.fixture
def running(tmp_path, root):
    """A small HTTP server where an agent would be; its view can be changed, and it can go away and come back."""
    state = {"view": copy.deepcopy(VIEW)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(state["view"]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    class Running:
        def __init__(self):
            self.environment = {
                **os.environ,
                "RUNTIME_DIRECTORY": str(tmp_path / "run"),
                "PYTHONPATH": str(root),
                "TERM": "xterm-256color",
            }
            self.state = state

        def start(self):
            self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            self.thread = threading.Thread(target=self.server.serve_forever)
            self.thread.start()
            self.instance = Instance(tmp_path / "run")
            self.instance.__enter__()
            self.instance.announce(RunningAgent(pid=os.getpid(), host="127.0.0.1", port=self.server.server_port))

        def stop(self):
            self.instance.__exit__()
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    made = Running()
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("key", [b"q", b"Q", None])
def test_q_or_ctrl_c_ends_it_and_gives_the_screen_back(terminal, key):
    terminal.wait_for("resnet20-cifar10")
    if key is not None:
        terminal.press(key)
    else:
        terminal.process.send_signal(signal.SIGINT)  # what a terminal makes of Ctrl-C
    assert terminal.end() == 0
    assert "\x1b[?1049h" in terminal.text and "\x1b[?1049l" in terminal.text  # the other screen, and back
    assert "Traceback" not in terminal.text


def test_it_survives_a_restart_of_the_agent_and_says_so(running, terminal):
    terminal.wait_for("resnet20-cifar10")
    running.stop()
    terminal.wait_for("no answer since")
    running.state["view"]["instance"] = "2"
    running.state["view"]["status"] |= {"uptime_s": 1.0, "reason": "a new life"}
    running.start()
    terminal.wait_for("the agent was restarted").wait_for("a new life").press(b"q")
    assert terminal.end() == 0


def test_without_a_terminal_once_or_json_is_asked_for(running, gearshift, refused, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", running.environment["RUNTIME_DIRECTORY"])
    assert refused("top") == "top draws on a terminal, and this is none; give --once, or --json -"
    assert "89.91 % expected accuracy" in gearshift("top", "--once").out
    assert json.loads(gearshift("top", "--json", "-").out) == running.state["view"]
    assert "give a time from 0.1 s" in refused("top", "--once", "--interval", "1ms")


def test_without_an_agent_the_way_to_one_is_told(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert "gearshift run BUNDLE" in refused("top", "--once")
