"""The calibration report: one HTML file with the table's charts, that opens without a network."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

import numpy as np

from calibration import report_tables as tables
from calibration import wording
from calibration.report_tables import family_of
from calibration.svg import Axis, Chart, page
from calibration.table import QUANTILES, Row, Table


def report(table: Table) -> str:
    """A self-contained page of a table: accuracy against latency and energy, quantiles, switches, protocol, host."""
    rows = sorted(table.rows, key=lambda row: (family_of(row), row.macs))
    sections = [
        ("", _summary(table, rows)),
        ("Accuracy against latency", _accuracy_against_latency(rows)),
        ("Accuracy against energy", _accuracy_against_energy(rows)),
        ("Latency", _quantiles(rows)),
        ("Latency distributions", _distributions(rows)),
        ("Latency of sparse requests", _sparse(rows)),
        ("Every operating point", tables.rows(rows)),
        ("Differences", tables.differences(table)),
        ("Switching", tables.switches(table)),
        ("What was left out", tables.left_out(table, rows)),
        ("How it was measured", tables.protocol(table)),
        ("Where", tables.host(table)),
    ]
    return page(f"Calibration of {table.bundle_name}", [(heading, body) for heading, body in sections if body])


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
    front: list[tuple[float, float, str]] = []  # no other point is both further left and higher
    for row in sorted(rows, key=lambda row: (of(row)[0], -row.accuracy)):
        if not front or 100 * row.accuracy > front[-1][1]:
            front.append((of(row)[0], 100 * row.accuracy, row.subnet))
    corners = [(x, y) for (x, y, _), (after, _, _) in pairwise([*front, front[-1]]) for x in (x, after)]
    chart.line([x for x, _ in corners], [y for _, y in corners], "Pareto front")
    for family, members in groupby(rows, key=family_of):
        line = list(members)
        xs, lows, highs = (list(column) for column in zip(*(of(row) for row in line), strict=True))
        ys = [100 * row.accuracy for row in line]
        chart.error_bars(xs, ys, lows, highs, horizontal=True)
        chart.error_bars(xs, ys, [100 * row.accuracy_low for row in line], [100 * row.accuracy_high for row in line])
        chart.line(xs, ys, family, dash=True)
        texts = [f"{row.point}: {wording.latency(row)}, {wording.energy(row)}, {wording.accuracy(row)}" for row in line]
        chart.points(xs, ys, family, texts)
    chart.names([x for x, _, _ in front], [y for _, y, _ in front], [name for _, _, name in front])
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
    for family, members in groupby([row for row in rows if row.quantiles_ms], key=family_of):
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
    for family, members in groupby([row for row in rows if row.duty is not None], key=family_of):
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
