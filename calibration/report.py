"""The calibration report: one HTML file with the table's charts, that opens without a network."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from calibration import wording
from calibration.paired import neighbours
from calibration.svg import Axis, Chart, page, table_html
from calibration.table import QUANTILES, Row, Switch, Table


def report(table: Table) -> str:
    """A self-contained page of a table: accuracy against latency and energy, quantiles, switches, protocol, host."""
    rows = sorted(table.rows, key=lambda row: (_family(row), row.macs))
    sections = [
        ("", _summary(table, rows)),
        ("Accuracy against latency", _accuracy_against_latency(rows)),
        ("Accuracy against energy", _accuracy_against_energy(rows)),
        ("Latency", _quantiles(rows)),
        ("Latency distributions", _distributions(rows)),
        ("Latency of sparse requests", _sparse(rows)),
        ("Every operating point", _rows(rows)),
        ("Differences", _differences(table)),
        ("Switching", _switches(table)),
        ("What was left out", _left_out(table, rows)),
        ("How it was measured", _protocol(table)),
        ("Where", _host(table)),
    ]
    return page(f"Calibration of {table.bundle_name}", [(heading, body) for heading, body in sections if body])


def _family(row: Row) -> str:
    return f"{row.backend} {row.precision}" + (f", batch {row.batch_size}" if row.batch_size != 1 else "")


def _summary(table: Table, rows: Sequence[Row]) -> str:
    fastest = min(rows, key=lambda row: row.latency_p50_ms / row.batch_size)
    best = max(rows, key=lambda row: (row.accuracy, -row.latency_p50_ms))
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in wording.remarks(table))
    return (
        f'<p class="soft">{html.escape(table.host.cpu)}, {rows[0].threads} of {table.host.cores} cores, '
        f"{html.escape(table.protocol.created)}</p>"
        f"<p>{len(rows)} operating points. The fastest, {html.escape(fastest.point)}, answers in "
        f"{html.escape(wording.latency(fastest))} at {html.escape(wording.accuracy(fastest))}; the most accurate, "
        f"{html.escape(best.point)}, in {html.escape(wording.latency(best))} at {html.escape(wording.accuracy(best))}. "
        "Ranges are 95 % intervals.</p>" + (f"<ul>{remarks}</ul>" if remarks else "")
    )


def _accuracy_against_latency(rows: Sequence[Row]) -> str:
    return _pareto(
        rows,
        "median latency of one batch, ms",
        lambda row: (row.latency_p50_ms, row.latency_p50_low_ms, row.latency_p50_high_ms),
    )


def _accuracy_against_energy(rows: Sequence[Row]) -> str:
    def millijoules(row: Row) -> tuple[float, float, float]:
        assert row.energy_j is not None
        low = row.energy_j if row.energy_low_j is None else row.energy_low_j
        high = row.energy_j if row.energy_high_j is None else row.energy_high_j
        return 1e3 * row.energy_j, 1e3 * low, 1e3 * high

    told = [row for row in rows if row.energy_j is not None]
    if not told:
        return "<p>Nothing on this machine tells energy, so none is shown.</p>"
    words = "; ".join(dict.fromkeys(wording.source_in_words(row.energy_source) for row in told))
    chart = _pareto(told, "energy per image, idle included, mJ", millijoules)
    return f'{chart}<p class="soft">Source of the energies: {html.escape(words)}.</p>'


def _pareto(rows: Sequence[Row], label: str, of: Callable[[Row], tuple[float, float, float]]) -> str:
    shares = [100 * bound for row in rows for bound in (row.accuracy_low, row.accuracy_high)]
    chart = Chart(
        Axis.around([bound for row in rows for bound in of(row)], label, log=True),
        Axis.around(shares, "top-1 accuracy, %"),
        width=860,
        height=360,
    )
    front: list[tuple[float, float]] = []  # no other point is both further left and higher
    for row in sorted(rows, key=lambda row: (of(row)[0], -row.accuracy)):
        if not front or 100 * row.accuracy > front[-1][1]:
            front.append((of(row)[0], 100 * row.accuracy))
    chart.steps([x for x, _ in front], [y for _, y in front], "Pareto front")
    for family, members in groupby(rows, key=_family):
        line = list(members)
        xs, lows, highs = (list(column) for column in zip(*(of(row) for row in line), strict=True))
        ys = [100 * row.accuracy for row in line]
        chart.error_bars(xs, ys, lows, highs, horizontal=True)
        chart.error_bars(xs, ys, [100 * row.accuracy_low for row in line], [100 * row.accuracy_high for row in line])
        chart.line(xs, ys, family, dash=True)
        texts = [f"{row.point}: {wording.latency(row)}, {wording.energy(row)}, {wording.accuracy(row)}" for row in line]
        chart.points(xs, ys, family, texts)
    return chart.svg()


def _quantiles(rows: Sequence[Row]) -> str:
    """Per row its median, 90th and 99th percentile on one logarithmic axis, slowest at the bottom."""
    order = sorted(rows, key=lambda row: -row.latency_p50_ms)
    places = [float(place) for place in range(len(order))]
    bounds = [bound for row in order for bound in (row.latency_p50_low_ms, row.latency_p99_high_ms)]
    chart = Chart(
        Axis.around(bounds, "latency of one batch, ms", log=True),
        Axis(-0.6, len(order) - 0.4, ""),
        width=860,
        height=100 + 22 * len(order),
    )
    chart.y_names([row.point for row in order])
    medians, tails = [row.latency_p50_ms for row in order], [row.latency_p99_ms for row in order]
    chart.error_bars(
        tails,
        places,
        [row.latency_p99_low_ms for row in order],
        [row.latency_p99_high_ms for row in order],
        horizontal=True,
    )
    for label, values in (("p50", medians), ("p90", [row.latency_p90_ms for row in order]), ("p99", tails)):
        texts = [f"{row.point} {label}: {wording.number(value)} ms" for row, value in zip(order, values, strict=True)]
        chart.points(values, places, label, texts)
    return chart.svg() + '<p class="soft">Bars: 95 % interval of the 99th percentile, from the spread over rounds.</p>'


def _distributions(rows: Sequence[Row]) -> str:
    """Per family the share of answers that took at most so long."""
    parts = []
    for family, members in groupby([row for row in rows if row.quantiles_ms], key=_family):
        line = list(members)
        chart = Chart(
            Axis.around([ms for row in line for ms in row.quantiles_ms], "latency of one batch, ms", log=True),
            Axis(0, 100, "answers within, %"),
            width=860,
            height=250,
            title=family,
        )
        for row in line:
            chart.line(row.quantiles_ms, [100 * share for share in QUANTILES[: len(row.quantiles_ms)]], row.subnet)
        parts.append(chart.svg())
    words = "Of all samples of all rounds, back to back; joined between the quantiles that the table keeps."
    return "".join(parts) + (f'<p class="soft">{words}</p>' if parts else "")


def _sparse(rows: Sequence[Row]) -> str:
    """Per family the fitted median latency at each rate, with what was measured after rests."""
    parts = []
    for family, members in groupby([row for row in rows if row.duty is not None], key=_family):
        line = list(members)
        fastest_hz = 1e3 / min(row.latency_p50_ms for row in line)
        rates = np.geomspace(1.0, max(10.0, fastest_hz), 60).tolist()
        shown = [ms for row in line for ms in (row.latency_ms_at(rates[0]), row.latency_p50_ms)]
        chart = Chart(
            Axis.around(rates, "batches a second, evenly spaced", log=True),
            Axis.around(shown, "median latency, ms", zero=True),
            width=860,
            height=250,
            title=family,
        )
        for row in line:
            duty = row.duty
            assert duty is not None
            able = [rate for rate in rates if 1e3 / rate >= row.latency_p50_ms]
            chart.line(able, [row.latency_ms_at(rate) for rate in able], row.subnet)
            met = [1e3 / (rest + ms) for rest, ms in zip(duty.rests_ms, duty.latency_ms, strict=True)]
            texts = [f"{row.point} after a rest of {rest:g} ms" for rest in duty.rests_ms]
            chart.points(met, duty.latency_ms, row.subnet, texts)
        parts.append(chart.svg())
    words = (
        "An engine that rests between answers is slower, since clocks fall and caches cool. Points: medians after a "
        "rest; lines: the fit that policies are given, up to the rate at which a point is always at work."
    )
    return (f"<p>{words}</p>" if parts else "") + "".join(parts)


def _differences(table: Table) -> str:
    pairs = neighbours(table)
    if not pairs:
        return ""
    body = table_html(
        ("point", "against", "ratio of medians", "95 % interval", "rounds", ""),
        [
            (
                pair.second,
                pair.first,
                f"{pair.ratio:.3f}",
                f"{pair.low:.3f} to {pair.high:.3f}",
                pair.rounds,
                "" if pair.differs else "within noise",
            )
            for pair in pairs
        ],
    )
    return (
        "<p>Each point against the next on its ladder, and against the next slower one. Ratios within the same round: "
        f"what disturbs both cancels, so they are known better than the medians themselves.</p>{body}"
    )


def _left_out(table: Table, rows: Sequence[Row]) -> str:
    counts = table.protocol.discarded_cells
    if not counts:
        return "<p>Nothing: no cell was disturbed.</p>"
    meaning = {
        "pressure": "other work waited for the processor",
        "stolen": "the hypervisor took the processor away",
        "throttled": "the processor slowed itself down",
        "temperature": "the round began too warm or too cold",
    }
    whole = "; ".join(f"{count} because {meaning.get(reason, reason)}" for reason, count in counts.items())
    reasons = sorted({reason for row in rows for reason in row.discarded})
    body = table_html(
        ("operating point", "cells kept", *reasons, ""),
        [
            (
                row.point,
                row.rounds,
                *(row.discarded.get(reason, 0) for reason in reasons),
                "all were disturbed and stand all the same" if row.disturbed else "",
            )
            for row in rows
            if row.discarded
        ],
    )
    return f"<p>Cells, idle ones included: {html.escape(whole)}.</p>{body if reasons else ''}"


def _rows(rows: Sequence[Row]) -> str:
    columns = (
        "operating point",
        "accuracy",
        "p50",
        "p99, ms",
        "images/s",
        "CPU ms/image",
        "energy/image",
        "above idle",
        "power",
        "source",
        "by a second source",
        "memory",
        "load, ms",
        "rounds",
        "samples",
    )
    body = table_html(
        columns,
        [
            (
                row.point,
                wording.accuracy(row),
                wording.latency(row),
                wording.number(row.latency_p99_ms),
                wording.number(row.throughput_per_s),
                "" if row.cpu_s is None else wording.number(1e3 * row.cpu_s),
                wording.energy(row),
                wording.net_energy(row),
                wording.power(row),
                row.energy_source,
                wording.second_energy(row),
                wording.memory(row),
                wording.number(row.load_ms),
                row.rounds,
                f"{row.samples:,}",
            )
            for row in rows
        ],
    )
    sources = ", ".join(dict.fromkeys(row.accuracy_source for row in rows))
    return f'{body}<p class="soft">Accuracy {html.escape(sources)}.</p>'


def _switches(table: Table) -> str:
    if not table.switches:
        return ""
    costs = {(switch.from_point, switch.to_point): switch for switch in table.switches}
    parts = [
        "<p>Milliseconds that the first answer after a switch takes beyond a settled one, engines loaded: what it "
        "costs to bring the other subnet's weights into the caches. Point at a cell for the second and the tenth.</p>"
    ]
    for family, members in groupby(sorted(table.rows, key=_family), key=_family):
        points = sorted(members, key=lambda row: row.macs)
        if len(points) < 2:
            continue
        extras = [costs[a.point, b.point].extra_ms for a in points for b in points if (a.point, b.point) in costs]
        highest = max(extras, default=0.0)
        head = "".join(f"<th class=n>to {html.escape(row.subnet)}</th>" for row in points)
        body = ""
        for source in points:
            cells = "".join(_heat(costs.get((source.point, to.point)), highest) for to in points)
            body += f"<tr><td>from {html.escape(source.subnet)}</td>{cells}</tr>"
        parts.append(
            f'<h3>{html.escape(family)}</h3><div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    return "".join(parts)


def _heat(switch: Switch | None, highest: float) -> str:
    if switch is None:
        return "<td class=n>-</td>"
    share = round(55 * max(0.0, switch.extra_ms) / highest) if highest > 0 else 0
    later = "".join(
        f", {name} {wording.number(value)} ms"
        for name, value in (("second", switch.second_ms), ("tenth", switch.tenth_ms))
        if value is not None
    )
    title = f"{switch.from_point} to {switch.to_point}: first answer {wording.number(switch.first_ms)} ms{later}"
    style = f"background:color-mix(in srgb,var(--s1) {share}%,transparent)"
    return f'<td class=n title="{html.escape(title)}" style="{style}">{switch.extra_ms:+.2f}</td>'


def _protocol(table: Table) -> str:
    protocol = table.protocol
    discarded = ", ".join(f"{count} for {reason}" for reason, count in protocol.discarded_cells.items()) or "none"
    warmth = ", ".join(f"{name} {value:.0f} °C" for name, value in protocol.temperatures_c.items())
    rests = ", ".join(f"{rest:g}" for rest in protocol.rests_ms)
    ended = {
        "precision": f"every median was known to ± {wording.percent(protocol.rel_precision)}",
        "budget": f"the budget of {protocol.budget_s:g} s was spent",
        "rounds": "the most rounds allowed were done",
    }.get(protocol.stopped, "unknown")
    waited = "unknown" if protocol.pressure is None else f"{protocol.pressure:.1%} of the time in the median cell"
    facts = table_html(
        ("", ""),
        [
            ("rounds", f"{protocol.rounds}; ended because {ended}"),
            ("one cell", f"{protocol.seconds_per_cell:.2f} s after {protocol.warmup} inferences to warm up"),
            ("order", f"a new random permutation each round, seed {protocol.seed}, idle cells between"),
            (
                "temperature",
                f"each round began within {protocol.temperature_band_c:g} °C of {warmth}, after "
                f"{protocol.temperature_waited_s:.0f} s of waiting in all"
                if warmth
                else "no thermometer here",
            ),
            ("rests before an answer", f"{rests} ms" if rests else "none tried: the budget was too short"),
            ("sessions", "1" if protocol.sessions == 1 else f"{protocol.sessions}, interrupted and resumed"),
            ("batch sizes", ", ".join(map(str, protocol.batch_sizes))),
            ("threads per engine", str(protocol.threads)),
            ("cells left out", discarded),
            ("some task waited for a processor", waited),
            ("idle power", wording.idle_power(table)),
            ("in all", f"{protocol.wall_s:.0f} s"),
        ],
    )
    return (
        "<p>The unit of replication is the round: an interval is Student's t over the rounds' own values, so it holds "
        "for drift between rounds and not only for noise within one. Latency is that of requests back to back, seen "
        "by the caller; sparse traffic meets colder caches and is slower. Energy above idle subtracts the power of the "
        "idle cells before and after.</p>" + facts
    )


def _host(table: Table) -> str:
    host = table.host
    return table_html(
        ("", ""),
        [
            ("processor", host.cpu),
            ("cores", f"{host.cores} usable"),
            ("accelerator", host.accelerator or "none"),
            ("memory", f"{host.memory_bytes / 1e9:.1f} GB"),
            ("system", host.system),
            ("python", host.python),
            *sorted(host.libraries.items()),
            ("bundle", f"{table.bundle_name}, key {table.bundle_key}"),
        ],
    )
