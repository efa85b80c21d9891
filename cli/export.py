"""``gearshift export``: subnets as portable files inside their bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("export")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--format", "format", type=click.Choice(["openvino"]), default="openvino", show_default=True)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the list as JSON; - for stdout.",
)
def command(bundle: Path, format: str, json_file: str | None) -> None:
    """Writes every subnet of BUNDLE in a form that a device reads without torch.

    The files go to exports/ inside the bundle; each is checked against the network it came from. Needs torch.

    \b
    Example:
      gearshift export bundles/resnet20
      gearshift export bundles/resnet20 --json -
    """
    from rich.table import Table

    from backends.export import add_exports
    from cli._output import console, emit_json
    from subnets.bundle import Bundle

    exported = add_exports(Bundle.open(bundle))
    rows: list[dict[str, Any]] = [
        {
            "subnet": export.subnet,
            "format": export.format,
            "file": next(iter(export.files)),
            "bytes": sum((exported.path / name).stat().st_size for name in export.files),
        }
        for export in exported.manifest.exports
        if export.format == format
    ]
    if json_file:
        emit_json(json_file, {"exports": rows})
    if json_file == "-":
        return
    table = Table("subnet", "file")
    table.add_column("size, kB", justify="right")
    for row in rows:
        table.add_row(row["subnet"], row["file"], f"{row['bytes'] / 1000:.0f}")
    console().print(table)
