"""``gearshift explain``: why the last decisions were taken, or the one at a time that has been."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from agent.alternatives import Alternative
    from agent.past import Past
    from agent.values import Explanation
    from calibration.table import Table
    from policies.base import Goals

_REMEMBERED = 100_000  # more than any agent keeps in memory
_MOST_ROWS = 8


@click.command("explain")
@click.option("--last", is_flag=False, flag_value=1, type=click.IntRange(1), help="How many; 1 when left out.")
@click.option("--at", metavar="TIME", help="The one at this time: 14:05, 14:05:30 or 2026-01-31T14:05.")
@click.option(
    "--journal", type=click.Path(file_okay=False, path_type=Path), help="With --at: look in this folder, agent or not."
)
@click.option("--table", "table_file", type=click.Path(dir_okay=False), help="With --journal: the calibration table.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(
    last: int | None, at: str | None, journal: Path | None, table_file: str | None, json_file: str | None
) -> None:
    """Tells decisions that differed from the one before, oldest first: conditions, what bound, what else there was.

    The alternatives are worked out from the calibration table for the conditions of that moment. With --at the agent's
    memory is searched first, then its journal on disk, older files included.

    \b
    Example:
      gearshift explain
      gearshift explain --last 10
      gearshift explain --at 14:05
      gearshift explain --at 2026-01-31T14:05 --journal /var/lib/gearshift/journal --table digits.table.json
    """
    from cli._output import console, emit_json
    from subnets.errors import InputError

    if at is not None and last is not None:
        raise InputError("--last and --at exclude each other; give one of them")
    if journal is not None and at is None:
        raise InputError("--journal is for --at; give a time, e.g. --at 14:05")
    told = _past(at, journal, table_file) if at is not None else _recent(last or 1)
    if json_file:
        emit_json(json_file, told)
    if json_file != "-":
        for one in told:
            _print(console(), one)


def _recent(last: int) -> list[dict[str, Any]]:
    """The running agent's last decisions."""
    from agent.client import ask

    goals, table = _goals(ask("GET", "/gearshift/status")), _table()
    return [_told(one, goals, table, "memory") for one in ask("GET", f"/gearshift/explain?last={last}")]


def _past(at: str, journal: Path | None, table_file: str | None) -> list[dict[str, Any]]:
    """The decision at a time: from the agent's memory, else from the journal."""
    from agent.client import ask
    from agent.past import find
    from agent.quantities import time_past
    from calibration import table as tables
    from subnets.errors import InputError

    unix_s = time_past(at)
    if journal is not None:
        table = tables.read(table_file) if table_file is not None else None
        return [_found(find(journal, unix_s), table)]
    status = ask("GET", "/gearshift/status")
    remembered = ask("GET", f"/gearshift/explain?last={_REMEMBERED}")
    held = [one for one in remembered if one["since_unix_s"] <= unix_s]
    if held:
        return [_told(held[-1], _goals(status), _table(), "memory")]
    if not status["journal"]:
        since = f"{_clock(remembered[0]['since_unix_s'])}" if remembered else "now"
        raise InputError(f"the agent remembers decisions since {since} and keeps no journal; run it with --journal")
    return [_found(find(Path(status["journal"]["path"]).parent, unix_s), _table())]


def _goals(status: dict[str, Any]) -> Goals:
    import msgspec

    from policies.base import Goals

    return msgspec.convert(status["goals"], Goals)


def _table() -> Table:
    """What the running agent chooses from."""
    import msgspec

    from agent.client import ask
    from calibration.table import Table

    return msgspec.convert(ask("GET", "/gearshift/table"), Table)


def _found(past: Past, table: Table | None) -> dict[str, Any]:
    """A decision from the journal."""
    note = ""
    if table is None:
        note = "the alternatives need the calibration table; give it with --table"
    elif table.bundle_key != past.bundle_key or not set(past.points) <= {row.point for row in table.rows}:
        table, note = None, "the calibration table is another one now; give the one of that time with --journal --table"
    told = _told(past.explanation, past.goals, table, past.file, set(past.points))
    told["events"] = [{"unix_s": when, "words": words} for when, words in past.events]
    return told | {"note": note}


