"""Does a second calibration agree with the first, and does ``verify`` right after one pass? On the shipped bundle.

Real commands, one after another: calibrate, verify, calibrate, verify. Of nine in ten rows of the two tables the 95 %
intervals of the median are asked to overlap, and both verifications to say that the table holds.
A machine that drifts makes wide intervals, and then agreement says little: so the widths stand beside the verdict.

    python benchmarks/repeatability.py --budget 60s > repeatability.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, provenance

from calibration.compare import compare
from calibration.table import Table, read

ASKED_OVERLAP = 0.9


def main() -> None:
    """Runs the commands and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=ROOT / "bundles" / "resnet20-cifar10")
    parser.add_argument("--budget", default="90s", help="of each calibration")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--threads", type=int, action="append", help="may be repeated; 1 and 2 by default")
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for threads in options.threads or [1, 2]:
            paths = [Path(folder) / f"{name}-t{threads}.table.json" for name in ("first", "second")]
            verdicts = []
            for seed, path in enumerate(paths):
                asked = ["--budget", options.budget, "--backend", options.backend, "--threads", threads, "--seed", seed]
                _gearshift("calibrate", options.bundle, *asked, "--out", path)
                verdicts.append(_verdict(path, options.bundle, Path(folder) / "verdict.json"))
            pairs.append(_pair(threads, read(paths[0]), read(paths[1]), verdicts))
    overlapping, of = sum(pair["overlapping"] for pair in pairs), sum(len(pair["rows"]) for pair in pairs)
    document = {
        "what": "two calibrations on one machine: do the intervals of the medians overlap, and does verify pass",
        "budget": options.budget,
        "pairs": pairs,
        "overlapping": overlapping,
        "of": of,
        "asked": ASKED_OVERLAP,
        "shown": {
            "repeated": overlapping >= ASKED_OVERLAP * of,
            "verified": all(verdict["holds"] for pair in pairs for verdict in pair["verified"]),
        },
        **provenance(__file__),
    }
    print(json.dumps(document, indent=1))


def _gearshift(*arguments: Any, allowed: tuple[int, ...] = (0,)) -> None:
    command = [str(Path(sys.executable).with_name("gearshift")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in allowed:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-1000:]}")


def _verdict(table: Path, bundle: Path, target: Path) -> dict[str, Any]:
    _gearshift("verify", table, bundle, "--seed", 0, "--json", target, allowed=(0, 1))
    told: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return {name: told[name] for name in ("holds", "findings", "rounds", "tolerance", "false_alarm")}


def _pair(threads: int, first: Table, second: Table, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    between = compare(first, second)
    return {
        "threads": threads,
        "rows": [
            {
                "point": change.point,
                "first_ms": change.a_p50_ms,
                "second_ms": change.b_p50_ms,
                "ratio": change.latency_ratio,
                "overlaps": change.latency_overlaps,
            }
            for change in between.changes
        ],
        "overlapping": between.overlapping,
        "common_ratio": between.common_ratio,
        "median_half_width": [statistics.median(row.half_width for row in table.rows) for table in (first, second)],
        "widening": [table.protocol.widening for table in (first, second)],
        "pressure": [table.protocol.pressure for table in (first, second)],
        "rounds": [table.protocol.rounds for table in (first, second)],
        "verified": verdicts,
    }


if __name__ == "__main__":
    main()
