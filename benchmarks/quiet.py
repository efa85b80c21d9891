"""Rounds that other work on the machine left alone; disturbed ones are measured again.

What counts is the kernel's own accounts: processor time that others used or the hypervisor took, as a share of one
processor. It is never the figure measured: leaving out slow rounds because they are slow would make everything look
better than it is. Where the machine does not become quiet within the patience given, rounds count as they come, and the
result says how many were disturbed.

* :class:`Quiet`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

T = TypeVar("T")

LIMIT = 0.05
"""Share of one processor that others may use while a round is measured."""
_LOOK_S = 0.25
_BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # of a line of /proc/stat: user, nice, system, irq, softirq, steal


class Quiet:
    """Measures rounds, and again where others disturbed them.

    Args:
        patience_s: how long to wait and repeat, over all rounds together.
        companions: ids of running processes that belong to the measurement: their time is not that of others.
    """

    def __init__(self, patience_s: float, companions: Sequence[int] = ()) -> None:
        self._ends_s = time.monotonic() + patience_s
        self._companions = [psutil.Process(pid) for pid in companions]
        self.kept = self.disturbed = self.repeated = 0

    def rounds(self, count: int, measure: Callable[[int], T]) -> list[T]:
        """What ``measure`` gave in each of ``count`` rounds; it is called with the round's number."""
        return [self._round(number, measure) for number in range(count)]

    def told(self) -> dict[str, Any]:
        """How quiet it was, for the record."""
        return {
            "others_share_allowed": LIMIT,
            "rounds_undisturbed": self.kept,
            "rounds_disturbed": self.disturbed,
            "rounds_repeated": self.repeated,
        }

    def _round(self, number: int, measure: Callable[[int], T]) -> T:
        while True:
            self._wait()
            watch = _Others(self._companions)
            result = measure(number)
            if watch.share() <= LIMIT:
                self.kept += 1
                return result
            if time.monotonic() >= self._ends_s:
                self.disturbed += 1
                return result
            self.repeated += 1

    def _wait(self) -> None:
        while time.monotonic() < self._ends_s:
            watch = _Others(self._companions)
            time.sleep(_LOOK_S)
            if watch.share() <= LIMIT:
                return


class _Others:
    """Processor seconds that neither this process, nor its finished children, nor its companions used, since it was
    made."""

    def __init__(self, companions: Sequence[psutil.Process]) -> None:
        self._companions = companions
        self._began = time.monotonic(), self._used_s()

    def share(self) -> float:
        """As a share of one processor; 0 where the kernel keeps no accounts."""
        now_s, others_s = time.monotonic(), self._used_s()
        return max(0.0, others_s - self._began[1]) / max(1e-6, now_s - self._began[0])

    def _used_s(self) -> float:
        times = [companion.cpu_times() for companion in self._companions]
        return _busy_s() - _own_s() - sum(used.user + used.system for used in times)


def _busy_s() -> float:
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:]
    except OSError:
        return _own_s()
    return sum(int(fields[place]) for place in _BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
