"""A loaded engine, as the pool keeps it.

* :class:`EngineKey`: what one engine is compiled for; several operating points (batch sizes) share one.
* :class:`Resident`: a loaded, warmed engine that takes batches of any size.

Knows nothing of the pool, of policies or of requests.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from agent.chunks import Plan, plan_chunks
from backends.base import Batch, Engine
from calibration.table import Row
from subnets.errors import EngineError

_MAX_PLANS = 256
_LOOK_S = 0.5  # how often whoever waits for an engine looks whether it has been given up


class EngineKey(NamedTuple):
    """What one engine is compiled for."""

    subnet: str
    backend: str
    precision: str
    threads: int


def engine_key(row: Row) -> EngineKey:
    """The engine that serves an operating point."""
    return EngineKey(row.subnet, row.backend, row.precision, row.threads)


class Retired(Exception):
    """The engine was taken out of the pool between being chosen and being asked; take ``current`` again."""

    def __str__(self) -> str:
        return "it is no longer loaded"


class Resident:
    """A loaded engine. Safe to ask from several threads; they take turns.

    Attributes:
        leases: how many requests wait for it; the pool keeps it until they are answered, and counts under its lock.
    """

    def __init__(
        self, key: EngineKey, engine: Engine, cost_ms: Mapping[int, float], memory_bytes: int, load_ms: float
    ) -> None:
        self.key, self.engine = key, engine
        self.memory_bytes, self.load_ms = memory_bytes, load_ms
        self.retired = self.hung = False
        self.leases = 0
        self.used_at_s = 0.0
        self.recost(cost_ms)
        self._lock = threading.Lock()

    @property
    def classes(self) -> int:
        """How many logits an answer has."""
        return self.engine.artifact.classes

    def recost(self, cost_ms: Mapping[int, float]) -> None:
        """Plans by these costs from now on: milliseconds of each batch size."""
        self.least_ms = min(cost / size for size, cost in cost_ms.items())  # per image
        self._cost_ms = dict(cost_ms)
        self._plans: dict[int, Plan] = {}

    def plan(self, images: int) -> Plan:
        """How a batch of that many images is cut at least cost."""
        plan = self._plans.get(images)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[images] = plan_chunks(images, self._cost_ms)
        return plan

    def infer(self, batch: Batch, chunks: tuple[int, ...] | None = None) -> Batch:
        """Logits float32 [N, classes] for float32 [N, C, H, W], any N of at least 1.

        Args:
            batch: the images.
            chunks: the engine's batch sizes to use, one after another; they must hold N. None = as planned.

        Raises:
            Retired: the engine has left the pool.
            InputError: the batch is at fault.
            EngineError: the engine is.
        """
        if chunks is None:
            chunks = self.plan(len(batch)).chunks
        if self.hung:  # whoever is in it keeps the lock
            raise Retired
        with self._lock:
            if self.retired:
                raise Retired
            if len(chunks) == 1 and chunks[0] == len(batch):
                return self.engine.infer(batch)
            parts, start = [], 0
            for size in chunks:
                part = batch[start : start + size]
                if len(part) < size:
                    part = np.concatenate([part, np.zeros((size - len(part), *batch.shape[1:]), np.float32)])
                parts.append(self.engine.infer(part))
                start += size
            return np.concatenate(parts)[: len(batch)]

    def probe(self) -> Exception | None:
        """Asks for one blank batch, the smallest; what it raised, or None when it answers in the right shape."""
        if self.hung:
            return EngineError("it hangs")
        with self._lock:
            if self.retired:
                return EngineError(f"engine {'/'.join(map(str, self.key))} is no longer loaded")
            try:
                size = min(self._cost_ms)
                shape = self.engine.infer(np.zeros((size, *self.engine.artifact.input_shape), np.float32)).shape
                if shape != (size, self.classes):
                    return EngineError(f"answers with shape {list(shape)} instead of {[size, self.classes]}")
            except Exception as error:  # a foreign library may raise anything
                return error
        return None

    def abandon(self) -> None:
        """Gives up an engine that hangs: it is never asked, waited for or freed again, since someone is still in it."""
        self.retired = self.hung = True

    def retire(self, patience_s: float = math.inf) -> None:
        """Frees the engine once nobody uses it; never, if it hangs or is used for longer than ``patience_s``."""
        began_s = time.monotonic()
        while not self._lock.acquire(timeout=_LOOK_S):
            if self.hung or time.monotonic() - began_s > patience_s:
                return
        try:
            self.retired = True
            self.engine.close()
        finally:
            self._lock.release()
