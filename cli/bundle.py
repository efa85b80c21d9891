"""``gearshift bundle show|verify``: what a bundle holds, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from subnets.bundle import Bundle


@click.group()
def command() -> None:
    """Show or verify a bundle.

    \b
    gearshift bundle show bundles/resnet20-cifar10
    gearshift bundle verify bundles/resnet20-cifar10
    """


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the manifest and what subnets add.",
)
def show(bundle: Path, json_file: str | None) -> None:
    """Architecture, subnets, accuracy and exports of BUNDLE."""
    from cli._output import emit_json
    from subnets.bundle import Bundle

    opened = Bundle.open(bundle)
    if json_file:
        import msgspec

        added, full = opened.added()
        emit_json(json_file, {**msgspec.to_builtins(opened.manifest), "numbers": {"full": full, "added": added}})
    if json_file != "-":
        print_bundle(opened)


@command.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def verify(bundle: Path) -> None:
    """Check every hash, shape and the nesting of BUNDLE."""
    from cli._output import console
    from subnets.bundle import Bundle

    opened = Bundle.open(bundle)
    opened.verify()
    exports = len(opened.manifest.exports)
    console().print(f"{bundle}: sound; {len(opened.ladder)} nested subnets, {exports} exports, key {opened.key}")


def print_bundle(bundle: Bundle, out: Console | None = None) -> None:
    """A rich table of the subnets and what they add to the shared weights."""
    from rich.table import Table

    from cli._output import console

    table = Table(title=f"{bundle.name}: {bundle.manifest.architecture.name}", title_justify="left")
    table.add_column("subnet")
    for column in ("MACs", "of full", "parameters", "accuracy"):
        table.add_column(column, justify="right")
    table.add_column("exports")
    full = bundle.manifest.subnets[-1].macs
    for entry in bundle.manifest.subnets:
        measured = entry.accuracy
        accuracy = f"{measured.value:.2%} ({measured.low:.1%}-{measured.high:.1%})" if measured else "not measured"
        formats = ", ".join(e.format for e in bundle.manifest.exports if e.subnet == entry.name) or "none"
        row = (f"{entry.macs / 1e6:.2f} M", f"{entry.macs / full:.0%}", f"{entry.parameters / 1e3:.1f} k", accuracy)
        table.add_row(entry.name, *row, formats)
    out = out or console()
    out.print(table)
    added, full_size = bundle.added()
    what = " and ".join(f"{count / 1e3:.1f} k of {kind}" for kind, count in added.items() if count) or "nothing"
    out.print(
        f"The full network is {full_size / 1e3:.1f} k numbers; the smaller subnets ({len(bundle.ladder) - 1}) add "
        f"{what}, {sum(added.values()) / full_size:.1%} of its size. Key {bundle.key}."
    )
