"""The operating points to be measured: engines built, loaded and given something to answer.

* :class:`Subject`: one operating point with its open engine.
* :func:`choose`, :func:`opened`: which combinations there are, and their engines for the length of a ``with``.

Knows nothing of time spent answering; what loading costs is taken here, because here it happens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np

from backends.base import Backend, Batch, CompileRequest, Engine
from subnets.bundle import Bundle
from subnets.errors import InputError, UnavailableError


class Subject(NamedTuple):
    """One operating point under measurement."""

    subnet: str
    backend: str
    device: str
    precision: str
    batch_size: int
    threads: int
    macs: int
    engine: Engine
    batch: Batch
    load_ms: float
    memory_bytes: int | None

    @property
    def point(self) -> str:
        """The operating point's name, as :attr:`calibration.table.Row.point`."""
        return f"{self.subnet}@{self.backend}:{self.precision}:b{self.batch_size}"

    @property
    def family(self) -> tuple[str, str, int]:
        """What operating points share when only the subnet differs."""
        return self.backend, self.precision, self.batch_size


def choose(bundle: Bundle, backends: Sequence[Backend], precisions: Sequence[str] | None) -> list[tuple[Backend, str]]:
    """The (backend, precision) pairs to measure.

    Raises:
        UnavailableError: no backend can be used here.
        InputError: a precision was asked for that none of them computes in.
    """
    found = [(backend, backend.available()) for backend in backends]
    usable = [backend for backend, availability in found if availability.ok]
    if not usable:
        reasons = "; ".join(f"{backend.name}: {availability.why}" for backend, availability in found) or "none given"
        raise UnavailableError(f"no backend can be calibrated here ({reasons}); 'gearshift doctor' tells more")
    offered = {backend.name: backend.precisions_for(bundle) for backend in usable}
    for precision in precisions or ():
        if not any(precision in of_one for of_one in offered.values()):
            all_offered = "; ".join(f"{name}: {', '.join(of_one)}" for name, of_one in offered.items())
            raise InputError(f"precision '{precision}' is not offered here; choose among {all_offered}")
    return [
        (backend, precision)
        for backend in usable
        for precision in offered[backend.name]
        if precisions is None or precision in precisions
    ]


@contextmanager
def opened(
    bundle: Bundle,
    pairs: Sequence[tuple[Backend, str]],
    *,
    batch_sizes: tuple[int, ...],
    threads: int,
    seed: int,
    clock: Callable[[], float],
    on_step: Callable[[str], None],
    only: Collection[str] | None = None,
) -> Iterator[list[Subject]]:
    """Builds and loads one engine per (subnet, backend, precision) and closes them all at the end.

    All engines are resident together, as the agent keeps them. ``load_ms`` is one load from an artifact on disk, with
    the backend's library already at work: a first engine is loaded before and left out of it. ``only`` names the
    operating points wanted; all when None.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    inputs = {size: random.standard_normal((size, *bundle.input.shape)).astype(np.float32) for size in batch_sizes}
    with ExitStack() as stack:
        subjects: list[Subject] = []
        openers: set[str] = set()
        for backend, precision in pairs:
            for entry in bundle.manifest.subnets:
                point = f"{entry.name}@{backend.name}:{precision}:b"
                sizes = [size for size in batch_sizes if only is None or f"{point}{size}" in only]
                if not sizes:
                    continue
                on_step(f"building {entry.name} for {backend.name} {precision}")
                request = CompileRequest(
                    subnet=entry.name, precision=precision, batch_sizes=batch_sizes, threads=threads
                )
                artifact = backend.build(bundle, request)
                if backend.name not in openers:
                    openers.add(backend.name)
                    stack.callback(backend.load(artifact).close)
                started = clock()
                engine = backend.load(artifact)
                load_ms = (clock() - started) * 1e3
                stack.callback(engine.close)
                memory = engine.memory_bytes
                subjects += [
                    Subject(
                        subnet=entry.name,
                        backend=backend.name,
                        device=artifact.device,
                        precision=precision,
                        batch_size=size,
                        threads=threads,
                        macs=entry.macs,
                        engine=engine,
                        batch=inputs[size],
                        load_ms=load_ms,
                        memory_bytes=memory,
                    )
                    for size in sizes
                ]
        yield subjects
