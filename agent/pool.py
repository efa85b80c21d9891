"""The engine pool: which engines are in memory, and the one reference that says which answers.

* :class:`Active`: the operating point in use, with its engine and the reason: what ``current`` refers to.
* :class:`EnginePool`: loads in a background thread, keeps to a memory budget, swaps ``current`` in one assignment.

Nothing is compiled while requests are answered, since that makes them several times as slow: what the cache of
artifacts lacks is built by :meth:`EnginePool.prepare`, before the first answer. Only an artifact that is lost or
damaged later is built again, by the loader at its low priority, and told as ``engine_built``.

Knows nothing of policies, queues or faults: who should be current is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from agent.loader import USEFUL, WANTED, Loader
from agent.resident import EngineKey, Resident, engine_key
from backends.base import Artifact, Backend, CompileRequest, Engine
from backends.store import RECORD
from calibration.table import Row, Table
from policies.base import SlackStep
from subnets import Bundle
from subnets.errors import EngineError, GearshiftError

_CLOSING_PATIENCE_S = 5.0  # with an engine that somebody is still in
_LEASE_WAIT_S = 5.0  # then rather over budget: whoever holds the lease may itself wait for this engine


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
    unused. The current one never leaves, nor does one that requests wait for; the keeper (the safe choice) only when
    nothing else can.

    Args:
        bundle: whose subnets they are.
        table: its rows say which engines exist, at which batch sizes and costs.
        backends: by name.
        memory_budget_bytes: for all resident engines together; None = no limit.
        clock: monotonic seconds.
        on_event: called with (name, detail) for ``engine_built``, ``engine_unbuilt``, ``engine_loaded``,
            ``engine_evicted`` and ``over_budget``.

    Attributes:
        current: what answers, or None before the first engine.
        on_current: called after ``current`` has changed to another engine.
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
        self.on_current: Callable[[Active], None] = lambda active: None
        self._bundle, self._backends = bundle, dict(backends)
        self._budget, self._clock, self._on_event = memory_budget_bytes, clock, on_event
        self._rank = {name: index for index, name in enumerate(bundle.ladder.names)}
        self._rows = _by_engine(table)
        self._mutex = threading.Lock()
        self._given_back = threading.Condition(self._mutex)  # a lease
        self._residents: dict[EngineKey, Resident] = {}
        self._pending: dict[EngineKey, Future[Resident]] = {}
        self._wanted: set[EngineKey] = set()  # of the pending ones, those that somebody waits for
        self._artifacts: dict[EngineKey, Artifact] = {}
        self._unbuilt: set[EngineKey] = set()
        self._building = threading.Lock()
        self._closed = False
        self._loader = Loader()
        # How many threads each backend's engines want at most: until it has loaded such a one, it may make threads.
        self._threadless: dict[str, int] = {}
        for key in self._rows:
            self._threadless[key.backend] = max(key.threads, self._threadless.get(key.backend, 0))

    def retable(self, table: Table) -> None:
        """Other figures for the same operating points."""
        self._rows = _by_engine(table)
        for resident in self.residents():
            resident.recost({size: row.latency_p50_ms for size, row in self._rows[resident.key].items()})

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
            before, self.current = self.current, active
        if before is not None and before.resident is not active.resident:
            self.on_current(active)
        return True

    def prepare(self) -> None:
        """Builds every artifact that the cache lacks, so that none is compiled while requests are answered.

        Takes milliseconds where all are there. One that cannot be built is told as ``engine_unbuilt`` and left alone
        until it is wanted.
        """
        for key in tuple(self._rows):
            try:
                self._artifact(key)
            except Exception as error:  # a foreign library may raise anything
                self._unbuilt.add(key)
                self._on_event("engine_unbuilt", {**key._asdict(), "error": str(error)})

    def request(self, key: EngineKey, *, prefetch: bool = False) -> Future[Resident]:
        """Loads an engine in the background, or returns the one there is.

        Args:
            key: which.
            prefetch: nobody waits for it: it comes after those that are waited for, and must not push out engines
                nearer to the current one.

        Returns:
            A future; it raises :class:`GearshiftError` when the engine cannot be had. What is called back when it is
            there runs before another engine can push it out.
        """
        with self._mutex:
            if key in self._residents:
                done: Future[Resident] = Future()
                done.set_result(self._residents[key])
                return done
            pending = self._pending.get(key)
            if not prefetch:
                self._wanted.add(key)
                if pending is not None:
                    self._loader.hurry(pending)
            if pending is None:
                try:
                    pending = self._loader.submit(lambda: self._load(key), urgency=USEFUL if prefetch else WANTED)
                except RuntimeError:  # shut down
                    pending = Future()
                    pending.set_exception(EngineError("the agent has closed"))
                    return pending
                self._pending[key] = pending
            return pending

    def prefetch(self, keys: Sequence[EngineKey]) -> None:
        """Asks for engines in this order as far as the budget goes."""
        for key in keys:
            if self.resident(key) is None and key not in self._unbuilt and self._has_room(key, prefetch=True):
                self.request(key, prefetch=True)

    def lease(self, resident: Resident) -> Callable[[], None] | None:
        """Keeps an engine in memory until what this returns is called; None when it has left already."""
        with self._mutex:
            if self._residents.get(resident.key) is not resident:
                return None
            resident.leases += 1

        def give_back() -> None:
            with self._mutex:
                resident.leases -= 1
                self._given_back.notify_all()

        return give_back

    def drop(self, key: EngineKey) -> None:
        """Takes an engine out, even the current one; it is freed in the background once its last answer is given."""
        with self._mutex:
            resident = self._residents.pop(key, None)
            self._given_back.notify_all()
        if resident is not None:
            with contextlib.suppress(RuntimeError):  # shut down: its last answer was given, close() frees the rest
                self._loader.submit(resident.retire)

    def distance(self, one: EngineKey, other: EngineKey) -> float:
        """How far apart two engines are on the ladder; another backend, precision or thread count adds a half."""
        return abs(self._rank[one.subnet] - self._rank[other.subnet]) + 0.5 * (one[1:] != other[1:])

    def close(self) -> None:
        """Frees everything; afterwards nothing answers."""
        with self._mutex:
            self._closed = True
            self._given_back.notify_all()
        self._loader.close()
        with self._mutex:
            leaving = list(self._residents.values())
            self._residents.clear()
            self.current = None
        for resident in leaving:
            resident.retire(_CLOSING_PATIENCE_S)

    def _load(self, key: EngineKey) -> Resident:
        try:
            return self._brought(key, prefetch=key not in self._wanted)
        except GearshiftError:
            raise
        except Exception as error:  # a foreign library may raise anything
            raise EngineError(f"engine {'/'.join(map(str, key))} could not be loaded: {error}") from error
        finally:
            with self._mutex:
                self._pending.pop(key, None)
                self._wanted.discard(key)

    def _brought(self, key: EngineKey, *, prefetch: bool) -> Resident:
        if not self._has_room(key, prefetch=prefetch):
            raise EngineError(
                f"engine of {key.subnet} ({_megabytes(self._estimate(key))}) does not fit the memory budget of "
                f"{_megabytes(self._budget or 0)} beside the current one; raise memory_budget"
            )
        self._make_room(self._estimate(key), key)
        began = time.perf_counter()
        engine = self._engine(key)
        artifact = engine.artifact
        memory_bytes = engine.memory_bytes or self._estimate(key) or _size_on_disk(Path(artifact.path))
        costs = {size: row.latency_p50_ms for size, row in self._rows[key].items()}
        resident = Resident(key, engine, costs, memory_bytes, 0.0)
        if (error := resident.probe()) is not None:
            resident.retire()
            raise EngineError(f"engine {'/'.join(map(str, key))} fails its first answer: {error}") from error
        resident.load_ms = (time.perf_counter() - began) * 1000
        resident.used_at_s = self._clock()
        if key.threads >= self._threadless.get(key.backend, 0):
            self._threadless.pop(key.backend, None)
            if not self._threadless:
                self._loader.step_back()
        with self._mutex:
            self._residents[key] = resident
        self._make_room(0, key)
        self._on_event(
            "engine_loaded", {"subnet": key.subnet, "ms": round(resident.load_ms, 1), "memory_bytes": memory_bytes}
        )
        return resident

    def _engine(self, key: EngineKey) -> Engine:
        """Loaded from the artifact that was there at the start; built again where that was lost or damaged since."""
        backend = self._backends[key.backend]
        known = key in self._artifacts
        try:
            return backend.load(self._artifact(key))
        except EngineError:
            if not known:
                raise
        return backend.load(self._artifact(key, again=True))

    def _artifact(self, key: EngineKey, *, again: bool = False) -> Artifact:
        with self._building:  # loader and start may want the same one
            if again or key not in self._artifacts:
                self._artifacts[key] = self._built(key)
                self._unbuilt.discard(key)
            return self._artifacts[key]

    def _built(self, key: EngineKey) -> Artifact:
        request = CompileRequest(
            subnet=key.subnet, precision=key.precision, batch_sizes=tuple(sorted(self._rows[key])), threads=key.threads
        )
        before_ns, began = time.time_ns(), time.perf_counter()
        artifact = self._backends[key.backend].build(self._bundle, request)
        with contextlib.suppress(OSError):
            if (Path(artifact.path) / RECORD).stat().st_mtime_ns >= before_ns:  # else it was in the cache
                ms = (time.perf_counter() - began) * 1000
                self._on_event("engine_built", {**key._asdict(), "ms": round(ms, 1)})
        return artifact

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
        if resident.key == here or (prefetch and resident.leases):
            return False
        if prefetch:
            return resident.key != self.keeper and self.distance(resident.key, here) > self.distance(key, here)
        return True

    def _make_room(self, need: int, key: EngineKey) -> None:
        """Frees engines until ``need`` bytes fit, or none but the current and ``key`` is left.

        Before loading it waits for engines that requests wait for: once they are answered, those may leave as well.
        """
        if self._budget is None:
            return
        until_s = time.monotonic() + _LEASE_WAIT_S
        while True:
            with self._mutex:
                leaving, leased = self._leaving(need, key)
                over = self._held_bytes() + need - self._budget
            for resident in leaving:
                resident.retire()
                self._on_event("engine_evicted", {"subnet": resident.key.subnet, "memory_bytes": resident.memory_bytes})
            if over <= 0:
                return
            if not need:
                self._on_event("over_budget", {"over_bytes": over, "budget_bytes": self._budget})
                return
            with self._mutex:
                left_s = until_s - time.monotonic()
                if not leased or self._closed or left_s <= 0:
                    return
                if leased == self._leased(key):
                    self._given_back.wait(left_s)

    def _leaving(self, need: int, key: EngineKey) -> tuple[list[Resident], int]:
        """Takes out who must make room; and how many others may not go yet."""
        assert self._budget is not None
        here = self.current.resident.key if self.current else key

        def value(resident: Resident) -> tuple[bool, float, float]:
            return resident.key == self.keeper, -self.distance(resident.key, here), resident.used_at_s

        leaving = []
        for resident in sorted((r for r in self._residents.values() if r.key not in (here, key)), key=value):
            if self._held_bytes() + need <= self._budget:
                break
            if not resident.leases:
                leaving.append(self._residents.pop(resident.key))
        return leaving, self._leased(key)

    def _leased(self, key: EngineKey) -> int:
        here = self.current.resident.key if self.current else key
        return sum(resident.leases for resident in self._residents.values() if resident.key not in (here, key))

    def _held_bytes(self) -> int:
        return sum(resident.memory_bytes for resident in self._residents.values())


def _by_engine(table: Table) -> dict[EngineKey, dict[int, Row]]:
    """The rows of each engine, by batch size."""
    rows: dict[EngineKey, dict[int, Row]] = {}
    for row in table.rows:
        rows.setdefault(engine_key(row), {})[row.batch_size] = row
    return rows


def _size_on_disk(path: Path) -> int:
    """Bytes of an artifact's files: the least its engine can need."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
