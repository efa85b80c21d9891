"""``gearshift cache``: the compiled engines kept on this machine, and clearing out old ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._units import SECONDS

if TYPE_CHECKING:
    from backends.cache import Stored

_DAY_S = 86_400.0


@click.group("cache")
def command() -> None:
    """Shows the compiled engines that are kept on this machine, and clears out old ones.

    Each subnet, precision and number of threads is compiled once and kept; a new version of a library makes new ones
    beside the old. Nothing is ever removed unasked.

    \b
    Example:
      gearshift cache show
      gearshift cache prune --unused-for 30d
    """


@command.command("show")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="As JSON; - for stdout.")
def show(json_file: str | None) -> None:
    """Lists what is kept, the longest unused first.

    \b
    Example:
      gearshift cache show
    """
    from backends.base import cache_path
    from backends.cache import size_bytes, stored
    from cli._output import console, emit_json

    folder = cache_path().absolute()
    found = stored(folder)
    total = size_bytes(found)
    if json_file:
        emit_json(json_file, {"cache": str(folder), "size_bytes": total, "artifacts": found})
    if json_file == "-":
        return
    out = console()
    if found:
        out.print(_grid(found))
    out.print(
        f"{folder}: {len(found)} compiled engines, {total / 1e6:.1f} MB, files that several share counted once.",
        markup=False,
        soft_wrap=True,
    )


@command.command("prune")
@click.option(
    "--unused-for",
    type=SECONDS,
    default="30d",
    show_default=True,
    help="Remove what nothing has compiled or loaded for so long.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="As JSON; - for stdout.")
def prune(unused_for: float, dry_run: bool, json_file: str | None) -> None:
    """Removes compiled engines that were not used for a while; what is needed again is compiled again.

    An agent that has one loaded goes on with it.

    \b
    Example:
      gearshift cache prune --unused-for 7d --dry-run
    """
    from backends import cache
    from backends.base import cache_path
    from cli._output import console, emit_json
    from subnets.errors import InputError

    if unused_for < 0:
        raise InputError(f"--unused-for {unused_for:g} s lies in the future; give 0 or more, such as 30d")
    folder = cache_path().absolute()
    before = cache.stored(folder)
    total = cache.size_bytes(before)
    gone = [one for one in before if one.unused_s > unused_for] if dry_run else cache.prune(folder, unused_for)
    removed = {one.path for one in gone}
    freed = total - cache.size_bytes(one for one in before if one.path not in removed)
    if json_file:
        told = {"cache": str(folder), "dry_run": dry_run, "artifacts": gone, "freed_bytes": freed}
        emit_json(json_file, told)
    if json_file == "-":
        return
    out = console()
    if gone:
        out.print(_grid(gone))
    verb = "would be removed" if dry_run else "removed"
    out.print(
        f"{folder}: {len(gone)} of {len(before)} compiled engines {verb}, {freed / 1e6:.1f} MB.",
        markup=False,
        soft_wrap=True,
    )


def _grid(found: list[Stored]) -> object:
    from rich.table import Table

    grid = Table()
    for heading in ("backend", "subnet", "precision"):
        grid.add_column(heading, no_wrap=True)
    for heading in ("MB", "unused for, days"):
        grid.add_column(heading, justify="right")
    grid.add_column("key", no_wrap=True)
    for one in found:
        size, days = f"{one.size_bytes / 1e6:.2f}", f"{one.unused_s / _DAY_S:.1f}"
        grid.add_row(one.backend, one.subnet or "damaged", one.precision, size, days, Path(one.path).name)
    return grid
