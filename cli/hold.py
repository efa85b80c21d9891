"""``gearshift hold``: an operator's override."""

from __future__ import annotations

import click

from cli._units import Quantity

_FOR = Quantity("duration", {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0})


@click.command("hold")
@click.argument("subnet")
@click.option("--for", "for_s", type=_FOR, required=True, metavar="DURATION", help="How long, e.g. 10m.")
@click.option("--reason", required=True, help="Why; shown by status and kept in the journal.")
def command(subnet: str, for_s: float, reason: str) -> None:
    """Makes the running agent answer with one subnet for a while, whatever its policy says.

    An engine that fails is replaced all the same. See also 'gearshift release'.

    \b
    Example:
      gearshift hold s50 --for 10m --reason "measuring the camera"
    """
    from agent.client import ask

    hold = ask("POST", "/gearshift/hold", {"subnet": subnet, "for_s": for_s, "reason": reason})
    click.echo(f"{hold['subnet']} is held for {for_s:g} s; end it early with 'gearshift release'")
