"""The pictures and tables of docs/policies.md: every policy on one scenario, and the recorded arena.

Pictures are of the made-up table and a development seed; they show how a policy behaves, not how good it is. Tables
are what the recorded arena says. Run it again after recording another.

    python benchmarks/policies_page.py            # pictures and tables
    python benchmarks/policies_page.py --tables   # tables alone
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec

from calibration.svg import Axis, Chart
from calibration.table import Table
from policies import Conditions, create
from policies.base import Goals
from policies.rungs import Where, rungs_of
from simulation import scenarios
from simulation.arena import Contender, outcome_of
from simulation.outcome import Outcome
from simulation.scenarios import Scenario
from simulation.synthetic import synthetic_table
from subnets.bundle import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULT = ROOT / "docs" / "policies.md", ROOT / "benchmarks" / "results" / "arena.json"
PICTURES = ROOT / "docs" / "pictures" / "policies"
BEGIN, END = "<!-- arena: made by benchmarks/policies_page.py -->", "<!-- end of arena -->"
SEED = 1
TIMELINES = {
    "largest": "everything",
    "smallest": "everything",
    "static": "everything",
    "throughput": "slowdown",
    "thermal": "heat",
    "battery": "drain",
    "power": "noisy",
    "ladder": "everything",
    "aimd": "everything",
    "pid": "heat",
    "effective": "slowdown",
    "alert": "slowdown",
    "lyapunov": "everything",
    "bandit": "slowdown",
    "composite": "everything",
}
OPTIONS = {"static": ":subnet=s50"}
PLANS = ("slackfit", "maxacc", "maxbatch", "mdp")
LOADS = (0.3, 0.9, 2.0)  # shares of what the largest subnet can answer one by one


def main() -> None:
    """Writes the pictures and the part of the page between the markers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", action="store_true", help="leave the pictures as they are")
    options = parser.parse_args()
    if not options.tables:
        table = synthetic_table()
        PICTURES.mkdir(parents=True, exist_ok=True)
        for name, scene in TIMELINES.items():
            scenario = _scenario(name, scene, table)
            run = outcome_of(scenario, Contender.parse(name + OPTIONS.get(name, "")))
            write_atomically(PICTURES / f"{name}.svg", _timeline(name, scenario, run).encode())
        for name in PLANS:
            write_atomically(PICTURES / f"{name}.svg", _plan(name, table).encode())
    result = json.loads(RESULT.read_text())
    for name, arena in result["arenas"].items():
        for what, chart in (("energy", _energy(arena)), ("deadline", _deadline(arena)), ("against", _against(arena))):
            write_atomically(PICTURES / f"arena-{name}-{what}.svg", chart.svg(standalone=True).encode())
    text = PAGE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    write_atomically(PAGE, f"{head}{BEGIN}\n{tables(result)}{END}{tail}".encode())


def _scenario(name: str, scene: str, table: Table) -> Scenario:
    scenario = scenarios.build(scene, table, SEED)
    if name != "power":
        return scenario
    watts = [row.power_w or 0.0 for row in rungs_of(scenario.table, Where()).rows]
    goals = msgspec.structs.replace(scenario.goals, max_power_w=(watts[-1] + watts[-2]) / 2)
    return msgspec.structs.replace(scenario, goals=goals)


def _timeline(name: str, scenario: Scenario, run: Outcome) -> str:
    """The subnet in use over time."""
    line = run.timeline
    assert line is not None
    subnets = [row.subnet for row in rungs_of(scenario.table, Where()).rows]
    rank = [float(subnets.index(line.points[place].partition("@")[0])) for place in line.point]
    at = [0, *(k for k in range(1, len(rank)) if rank[k] != rank[k - 1])]
    title = (
        f"{name} on '{scenario.name}': {100 * (run.goodput or 0.0):.1f} % right and on time, {run.switches} switches"
    )
    span = Axis(0.0, run.duration_s / 60.0, "time (min)")
    chart = Chart(span, Axis(-0.5, len(subnets) - 0.5, "ceiling"), height=190, title=title)
    chart.y_names(subnets)
    chart.steps([line.time_s[k] / 60.0 for k in at], [rank[k] for k in at], "")
    return chart.svg(standalone=True)


