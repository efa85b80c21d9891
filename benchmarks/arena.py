"""How good is the default policy? The whole arena on a calibrated table and on a made-up one, against what is promised.

Promised for the default: regret at most 5 % on the median scenario and 12 % on the worst, no limit broken, the battery
lasting in 99 % of the runs in which it can, at most 20 switches an hour on the dull day, and no policy better on the
median scenario. Both arenas go on from where a killed one stopped.

    python benchmarks/arena.py resnet20.table.json --traces ../shared/traces/arrivals --out arena > arena.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one worker a processor: their linear algebra must not take others

from common import provenance

from calibration import table as tables
from calibration.table import Table
from cli.arena import recorded
from simulation.arena import Contender, Contest, Played, Result, everyone, run
from simulation.arena_report import html
from simulation.scenarios import usable
from simulation.standings import Standings, bounds_of, standings
from simulation.synthetic import NAME, synthetic_table
from subnets.bundle import write_atomically

DEFAULT = "composite"
MEDIAN, WORST, HITS, DULL_PER_HOUR = 0.05, 0.12, 0.99, 20.0


def main() -> None:
    """Plays both arenas, writes their reports and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--traces", type=Path, help="folder of recorded loads")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, default=100, help="below 100: for development")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--duration", type=float, help="of each run, in seconds; by default what suits the table")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    arenas = {"calibrated": tables.read(options.table), NAME: synthetic_table()}
    document: dict[str, Any] = {
        "what": "the default policy in the arena, on two tables, against what is promised of it",
        "arenas": {name: _arena(name, table, options) for name, table in arenas.items()},
        "seeds": list(_seeds(options)),
        **provenance(__file__, ["numpy", "scipy"]),
    }
    print(json.dumps(document, indent=1))


def _seeds(options: argparse.Namespace) -> tuple[int, ...]:
    return tuple(range(options.first_seed, options.first_seed + options.seeds))


def _arena(name: str, table: Table, options: argparse.Namespace) -> dict[str, Any]:
    contest = Contest(
        table=table,
        contenders=tuple(map(Contender.parse, everyone())),
        seeds=_seeds(options),
        scenarios=usable(table),
        traces=recorded((str(options.traces),)) if options.traces else (),
        duration_s=options.duration,
    )
    folder = options.out / name
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = run(contest, folder, executor=pool, progress=_tell)
    found = standings(results, DEFAULT)
    page = html(found, results, table=table.bundle_name, synthetic=name == NAME, seeds=contest.seeds)
    write_atomically(folder / "arena.html", page.encode())
    return {
        "table": table.bundle_name,
        "bundle_key": table.bundle_key,
        "promises": {**_promises(found), "lp_over_dp_over_all": _ordered(results)},
        **found.to_json(),
    }


def _ordered(results: Sequence[Result]) -> dict[str, Any]:
    """Runs that kept the limits, and how many of them the linear program or the dynamic program lies below."""
    bounds = bounds_of(results)
    runs = [
        (bounds[r.scenario, r.seed], r.outcome.accuracy_sum)
        for r in results
        if isinstance(r, Played) and (bounds[r.scenario, r.seed].infeasible or not r.broken)
    ]
    above = sum(not (found.dp is not None and found.lp >= found.dp >= reached) for found, reached in runs)
    return {"value": above, "limit": 0, "of": len(runs), "kept": above == 0}


def _promises(found: Standings) -> dict[str, dict[str, Any]]:
    mine = next(standing for standing in found.policies if standing.name == DEFAULT)
    dull = next(row for row in found.scenarios if row.name == "dull").switches_per_hour[DEFAULT]
    hits = mine.hits / mine.feasible if mine.feasible else None

    def told(value: Any, limit: Any, kept: bool) -> dict[str, Any]:
        return {"value": value, "limit": limit, "kept": kept}

    median, worst = mine.regret_median, mine.regret_worst
    return {
        "regret_median": told(median, MEDIAN, median is not None and median <= MEDIAN),
        "regret_worst": told(worst, WORST, worst is not None and worst <= WORST),
        "runs_with_a_broken_limit": told(mine.violations, 0, mine.violations == 0),
        "battery_lasted": told(hits, HITS, hits is None or hits >= HITS),
        "dull_switches_per_hour": told(dull, DULL_PER_HOUR, dull <= DULL_PER_HOUR),
        "best_on_the_median_scenario": told(found.winner, DEFAULT, found.winner == DEFAULT),
    }


def _tell(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"{done} of {total} cells", file=sys.stderr)


if __name__ == "__main__":
    main()
