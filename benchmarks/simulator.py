"""How fast is the simulator? The composite policy on the full plant: heat, throttling, battery, imperfect sensors.

Three runs, on one core, each repeated; the fastest repetition counts, since everything else on the machine only slows
down. Loading the machine code is not part of a run and is told apart.

* ``day``: 24 hours at 100 requests a second; the policy decides once a second.
* ``busy``: a day squeezed into four hours, 1000 requests a second on average, with bursts, a hot afternoon and a busy
  neighbour; the hot loop weighs more than the policy.
* ``twin``: two minutes of the busy day compiled and in plain Python; both outcomes must be equal.

    python benchmarks/simulator.py > simulator.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from common import provenance

from policies.base import Goals
from policies.composite import Composite
from simulation import kernel
from simulation.battery import Battery
from simulation.outcome import Outcome
from simulation.plant import Plant
from simulation.replay import simulate
from simulation.synthetic import synthetic_table
from simulation.trace import Trace, load

_ASKED_PER_S, _ASKED_DAY_S = 2e6, 10.0
_MEAN_W = 9.0  # about what the table's device draws at these loads; sizes the battery


def main() -> None:
    """Prints the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="length of the day")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    started = time.perf_counter()
    kernel.compiled()
    loaded_s = time.perf_counter() - started
    day = load(f"diurnal:rate=100,hours={options.hours:g},seed=1")
    busy = load("day:rate=1000,hours=4,burst=2,bursts_per_hour=10,seed=1")
    part = busy.cut(7200.0, 120.0)
    fast, outcome = _run(part, True, options.repeats)
    plain, same = _run(part, False, 1)
    if outcome != same:
        sys.exit("compiled and plain outcomes differ")
    whole, crowded = _run(day, True, options.repeats)[0], _run(busy, True, options.repeats)[0]
    result = {
        "what": "requests simulated a second on one core, the default policy on the full plant",
        "shown": {
            "2 million requests a second": crowded["requests_per_s"] >= _ASKED_PER_S,
            "24 hours at 100 a second within 10 s": whole["wall_s"] * 24.0 / options.hours < _ASKED_DAY_S,
        },
        "day": whole,
        "busy": crowded,
        "twin": {
            "requests": len(part.arrivals_s),
            "compiled_per_s": fast["requests_per_s"],
            "plain_per_s": plain["requests_per_s"],
            "ratio": fast["requests_per_s"] / plain["requests_per_s"],
        },
        "load_machine_code_s": loaded_s,
        "repeats": options.repeats,
        **provenance(__file__, ("numba",)),
    }
    print(json.dumps(result, indent=1))


def _run(trace: Trace, compiled: bool, repeats: int) -> tuple[dict[str, Any], Outcome]:
    table = synthetic_table()
    battery = Battery.of_energy(1.2 * _MEAN_W * max(trace.duration_s, 3600.0))  # at 1 C or less, as cells are used
    plant = Plant.for_table(table, battery)
    goals = Goals(deadline_ms=20.0, temperature_limit_c=65.0, last_until_s=trace.duration_s)
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = simulate(table, trace, Composite(goals), goals, plant, compiled=compiled)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    found = {
        "requests": outcome.requests,
        "simulated_s": trace.duration_s,
        "wall_s": min(walls),
        "cpu_s": min(cpus),
        "requests_per_s": outcome.requests / min(walls),
        "on_time": outcome.on_time,
        "mean_accuracy": outcome.mean_accuracy,
        "switches": outcome.switches,
        "battery_at_goal": outcome.battery_at_goal,
        "peak_temperature_c": outcome.peak_temperature_c,
    }
    return found, outcome


if __name__ == "__main__":
    main()
