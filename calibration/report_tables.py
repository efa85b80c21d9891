"""The tables of the calibration report: operating points, differences, switches, what was left out, how and where.

Each function gives HTML, empty where the table has nothing of it.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

from calibration import wording
from calibration.page import table_html
from calibration.paired import neighbours
from calibration.table import Row, Switch, Table


def family_of(row: Row) -> str:
    """What the points of one ladder share: ``openvino bf16``, and the batch size where it is not 1."""
    return f"{row.backend} {row.precision}" + (f", batch {row.batch_size}" if row.batch_size != 1 else "")


def differences(table: Table) -> str:
    """Each point against its neighbours, by the rounds that they share."""
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
                "differs" if pair.differs else "within noise",
            )
            for pair in pairs
        ],
    )
    return (
        "<p>Each point against the next on its ladder, and against the next slower one. Ratios within the same round: "
        f"what disturbs both cancels, so they are known better than the medians themselves.</p>{body}"
    )


def left_out(table: Table, rows: Sequence[Row]) -> str:
    """How many cells were disturbed, of which points and by what."""
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


def rows(rows: Sequence[Row]) -> str:
    """Every operating point, in two tables: one of all columns would be wider than most screens."""
    times = table_html(
        ("operating point", "accuracy", "p50, ms", "p99, ms", "images/s", "memory", "load, ms", "samples", "rounds"),
        [
            (
                row.point,
                wording.accuracy(row),
                wording.median(row),
                wording.number(row.latency_p99_ms),
                wording.number(row.throughput_per_s),
                wording.memory(row),
                wording.number(row.load_ms),
                f"{row.samples:,}",
                row.rounds,
            )
            for row in rows
        ],
    )
    second = ["by a second source"] if any(row.energy_check_source for row in rows) else []
    costs = table_html(
        (
            "operating point",
            "CPU ms/image",
            "energy/image",
            "above idle",
            "power",
            "source",
            *second,
        ),
        [
            (
                row.point,
                "unknown" if row.cpu_s is None else wording.number(1e3 * row.cpu_s),
                wording.energy(row),
                wording.net_energy(row),
                wording.power(row),
                row.energy_source,
                *(wording.second_energy(row) for _ in second),
            )
            for row in rows
        ],
    )
    sources = "; ".join(dict.fromkeys(row.accuracy_source for row in rows))
    return f'{times}<p class="soft">Accuracies: {html.escape(sources)}.</p>{costs}'


def switches(table: Table) -> str:
    """Per family a matrix of what the first answer after a switch costs."""
    if not table.switches:
        return ""
    costs = {(switch.from_point, switch.to_point): switch for switch in table.switches}
    parts = [
        "<p>Milliseconds that the first answer after a switch takes beyond a settled one, engines loaded: what it "
        "costs to bring the other subnet's weights into the caches. Point at a cell for the second and the tenth.</p>"
    ]
    for family, members in groupby(sorted(table.rows, key=family_of), key=family_of):
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


def protocol(table: Table) -> str:
    """How it was measured."""
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


def host(table: Table) -> str:
    """Where it was measured."""
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