def _told(
    one: dict[str, Any] | Explanation, goals: Goals, table: Table | None, source: str, points: set[str] | None = None
) -> dict[str, Any]:
    """A decision with its alternatives, as JSON types."""
    import msgspec

    from agent.alternatives import alternatives
    from agent.values import Explanation

    made = one if isinstance(one, Explanation) else msgspec.convert(one, Explanation)
    others: tuple[Alternative, ...] = ()
    if table is not None:
        rows = tuple(row for row in table.rows if points is None or row.point in points)
        narrowed = msgspec.structs.replace(table, rows=rows)
        others = alternatives(narrowed, goals, made.conditions, made.decided, made.applied, made.bound)
    told: dict[str, Any] = msgspec.to_builtins(made)
    told |= {"goals": msgspec.to_builtins(goals), "source": source, "events": [], "note": ""}
    return told | {"alternatives": msgspec.to_builtins(others)}


def _print(out: Any, one: dict[str, Any]) -> None:
    from rich.markup import escape

    from cli._output import known_figures

    since, until = _clock(one["since_unix_s"]), _clock(one["until_unix_s"])
    periods = f" ({one['ticks']} periods)" if one["ticks"] > 1 else ""
    lines = [
        f"[bold]{since} to {until}[/]{periods}  [bold]{one['decided']}[/]",
        f"  why         {escape(one['reason'])} (bound: {one['bound']})",
    ]
    if one["applied"] != one["decided"]:
        bound = f" (bound: {one['applied_bound']})" if one["applied_bound"] else ""
        lines.append(f"  applied     {one['applied'] or 'nothing'}: {escape(one['applied_why'])}{bound}")
    lines += [f"  fault       [red]{escape(fault)}[/]" for fault in one["faults"]]
    lines.append(f"  conditions  {known_figures(one['conditions']) or 'nothing was known'}")
    lines.append(f"  goals       {_wishes(one)}")
    if one["source"] != "memory":
        lines.append(f"  from        {escape(one['source'])}")
    lines += [f"  before      {_clock(event['unix_s'])} {escape(event['words'])}" for event in one["events"]]
    for line in lines:
        out.print(line, soft_wrap=True)
    if one["note"]:
        out.print(f"  {escape(one['note'])}", style="yellow", soft_wrap=True)
    if one["alternatives"]:
        out.print(_alternatives(one["alternatives"], one["goals"]["deadline_percentile"]))


def _wishes(one: dict[str, Any]) -> str:
    """The goals in words; a time to last until as a time of day."""
    from cli._output import known_figures

    goals = {name: value for name, value in one["goals"].items() if name not in ("maximise", "last_until_s")}
    words = [known_figures(goals), f"maximise {one['goals']['maximise']}"]
    if (until_s := one["goals"]["last_until_s"]) is not None:
        words.insert(1, f"last until {_clock(one['until_unix_s'] + until_s - one['conditions']['time_s'])}")
    return ", ".join(word for word in words if word)


def _alternatives(rows: list[dict[str, Any]], percentile: float) -> Any:
    """The operating points beside each other; of many, those nearest to the one in use."""
    from rich.table import Table
    from rich.text import Text

    own = next((place for place, row in enumerate(rows) if row["role"]), 0)
    first = max(0, min(own - _MOST_ROWS // 2, len(rows) - _MOST_ROWS))
    shown = rows[first : first + _MOST_ROWS]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in ("accuracy", f"p{100 * percentile:g} ms", "busy", "W", "mJ"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("what spoke against it")
    names = [row["subnet"] for row in rows]
    for row in shown:
        name = row["subnet"] if len(set(names)) == len(names) else row["point"]
        mark = {"applied": "▶", "decided": "▷"}.get(row["role"], "")
        against = Text(row["why"], "" if row["role"] else "yellow" if row["verdict"] else "dim")
        table.add_row(
            mark,
            Text(name, "bold" if row["role"] else ""),
            f"{100 * row['accuracy']:.2f} %",
            _figure(row["latency_ms"]),
            "" if row["busy"] is None else f"{100 * row['busy']:.0f} %",
            _figure(row["work_w"]),
            _figure(None if row["energy_j"] is None else 1e3 * row["energy_j"]),
            against,
        )
    sources = dict.fromkeys(row["energy_source"] for row in shown if row["energy_j"] is not None)
    hints = [f"W and mJ: {', '.join(sources)}"] if sources else []  # a modelled figure says that it is one
    hints += [f"{len(rows) - len(shown)} more in --json"] if len(shown) < len(rows) else []
    table.caption = "; ".join(hints) or None
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _clock(unix_s: float) -> str:
    """Time of day, with the date where it is not today's."""
    then = time.localtime(unix_s)
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)
