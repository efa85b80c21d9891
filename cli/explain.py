"""``gearshift explain``: why the last decisions were taken."""

from __future__ import annotations

import time
from typing import Any

import click


@click.command("explain")
@click.option(
    "--last", is_flag=False, flag_value=1, default=1, show_default=True, type=click.IntRange(1), help="How many."
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(last: int, json_file: str | None) -> None:
    """Tells the last decisions that differed from the one before, oldest first, with their conditions.

    \b
    Example:
      gearshift explain
      gearshift explain --last 10
    """
    from agent.client import ask
    from cli._output import console, emit_json

    told = ask("GET", f"/gearshift/explain?last={last}")
    if json_file:
        emit_json(json_file, told)
    if json_file != "-":
        for one in told:
            console().print(_words(one), soft_wrap=True)


def _words(one: dict[str, Any]) -> str:
    from rich.markup import escape

    from cli._output import known_figures

    since, until = (time.strftime("%H:%M:%S", time.localtime(one[key])) for key in ("since_unix_s", "until_unix_s"))
    lines = [f"[bold]{since} to {until}[/]  {one['decided']}: {escape(one['reason'])} (bound: {one['bound']})"]
    if one["applied"] != one["decided"]:
        lines.append(f"  applied {one['applied'] or 'nothing'}: {escape(one['applied_why'])}")
    lines += [f"  [red]{escape(fault)}[/]" for fault in one["faults"]]
    lines.append(f"  {known_figures(one['conditions']) or 'nothing was known'}")
    return "\n".join(lines)
