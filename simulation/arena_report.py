"""The arena's report: one HTML file with tables, Pareto pictures and timelines that loads nothing from anywhere.

* :func:`heads`, :func:`cells`: the table of policies, the same on the terminal and in the report.
* :func:`html`: the whole document. Cases that the reference loses stand in it with both timelines.
"""

from __future__ import annotations

import html as markup
from collections.abc import Callable, Sequence

from calibration.svg import Axis, Chart, page, table_html
from simulation.arena import Played, Result
from simulation.outcome import Outcome
from simulation.regret import TRUSTED_GAP, Bounds
from simulation.report import UNKNOWN, timeline
from simulation.resampling import Estimate
from simulation.standings import Comparison, Row, Standing, Standings, bounds_of

_SHOWN = 7  # policies with a colour of their own; the rest share one
_OTHERS = "others"


def heads(found: Standings) -> list[str]:
    """The columns that say something about these policies."""
    shown = ["policy", "correct", "on time", "accuracy", "p99 ms"]
    if found.bounded:
        shown += ["regret", "median", "worst"]
    shown += ["switches/h"]
    if any(standing.joules_per_correct is not None for standing in found.policies):
        shown.append("mJ/correct")
    if any(standing.outcome.peak_temperature_c is not None for standing in found.policies):
        shown.append("peak °C")
    if any(standing.degree_seconds is not None for standing in found.policies):
        shown.append("°C s over")
    if any(standing.feasible for standing in found.policies):
        shown.append("lasted")
    return [*shown, "broken"]


def cells(standing: Standing, columns: Sequence[str]) -> list[str]:
    """One policy's line under :func:`heads`."""
    run, regret = standing.outcome, standing.regret
    texts = {
        "policy": standing.name,
        "correct": _percent(run.goodput),
        "on time": _percent(standing.attainment),
        "accuracy": _percent(run.mean_accuracy),
        "p99 ms": _number(run.latency_ms(0.99)),
        "regret": UNKNOWN if regret is None else _interval(regret),
        "median": _percent(standing.regret_median),
        "worst": _percent(standing.regret_worst),
        "switches/h": f"{standing.switches_per_hour:.1f}",
        "mJ/correct": UNKNOWN if standing.joules_per_correct is None else _number(1000.0 * standing.joules_per_correct),
        "peak °C": _number(run.peak_temperature_c),
        "°C s over": _number(standing.degree_seconds),
        "lasted": f"{standing.hits} of {standing.feasible}" if standing.feasible else UNKNOWN,
        "broken": str(standing.violations) if standing.violations else "",
    }
    return [texts[column] for column in columns]


def verdict(found: Standings) -> str:
    """One sentence on who won, and what became of the reference."""
    first = found.policies[0]
    if first.violations:
        return f"Every policy broke a limit in some run; {first.name} missed least on the median scenario."
    what = "regret" if found.bounded else "share of answers missed"
    if first.name == found.reference:
        return f"{first.name} has the least {what} on the median scenario of all that kept the limits."
    return (
        f"{first.name} has the least {what} on the median scenario of all that kept the limits, not {found.reference}."
    )


