"""``gearshift table``: shows a calibration table, or what changed between two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.compare import Difference
    from calibration.table import Table


@click.group("table")
def command() -> None:
    """Shows and compares calibration tables.

    \b
    Example:
      gearshift table show resnet20-cifar10.table.json
      gearshift table diff monday.table.json tuesday.table.json
    """


@command.command("show")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Also write it as an HTML report.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="The table as JSON; - for stdout."
)
def show(table: Path, report: Path | None, json_file: str | None) -> None:
    """Shows TABLE, and what to know before believing it.

    \b
    Example:
      gearshift table show resnet20-cifar10.table.json --report calibration.html
    """
    from calibration.table import read
    from cli._output import emit_json

    found = read(table)
    if report:
        from calibration.report import report as page
        from subnets.bundle import write_atomically

        write_atomically(report, page(found).encode())
    if json_file:
        emit_json(json_file, found)
    if json_file != "-":
        print_table(found)


@command.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="As JSON; - for stdout.")
def diff(a: Path, b: Path, json_file: str | None) -> None:
    """Compares tables A and B point by point: ratios B / A, and whether the 95 % intervals overlap.

    \b
    Example:
      gearshift table diff before.table.json after.table.json
    """
    from calibration.compare import compare
    from calibration.table import read
    from cli._output import emit_json

    difference = compare(read(a), read(b))
    if json_file:
        emit_json(json_file, difference)
    if json_file != "-":
        _print_difference(difference)


def print_table(table: Table) -> None:
    """The rows, the idle power and the remarks, on stdout."""
    from rich.table import Table as Grid

    from calibration import wording

    grid = Grid(title=f"{table.bundle_name} on {table.host.cpu}", title_justify="left")
    grid.add_column("operating point", no_wrap=True)
    sources = wording.sources(table)
    for heading in (
        "accuracy, %",
        "p50, ms",
        "p99, ms",
        "images/s",
        "mJ/image" if len(sources) > 1 else f"mJ/image, {sources[0]}",
        "MB",
        "load, ms",
    ):
        grid.add_column(heading, justify="right", overflow="fold")
    if len(sources) > 1:
        grid.add_column("energy source", overflow="fold")
    for row in sorted(table.rows, key=lambda row: (row.backend, row.precision, row.batch_size, row.macs)):
        half = (row.latency_p50_high_ms - row.latency_p50_low_ms) / 2 / row.latency_p50_ms
        cells = (
            row.point,
            _with_range(row.accuracy, row.accuracy_low, row.accuracy_high, 100),
            f"{wording.number(row.latency_p50_ms)} ±{100 * half:.1f}%",
            wording.number(row.latency_p99_ms),
            wording.number(row.throughput_per_s),
            _with_range(row.energy_j, row.energy_low_j, row.energy_high_j, 1e3),
            "unknown" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.1f}",
            f"{row.load_ms:.0f}",
        )
        grid.add_row(*cells, *([row.energy_source] if len(sources) > 1 else []))
    out = _wide()
    out.print(grid)
    out.print(f"Idle power: {wording.idle_power(table)}.", markup=False, soft_wrap=True)
    for source in sources:
        out.print(f"Energy ({source}): {wording.source_in_words(source)}.", markup=False, soft_wrap=True)
    for source in dict.fromkeys(row.accuracy_source for row in table.rows):
        out.print(f"Accuracy: {source}.", markup=False, soft_wrap=True)
    discarded = table.protocol.discarded_cells
    left_out = "; left out: " + ", ".join(f"{count} for {reason}" for reason, count in discarded.items())
    out.print(
        f"{table.protocol.rounds} rounds{left_out if discarded else ''}. Ranges are 95 % intervals.", markup=False
    )
    for remark in wording.remarks(table):
        out.print(remark, style="yellow", markup=False, soft_wrap=True)


def _wide() -> Console:
    """The console; where it is no terminal, wide enough for the tables here."""
    from cli._output import console

    out = console()
    if not out.is_terminal:
        out.width = 140
    return out


def _with_range(value: float | None, low: float | None, high: float | None, scale: float) -> str:
    """``91.2 (90.6-91.8)``, or ``unknown``."""
    from calibration.wording import number

    if value is None:
        return "unknown"
    bounds = "" if low is None or high is None else f" ({number(scale * low)}-{number(scale * high)})"
    return number(scale * value) + bounds


def _print_difference(difference: Difference) -> None:
    from rich.table import Table as Grid

    from calibration import wording

    def words(overlaps: bool | None) -> str:
        return "unknown" if overlaps is None else "within noise" if overlaps else "differs"

    grid = Grid()
    grid.add_column("operating point", no_wrap=True)
    for heading in ("p50 A, ms", "p50 B, ms", "ratio", "", "energy ratio", "", "accuracy A, %", "B, %", ""):
        grid.add_column(heading, justify="right", no_wrap=not heading)
    for change in difference.changes:
        grid.add_row(
            change.point,
            wording.number(change.a_p50_ms),
            wording.number(change.b_p50_ms),
            f"{change.latency_ratio:.3f}",
            words(change.latency_overlaps),
            "unknown" if change.energy_ratio is None else f"{change.energy_ratio:.3f}",
            words(change.energy_overlaps),
            f"{100 * change.a_accuracy:.1f}",
            f"{100 * change.b_accuracy:.1f}",
            words(change.accuracy_overlaps),
        )
    out = _wide()
    out.print(grid)
    for name, points in (("A", difference.only_a), ("B", difference.only_b)):
        if points:
            out.print(f"Only in {name}: {', '.join(points)}.", markup=False, soft_wrap=True)
    if not difference.same_bundle:
        out.print("The tables are of different bundles.", style="yellow")
    for sentence in difference.host:
        out.print(f"The hosts differ: {sentence}.", style="yellow", markup=False, soft_wrap=True)
