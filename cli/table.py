"""``gearshift table``: shows calibration tables, compares, merges and exports them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.compare import Difference
    from calibration.table import Table


@click.group("table")
def command() -> None:
    """Shows calibration tables, compares, merges and exports them.

    \b
    Example:
      gearshift table show resnet20-cifar10.table.json
      gearshift table diff monday.table.json tuesday.table.json
      gearshift table merge fleet/*.table.json --out merged
      gearshift table export resnet20-cifar10.table.json rows.csv
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
        write_report(found, report)
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


@command.command("merge")
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="The folder for the merged tables, one for each kind of machine.  [default: here]",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="What became of each; - for stdout."
)
def merge(tables: tuple[Path, ...], out: Path, json_file: str | None) -> None:
    """Merges the TABLES of machines of one kind; different kinds are kept apart.

    A kind is the same bundle, processor, number of cores, accelerator, library versions and threads. Figures are
    weighted by rounds; where machines differ by more than their own noise, intervals widen to hold for any one of them.

    \b
    Example:
      gearshift table merge fleet/*.table.json --out merged
    """
    from calibration.merge import kind, merge, why_apart
    from calibration.table import read, write
    from cli._output import console, emit_json

    found = [read(path) for path in tables]
    merged = merge(found)
    told: list[dict[str, Any]] = []
    for of, table in merged.items():
        target = out / f"{table.bundle_name}-{of.host_key}-t{of.threads}-{of.bundle_key[:6]}.table.json"
        write(table, target)
        members = [str(path) for path, one in zip(tables, found, strict=True) if kind(one) == of]
        told.append({"table": str(target), "cpu": table.host.cpu, "rows": len(table.rows), "from": members})
    first = found[0]
    apart = [(path, why) for path, one in zip(tables, found, strict=True) if (why := why_apart(first, one))]
    if json_file:
        emit_json(json_file, {"tables": told})
    if json_file == "-":
        return
    screen = console()
    for entry in told:
        line = f"{entry['table']}: {entry['rows']} points of {len(entry['from'])} tables on {entry['cpu']}."
        screen.print(line, markup=False, soft_wrap=True)
    for path, why in apart:
        screen.print(f"{path} is kept apart from {tables[0]}: {why}.", style="yellow", markup=False, soft_wrap=True)


@command.command("export")
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, allow_dash=True))
def export(tables: tuple[Path, ...], out: str) -> None:
    """Writes the rows of TABLES to OUT as a flat sheet: .csv, .parquet, or - for CSV on stdout.

    \b
    Example:
      gearshift table export resnet20-cifar10.table.json rows.csv
      gearshift table export fleet/*.table.json rows.parquet
    """
    from calibration.export import as_csv, as_parquet
    from calibration.table import disk_errors, read
    from cli._output import console
    from subnets.bundle import write_atomically

    if out != "-" and Path(out).suffix.lower() not in (".csv", ".parquet"):
        raise click.UsageError(f"{out}: no format of that name; give a file that ends in .csv or .parquet, or -")
    found = [read(path) for path in tables]
    content = as_parquet(found) if out.lower().endswith(".parquet") else as_csv(found)
    if out == "-":
        sys.stdout.buffer.write(content)
        return
    with disk_errors(Path(out)):
        write_atomically(Path(out), content)
    rows = sum(len(table.rows) for table in found)
    console().print(f"Written: {out}, {rows} rows", markup=False, soft_wrap=True)


def write_report(table: Table, path: Path) -> None:
    """The table's page, whole or not at all."""
    from calibration.report import report
    from calibration.table import disk_errors
    from subnets.bundle import write_atomically

    with disk_errors(path):
        write_atomically(path, report(table).encode())


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
        cells = (
            row.point,
            _with_range(row.accuracy, row.accuracy_low, row.accuracy_high, 100),
            wording.median(row),
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
    _print_differences(table, out)
    for remark in wording.remarks(table):
        out.print(remark, style="yellow", markup=False, soft_wrap=True)


def _print_differences(table: Table, out: Console) -> None:
    """Each subnet against the next smaller one, by the rounds they share."""
    from calibration.paired import neighbours

    ladder = {pair for pair in neighbours(table) if pair.first.partition("@")[2] == pair.second.partition("@")[2]}
    for pair in sorted(ladder, key=lambda pair: (pair.second.partition("@")[2], pair.ratio)):
        words = f"{pair.second} takes {pair.ratio:.2f} times ({pair.low:.2f}-{pair.high:.2f}) as long as {pair.first}"
        out.print(words + ("." if pair.differs else ", which is within noise."), markup=False, soft_wrap=True)


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
    if difference.changes:
        out.print(
            f"{difference.overlapping} of {len(difference.changes)} rows: the 95 % intervals of the median overlap. "
            f"In the mean B is {difference.common_ratio:.3f} times A.",
            markup=False,
            soft_wrap=True,
        )
    sources = dict.fromkeys(name for c in difference.changes for name in (c.a_energy_source, c.b_energy_source))
    for source in sources:
        out.print(f"Energy ({source}): {wording.source_in_words(source)}.", markup=False, soft_wrap=True)
    for name, points in (("A", difference.only_a), ("B", difference.only_b)):
        if points:
            out.print(f"Only in {name}: {', '.join(points)}.", markup=False, soft_wrap=True)
    if not difference.same_bundle:
        out.print("The tables are of different bundles.", style="yellow")
    for sentence in difference.host:
        out.print(f"The hosts differ: {sentence}.", style="yellow", markup=False, soft_wrap=True)
