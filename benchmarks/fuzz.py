"""Whatever is sent to a live agent, it answers or hangs up, and goes on: malformed HTTP, JSON, tensors, gRPC, frames.

An agent runs in a process of its own, with every front door open. Each input depends on seed, category and number
alone, so a finding can be sent again: ``--only CATEGORY --first N --inputs 1``. One thread a front door.

A **finding** is: the agent has died, or printed a traceback; a connection was neither answered nor closed in time; a
reply with a traceback, an internal error, or logits of the wrong shape; an HTTP request whose framing is right and
that got no answer; a proper request that is not answered rightly between the improper ones; memory that grows.

    python benchmarks/fuzz.py > fuzz.json
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol

from common import ROOT, provenance
from fuzz_grpc import GrpcDoor
from fuzz_http import HttpDoor
from fuzz_native import NativeDoor
from live import LiveAgent, end_on_sigterm, has_grpc, plain_table

from subnets.bundle import Bundle

_TIMEOUT_S = 10.0
_CHECK_EVERY = 500
_MAX_FINDINGS = 50  # told in full
_MAX_GROWTH_BYTES = 8 * 2**20  # of the last third's median over the second's; in the first, much is used first
_SHARES = {"http": 0.5, "native": 0.35, "grpc": 0.15}  # of all inputs


class Door(Protocol):
    """A front door under fuzzing."""

    name: str
    shares: ClassVar[dict[str, float]]

    def input(self, category: str, chance: random.Random) -> Any:
        """What is sent."""

    def judge(self, sent: Any) -> tuple[str, str]:
        """(what came; what is wrong with it, or "")."""

    def check(self) -> str:
        """What is wrong with the answer to a proper request, or ""."""

    def close(self) -> None:
        """Ends connections."""


class Campaign:
    """Counts and findings of all doors."""

    def __init__(self, live: LiveAgent, seed: int) -> None:
        self.live, self.seed = live, seed
        self.came: dict[str, Counter[str]] = {}
        self.findings: list[dict[str, Any]] = []
        self.found = 0
        self.memory: list[int] = []
        self._mutex = threading.Lock()

    def run(self, door: Door, category: str, numbers: range) -> None:
        """Sends some inputs of a category, and a proper request after them."""
        came = self.came.setdefault(category, Counter())
        for number in numbers:
            sent = door.input(category, random.Random(f"{self.seed}/{category}/{number}"))
            try:
                what, wrong = door.judge(sent)
            except Exception as error:  # a reply that this script does not understand is a finding, too
                what, wrong = "nonsense", f"{type(error).__name__}: {error}"
            came[what] += 1
            if wrong:
                self.tell(category, number, wrong, sent)
        if not self.live.alive:
            self.tell(category, numbers[-1], "the agent has died during these")
            return
        if wrong := door.check():
            self.tell(category, numbers[-1], f"afterwards: {wrong}")
        with self._mutex:
            self.memory.append(self.live.anonymous_bytes)

    def tell(self, category: str, number: int, wrong: str, sent: Any = "") -> None:
        """Notes a finding."""
        with self._mutex:
            self.found += 1
            if len(self.findings) < _MAX_FINDINGS:
                self.findings.append({"category": category, "number": number, "wrong": wrong, "sent": repr(sent)[:400]})


def main() -> None:
    """Fuzzes and prints one JSON document; exit code 1 with findings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one category, e.g. 'http json'")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    options = parser.parse_args()
    end_on_sigterm()
    bundle = Bundle.open(ROOT / "bundles" / "digits")
    # All subnets: an agent with one engine cannot tell a batch that no engine answers from a broken engine.
    table = plain_table(bundle, {name: 0.1 * place for place, name in enumerate(bundle.ladder.names, 1)})
    # Timeouts of the server's are shortened: they bound how long a connection may hang that says nothing.
    serve = {"shared_memory": True, "read_timeout": "3s", "idle_timeout": "3s"}
    with (
        tempfile.TemporaryDirectory() as folder,
        LiveAgent(Path(folder), bundle, table, serve=serve) as live,
    ):
        doors: list[Door] = [HttpDoor(live, _TIMEOUT_S), NativeDoor(live, _TIMEOUT_S)]
        if has_grpc():
            doors.append(GrpcDoor(live, _TIMEOUT_S))
        campaign = Campaign(live, options.seed)
        began = time.monotonic()
        with ThreadPoolExecutor(len(doors)) as threads:
            for running in [threads.submit(_all, campaign, door, options) for door in doors]:
                running.result()
        for door in doors:
            door.close()
        if "Traceback" in live.text:
            campaign.tell("all", 0, "a traceback in the agent's own output", live.text[-2000:])
        document = _document(campaign, time.monotonic() - began)
    print(json.dumps(document, indent=1))
    raise SystemExit(1 if document["findings_total"] else 0)


def _all(campaign: Campaign, door: Door, options: argparse.Namespace) -> None:
    """All categories of a door in turns, so that memory is compared between times that are alike."""
    turns = []
    for category, share in door.shares.items():
        if options.only in (None, category):
            whole = options.inputs if options.only else round(options.inputs * _SHARES[door.name] * share)
            for start in range(0, whole, _CHECK_EVERY):
                numbers = range(options.first + start, options.first + min(start + _CHECK_EVERY, whole))
                turns.append((start / whole, category, numbers))
    for _, category, numbers in sorted(turns, key=lambda turn: turn[:2]):
        campaign.run(door, category, numbers)


def _document(campaign: Campaign, took_s: float) -> dict[str, Any]:
    memory, third = campaign.memory, max(1, len(campaign.memory) // 3)
    growth = round(statistics.median(memory[-third:]) - statistics.median(memory[-2 * third : -third] or memory))
    if growth > _MAX_GROWTH_BYTES:
        campaign.tell("all", 0, f"memory has grown by {growth} bytes")
    total = sum(sum(came.values()) for came in campaign.came.values())
    return {
        "what": "inputs by category and by what came back; findings are crashes, hangs, tracebacks, internal errors, "
        "wrong shapes, missing answers and growth",
        "inputs": total,
        "seed": campaign.seed,
        "took_s": round(took_s, 1),
        "categories": {name: dict(came.most_common()) for name, came in campaign.came.items()},
        "anonymous_bytes": {"first": memory[0], "last": memory[-1], "growth": growth, "n": len(memory)}
        if memory
        else {},
        "allowed": {"timeout_s": _TIMEOUT_S, "growth_bytes": _MAX_GROWTH_BYTES},
        "findings_total": campaign.found,
        "findings": campaign.findings,
        "shown": campaign.found == 0 and total >= 50_000,
        "skipped": {} if has_grpc() else {"grpc": "the extra gearshift[grpc] or tritonclient is not installed"},
        **provenance(__file__, ("openvino", "starlette", "uvicorn", *(("grpcio", "tritonclient") * has_grpc()))),
    }


if __name__ == "__main__":
    main()
