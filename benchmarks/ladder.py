"""Four resident ResNet-18 engines for the benchmarks of the agent: a quick table of them, and a policy to steer by.

* :class:`Steered`: wants whatever point it is given.
* :func:`quick_table`: a table whose latencies were measured just now, in turns; its accuracies are made up, rising with
  the ladder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import numpy as np
from live import plain_table

from backends.base import Batch, Engine
from calibration.table import Table
from policies.base import Conditions, Decision, Policy
from subnets.bundle import Bundle

_TURNS = 10


class Steered(Policy):
    """Wants ``point``, and remembers when it said so."""

    name = "steered"

    def __init__(self, point: str) -> None:
        self.point = point
        self.decided_ns = 0

    def decide(self, conditions: Conditions, table: Table, current: str | None) -> Decision:
        """The point it was given."""
        decision = Decision(point=self.point, reason="the benchmark says so")
        self.decided_ns = time.perf_counter_ns()
        return decision


def quick_table(bundle: Bundle, engines: Mapping[str, Engine], images: Batch) -> Table:
    """One row per engine at batch size 1, its median latency over a few turns."""
    took: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(_TURNS):
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.infer(images[:1])
            took[name].append((time.perf_counter() - began) * 1000)
    request = next(iter(engines.values())).artifact.request
    medians = {name: statistics.median(values) for name, values in took.items()}
    return plain_table(bundle, medians, threads=request.threads, precision=request.precision)


def known_images(bundle: Bundle, count: int) -> Batch:
    """Images of standard normal values, the same every time."""
    random = np.random.Generator(np.random.PCG64(0))
    return random.standard_normal((count, *bundle.input.shape)).astype(np.float32)
