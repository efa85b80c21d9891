"""What does ``Engine.infer`` cost beside the raw OpenVINO request that it runs? On the same request, in turns.

Both sides use one compiled model, one request and one array of images, written anew before every call as a caller
would write it; the raw side is ``InferRequest.infer()`` on tensors bound once, with nothing checked and nothing copied.
So the difference is taking the batch, looking for NaN, and copying the answer out. The order within a pair changes from
pair to pair. Medians are taken per round, and the interval is that over rounds; rounds that other work disturbed are
measured again (``quiet.py``).

For large images the model itself adds up what it reads, so that no pass over them is left to the engine. These layers
are part of the request and thus of both sides; what they take stands beside it as ``check_us``, by OpenVINO's profile.

A request of milliseconds varies by far more than what is looked for, so beside the difference of the two sides stands
``own_us``: the time that ``Engine.infer`` takes less that of the request it runs, by the clock within the same call.

    python benchmarks/overhead.py --network resnet18 --network resnet20 > overhead.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import difference, known_bundle, provenance, to_measure, verdicts
from quiet import Quiet

from backends.base import CompileRequest
from backends.ir import MODEL
from backends.openvino import SUM, OpenVINOBackend, OpenVINOEngine, _add_sum, _options
from backends.runtime import load_openvino, openvino_core, usable_processors

ALLOWED_US = 15.0
_PROFILED = 100


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", action="append", choices=["resnet18", "resnet20"], help="both by default")
    parser.add_argument("--precision", action="append", help="may be repeated; f32 and bf16 by default")
    parser.add_argument("--threads", type=int, action="append", help="may be repeated; 1 and 2 by default")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="per round and subnet")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    quiet, points = Quiet(options.patience), []
    with tempfile.TemporaryDirectory() as folder:
        backend = OpenVINOBackend(Path(folder) / "cache")
        precisions, not_measured = to_measure(backend, options.precision or ["f32", "bf16"])
        threads = [count for count in options.threads or [1, 2] if count <= usable_processors()]
        for network in options.network or ["resnet18", "resnet20"]:
            bundle = known_bundle(network, Path(folder))
            for precision, count, subnet in itertools.product(precisions, threads, bundle.ladder.names):
                request = CompileRequest(subnet=subnet, precision=precision, threads=count)
                engine = backend.load(backend.build(bundle, request))
                points.append({"network": network, **_point(engine, quiet, options.rounds, options.seconds)})
                engine.close()
    document = {
        "what": "median microseconds of one request, batch 1: Engine.infer against InferRequest.infer on bound tensors",
        "points": points,
        "together": (together := _together(points)),
        "allowed_us": ALLOWED_US,
        "shown": verdicts(together, lambda one: one["difference_us"] <= ALLOWED_US),
        "not_measured": not_measured,
        "quiet": quiet.told(),
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _together(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By network and precision, the mean over subnets and threads, each point weighted by how well it is known.

    The engine does the same for all of them: what it costs beside a request of 20 ms cannot be told from one alone.
    """
    found = []
    for network, precision in dict.fromkeys((point["network"], point["precision"]) for point in points):
        own = [point for point in points if (point["network"], point["precision"]) == (network, precision)]
        values = np.array([point["difference_us"] for point in own])
        weights = np.array([(point["difference_high_us"] - point["difference_us"]) ** -2.0 for point in own])
        value, half = float(np.average(values, weights=weights)), float(weights.sum() ** -0.5)
        found.append(
            {
                "network": network,
                "precision": precision,
                "difference_us": value,
                "difference_low_us": value - half,
                "difference_high_us": value + half,
                "largest_check_us": max(point["check_us"] for point in own),
            }
        )
    return found


class _Timed:
    """An engine's way to its request, which keeps the nanoseconds of the last inference."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self.took_ns = 0

    def __call__(self) -> Any:
        before = time.perf_counter_ns()
        result = self._run()
        self.took_ns = time.perf_counter_ns() - before
        return result


def _check_us(engine: OpenVINOEngine) -> float:
    """What the layers that look for NaN take, by OpenVINO's own clock: medians; 0 where the model has none."""
    if len(engine._request.results) == 1:
        return 0.0
    artifact, core = engine.artifact, openvino_core()
    model = core.read_model(Path(artifact.path) / MODEL)
    model.reshape([1, *artifact.input_shape])
    _add_sum(model)
    options = _options(artifact.request) | {"PERF_COUNT": True}
    request = core.compile_model(model, artifact.device, options).create_infer_request()
    batch = np.random.default_rng(0).standard_normal((1, *artifact.input_shape)).astype(np.float32)
    request.set_input_tensor(load_openvino().Tensor(batch, shared_memory=True))
    took = []
    for _ in range(_PROFILED):
        np.negative(batch, out=batch)
        request.infer()
        layers = [layer for layer in request.profiling_info if layer.node_name.startswith(SUM)]
        took.append(sum(layer.real_time.total_seconds() for layer in layers) * 1e6)
    return float(statistics.median(took))


def _point(engine: OpenVINOEngine, quiet: Quiet, rounds: int, seconds: float) -> dict[str, Any]:
    """One subnet: both medians and the median of paired differences, with the interval over rounds."""
    batch = np.random.default_rng(0).standard_normal((1, *engine.artifact.input_shape)).astype(np.float32)
    engine.infer(batch)
    # The engine's own request, which has the batch (or its copy) bound: another compiled model of the same file is
    # faster or slower by up to 100 us, by where its memory came to lie.
    raw, run = engine._request, engine._run
    timed = _Timed(run)

    def own() -> float:
        engine._run = timed
        np.negative(batch, out=batch)
        before = time.perf_counter_ns()
        engine.infer(batch)
        took_ns = time.perf_counter_ns() - before - timed.took_ns
        engine._run = run
        return took_ns / 1e3

    def one_round(number: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"engine": [], "raw": [], "difference": [], "own": []}
        sides: dict[str, Callable[[], Any]] = {"engine": lambda: engine.infer(batch), "raw": raw.infer}
        for _ in range(5):
            engine.infer(batch)
            raw.infer()
        began = time.perf_counter()
        while not found["own"] or time.perf_counter() - began < seconds:
            for side in ("engine", "raw") if len(found["own"]) % 2 else ("raw", "engine"):
                np.negative(batch, out=batch)
                before = time.perf_counter_ns()
                sides[side]()
                found[side].append((time.perf_counter_ns() - before) / 1e3)
            found["difference"].append(found["engine"][-1] - found["raw"][-1])
            found["own"].append(own())
        return found

    measured = quiet.rounds(rounds, one_round)
    pooled = {name: [value for one in measured for value in one[name]] for name in measured[0]}
    medians = {name: [statistics.median(one[name]) for one in measured] for name in measured[0]}
    between = difference(statistics.median(pooled["difference"]), medians["difference"])
    within = difference(statistics.median(pooled["own"]), medians["own"])
    return {
        "subnet": engine.artifact.request.subnet,
        "input": [1, *engine.artifact.input_shape],
        "precision": engine.artifact.request.precision,
        "threads": engine.artifact.request.threads,
        "engine_us": statistics.median(pooled["engine"]),
        "raw_us": statistics.median(pooled["raw"]),
        "difference_us": between.value,
        "difference_low_us": between.low,
        "difference_high_us": between.high,
        "own_us": within.value,
        "own_low_us": within.low,
        "own_high_us": within.high,
        "check_us": _check_us(engine),
        "rounds": rounds,
        "pairs": len(pooled["difference"]),
    }


if __name__ == "__main__":
    main()
