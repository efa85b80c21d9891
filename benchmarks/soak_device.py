"""The device of the soak: the agent's process, its files, what is wrong with it, and its clients.

* :class:`Device`: starts the agent, asks it, kills it, switches faults.
* :class:`Crowd`: client processes, killed and started again; what they saw.
* :class:`Memory`: the agent's memory over time, and how fast it grows.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from common import ROOT
from soak_agent import Faults

from agent.control_client import ask
from agent.lifecycle import RunningAgent
from agent.state import state_path
from backends.base import CompileRequest
from backends.openvino import OpenVINOBackend
from calibration.statistics import student_quantile
from calibration.table import Table
from subnets.bundle import Bundle, write_atomically
from subnets.errors import GearshiftError

STARTS_IN_S = 60.0
IMAGES = 8
_HERE = Path(__file__).resolve().parent


class Device:
    """One agent and its surroundings.

    Args:
        folder: for everything.
        bundle: what it serves.
        table_path: its table.
    """

    def __init__(self, folder: Path, bundle: Bundle, table_path: Path) -> None:
        self.folder, self.bundle, self.table_path = folder, bundle, table_path
        self.socket, self.journal = folder / "http.sock", folder / "journal"
        self.state = state_path("", str(self.journal), bundle.name)
        self.said: list[str] = []  # what the process printed, a line each
        self.faults = Faults(began_unix_s=time.time())
        self.process: subprocess.Popen[str] | None = None
        self.outages: list[tuple[float, float]] = []  # wall time, from a kill to the next answer
        self._killed_s = 0.0
        self.configure()
        self.switch()

    def configure(self, *, policy: str = "composite", deadline: str = "200ms", goals: str = "") -> None:
        """Writes the configuration; the agent takes it up with SIGHUP."""
        lines = [
            "[agent]",
            f'bundle = "{self.bundle.path.absolute()}"',
            f'table = "{self.table_path.absolute()}"',
            f'policy = "{policy}"',
            'journal = "journal"',
            'journal_size = "2MiB"',
            "journal_keep = 1000",
            'control_period = "500ms"',
            "[goals]",
            f'deadline = "{deadline}"',
            "temperature_limit_c = 80.0",
            'last_until = "12h"',
            goals,
            "[serve]",
            'host = ""',
            'socket = "http.sock"',
        ]
        (self.folder / "agent.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def switch(self, **changes: Any) -> None:
        """Makes these things wrong, and what is named no longer right again."""
        self.faults = msgspec.structs.replace(self.faults, **changes)
        write_atomically(self.folder / "faults.json", msgspec.json.encode(self.faults))

    def spawn(self) -> None:
        """Starts the process without waiting for it."""
        command = [sys.executable, str(_HERE / "soak_agent.py"), str(self.folder / "faults.json")]
        self.process = subprocess.Popen(
            [*command, "run", "--config", str(self.folder / "agent.toml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            text=True,
            env={
                **{name: value for name, value in os.environ.items() if name != "STATE_DIRECTORY"},
                "RUNTIME_DIRECTORY": str(self.folder / "run"),
                "GEARSHIFT_CACHE": str(self.folder / "cache"),
            },
        )
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def start(self) -> float:
        """Starts the process and waits until it answers; how long that took, in seconds."""
        began_s = time.monotonic()
        self.spawn()
        while True:
            if time.monotonic() - began_s > STARTS_IN_S or not self.alive:
                raise SystemExit("the agent did not start:\n" + "\n".join(self.said[-20:]))
            try:
                self.ask("GET", "/gearshift/status")
                break
            except GearshiftError:
                time.sleep(0.02)
        if self._killed_s:
            self.outages.append((self._killed_s, time.time()))
        return time.monotonic() - began_s

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL, and waits until it is dead."""
        assert self.process is not None
        self._killed_s = self._killed_s if self._waiting() else time.time()
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return -9

    def reload(self) -> None:
        """SIGHUP."""
        os.kill(self.pid, signal.SIGHUP)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the agent's own interface."""
        return ask(method, path, body, running=RunningAgent(pid=0, socket=str(self.socket)))

    def fill_disk(self) -> None:
        """Lets no file grow by more than a few hundred bytes beyond the journal's size: the kernel then refuses."""
        size = (self.journal / "journal.jsonl").stat().st_size
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size + 300, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        """Takes that back."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _waiting(self) -> bool:
        return bool(self._killed_s) and not any(began_s == self._killed_s for began_s, _ in self.outages)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.said.append(line.rstrip())


def references(bundle: Bundle, table: Table, path: Path) -> None:
    """What each subnet answers to a few images, by engines of this process's own."""
    images = np.random.Generator(np.random.PCG64(1)).standard_normal((IMAGES, *bundle.input.shape)).astype(np.float32)
    backend = OpenVINOBackend(path.parent / "cache")
    found: dict[str, Any] = {"images": images}
    for name in bundle.ladder.names:
        row = next(row for row in table.rows if row.subnet == name)
        request = CompileRequest(subnet=name, precision=row.precision, batch_sizes=(1,), threads=row.threads)
        engine = backend.load(backend.build(bundle, request))
        found[name] = np.concatenate([engine.infer(images[k : k + 1]) for k in range(IMAGES)])
        engine.close()
    np.savez(path, **found)