def _plan(name: str, table: Table) -> str:
    """What the slack plan uses, by the slack that is left, at some loads."""
    rows = {row.point: row for row in table.rows}
    single = rungs_of(table, Where()).rows
    deadline_ms = 4.0 * single[-1].latency_p99_ms
    names = [f"{row.subnet} x {size}" for row in single for size in sorted({row.batch_size for row in table.rows})]
    chart = Chart(
        Axis(0.0, deadline_ms, "slack of the oldest request (ms)"),
        Axis(-0.5, len(names) - 0.5, "subnet x batch"),
        height=340,
        title=f"{name}: what it uses with how much time left",
    )
    chart.y_names(names)
    for load in LOADS:
        policy = create(name, Goals(deadline_ms=deadline_ms))
        rate = load * single[-1].throughput_per_s
        for second in range(60):
            conditions = Conditions(time_s=float(second), arrival_rate_hz=rate, slowdown=1.0)
            decision = policy.decide(conditions, table, None)
        steps = [(step.slack_ms, step.point) for step in decision.slack_plan] or [(0.0, decision.point)]
        ranks = [float(names.index(f"{rows[point].subnet} x {rows[point].batch_size}")) for _, point in steps]
        chart.steps([slack for slack, _ in steps], ranks, f"{load:.0%} of what the largest can answer")
    return chart.svg(standalone=True)


def _energy(arena: dict[str, Any]) -> Chart:
    """Right answers on time against what one of them costs."""
    spots = [(one["name"], 1e3 * one["joules_per_correct"], 100 * one["goodput"]) for one in arena["policies"]]
    return _cloud(spots, "energy for a right answer on time (mJ)", "right and on time (%)", arena["table"])


def _deadline(arena: dict[str, Any]) -> Chart:
    """Accuracy against the deadline."""
    spots = [(one["name"], 100 * one["attainment"], 100 * one["mean_accuracy"]) for one in arena["policies"]]
    return _cloud(spots, "answered by the deadline (%)", "accuracy of answers on time (%)", arena["table"])


def _cloud(spots: list[tuple[str, float, float]], x_label: str, y_label: str, title: str) -> Chart:
    names, xs, ys = map(list, zip(*spots, strict=True))
    chart = Chart(Axis.around(xs, x_label), Axis.around(ys, y_label), height=360, title=title)
    chart.points(xs, ys, "")
    chart.names(xs, ys, names)
    return chart


def _against(arena: dict[str, Any]) -> Chart:
    """How much more every policy misses than the default, with intervals."""
    order = sorted(arena["comparisons"], key=lambda one: -one["difference"]["mean"])
    mean, low, high = ([100 * one["difference"][key] for one in order] for key in ("mean", "low", "high"))
    label = f"regret beyond that of {arena['reference']} (percentage points, 95 %)"
    chart = Chart(
        Axis.around([0.0, *low, *high], label), Axis(-0.6, len(order) - 0.4, ""), height=460, title=arena["table"]
    )
    chart.y_names([one["name"] for one in order])
    places = [float(place) for place in range(len(order))]
    chart.mark(0.0, f"{arena['reference']}: to the right of this line it is better")
    chart.error_bars(mean, places, low, high, horizontal=True)
    chart.points(mean, places, "")
    return chart


