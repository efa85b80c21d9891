"""A soak of the resident agent: the real process under load, with everything going wrong that may.

Three parts, one after the other, on one device with one journal and one state file:

1. *Faults*, until ``--minutes`` are over: clients ask in bursts and are killed; engines fail, hang and dawdle, sensors
   fail, lie, hang and freeze, the policy fails and dawdles, the disk is full, the wall clock is set, a hard limit is
   reached; holds come and go, the configuration is reloaded, sound and unsound. Each fault must show in ``explain``.
2. *Memory*, measured in part 1 once engines have hung and been loaded anew: each of these costs the memory of one. A
   heap takes a while to find its size, so the slope of the second half is told, too: what leaks goes on.
3. *Kills*: ``--kills`` times SIGKILL at a random moment, while starting or while answering; each time the hold, the
   time until which the battery must last, and the policy's state must be there again.

At the end the whole journal is read, and every decision in it replayed.

    python benchmarks/soak.py bundles/resnet20-cifar10 --minutes 20 --kills 50 > soak.json
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import provenance
from soak_agent import PLATEAU_S, SHORTENED, Faults
from soak_device import Crowd, Device, Memory, references

from agent.guard import LONGEST_BACKOFF_S
from backends.openvino import OpenVINOBackend
from calibration import table as tables
from calibration.measure import Settings, calibrate
from simulation.journal import read
from simulation.verify import elsewhere, verify_recorded
from subnets.bundle import Bundle
from subnets.errors import GearshiftError

_CLIENTS = 3
_SEEN_IN_S = 30.0  # a fault must show in explain
_AFTER_A_QUARANTINE_S = LONGEST_BACKOFF_S + _SEEN_IN_S  # an engine that is not asked cannot fail


class Fault:
    """One thing that goes wrong.

    Args:
        name: of the record.
        begin, end: make it so, and well again.
        shows: what a line in explain must match.
        lasts_s: at least so long.
        within_s: it must show.
    """

    def __init__(
        self,
        name: str,
        begin: Callable[[], None],
        end: Callable[[], None],
        shows: str,
        *,
        lasts_s: float = 3.0,
        within_s: float = _SEEN_IN_S,
    ) -> None:
        self.name, self.begin, self.end, self.shows = name, begin, end, shows
        self.lasts_s, self.within_s = lasts_s, within_s


class Soak:
    """Runs the parts.

    Args:
        device: with its agent running.
        crowd: its clients.
        seed: of what happens when.
    """

    def __init__(self, device: Device, crowd: Crowd, seed: int) -> None:
        self.device, self.crowd, self.random = device, crowd, random.Random(seed)
        self.faults: list[dict[str, Any]] = []
        self.holds = self.reloads = self.refused_reloads = 0
        self.memory = Memory(device.pid)
        self.memory_since_s = self.memory_half_s = 0.0
        self._next_s = 0.0

    def run(self, ends_s: float) -> None:
        """Every kind of fault once, then at random until ``ends_s`` (monotonic)."""
        kinds = list(self._kinds())
        first = [fault for fault in kinds if fault.name.startswith("engine")]  # hangs, then failures
        lasting = [fault for fault in kinds if fault.name in ("sensor freezes", "table drifts")]
        brief = [fault for fault in kinds if fault not in lasting and not fault.name.startswith("engine hangs")]
        for fault in first:
            self.suffer(fault)
        self.live(30.0)  # until the last one is loaded again
        self.memory_since_s = time.monotonic()
        for fault in [fault for fault in kinds if fault not in first]:
            self.suffer(fault)
        while time.monotonic() < ends_s:
            self.live(self.random.uniform(2.0, 8.0))
            if time.monotonic() < ends_s - 60.0:
                self.suffer(self.random.choice(brief))
        self.memory_half_s = (self.memory_since_s + time.monotonic()) / 2
        self.memory.end()

    def live(self, seconds: float) -> None:
        """Lets time pass, in which clients are killed, holds come and go, and the configuration changes."""
        ends_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < ends_s:
            self.crowd.keep()
            if now_s >= self._next_s:
                self._next_s = now_s + self.random.uniform(1.0, 4.0)
                self.random.choice([self.crowd.kill_one, self._hold, self._reload, self._look])()
            time.sleep(0.1)
            if not self.device.alive:
                raise SystemExit("the agent has died:\n" + "\n".join(self.device.said[-30:]))

    def suffer(self, fault: Fault) -> None:
        """One fault, and whether it shows."""
        since_s = self.device.ask("GET", "/gearshift/status")["conditions"]["time_s"]  # on the agent's clock
        began_s = time.monotonic()
        fault.begin()
        seen = ""
        while time.monotonic() - began_s < fault.within_s and not seen:
            self.live(0.5)
            seen = self._seen(fault.shows, since_s)
        took_s = time.monotonic() - began_s
        self.live(max(0.0, fault.lasts_s - took_s))
        fault.end()
        self.faults.append({"fault": fault.name, "seen": bool(seen), "after_s": round(took_s, 1), "explain": seen})
        print(json.dumps(self.faults[-1]), file=sys.stderr, flush=True)
        self.live(3.0)

    def _seen(self, pattern: str, since_s: float) -> str:
        for told in reversed(self.device.ask("GET", "/gearshift/explain?last=256")):
            for line in (*told["faults"], told["applied_why"]):
                if told["conditions"]["time_s"] > since_s and re.search(pattern, line):
                    return str(line)
        return ""

    def _kinds(self) -> Iterator[Fault]:
        device, names = self.device, self.device.bundle.ladder.names

        def switched(name: str, shows: str, lasts_s: float = 3.0, within_s: float = _SEEN_IN_S, **wrong: Any) -> Fault:
            right = {key: getattr(Faults(), key) for key in wrong}
            return Fault(
                name,
                lambda: device.switch(**wrong),
                lambda: device.switch(**right),
                shows,
                lasts_s=lasts_s,
                within_s=within_s,
            )

        def set_clock(by_s: float) -> Fault:
            return Fault(
                f"wall clock set by {by_s:+.0f} s",
                lambda: device.switch(wall_s=device.faults.wall_s + by_s),
                lambda: None,
                rf"^clock jumped: the wall clock by {re.escape(f'{by_s:+.0f}')} s",
            )

        def held(subnet: str, fault: Fault) -> Fault:
            """With this subnet in use; nobody would meet its engine otherwise."""

            for_s = fault.within_s + fault.lasts_s + _SEEN_IN_S  # not over before the wait for it is

            def begin() -> None:
                device.ask("POST", "/gearshift/hold", {"subnet": subnet, "for_s": for_s, "reason": fault.name})
                fault.begin()

            def end() -> None:
                fault.end()
                device.ask("POST", "/gearshift/release")

            return Fault(fault.name, begin, end, fault.shows, lasts_s=fault.lasts_s, within_s=fault.within_s)

        large, small = names[-1], names[0]
        yield held(large, switched("engine hangs", rf"^engine hung: {large}", engines={large: "hangs"}))
        yield held(small, switched("engine hangs, the smallest", rf"^engine hung: {small}", engines={small: "hangs"}))
        for name in names:
            shows = rf"^engine failed: {name}: .*told to fail"
            fails = switched(f"engine fails, {name}", shows, within_s=_AFTER_A_QUARANTINE_S, engines={name: "fails"})
            yield held(name, fails)
        yield switched("sensor fails", r"^lost: temperature_c: soak-thermometer failed", sensor="fails")
        yield switched("sensor absurd", r"^not sensible, taken as unknown: temperature_c", sensor="absurd")
        yield switched("sensor hangs", r"^soak-thermometer silent", sensor="hangs")
        yield switched("policy fails", r"^policy '\w+' failed: was told to fail", policy="fails")
        yield switched("policy is late", r"^policy '\w+' (has not decided|is still)", policy="dawdles")
        yield switched("critical temperature", r"^hard limit: temperature 95", temperature_c=95.0)
        yield Fault("disk full", device.fill_disk, device.free_disk, r"^journal stopped: .*too large", lasts_s=12.0)
        yield set_clock(86_400.0)
        yield set_clock(-86_400.0 * 365)
        frozen_s = SHORTENED["agent.frozen.FROZEN_S"] + 3.0 * PLATEAU_S
        freezes = r"^frozen, taken as unknown: temperature_c"
        yield switched("sensor freezes", freezes, within_s=frozen_s, sensor="frozen")
        drift_s = SHORTENED["agent.drift.LONG_S"] + 150.0
        slow = switched("table drifts", rf"^table drifted: .*{large}@", within_s=drift_s, engines={large: "dawdles"})
        yield held(large, slow)

    def _hold(self) -> None:
        if self.device.ask("GET", "/gearshift/status")["hold"] is not None:
            return  # of a fault
        subnet = self.random.choice(self.device.bundle.ladder.names)
        self.device.ask("POST", "/gearshift/hold", {"subnet": subnet, "for_s": 1.5, "reason": "soak"})
        self.holds += 1

    def _reload(self) -> None:
        kind = self.random.choice(["sound", "sound", "unsound"])
        if kind == "unsound":
            self.device.configure(goals="min_accuracy = 90.0")
            self.refused_reloads += 1
        else:
            self.device.configure(
                policy=self.random.choice(["composite", "composite", "slackfit", "largest"]),
                deadline=self.random.choice(["50ms", "200ms", "1s"]),
            )
            self.reloads += 1
        self.device.reload()

    def _look(self) -> None:
        self.device.ask("GET", "/gearshift/status")


def killed(device: Device, crowd: Crowd, kills: int, seed: int) -> dict[str, Any]:
    """SIGKILL at random moments; what was not there again after the restart."""
    draw = random.Random(seed)
    device.configure()
    if device.alive:
        device.stop()
    device.start()  # with the configuration of this part
    time.sleep(2.0)
    device.stop()
    survived, missing, starts = 0, [], []
    hold: dict[str, Any] | None = None
    until_s: float | None = None
    for number in range(kills):
        crowd.keep()
        if draw.random() < 0.3:  # while it starts
            device.spawn()
            time.sleep(draw.uniform(0.0, 2.0))
            device.kill()
        kept, before = json.loads(device.state.read_bytes()), len(_metas(device))
        starts.append(device.start())
        status = device.ask("GET", "/gearshift/status")
        problems = []
        if hold is not None and (status["hold"] or {}).get("reason") != hold["reason"]:
            problems.append(f"hold is {status['hold']}, was {hold}")
        if until_s is not None and status["goals"]["last_until_s"] != until_s:
            problems.append(f"last_until_s is {status['goals']['last_until_s']}, was {until_s}")
        began = _began_with(device, before)
        if began is not None and began != kept["kept"]["policy"]["state"]:
            problems.append(f"the policy began with {str(began)[:200]}")
        until_s = status["goals"]["last_until_s"]
        if problems:
            missing.append({"kill": number, "problems": problems})
        else:
            survived += 1
        if hold is None or draw.random() < 0.3:
            hold = {"subnet": draw.choice(device.bundle.ladder.names), "for_s": 7200.0, "reason": f"hold {number}"}
            device.ask("POST", "/gearshift/hold", hold)
        elif draw.random() < 0.2:
            device.reload()
        time.sleep(draw.uniform(0.0, 1.5))
        device.kill()
    device.start()
    return {
        "kills": kills,
        "clean_restarts": survived,
        "missing": missing,
        "start_s_median": sorted(starts)[len(starts) // 2] if starts else None,
        "start_s_longest": max(starts, default=None),
    }


def _metas(device: Device) -> list[Any]:
    """The headers in the journal's newest file."""
    path = device.journal / "journal.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith(b'{"kind":"meta"') and line.endswith(b"}")]


