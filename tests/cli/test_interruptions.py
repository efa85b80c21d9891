"""``gearshift calibrate`` in a process of its own, stopped at every stage, and on a disk without room."""

import os
import resource
import signal
import subprocess
import sys

import msgspec
import pytest

from calibration import read

OPTIONS = ("--backend", "openvino", "--precision", "f32", "--threads", "1", "--budget", "8s", "--out", "t.json")
QUICKLY = ("--rel-precision", "90%")  # six rounds will do

# The command, which some milliseconds after its first line of a kind was kept gets a signal: amid whatever comes next.
PROGRAM = """
import os, signal, sys, threading
import cli
from calibration.ledger import Ledger

kind, how = sys.argv[1], int(sys.argv[2])
keep, waiting = Ledger.append, [threading.Timer(0.005, os.kill, (os.getpid(), how))]

def watched(self, name, value):
    keep(self, name, value)
    if name == kind and waiting:
        waiting.pop().start()

Ledger.append = watched
sys.argv[:] = ["gearshift", *sys.argv[3:]]
cli.main()
"""


@pytest.fixture
def calibrate(root, tmp_path):
    """Runs the command on the digits in a folder of its own, to its end or until a signal ends it."""
    environment = os.environ | {
        "GEARSHIFT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    (tmp_path / "work").mkdir()

    def run(*more, kind="never", how=signal.SIGKILL, **options):
        command = [sys.executable, "-c", PROGRAM, kind, str(int(how)), "calibrate", str(root / "bundles" / "digits")]
        return subprocess.run(
            [*command, *OPTIONS, *more],
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    return run


def _finished(partial):
    """The finished lines; a torn last one does not count."""
    content = partial.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _kinds(lines):
    return [msgspec.json.decode(line)["kind"] for line in lines.splitlines()]


def test_stopped_at_every_stage_it_finishes_with_every_round_it_had(calibrate, tmp_path):
    folder = tmp_path / "work"
    before = b""
    for stage, how in (
        ("begin", signal.SIGKILL),
        ("accuracy", signal.SIGINT),
        ("round", signal.SIGKILL),
        ("round", signal.SIGINT),
        ("rests", signal.SIGKILL),
        ("walk", signal.SIGTERM),
    ):
        ended = calibrate(*QUICKLY, kind=stage, how=how)
        assert ended.returncode == (130 if how == signal.SIGINT else -how), (stage, ended.stderr)
        assert "Traceback" not in ended.stderr
        assert [path.name for path in folder.iterdir()] == ["t.json.partial"]
        content = (folder / "t.json.partial").read_bytes()
        assert content.startswith(before), "a finished line was lost or changed"
        before = _finished(folder / "t.json.partial")
        assert stage in _kinds(before)
    kinds = _kinds(before)
    ended = calibrate(*QUICKLY)
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in folder.iterdir()] == ["t.json"]
    table = read(folder / "t.json")
    assert table.protocol.sessions == 7 and table.protocol.rounds >= kinds.count("round") >= 2
    assert "Resumed an interrupted calibration: 7 sessions" in ended.stdout


@pytest.mark.parametrize("room", [4_000, 100_000])
def test_without_room_it_says_one_sentence_and_keeps_what_fits(calibrate, tmp_path, room):
    """A limit on the size of files stands for a full disk: the kernel refuses in the same places."""
    ended = calibrate(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    assert ended.returncode == 2, (ended.stdout, ended.stderr)
    assert ended.stderr.startswith("Error: ") and len(ended.stderr.splitlines()) == 1
    assert "no room to" in ended.stderr and "free some" in ended.stderr
    left = {path.name: path.stat().st_size for path in (tmp_path / "work").iterdir()}
    assert left.keys() <= {"t.json.partial"} and max(left.values(), default=0) <= room
    assert not list((tmp_path / "cache").rglob(".*")), "a half-written artifact"
    if room > 50_000:  # the artifacts of 43 kB fitted, and some rounds
        assert "round" in _kinds(_finished(tmp_path / "work" / "t.json.partial"))
