"""The paper's spread on this processor: ResNet-18, 224 x 224, batch 1, four subnets, aligned widths and odd ones.

Subnets of 20, 40, 66 and 100 % of the MACs with random weights (Lou et al., DAC 2020, measured 30.5 to 65.4 ms on their
CPU: 2.14 times). Two ladders from the same factors differ only in the widths' alignment: multiples of 32, or odd
numbers. All engines are loaded; in every round each answers for a while, in random order; ratios are taken within a
round, so that a slow minute of the machine hits both sides.

    python benchmarks/paper_latency.py --threads 2 --rounds 20 > paper-latency.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from common import RESNET18_SHARES, provenance, random_bundle, to_measure
from quiet import Quiet

from backends.base import Batch, CompileRequest, Engine
from backends.openvino import OpenVINOBackend
from backends.runtime import usable_processors
from calibration.statistics import Interval, positive_interval
from subnets.bundle import Bundle

LADDERS = {"aligned": 32, "odd": 1}  # 32 channels in bf16 fill a register of AVX-512 and a row of an AMX tile
ASKED_SPREAD = {"f32": 4.0, "bf16": 2.8}
ASKED_SHARE_OF_MACS_FALL = {"f32": 0.85}
_WARMUP = 5  # the first answers of an engine after another one's find its weights out of the cache

Cell = tuple[str, str, str]  # ladder, precision, subnet


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--precision", action="append", help="may be repeated; f32 and bf16 by default")
    parser.add_argument("--threads", type=int, default=usable_processors(), help="all usable processors by default")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="per engine and round")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to wait for a quiet machine")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        backend = OpenVINOBackend(Path(folder) / "cache")
        precisions, not_measured = to_measure(backend, options.precision or ["f32", "bf16"])
        bundles: dict[str, Bundle] = {}
        engines: dict[Cell, Engine] = {}
        for ladder, align in LADDERS.items():
            bundle = random_bundle(Path(folder) / ladder, "resnet18", RESNET18_SHARES, image=(3, 224, 224), align=align)
            bundles[ladder] = bundle
            for precision in precisions:
                for subnet in bundle.ladder.names:
                    request = CompileRequest(subnet=subnet, precision=precision, threads=options.threads)
                    engine = backend.load(backend.build(bundle, request))
                    engines[ladder, precision, subnet] = stack.enter_context(closing(engine))
        quiet = Quiet(options.patience)
        medians = _measure(engines, quiet, options.rounds, options.seconds)
    results = [_ladder(bundles[ladder], ladder, precision, medians) for ladder in LADDERS for precision in precisions]
    document = {
        "what": "median latency, ms, ResNet-18 at 224 x 224, batch 1, back to back, by ladder and precision",
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "ladders": results,
        "odd_over_aligned": [_odd_over_aligned(bundles["aligned"], precision, medians) for precision in precisions],
        "shown": {result["precision"]: result["shown"] for result in results if result["ladder"] == "aligned"},
        "not_measured": not_measured,
        "quiet": quiet.told(),
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _measure(engines: dict[Cell, Engine], quiet: Quiet, rounds: int, seconds: float) -> dict[Cell, list[float]]:
    """Milliseconds of the median answer, per engine, one for each round."""
    random = np.random.default_rng(0)
    batch: Batch = random.standard_normal((1, 3, 224, 224)).astype(np.float32)
    cells = list(engines)

    def one_round(number: int) -> dict[Cell, float]:
        medians = {}
        for index in random.permutation(len(cells)):
            infer = engines[cells[index]].infer
            for _ in range(_WARMUP):
                infer(batch)
            took: list[float] = []
            began = now = time.perf_counter()
            while now - began < seconds or not took:
                infer(batch)
                after = time.perf_counter()
                took.append((after - now) * 1e3)
                now = after
            medians[cells[index]] = statistics.median(took)
        return medians

    measured = quiet.rounds(rounds, one_round)
    return {cell: [one[cell] for one in measured] for cell in cells}


def _ladder(bundle: Bundle, ladder: str, precision: str, medians: dict[Cell, list[float]]) -> dict[str, Any]:
    """One ladder at one precision: latencies, what each subnet saves against the full network, and what was asked."""
    full = bundle.manifest.subnets[-1]
    of_full = medians[ladder, precision, full.name]
    rows: list[dict[str, Any]] = []
    for entry in bundle.manifest.subnets:
        rounds = medians[ladder, precision, entry.name]
        latency = positive_interval(statistics.median(rounds), rounds)
        fall = _ratio(of_full, rounds)
        rows.append(
            {
                "subnet": entry.name,
                "macs": entry.macs,
                "macs_share": entry.macs / full.macs,
                "widths": dict(entry.widths),
                "latency_ms": latency.value,
                "latency_low_ms": latency.low,
                "latency_high_ms": latency.high,
                "times_faster_than_full": fall.value,
                "times_faster_low": fall.low,
                "times_faster_high": fall.high,
                "share_of_macs_fall": fall.value / (full.macs / entry.macs),
            }
        )
    spread, share = rows[0]["times_faster_than_full"], min(row["share_of_macs_fall"] for row in rows)
    asked_spread, asked_share = ASKED_SPREAD.get(precision, 0.0), ASKED_SHARE_OF_MACS_FALL.get(precision, 0.0)
    return {
        "ladder": ladder,
        "align": LADDERS[ladder],
        "precision": precision,
        "subnets": rows,
        "spread": spread,
        "spread_asked": asked_spread,
        "least_share_of_macs_fall": share,
        "share_asked": asked_share,
        "shown": spread >= asked_spread and share >= asked_share,
    }


def _odd_over_aligned(bundle: Bundle, precision: str, medians: dict[Cell, list[float]]) -> dict[str, Any]:
    """What odd widths cost: latency of the odd ladder's subnet over that of the aligned one with as many MACs."""
    costs = {}
    for name in bundle.ladder.names[:-1]:  # the full network is the same in both
        cost = _ratio(medians["odd", precision, name], medians["aligned", precision, name])
        costs[name] = {"ratio": cost.value, "ratio_low": cost.low, "ratio_high": cost.high}
    return {"precision": precision, "subnets": costs}


def _ratio(above: list[float], below: list[float]) -> Interval:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return positive_interval(statistics.median(ratios), ratios)


if __name__ == "__main__":
    main()
