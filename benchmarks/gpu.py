"""The paper's GPU setting on this GPU: ResNet-18, 224 x 224, batch 128, four subnets, with energy.

Subnets of 20, 40, 66 and 100 % of the MACs with random weights, multiples of 16 wide (Lou et al., DAC 2020, measured a
batch of 128). All engines are resident. In every round each subnet, and once nothing at all, has a window of its own,
in random order; a window holds one synchronized run of as many batches as fit, so that a counter that is refreshed
every 100 ms is read twice in several seconds. Two latencies: of the network on the GPU alone, and of a whole request
with its copies and checks. Energy is the board's, gross, and net of the round's idle power.

    python benchmarks/gpu.py --precision f16 > gpu.json

Takes the first of tensorrt, tensorrt-rtx and torch-cuda that can be used here. Without a GPU it says so and ends
with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from common import RESNET18_SHARES, difference, provenance, random_bundle

from backends.base import Backend, Batch, CompileRequest
from backends.cuda import identity, open_gpu
from backends.registry import create
from calibration.statistics import positive_interval
from sensors import EnergyMeter, meters
from subnets import UnavailableError
from subnets.bundle import Bundle

BACKENDS = ("tensorrt", "tensorrt-rtx", "torch-cuda")
IDLE = ""  # the cell in which nothing runs
_WARMUP_S = 1.0
_REQUESTS = 20  # whole requests timed per window


class GpuEngine(Protocol):
    """What the engines of all GPU backends offer beside the common contract."""

    def infer(self, batch: Batch) -> Batch:
        """One whole request."""

    def repeat(self, batch_size: int, times: int) -> None:
        """The network alone, several times."""


class Window(NamedTuple):
    """One engine's turn in one round; joules and watts are None where no meter tells."""

    gpu_ms: float  # per batch
    request_ms: float
    power_w: float | None
    joules: float | None  # per batch


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=BACKENDS, help="the first usable one by default")
    parser.add_argument("--precision", default="f16")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0, help="per window")
    options = parser.parse_args()
    if options.rounds < 2 or options.seconds <= 0:
        parser.error("--rounds must be at least 2 and --seconds above 0")
    try:
        gpu = open_gpu()
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            backend = _usable([options.backend] if options.backend else BACKENDS, Path(folder) / "cache")
            bundle = random_bundle(Path(folder) / "bundle", "resnet18", RESNET18_SHARES, image=(3, 224, 224), align=16)
            engines, memory = {}, {}
            for subnet in bundle.ladder.names:
                request = CompileRequest(subnet=subnet, precision=options.precision, batch_sizes=(options.batch,))
                engine = backend.load(backend.build(bundle, request))
                engines[subnet], memory[subnet] = stack.enter_context(closing(engine)), engine.memory_bytes
            meter = next((found for found in meters() if found.device == "GPU"), None)
            if meter is not None:
                stack.enter_context(meter)
            windows = measure(
                engines,  # type: ignore[arg-type]  # every GPU backend's engine has repeat()
                options.batch,
                (3, 224, 224),
                rounds=options.rounds,
                seconds=options.seconds,
                meter=meter,
            )
    except UnavailableError as error:
        parser.exit(2, f"{error}\n")
    document = {
        "what": "ResNet-18, 224 x 224, random weights: latency of a batch, ms, and energy of an image, J",
        "backend": backend.name,
        "engine": backend.available().why,
        **identity(gpu),
        "precision": options.precision,
        "batch_size": options.batch,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "energy_source": meter.source if meter is not None else None,
        **summary(bundle, windows, options.batch),
        "memory_bytes": memory,
        **provenance(__file__, ("torch",)),
    }
    print(json.dumps(document, indent=1))


def _usable(names: Sequence[str], cache: Path) -> Backend:
    reasons = []
    for name in names:
        backend = create(name, cache)
        if (found := backend.available()).ok:
            return backend
        reasons.append(f"{name}: {found.why}")
    raise UnavailableError("no GPU backend can be used here: " + "; ".join(reasons))


