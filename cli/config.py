"""``gearshift config``: checks, compares and writes the agent's configuration."""

from __future__ import annotations

import os
from pathlib import Path

import click

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("config")
def command() -> None:
    """Checks, compares or writes the agent's configuration.

    \b
    Example:
      gearshift config init agent.toml
      gearshift config check agent.toml
      gearshift run --config agent.toml
    """


@command.command("check")
@click.argument("file", type=_FILE)
def check(file: Path) -> None:
    """Reads a file with its conf.d overrides and the environment as 'gearshift run' would."""
    from agent import config
    from policies.registry import create

    loaded = config.load(file, environment=os.environ)
    create(loaded.agent.policy, loaded.goals.goals(), loaded.policy.options)
    click.echo(f"{file}: sound")


@command.command("diff")
@click.argument("file", type=_FILE)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def diff(file: Path, json_file: str | None) -> None:
    """Shows what differs from the defaults, and which source says so."""
    from agent import config
    from cli._output import console, emit_json

    found = config.differences(file, environment=os.environ)
    if json_file:
        emit_json(json_file, found)
    if json_file != "-":
        from rich.markup import escape
        from rich.table import Table

        table = Table("key", "default", "here", "said by")
        for one in found:
            table.add_row(one.key, escape(str(one.default)), escape(str(one.value)), escape(one.source))
        console().print(table if found else "everything is at its default")


@command.command("init")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
def init(file: str) -> None:
    """Writes a file in which every key stands at its default, commented out; to stdout without FILE."""
    from agent.template import template
    from subnets.bundle import write_atomically
    from subnets.errors import InputError

    if file == "-":
        click.echo(template(), nl=False)
        return
    if Path(file).exists():
        raise InputError(f"{file}: exists already; remove it first, or give another name")
    write_atomically(Path(file), template().encode())
    click.echo(f"{file}: written")
