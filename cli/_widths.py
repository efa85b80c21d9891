"""Times candidate widths on a backend, for ``gearshift sample --allocation latency``."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.base import Engine
    from subnets.bundle import Architecture
    from subnets.data import Dataset
    from subnets.groups import Traced
    from subnets.latency import Lookup, Measure

_WARMUP_RUNS = 10
_TURNS, _SECONDS_PER_TURN = 3, 0.1


def lookup(
    network: Any,
    architecture: Architecture,
    traced: Traced,
    dataset: Dataset,
    *,
    backend: str,
    precision: str,
    threads: int,
    path: Path,
) -> Lookup:
    """Milliseconds by widths at batch 1 on a backend here, kept at ``path``.

    Raises:
        InputError: there is no such backend, or the file is damaged.
        MismatchError: the file is of another network, backend or machine.
        UnavailableError: the backend cannot be used here.
    """
    import hashlib

    import msgspec

    from backends.registry import create
    from calibration.host import fingerprint
    from subnets.errors import InputError, UnavailableError
    from subnets.latency import Lookup

    engine_maker = create(backend)
    availability = engine_maker.available()
    if not availability.ok:
        raise UnavailableError(f"backend '{backend}' cannot be used here ({availability.why}); name another --backend")
    if precision not in engine_maker.precisions():
        offered = ", ".join(engine_maker.precisions())
        raise InputError(f"precision '{precision}' is not to be had from '{backend}' here; it offers {offered}")
    host = fingerprint([backend])
    described = msgspec.json.encode([architecture, dataset.shape], order="sorted")
    identity = {
        "network": f"{architecture.name} {hashlib.sha256(described).hexdigest()[:12]}",
        "backend": backend,
        "device": engine_maker.device,
        "precision": precision,
        "threads": str(threads),
        "host": f"{host.cpu}, {host.cores} cores",
        "libraries": ", ".join(f"{name} {version}" for name, version in sorted(host.libraries.items())),
    }
    return Lookup(timer(engine_maker, network, architecture, traced, dataset, precision, threads), identity, path)


def timer(
    backend: Any,
    network: Any,
    architecture: Architecture,
    traced: Traced,
    dataset: Dataset,
    precision: str,
    threads: int,
) -> Measure:
    """A function that builds a subnet of given widths on a backend and times it at batch 1, in ms."""
    from backends.base import CompileRequest
    from subnets.bundle import SCHEMA, InputSpec, Manifest, SubnetEntry, save
    from subnets.spec import Ladder, SubnetSpec
    from subnets.supernet import Supernet

    channels, height, width = dataset.shape

    def measure(widths: Mapping[str, int]) -> float:
        ladder = Ladder([SubnetSpec("candidate", dict(widths))])
        manifest = Manifest(
            schema=SCHEMA,
            name="candidate",
            architecture=architecture,
            input=InputSpec(channels=channels, height=height, width=width, mean=dataset.mean, std=dataset.std),
            labels=(),
            groups=traced.groups,
            subnets=(
                SubnetEntry(
                    name="candidate",
                    widths=dict(widths),
                    macs=traced.macs(widths),
                    parameters=traced.parameter_count(widths),
                ),
            ),
            weights_sha256="",
        )
        with tempfile.TemporaryDirectory() as folder:
            tensors = Supernet(network, traced.groups, ladder).tensors()
            bundle = save(Path(folder) / "candidate", manifest, tensors, "# one candidate\n")
            backend.cache = Path(folder) / "cache"  # a candidate's engine is of no further use
            request = CompileRequest(subnet="candidate", precision=precision, threads=threads)
            engine = backend.load(backend.build(bundle, request))
            try:
                return _latency_ms(engine, (1, channels, height, width))
            finally:
                engine.close()

    return measure


def _latency_ms(engine: Engine, shape: tuple[int, ...]) -> float:
    """The best of a few turns' medians: what the machine does besides makes a turn slower, never faster."""
    import numpy as np

    batch = np.random.default_rng(0).standard_normal(shape, np.float32)
    for _ in range(_WARMUP_RUNS):
        engine.infer(batch)
    medians = []
    for _ in range(_TURNS):
        times: list[float] = []
        started = now = time.perf_counter()
        while now - started < _SECONDS_PER_TURN or len(times) < 3:
            engine.infer(batch)
            after = time.perf_counter()
            times.append(after - now)
            now = after
        medians.append(statistics.median(times))
    return 1e3 * min(medians)