def html(found: Standings, results: Sequence[Result], *, table: str, synthetic: bool, seeds: Sequence[int]) -> str:
    """The document.

    Args:
        found: what the results say.
        results: of the contest; those of its first seed hold timelines.
        table: which table was used.
        synthetic: whether that table was made up.
        seeds: of the contest.
    """
    columns = heads(found)
    warning = "<p><b>The table is made up: nothing in it was measured.</b></p>" if synthetic else ""
    intro = (
        f"{warning}<p>Table <b>{markup.escape(table)}</b>, {len(found.scenarios)} scenarios, {len(seeds)} seeds each. "
        f"{markup.escape(verdict(found))} <i>Correct</i> is the expected share of all requests answered correctly and "
        "on time; <i>accuracy</i> the mean over answers on time; <i>broken</i> counts runs in which a limit was missed "
        "by more than the sensor resolves, though it could be kept. Whoever broke one ranks below all who did not.</p>"
    )
    if found.bounded:
        intro += (
            "<p><i>Regret</i> is the share of the clairvoyant's correct answers on time that was missed: against the "
            f"linear program, or the dynamic program where the former lies more than {TRUSTED_GAP:.0%} above it, in "
            "percent. Intervals are 95 %, bootstrapped over scenarios and seeds: they speak of such scenarios.</p>"
        )
    first = {(r.policy, r.scenario): r.outcome for r in results if isinstance(r, Played) and r.seed == seeds[0]}
    sections = [
        ("", intro),
        ("Policies", table_html(columns, [cells(standing, columns) for standing in found.policies])),
        (f"Against {found.reference}", _comparisons(found)),
        ("Pareto", _pareto(found)),
        ("Scenarios", _scenarios(found)),
        ("How often how far", _profile(found, results)),
        ("Lost cases", _losses(found, first)),
    ]
    sections += [
        (f"{row.name}: {found.reference}", timeline(first[found.reference, row.name])) for row in found.scenarios
    ]
    return page("Arena", [(heading, body) for heading, body in sections if body])


def _label(found: Standings, name: str) -> str:
    others = [standing.name for standing in found.policies if standing.name != found.reference]
    return name if name in (found.reference, *others[: _SHOWN - 1]) else _OTHERS


def _comparisons(found: Standings) -> str:
    if not found.comparisons:
        return ""
    order = sorted(found.comparisons, key=lambda one: -one.difference.mean)
    ends = [100.0 * bound for one in order for bound in (one.difference.low, one.difference.high, 0.0)]
    what = "regret" if found.bounded else "answers missed"
    chart = Chart(
        Axis.around(ends, f"{what} beyond that of {found.reference}, percentage points"),
        Axis(-0.6, len(order) - 0.4, ""),
        width=860,
        height=90 + 22 * len(order),
    )
    chart.y_names([one.name for one in order])
    places = [float(place) for place in range(len(order))]
    means = [100.0 * one.difference.mean for one in order]
    lows, highs = [100.0 * one.difference.low for one in order], [100.0 * one.difference.high for one in order]
    chart.mark(0.0, f"{found.reference}: to the right of this line it is better")
    chart.error_bars(means, places, lows, highs, horizontal=True)
    chart.points(means, places, "", [_told(one) for one in order])
    rows = [[one.name, _points(one.difference.mean), _points(one.difference.low), _points(one.difference.high),
             f"{one.p_holm:.4f}", one.verdict] for one in order]  # fmt: skip
    table = table_html(["policy", "difference", "low", "high", "p (Holm)", "the policy is"], rows)
    return (
        f"<p>Differences in {what}, paired by scenario and seed, in percentage points; above 0 the policy misses more. "
        f"Two-sided p values, corrected after Holm for {len(order)} comparisons.</p>{chart.svg()}{table}"
    )


def _told(one: Comparison) -> str:
    return f"{one.name}: {_interval(one.difference)}, {one.verdict}"


def _pareto(found: Standings) -> str:
    def joules(standing: Standing) -> float | None:
        return None if standing.joules_per_correct is None else 1000.0 * standing.joules_per_correct

    charts = [
        _cloud(
            found,
            "energy per correct answer on time, mJ",
            joules,
            "correct on time, %",
            lambda standing: _hundred(standing.outcome.goodput),
        ),
        _cloud(
            found,
            "answered by the deadline, %",
            lambda standing: _hundred(standing.attainment),
            "accuracy of answers on time, %",
            lambda standing: _hundred(standing.outcome.mean_accuracy),
        ),
    ]
    return "".join(charts)


