"""``gearshift release``: ends a hold."""

from __future__ import annotations

import click


@click.command("release")
def command() -> None:
    """Ends a hold before its time; the policy decides again.

    \b
    Example:
      gearshift release
    """
    from agent.client import ask

    ask("POST", "/gearshift/release", {})
    click.echo("no subnet is held")
