"""What does ``Engine.infer`` cost beside the raw OpenVINO request that it runs? On the same request, in turns.

Both sides use one compiled model, one request and one array of images, written anew before every call as a caller
would write it; the raw side is ``InferRequest.infer()`` on tensors bound once, with nothing checked and nothing copied.
So the difference is taking the batch, looking for NaN before and after, and copying the answer out. The order within a
pair changes from pair to pair. Medians are taken per round, and the interval is that over rounds.

    python benchmarks/overhead.py --network resnet18 --network resnet20 > overhead.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESNET18_SHARES, ROOT, difference, provenance, random_bundle

from backends.base import CompileRequest
from backends.openvino import OpenVINOBackend, OpenVINOEngine
from subnets.bundle import Bundle

ALLOWED_US = 15.0


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", action="append", choices=["resnet18", "resnet20"], help="both by default")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="per round and subnet")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    points = []
    with tempfile.TemporaryDirectory() as folder:
        backend = OpenVINOBackend(Path(folder) / "cache")
        for network in options.network or ["resnet18", "resnet20"]:
            bundle = _bundle(network, Path(folder))
            for subnet in bundle.ladder.names:
                request = CompileRequest(subnet=subnet, precision=options.precision, threads=options.threads)
                engine = backend.load(backend.build(bundle, request))
                points.append({"network": network, **_point(engine, options.rounds, options.seconds)})
                engine.close()
    document = {
        "what": "median microseconds of one request, batch 1: Engine.infer against InferRequest.infer on bound tensors",
        "points": points,
        "allowed_us": ALLOWED_US,
        "largest_us": max(point["difference_us"] for point in points),
        "shown": all(point["difference_us"] <= ALLOWED_US for point in points),
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _bundle(network: str, folder: Path) -> Bundle:
    if network == "resnet18":
        return random_bundle(folder / network, network, RESNET18_SHARES, image=(3, 224, 224), align=16)
    return Bundle.open(ROOT / "bundles" / "resnet20-cifar10")


def _point(engine: OpenVINOEngine, rounds: int, seconds: float) -> dict[str, Any]:
    """One subnet: both medians and the median of paired differences, with the interval over rounds."""
    batch = np.random.default_rng(0).standard_normal((1, *engine.artifact.input_shape)).astype(np.float32)
    # The engine's own request, which still has the batch (or its copy) bound: another compiled model would bring
    # weights of its own into the cache and each side would throw out the other's.
    raw = engine._request
    sides: dict[str, Callable[[], Any]] = {"engine": lambda: engine.infer(batch), "raw": raw.infer}
    for _ in range(10):
        engine.infer(batch)
        raw.infer()
    everything: dict[str, list[float]] = {"engine": [], "raw": [], "difference": []}
    per_round = []
    for _ in range(rounds):
        pairs: list[float] = []
        began = time.perf_counter()
        while not pairs or time.perf_counter() - began < seconds:
            order = ("engine", "raw") if len(pairs) % 2 else ("raw", "engine")
            took = {}
            for side in order:
                np.negative(batch, out=batch)
                before = time.perf_counter_ns()
                sides[side]()
                took[side] = (time.perf_counter_ns() - before) / 1e3
                everything[side].append(took[side])
            pairs.append(took["engine"] - took["raw"])
        everything["difference"] += pairs
        per_round.append(statistics.median(pairs))
    found = difference(statistics.median(everything["difference"]), per_round)
    return {
        "subnet": engine.artifact.request.subnet,
        "input": [1, *engine.artifact.input_shape],
        "precision": engine.artifact.request.precision,
        "threads": engine.artifact.request.threads,
        "engine_us": statistics.median(everything["engine"]),
        "raw_us": statistics.median(everything["raw"]),
        "difference_us": found.value,
        "difference_low_us": found.low,
        "difference_high_us": found.high,
        "rounds": rounds,
        "pairs": len(everything["difference"]),
    }


if __name__ == "__main__":
    main()