def _cloud(
    found: Standings,
    x_label: str,
    x_of: Callable[[Standing], float | None],
    y_label: str,
    y_of: Callable[[Standing], float | None],
) -> str:
    spots = [(s, x, y) for s in found.policies if (x := x_of(s)) is not None and (y := y_of(s)) is not None]
    if not spots:
        return ""
    x_axis = Axis.around([x for _, x, _ in spots], x_label)
    y_axis = Axis.around([y for _, _, y in spots], y_label)
    chart = Chart(x_axis, y_axis, width=860, height=340)
    for standing, x, y in spots:
        broke = f"; broke a limit in {standing.violations} runs" if standing.violations else ""
        text = f"{standing.name}: {x:.4g}, {y:.4g}{broke}"
        chart.points([x], [y], _label(found, standing.name), [text])
    return chart.svg()


def _scenarios(found: Standings) -> str:
    names = [standing.name for standing in found.policies]
    columns = ["scenario"]
    if found.bounded:
        columns += ["LP over DP", "measure"]
    rows = []
    for row in found.scenarios:
        line = [row.name]
        if found.bounded:
            line += [_percent(row.gap), _measure(row)]
        rows.append(line + [_scenario_cell(row, name) for name in names])
    what = "Regret in percent" if found.bounded else "Correct answers on time, in percent"
    return f"<p>{what} by scenario, mean over seeds. * = broke a limit in at least one run.</p>" + table_html(
        [*columns, *names], rows
    )


def _measure(row: Row) -> str:
    if row.lp is None:
        return UNKNOWN
    return "DP" if Bounds(lp=row.lp, dp=row.dp).measure == row.dp else "LP"


def _scenario_cell(row: Row, name: str) -> str:
    value = row.regret[name] if row.regret else row.quality[name]
    return f"{100.0 * value:.1f}" + ("*" if row.violations[name] else "")


def _profile(found: Standings, results: Sequence[Result]) -> str:
    """Share of runs in which a policy's regret stays below a value (Dolan and Moré 2002 plot ratios likewise)."""
    if not found.bounded:
        return ""
    bounds = bounds_of(results)
    missed: dict[str, list[float]] = {}
    for result in results:
        if isinstance(result, Played):
            regret = bounds[result.scenario, result.seed].regret(result.outcome.accuracy_sum)
            missed.setdefault(result.policy, []).append(100.0 * regret)
    highest = min(50.0, max(max(values) for values in missed.values()))
    chart = Chart(Axis(0.0, highest, "regret at most, %"), Axis(0.0, 100.0, "of runs, %"), width=860, height=300)
    for standing in found.policies:
        label = _label(found, standing.name)
        if label == _OTHERS:
            continue
        values = sorted(missed[standing.name])
        shares = [100.0 * (place + 1) / len(values) for place in range(len(values))]
        chart.steps([0.0, *(max(0.0, value) for value in values)], [0.0, *shares], label)
    return chart.svg()


def _losses(found: Standings, first: dict[tuple[str, str], Outcome]) -> str:
    if not found.losses:
        return (
            f"<p>On no scenario did a policy that kept the limits do better than {markup.escape(found.reference)}.</p>"
        )
    rows = [[loss.scenario, loss.winner, _points(loss.difference)] for loss in found.losses]
    parts = [
        f"<p>Scenarios on which a policy that kept the limits did better than {markup.escape(found.reference)}; the "
        "difference in percentage points, mean over seeds. The better one's timelines follow here.</p>",
        table_html(["scenario", "better", "by"], rows),
    ]
    for loss in found.losses:
        parts.append(f"<h3>{markup.escape(loss.scenario)}: {markup.escape(loss.winner)}</h3>")
        parts.append(timeline(first[loss.winner, loss.scenario]))
    return "".join(parts)


def _hundred(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _interval(found: Estimate) -> str:
    return f"{_points(found.mean)} ({_points(found.low)} to {_points(found.high)})"


def _points(share: float) -> str:
    return f"{100.0 * share:.2f}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100.0 * share:.2f}%"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"
