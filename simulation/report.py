"""The HTML report of a simulation: a comparison of the policies, then each one's timeline. Loads nothing from anywhere.

* :func:`columns`, :func:`cells`: the table of figures, the same on the terminal and in the report.
* :func:`html`: the whole document; :func:`timeline`: one run's charts in it.
"""

from __future__ import annotations

import html as markup
from collections.abc import Mapping, Sequence

from calibration.svg import Axis, Chart, page, table_html
from simulation.outcome import Outcome, Timeline

MAX_MARKS = 200  # switch marks drawn in one chart; more would be a solid block
UNKNOWN = "-"


def columns(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The column heads that say something about these outcomes; what no run knows is left out."""
    found = ["policy", "requests", "on time", "dropped", "accuracy", "correct", "p50 ms", "p99 ms", "switches"]
    runs = outcomes.values()
    if any(run.energy_j is not None for run in runs):
        found.append("energy J")
    if any(run.net_energy_j is not None for run in runs):
        found.append("net J")
    if any(run.peak_temperature_c is not None for run in runs):
        found.append("peak °C")
    if any(run.throttled_s for run in runs):
        found.append("throttled s")
    if any(run.battery_left is not None for run in runs):
        found.append("battery")
    return found


def cells(name: str, run: Outcome, heads: Sequence[str]) -> list[str]:
    """One policy's row under :func:`columns`' heads."""
    texts = {
        "policy": name,
        "requests": f"{run.requests:,}",
        "on time": _percent(run.on_time / run.requests if run.requests else None, 2),
        "dropped": f"{run.dropped:,}",
        "accuracy": _percent(run.mean_accuracy, 2),
        "correct": _percent(run.goodput, 2),
        "p50 ms": _number(run.latency_ms(0.5)),
        "p99 ms": _number(run.latency_ms(0.99)),
        "switches": f"{run.switches:,}",
        "energy J": _number(run.energy_j),
        "net J": _number(run.net_energy_j),
        "peak °C": _number(run.peak_temperature_c),
        "throttled s": _number(run.throttled_s),
        "battery": _percent(run.battery_left, 1)
        if run.time_to_empty_s is None
        else f"empty {clock(run.time_to_empty_s)}",
    }
    return [texts[head] for head in heads]


def html(outcomes: Mapping[str, Outcome], *, trace: str, table: str, seed: int) -> str:
    """The document.

    Args:
        outcomes: by policy name, in the order to show them.
        trace: what was replayed.
        table: which table was used.
        seed: of the run.
    """
    heads = columns(outcomes)
    summary = table_html(heads, [cells(name, run, heads) for name, run in outcomes.items()])
    intro = (
        f"<p>Trace <b>{markup.escape(trace)}</b>, table <b>{markup.escape(table)}</b>, seed {seed}. Every policy saw "
        "the same requests, the same draws of service times and the same environment. <i>Accuracy</i> is the mean over "
        "on-time answers; <i>correct</i> is the expected share of all requests answered correctly and on time.</p>"
    )
    notes = dict.fromkeys(note for run in outcomes.values() for note in run.notes)
    hints = "".join(f"<p>Note: {markup.escape(note)}.</p>" for note in notes)
    sections = [("Policies", intro + summary + hints)]
    sections += [(name, timeline(run)) for name, run in outcomes.items() if run.timeline is not None]
    return page("Simulation", sections)


def clock(seconds: float) -> str:
    """Seconds as a short text such as ``1 h 5 min``, ``42 min``, ``3 min 20 s`` or ``8.5 s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min" + (f" {int(seconds % 60)} s" if seconds < 600 else "")
    return f"{seconds:.1f} s"


def _number(value: float | None) -> str:
    """At least three significant digits."""
    if value is None:
        return UNKNOWN
    return f"{value:,.{0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2}f}"


def _percent(share: float | None, digits: int) -> str:
    return UNKNOWN if share is None else f"{100.0 * share:.{digits}f}%"


def timeline(run: Outcome) -> str:
    """One run's charts over time: operating point with each switch, arrivals, temperature, battery, power."""
    line = run.timeline
    assert line is not None
    unit, factor = ("h", 3600.0) if run.duration_s >= 7200 else ("min", 60.0) if run.duration_s >= 120 else ("s", 1.0)
    times = [time / factor for time in line.time_s]
    span = Axis(0.0, run.duration_s / factor, f"time ({unit})")
    shares = ", ".join(f"{markup.escape(subnet)} {100 * share:.1f} %" for subnet, share in run.time_share.items())
    bounds = ", ".join(f"{markup.escape(name)} {count:,}" for name, count in run.bounds.items())
    parts = [f"<p>Time on each subnet: {shares or UNKNOWN}. Decisions by what bound them: {bounds or UNKNOWN}.</p>"]
    if run.switches > MAX_MARKS:
        parts.append(f"<p>{run.switches:,} switches; the first {MAX_MARKS} are marked.</p>")
    parts.append(_points(run, line, times, span, factor))
    series: list[tuple[str, str, Sequence[float] | None]] = [
        ("arrivals", "requests/s", line.arrival_rate_hz),
        ("temperature", "°C", line.temperature_c),
        ("battery", "charge (%)", None if line.charge is None else [100.0 * charge for charge in line.charge]),
        ("power", "W", line.power_w),
    ]
    for title, label, values in series:
        if values:
            chart = Chart(span, Axis.around(values, label, zero=title != "temperature"), height=180, title=title)
            chart.line(times, values, "")
            parts.append(chart.svg())
    return "".join(parts)


def _points(run: Outcome, line: Timeline, times: Sequence[float], span: Axis, factor: float) -> str:
    used = sorted(set(line.point) | {line.points.index(e.from_point) for e in run.switch_events[:MAX_MARKS]})
    rank = {point: place for place, point in enumerate(used)}
    chart = Chart(
        span, Axis(-0.5, len(used) - 0.5, "operating point"), height=130 + 24 * len(used), title="operating point"
    )
    chart.y_names([line.points[point] for point in used])
    chart.steps(times, [float(rank[point]) for point in line.point], "")
    for event in run.switch_events[:MAX_MARKS]:
        what = f"{clock(event.time_s)}: {event.from_point} to {event.to_point}: {event.reason}"
        chart.mark(event.time_s / factor, what)
    return chart.svg()
