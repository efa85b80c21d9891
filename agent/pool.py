"""The engine pool: which engines are in memory, and the one reference that says which answers.

* :class:`EngineKey`: what one engine is compiled for; several operating points (batch sizes) share one.
* :class:`Resident`: a loaded, warmed engine that takes batches of any size.
* :class:`Active`: the operating point in use, with its engine and the reason: what ``current`` refers to.
* :class:`EnginePool`: loads in a background thread, keeps to a memory budget, swaps ``current`` in one assignment.

Knows nothing of policies, queues or faults: who should be current is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agent.chunks import Plan, plan_chunks
from backends.base import Backend, Batch, CompileRequest, Engine
from calibration.table import Row, Table
from policies.base import SlackStep
from subnets import Bundle
from subnets.errors import EngineError, GearshiftError

_MAX_PLANS = 256


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
    """A loaded engine. Safe to ask from several threads; they take turns."""

    def __init__(
        self, key: EngineKey, engine: Engine, cost_ms: Mapping[int, float], memory_bytes: int, load_ms: float
    ) -> None:
        self.key, self.engine = key, engine
        self.memory_bytes, self.load_ms = memory_bytes, load_ms
        self.retired = False
        self.used_at_s = 0.0
        self._cost_ms = dict(cost_ms)
        self._plans: dict[int, Plan] = {}
        self._lock = threading.Lock()

    @property
    def classes(self) -> int:
        """How many logits an answer has."""
        return self.engine.artifact.classes

    def plan(self, images: int) -> Plan:
        """How a batch of that many images is cut."""
        plan = self._plans.get(images)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[images] = plan_chunks(images, self._cost_ms)
        return plan

    def infer(self, batch: Batch) -> Batch:
        """Logits float32 [N, classes] for float32 [N, C, H, W], any N of at least 1.

        Raises:
            Retired: the engine has left the pool.
            InputError: the batch is at fault.
            EngineError: the engine is.
        """
        chunks = self.plan(len(batch)).chunks
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
        """Asks for a blank batch of every size; what it raised, or None when it answers in the right shape."""
        with self._lock:
            if self.retired:
                return EngineError(f"engine {'/'.join(map(str, self.key))} is no longer loaded")
            try:
                for size in self._cost_ms:
                    shape = self.engine.infer(np.zeros((size, *self.engine.artifact.input_shape), np.float32)).shape
                    if shape != (size, self.classes):
                        return EngineError(f"answers with shape {list(shape)} instead of {[size, self.classes]}")
            except Exception as error:  # a foreign library may raise anything
                return error
        return None

    def retire(self) -> None:
        """Frees the engine once nobody uses it."""
        with self._lock:
            self.retired = True
            self.engine.close()


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """What answers now, and why. Never changed, only replaced."""

    resident: Any  # Resident
    row: Row
    point: str
    reason: str
    bound: str
    slack_plan: tuple[SlackStep, ...] = ()


class EnginePool:
    """Engines in memory.

    When the budget is short, engines leave in this order: farthest from the current one on the ladder, then longest
    unused. The current one never leaves; the keeper (the safe choice) only when nothing else can.

    Args:
        bundle: whose subnets they are.
        table: its rows say which engines exist, at which batch sizes and costs.
        backends: by name.
        memory_budget_bytes: for all resident engines together; None = no limit.
        clock: monotonic seconds.
        on_event: called with (name, detail) for ``engine_loaded``, ``engine_evicted`` and ``over_budget``.
    """

    def __init__(
        self,
        bundle: Bundle,
        table: Table,
        backends: Mapping[str, Backend],
        *,
        memory_budget_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[str, dict[str, Any]], None] = lambda name, detail: None,
    ) -> None:
        self.current: Active | None = None
        self.keeper: EngineKey | None = None
        self._bundle, self._backends = bundle, dict(backends)
        self._budget, self._clock, self._on_event = memory_budget_bytes, clock, on_event
        self._rank = {name: index for index, name in enumerate(bundle.ladder.names)}
        self._rows: dict[EngineKey, dict[int, Row]] = {}
        for row in table.rows:
            self._rows.setdefault(engine_key(row), {})[row.batch_size] = row
        self._mutex = threading.Lock()
        self._residents: dict[EngineKey, Resident] = {}
        self._pending: dict[EngineKey, Future[Resident]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="gearshift-loader")

    @property
    def keys(self) -> tuple[EngineKey, ...]:
        """Every engine the table knows."""
        return tuple(self._rows)

    def resident(self, key: EngineKey) -> Resident | None:
        """The loaded engine, or None."""
        return self._residents.get(key)

    def residents(self) -> tuple[Resident, ...]:
        """All loaded engines."""
        with self._mutex:
            return tuple(self._residents.values())

    @property
    def answering(self) -> bool:
        """Whether the current engine is in memory (it is not after a fault that left no other)."""
        active = self.current
        return active is not None and self._residents.get(active.resident.key) is active.resident

    def activate(self, active: Active) -> bool:
        """Makes ``active`` current; False when its engine has just left the pool."""
        with self._mutex:
            if self._residents.get(active.resident.key) is not active.resident:
                return False
            self.current = active
            return True

    def request(self, key: EngineKey, *, prefetch: bool = False) -> Future[Resident]:
        """Loads an engine in the background, or returns the one there is.

        Args:
            key: which.
            prefetch: nobody waits for it: it must not push out engines nearer to the current one.

        Returns:
            A future; it raises :class:`GearshiftError` when the engine cannot be had.
        """
        with self._mutex:
            if key in self._residents:
                done: Future[Resident] = Future()
                done.set_result(self._residents[key])
                return done
            if key not in self._pending:
                try:
                    self._pending[key] = self._loader.submit(self._load, key, prefetch)
                except RuntimeError:  # shut down
                    closed: Future[Resident] = Future()
                    closed.set_exception(EngineError("the agent has closed"))
                    return closed
            return self._pending[key]

    def prefetch(self, keys: Sequence[EngineKey]) -> None:
        """Asks for engines in this order as far as the budget goes."""
        for key in keys:
            if self.resident(key) is None and self._has_room(key, prefetch=True):
                self.request(key, prefetch=True)

    def drop(self, key: EngineKey) -> None:
        """Takes an engine out, even the current one; it is freed in the background once its last answer is given."""
        with self._mutex:
            resident = self._residents.pop(key, None)
        if resident is not None:
            with contextlib.suppress(RuntimeError):  # shut down: its last answer was given, close() frees the rest
                self._loader.submit(resident.retire)

    def distance(self, one: EngineKey, other: EngineKey) -> float:
        """How far apart two engines are on the ladder; another backend, precision or thread count adds a half."""
        return abs(self._rank[one.subnet] - self._rank[other.subnet]) + 0.5 * (one[1:] != other[1:])

    def close(self) -> None:
        """Frees everything; afterwards nothing answers."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        with self._mutex:
            leaving = list(self._residents.values())
            self._residents.clear()
            self.current = None
        for resident in leaving:
            resident.retire()

    def _load(self, key: EngineKey, prefetch: bool) -> Resident:
        try:
            return self._build(key, prefetch)
        except GearshiftError:
            raise
        except Exception as error:  # a foreign library may raise anything
            raise EngineError(f"engine {'/'.join(map(str, key))} could not be loaded: {error}") from error
        finally:
            with self._mutex:
                self._pending.pop(key, None)

    def _build(self, key: EngineKey, prefetch: bool) -> Resident:
        rows = self._rows[key]
        if not self._has_room(key, prefetch=prefetch):
            raise EngineError(
                f"engine of {key.subnet} ({_megabytes(self._estimate(key))}) does not fit the memory budget of "
                f"{_megabytes(self._budget or 0)} beside the current one; raise memory_budget"
            )
        self._make_room(self._estimate(key), key)
        began = time.perf_counter()
        request = CompileRequest(
            subnet=key.subnet, precision=key.precision, batch_sizes=tuple(sorted(rows)), threads=key.threads
        )
        backend = self._backends[key.backend]
        artifact = backend.build(self._bundle, request)
        engine = backend.load(artifact)
        memory_bytes = engine.memory_bytes or self._estimate(key) or _size_on_disk(Path(artifact.path))
        costs = {size: row.latency_p50_ms for size, row in rows.items()}
        resident = Resident(key, engine, costs, memory_bytes, 0.0)
        if (error := resident.probe()) is not None:
            resident.retire()
            raise EngineError(f"engine {'/'.join(map(str, key))} fails its first answer: {error}") from error
        resident.load_ms = (time.perf_counter() - began) * 1000
        resident.used_at_s = self._clock()
        with self._mutex:
            self._residents[key] = resident
        self._make_room(0, key)
        self._on_event(
            "engine_loaded", {"subnet": key.subnet, "ms": round(resident.load_ms, 1), "memory_bytes": memory_bytes}
        )
        return resident

    def _estimate(self, key: EngineKey) -> int:
        """What the table measured, 0 where it could not."""
        return max((row.memory_bytes or 0 for row in self._rows[key].values()), default=0)

    def _has_room(self, key: EngineKey, *, prefetch: bool) -> bool:
        if self._budget is None:
            return True
        with self._mutex:
            staying = [r for r in self._residents.values() if not self._may_leave(r, key, prefetch)]
            return not staying or sum(r.memory_bytes for r in staying) + self._estimate(key) <= self._budget

    def _may_leave(self, resident: Resident, key: EngineKey, prefetch: bool) -> bool:
        if self.current is None:
            return not prefetch
        here = self.current.resident.key
        if resident.key == here:
            return False
        if prefetch:
            return resident.key != self.keeper and self.distance(resident.key, here) > self.distance(key, here)
        return True

    def _make_room(self, need: int, key: EngineKey) -> None:
        """Frees engines until ``need`` bytes fit, or none but the current and ``key`` is left."""
        if self._budget is None:
            return
        leaving = []
        with self._mutex:
            here = self.current.resident.key if self.current else key

            def value(resident: Resident) -> tuple[bool, float, float]:
                return resident.key == self.keeper, -self.distance(resident.key, here), resident.used_at_s

            for resident in sorted((r for r in self._residents.values() if r.key not in (here, key)), key=value):
                if self._held_bytes() + need <= self._budget:
                    break
                leaving.append(self._residents.pop(resident.key))
            over = self._held_bytes() + need - self._budget
        for resident in leaving:
            resident.retire()
            self._on_event("engine_evicted", {"subnet": resident.key.subnet, "memory_bytes": resident.memory_bytes})
        if over > 0 and not need:
            self._on_event("over_budget", {"over_bytes": over, "budget_bytes": self._budget})

    def _held_bytes(self) -> int:
        return sum(resident.memory_bytes for resident in self._residents.values())


def _size_on_disk(path: Path) -> int:
    """Bytes of an artifact's files: the least its engine can need."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
