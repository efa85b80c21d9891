"""A real arena, killed without warning, goes on from what it had finished."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARENA = (
    *("arena", "synthetic-gpu", "--scenario", "drain", "--scenario", "burst", "--policy", "composite"),
    *("--policy", "ladder", "--seeds", "2", "--duration", "20", "--workers", "1", "--no-oracle"),
)


def test_sigkill_loses_at_most_the_cell_under_way_and_the_tables_are_the_same(tmp_path):
    command = [sys.executable, "-c", "import cli; cli.main()", *ARENA]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "a")], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as arena:
        cells = tmp_path / "a" / "cells"
        until_s = time.monotonic() + 120.0
        while arena.poll() is None and time.monotonic() < until_s and len(list(cells.glob("*.json"))) < 2:
            time.sleep(0.01)
        arena.send_signal(signal.SIGKILL)
    kept = {file.name: file.stat().st_mtime_ns for file in cells.glob("*.json")}
    assert 2 <= len(kept) < 8, "it was killed in the middle"
    for folder in ("a", "b"):
        subprocess.run([*command, "--out", str(tmp_path / folder)], cwd=ROOT, check=True, capture_output=True)
    assert all((cells / name).stat().st_mtime_ns == written for name, written in kept.items())
    one, other = (json.loads((tmp_path / folder / "arena.json").read_text()) for folder in ("a", "b"))
    assert one == other and len(list(cells.glob("*.json"))) == 8