class Crowd:
    """Client processes.

    Args:
        device: whom they ask.
        count: how many at a time.
        seed: of the first one.
    """

    def __init__(self, device: Device, count: int, seed: int = 0) -> None:
        self._device, self._count = device, count
        self._random = random.Random(seed)
        self._clients: list[subprocess.Popen[bytes]] = []
        self.started = self.killed = 0
        self._folder = device.folder / "clients"
        self._folder.mkdir(exist_ok=True)

    def keep(self) -> None:
        """Starts as many as are missing."""
        self._clients = [client for client in self._clients if client.poll() is None]
        while len(self._clients) < self._count:
            self.started += 1
            device = self._device
            files = [device.socket, device.folder / "references.npz", self._folder / f"{self.started}.jsonl"]
            command = [sys.executable, str(_HERE / "soak_client.py"), *map(str, files)]
            self._clients.append(subprocess.Popen([*command, device.bundle.name, str(self.started)], cwd=ROOT))

    def kill_one(self) -> None:
        """SIGKILL for one of them, perhaps in the middle of a request."""
        if self._clients:
            self._random.choice(self._clients).kill()
            self.killed += 1

    def end(self) -> None:
        """Ends all of them."""
        for client in self._clients:
            client.kill()
        for client in self._clients:
            client.wait()
        self._clients = []

    def seen(self) -> tuple[Counter[str], list[dict[str, Any]]]:
        """(counts, what went wrong) of all clients there ever were."""
        counts: Counter[str] = Counter()
        wrong = []
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n"):
                    continue  # its writer was killed
                told = json.loads(line)
                if told.pop("what") == "counts":
                    counts.update(told)
                else:
                    wrong.append({**json.loads(line)})
        return counts, wrong


class Memory:
    """Samples the memory of a process in a thread of its own."""

    def __init__(self, pid: int, every_s: float = 5.0) -> None:
        self.samples: list[tuple[float, float, float]] = []  # monotonic seconds, RSS and anonymous MB
        self._pid, self._every_s, self._stop = pid, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No more samples."""
        self._stop.set()
        self._thread.join()

    def growth(self, since_s: float, *, anonymous: bool, block_s: float = 30.0) -> dict[str, Any]:
        """MB per hour since then, with the 95 % interval of a straight line through means of half a minute.

        Samples that follow each other are alike; means of blocks hardly are.
        """
        kept = [(at_s, used[anonymous]) for at_s, *used in self.samples if at_s >= since_s]
        blocks: dict[int, list[tuple[float, float]]] = {}
        for at_s, used_mb in kept:
            blocks.setdefault(int((at_s - since_s) // block_s), []).append((at_s, used_mb))
        means = np.array([np.mean(block, axis=0) for block in blocks.values()])
        if len(means) < 4:
            return {}
        hours, used = (means[:, 0] - means[:, 0].mean()) / 3600, means[:, 1]
        slope = float(hours @ used / (hours @ hours))
        rest = used - used.mean() - slope * hours
        error = float(np.sqrt(rest @ rest / (len(means) - 2) / (hours @ hours)))
        width = student_quantile(len(means) - 2) * error
        return {
            "mb_per_h": slope,
            "mb_per_h_low": slope - width,
            "mb_per_h_high": slope + width,
            "first_mb": float(used[0]),
            "last_mb": float(used[-1]),
            "blocks": len(means),
            "seconds": float(means[-1, 0] - means[0, 0]),
            "mb": [round(float(one), 2) for one in used],
        }

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                text = Path(f"/proc/{self._pid}/smaps_rollup").read_text(encoding="ascii")
            except OSError:
                return
            found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in text.splitlines()[1:] if ":" in line}
            self.samples.append((time.monotonic(), found["Rss"], found["Anonymous"]))
