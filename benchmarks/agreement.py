"""Do our latencies agree with OpenVINO's own ``benchmark_app``? Same files, same settings, same minutes, in turns.

For each subnet of a bundle the artifact that calibration measures is also given to ``benchmark_app``. Both sides run
in turns, in alternating order, so that what else the machine does hits both; medians of each turn are compared.
Ours include what a caller sees: taking the batch, the checks and the copy of the answer.

    python benchmarks/agreement.py --network resnet20 --turns 5 --seconds 3 > agreement-resnet20.json
    python benchmarks/agreement.py --network resnet18 --threads 2 > agreement-resnet18.json

``resnet20`` is the bundle that ships; ``resnet18`` four subnets of 224 x 224 with random weights and aligned,
non-uniform widths. A bundle of one's own goes in by its path.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import known_bundle, provenance, to_measure, verdicts
from quiet import Quiet

from backends.base import Artifact, CompileRequest, Engine
from backends.registry import create
from calibration.statistics import positive_interval
from subnets.bundle import Bundle

ALLOWED = 0.07
_WARMUP = 20


def ours_ms(engine: Engine, batch: np.ndarray[tuple[int, ...], np.dtype[np.float32]], seconds: float) -> float:
    """Median latency of back-to-back requests through our engine."""
    for _ in range(_WARMUP):
        engine.infer(batch)
    latencies = []
    started = now = time.perf_counter()
    while now - started < seconds:
        engine.infer(batch)
        after = time.perf_counter()
        latencies.append((after - now) * 1e3)
        now = after
    return statistics.median(latencies)


def theirs_ms(artifact: Artifact, seconds: float) -> float:
    """Median latency according to benchmark_app, with the options that our engine compiles with.

    A latency hint refuses explicit threads; ``-ip f32`` keeps it from feeding u8 with a conversion in front.
    """
    request, shape = artifact.request, artifact.input_shape
    sizes = f"[{request.batch_sizes[0]},{','.join(map(str, shape))}]"
    with tempfile.TemporaryDirectory() as folder:
        command = [_benchmark_app(), "-m", str(Path(artifact.path) / "model.xml"), "-d", artifact.device]
        command += ["-hint", "none", "-nstreams", "1", "-nthreads", str(request.threads), "-pin", "NO", "-api", "sync"]
        command += ["-ip", "f32", "-infer_precision", request.precision, "-shape", sizes]
        command += ["-t", str(max(1, round(seconds)))]
        command += ["-report_type", "no_counters", "-report_folder", folder, "-json_stats"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        reports = list(Path(folder).glob("*.json"))
        if done.returncode or not reports:
            sys.exit(
                f"benchmark_app failed ({done.returncode}): {' '.join(command)}\n"
                f"{done.stdout[-1500:]}{done.stderr[-500:]}"
            )
        results = json.loads(reports[0].read_text(encoding="utf-8"))["execution_results"]
    return float(results["latency (ms)"])


def _benchmark_app() -> str:
    beside = Path(sys.executable).parent / "benchmark_app"
    found = str(beside) if beside.exists() else shutil.which("benchmark_app")
    if found is None:
        sys.exit("benchmark_app is not installed; it comes with: pip install openvino")
    return found


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("bundle", type=Path, nargs="?", help="a bundle with exports")
    what.add_argument("--network", choices=["resnet20", "resnet18"], help="one of two known ones instead")
    parser.add_argument("--precision", action="append", help="may be repeated; f32 and bf16 by default")
    parser.add_argument("--subnet", action="append", help="may be repeated; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5, help="of each side, per subnet")
    parser.add_argument("--seconds", type=float, default=3.0, help="per turn")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    options = parser.parse_args()
    if options.turns < 2 or options.seconds < 1:
        parser.error("--turns must be at least 2 and --seconds at least 1")

    with tempfile.TemporaryDirectory() as folder:
        bundle = Bundle.open(options.bundle) if options.bundle else known_bundle(options.network, Path(folder))
        backend, quiet, points = create("openvino", Path(folder)), Quiet(options.patience), []
        precisions, not_measured = to_measure(backend, options.precision or ["f32", "bf16"])
        for precision in precisions:
            for subnet in options.subnet or bundle.ladder.names:
                request = CompileRequest(subnet=subnet, precision=precision, threads=options.threads)
                artifact = backend.build(bundle, request)
                points.append(_point(artifact, backend.load(artifact), quiet, options.turns, options.seconds))
    ratios = [point["ratio"] for point in points]
    document = {
        "what": "median latency, ms, batch 1, synchronous, one stream: ours over benchmark_app's, paired by turn",
        "points": points,
        "ratio_lowest": min(ratios, default=None),
        "ratio_highest": max(ratios, default=None),
        "allowed": ALLOWED,
        "shown": verdicts(points, lambda point: abs(point["ratio"] - 1) <= ALLOWED),
        "not_measured": not_measured,
        "quiet": quiet.told(),
        "bundle": bundle.name,
        "bundle_key": bundle.key,
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _point(artifact: Artifact, engine: Engine, quiet: Quiet, turns: int, seconds: float) -> dict[str, Any]:
    """One subnet: the medians of both sides, turn by turn, and their ratio with its 95 % interval over turns."""
    batch = np.random.default_rng(0).standard_normal((1, *artifact.input_shape)).astype(np.float32)

    def turn(number: int) -> tuple[float, float]:
        if number % 2:
            their_ms = theirs_ms(artifact, seconds)
            return ours_ms(engine, batch, seconds), their_ms
        return ours_ms(engine, batch, seconds), theirs_ms(artifact, seconds)

    ours, theirs = (list(side) for side in zip(*quiet.rounds(turns, turn), strict=True))
    engine.close()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = positive_interval(statistics.median(ratios), ratios)
    return {
        "subnet": artifact.request.subnet,
        "precision": artifact.request.precision,
        "threads": artifact.request.threads,
        "ours_ms": statistics.median(ours),
        "benchmark_app_ms": statistics.median(theirs),
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "ours_turns_ms": ours,
        "benchmark_app_turns_ms": theirs,
    }


if __name__ == "__main__":
    main()