def measure(
    engines: Mapping[str, GpuEngine],
    batch_size: int,
    image: tuple[int, int, int],
    *,
    rounds: int,
    seconds: float,
    meter: EnergyMeter | None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, list[Window]]:
    """One window per round for every engine, and for :data:`IDLE`, in random order."""
    random = np.random.default_rng(0)
    batch: Batch = random.standard_normal((batch_size, *image)).astype(np.float32)
    times = {name: _times(engine, batch, seconds, clock) for name, engine in engines.items()}
    windows: dict[str, list[Window]] = {name: [] for name in (*engines, IDLE)}
    cells = list(windows)
    for _ in range(rounds):
        for index in random.permutation(len(cells)):
            name = cells[index]
            if name == IDLE:
                windows[name].append(_window(lambda: sleep(seconds), 1, [], meter, clock))
                continue
            engine = engines[name]
            requests = []
            for _ in range(_REQUESTS):
                began = clock()
                engine.infer(batch)
                requests.append((clock() - began) * 1e3)
            count = times[name]

            def work(engine: GpuEngine = engine, count: int = count) -> None:
                engine.repeat(batch_size, count)

            windows[name].append(_window(work, count, requests, meter, clock))
    return windows


def _times(engine: GpuEngine, batch: Batch, seconds: float, clock: Callable[[], float]) -> int:
    """How many batches fill a window, told by a warm-up that also brings the clocks up."""
    engine.infer(batch)
    done, began = 0, clock()
    while (taken := clock() - began) < min(seconds, _WARMUP_S):
        engine.repeat(len(batch), 10)
        done += 10
    return max(1, math.ceil(done * seconds / taken))


def _window(
    work: Callable[[], None],
    count: int,
    requests: Sequence[float],
    meter: EnergyMeter | None,
    clock: Callable[[], float],
) -> Window:
    before = meter.sample() if meter is not None else None
    began = clock()
    work()
    taken = clock() - began
    request_ms = statistics.median(requests) if requests else math.nan
    if meter is None or before is None:
        return Window(taken / count * 1e3, request_ms, None, None)
    energy = meter.energy(before, meter.sample())
    joules = None if energy.joules is None else energy.joules / count
    return Window(taken / count * 1e3, request_ms, energy.power_w, joules)


def summary(bundle: Bundle, windows: Mapping[str, Sequence[Window]], batch_size: int) -> dict[str, Any]:
    """Per subnet medians over rounds with intervals; energy only where every window has it."""
    idle = [window.power_w for window in windows[IDLE]]
    full = bundle.manifest.subnets[-1]
    rows = []
    for entry in bundle.manifest.subnets:
        own = windows[entry.name]
        latency = _positive([window.gpu_ms for window in own])
        request = _positive([window.request_ms for window in own])
        fall = _positive([a.gpu_ms / b.gpu_ms for a, b in zip(windows[full.name], own, strict=True)])
        row: dict[str, Any] = {
            "subnet": entry.name,
            "macs": entry.macs,
            "macs_share": entry.macs / full.macs,
            "widths": dict(entry.widths),
            "gpu_ms": latency,
            "request_ms": request,
            "images_per_s": batch_size / latency["value"] * 1e3,
            "times_faster_than_full": fall,
            "energy_j_per_image": None,
            "net_energy_j_per_image": None,
            "power_w": None,
        }
        pairs = [(window, power) for window, power in zip(own, idle, strict=True) if window.joules and power]
        if len(pairs) == len(own):
            joules = [(window.joules or 0.0) / batch_size for window, _ in pairs]
            net = [((window.joules or 0.0) - power * window.gpu_ms / 1e3) / batch_size for window, power in pairs]
            row["energy_j_per_image"] = _positive(joules)
            row["net_energy_j_per_image"] = difference(statistics.median(net), net)._asdict()
            row["power_w"] = _positive([window.power_w or 0.0 for window, _ in pairs])
        rows.append(row)
    powers = [power for power in idle if power]
    return {
        "subnets": rows,
        "idle_power_w": _positive(powers) if len(powers) == len(idle) else None,
        "spread": rows[0]["times_faster_than_full"]["value"],
    }


def _positive(rounds: Sequence[float]) -> dict[str, float]:
    return positive_interval(statistics.median(rounds), rounds)._asdict()


if __name__ == "__main__":
    main()
