"""``gearshift status``: what the running agent does, and why."""

from __future__ import annotations

from typing import Any

import click


@click.command("status")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(json_file: str | None) -> None:
    """Shows the subnet in use, the reason, the conditions and the engines in memory.

    \b
    Example:
      gearshift status
      gearshift status --json - | jq .subnet
    """
    from agent.client import ask
    from cli._output import emit_json

    status = ask("GET", "/gearshift/status")
    if json_file:
        emit_json(json_file, status)
    if json_file != "-":
        _print(status)


def _print(status: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from cli._output import console, known_figures

    out = console()
    out.print(
        f"[bold]{status['point'] or 'no engine'}[/], {status['state']}" + (" (dry run)" if status["dry_run"] else "")
    )
    out.print(f"why         {escape(status['reason'])} (bound: {status['bound']})")
    out.print(f"policy      {status['policy']}, bundle {escape(status['bundle'])}")
    if status["hold"]:
        hold = status["hold"]
        out.print(f"hold        {hold['subnet']} for {hold['remaining_s']:.0f} s more: {escape(hold['reason'])}")
    goals = [
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
        for name, value in status["goals"].items()
        if value is not None
    ]
    out.print(f"goals       {', '.join(goals)}")
    out.print(f"conditions  {known_figures(status['conditions'] or {}) or 'nothing is known'}")
    counters = {name: value for name, value in status["counters"].items() if value}
    out.print(f"counted     {', '.join(f'{name} {value}' for name, value in counters.items()) or 'nothing yet'}")
    if status["journal"]:
        journal = status["journal"]
        stopped = f", [red]stopped: {escape(journal['stopped'])}[/]" if journal["stopped"] else ""
        out.print(
            f"journal     {escape(journal['path'])}: {journal['written']} lines, {journal['dropped']} dropped{stopped}"
        )
    engines = Table("engine", "state", "memory", "loaded in", "failures")
    for engine in status["engines"]:
        state = "current" if engine["current"] else "resident" if engine["resident"] else "out"
        if engine["quarantined_s"]:
            state = f"quarantined {engine['quarantined_s']:.0f} s"
        engines.add_row(
            f"{engine['subnet']} {engine['backend']} {engine['precision']}",
            state,
            f"{engine['memory_bytes'] / 1e6:.1f} MB" if engine["memory_bytes"] else "",
            f"{engine['load_ms']:.0f} ms" if engine["load_ms"] is not None else "",
            f"{engine['failures']}: {escape(engine['last_error'])}" if engine["failures"] else "",
        )
    out.print(engines)