def tables(result: dict[str, Any]) -> str:
    """What the recorded arena says, as Markdown."""
    where = f"{result['host']['cpu']}, commit {result['commit']}, {result['created'][:10]}"
    parts = [f"Recorded in `benchmarks/results/arena.json` ({where}), with seeds that no choice had seen.\n"]
    for name, arena in result["arenas"].items():
        made_up = ", made up: nothing in it was measured" if arena["table"].startswith("synthetic") else ""
        seeds = ", ".join(map(str, arena.get("seeds", result["seeds"])))
        parts.append(f"\n### Table {arena['table']} ({name}{made_up})\n\n")
        parts.append(f"{len(arena['scenarios'])} scenarios and recorded loads, seeds {seeds}.\n\n")
        parts.append(f"{_policies(arena)}\n{_scenarios(arena)}")
        parts.append(f"\n{_promises(arena)}\n{_losses(arena)}\n")
        for what, text in (
            ("against", f"How much more every policy misses than {arena['reference']}"),
            ("energy", "Right answers on time against the energy for one"),
            ("deadline", "Accuracy against the deadline"),
        ):
            parts.append(f"![{text}](pictures/policies/arena-{name}-{what}.svg)\n")
    return "".join(parts)


def _policies(arena: dict[str, Any]) -> str:
    heads = "policy | right and on time | on time | regret (95 %) | median | worst | J a right answer | switches/h"
    lines = [f"| {heads} | lasted | broken |", "| --- |" + " --- |" * 9]
    lines += [
        f"| {one['name']} | {_percent(one['goodput'])} | {_percent(one['attainment'])} | {_percent(one['regret'])} "
        f"({_percent(one['regret_low'])} to {_percent(one['regret_high'])}) | {_percent(one['regret_median'])} | "
        f"{_percent(one['regret_worst'])} | {one['joules_per_correct']:.4f} | {one['switches_per_hour']:.0f} | "
        f"{one['target_hits']} of {one['target_feasible']} | {one['violations'] or ''} |"
        for one in arena["policies"]
    ]
    return "\n".join(lines) + "\n"


def _scenarios(arena: dict[str, Any]) -> str:
    reference = arena["reference"]
    lines = [
        f"| scenario | LP over DP | regret is against | {reference} | next best | switches/h of {reference} |",
        "| --- |" + " --- |" * 5,
    ]
    for row in arena["scenarios"]:
        others = [
            (missed, name)
            for name, missed in row["regret"].items()
            if name != reference and not row["violations"][name]
        ]
        best = min(others, default=(None, "nobody else kept the limits"))
        gap = row["gap"]
        lines.append(
            f"| {row['name']} | {_percent(gap)} | {'DP' if gap is not None and gap > 0.03 else 'LP'} | "
            f"{_percent(row['regret'][reference])} | {best[1]}"
            + (f" {_percent(best[0])}" if best[0] is not None else "")
            + f" | {row['switches_per_hour'][reference]:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _promises(arena: dict[str, Any]) -> str:
    words: dict[str, tuple[str, Callable[[Any], str]]] = {
        "regret_median": ("regret on the median scenario", _percent),
        "regret_worst": ("regret on the worst scenario", _percent),
        "runs_with_a_broken_limit": ("runs with a broken limit", str),
        "battery_lasted": ("share of runs in which the battery lasted, of those in which it can", _percent),
        "dull_switches_per_hour": ("switches an hour on the dull day", lambda value: f"{value:.1f}"),
        "best_on_the_median_scenario": ("best on the median scenario", str),
        "lp_over_dp_over_all": ("runs that lie above a bound", str),
    }
    lines = [f"| promise for {arena['reference']} | found | asked | kept |", "| --- | --- | --- | --- |"]
    for key, (text, shown) in words.items():
        one = arena["promises"][key]
        lines.append(f"| {text} | {shown(one['value'])} | {shown(one['limit'])} | {'yes' if one['kept'] else 'no'} |")
    return "\n".join(lines) + "\n"


def _losses(arena: dict[str, Any]) -> str:
    losses = [
        f"{one['scenario']} to {one['winner']} by {100 * one['difference']:.2f} points" for one in arena["losses"]
    ]
    if not losses:
        return f"{arena['reference']} loses no scenario by a tenth of a point or more.\n"
    return f"{arena['reference']} loses {', '.join(losses)}.\n"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


if __name__ == "__main__":
    main()