def _began_with(device: Device, before: int) -> Any:
    """The policy's state with which a session after the first ``before`` ones began; None where it cannot be told."""
    until_s = time.monotonic() + 10.0
    while time.monotonic() < until_s:
        if len(found := _metas(device)) > before:
            return found[before]["policy"]["state"]
        if len(found) < before:
            return None  # the file was set aside meanwhile
        time.sleep(0.1)
    return "nothing within 10 s"


def journal_of(device: Device, table: tables.Table) -> dict[str, Any]:
    """Whether the whole journal can be read, and decides again as it did."""
    parts = [*sorted(device.journal.glob("journal-*.jsonl.gz")), device.journal / "journal.jsonl"]
    try:
        journal = read(parts)
        compared, mismatches = verify_recorded(journal, table)
    except GearshiftError as error:
        return {"readable": False, "error": str(error)}
    return {
        "readable": True,
        "parts": len(parts),
        "sessions": len(journal.sessions),
        "decisions": journal.decisions,
        "answers": sum(len(session.batches) for session in journal.sessions),
        "replayed": compared,
        "differ": len(mismatches),
        "other_tables": elsewhere(journal, table),
    }


def main() -> None:
    """Runs the soak and prints its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0, help="of faults under load; each kind once, at least")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for everything, to look at afterwards")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    bundle = Bundle.open(arguments.bundle)
    with tempfile.TemporaryDirectory(prefix="gearshift-soak-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        table = _table(bundle, folder)
        references(bundle, table, folder / "references.npz")
        device = Device(folder, bundle, folder / "table.json")
        crowd = Crowd(device, _CLIENTS, arguments.seed)
        device.start()
        try:
            soak = Soak(device, crowd, arguments.seed)
            soak.run(began_s + 60.0 * arguments.minutes)
            status = device.ask("GET", "/gearshift/status")
            crowd.end()
            counts, wrong = crowd.seen()
            kills_unix_s = time.time()
            kills = killed(device, crowd, arguments.kills, arguments.seed)
        finally:
            crowd.end()
            code = device.stop()
        all_counts, all_wrong = crowd.seen()
        result = {
            "what": "the agent as a process under load, with every kind of fault, then killed again and again; "
            "clients, agent and driver share the machine",
            "minutes": round((time.monotonic() - began_s) / 60, 1),
            "requests": {
                "accepted": counts["answered"] + len([one for one in wrong if one["what"] != "wrong"]),
                **counts,
                "lost": len([one for one in wrong if one["what"] in ("lost", "failed")]),
                "wrong": len([one for one in wrong if one["what"] == "wrong"]),
                "went_wrong": wrong[:20],
            },
            "clients": {"started": crowd.started, "killed": crowd.killed},
            "holds": soak.holds,
            "reloads": {"sound": soak.reloads, "refused": soak.refused_reloads},
            "faults": soak.faults,
            "faults_unseen": sorted({one["fault"] for one in soak.faults if not one["seen"]}),
            "shortened_s": SHORTENED,
            "counters": status["counters"],
            "memory": {
                "rss": soak.memory.growth(soak.memory_since_s, anonymous=False),
                "anonymous": soak.memory.growth(soak.memory_since_s, anonymous=True),
                "anonymous_second_half": soak.memory.growth(soak.memory_half_s, anonymous=True),
            },
            "kills": {
                **kills,
                "answered_meanwhile": all_counts["answered"] - counts["answered"],
                "lost_outside_outages": _outside(all_wrong, kills_unix_s, device.outages),
            },
            "exit_code_after_sigterm": code,
            "journal": journal_of(device, table),
            **provenance(__file__),
        }
    print(json.dumps(result, indent=1).replace(f"{folder}/", ""))  # what is told names places on this machine


def _table(bundle: Bundle, folder: Path) -> tables.Table:
    """A short calibration, or the one that a kept folder holds."""
    path = folder / "table.json"
    if not path.exists():
        backend, settings = OpenVINOBackend(folder / "cache"), Settings(budget_s=30.0)
        made = calibrate(bundle, [backend], precisions=["f32"], batch_sizes=(1, 4), threads=1, settings=settings)
        tables.write(made, path)
    return tables.read(path)


def _outside(
    wrong: list[dict[str, Any]], since_unix_s: float, outages: list[tuple[float, float]]
) -> list[dict[str, Any]]:
    """What went wrong while the agent was not being killed."""
    return [
        one
        for one in wrong
        if one["began_s"] >= since_unix_s
        and not any(began_s <= one["ended_s"] + 0.5 and one["began_s"] <= ended_s for began_s, ended_s in outages)
    ]


if __name__ == "__main__":
    main()
