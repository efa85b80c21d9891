"""``gearshift verify``: measures some rows of a table again, and says whether it still holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._modules import module_option

if TYPE_CHECKING:
    from calibration.verify import Verdict


@click.command("verify")
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@module_option
@click.option("--rows", type=click.IntRange(1), default=6, show_default=True, help="How many to measure, at random.")
@click.option("--rounds", type=click.IntRange(4, 100), default=8, show_default=True)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share by which a figure may be off without the table being wrong.",
)
@click.option(
    "--false-alarm",
    type=click.FloatRange(0, 0.5, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Chance of rejecting a table that holds, over all rows together.",
)
@click.option("--seed", type=click.IntRange(0), help="Draws the rows.  [default: others each time]")
@click.option("--force", is_flag=True, help="Compare even a table of another bundle or machine.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="As JSON; - for stdout.")
@click.pass_context
def command(
    context: click.Context,
    table: Path,
    bundle: Path,
    rows: int,
    rounds: int,
    tolerance: float,
    false_alarm: float,
    seed: int | None,
    force: bool,
    json_file: str | None,
) -> None:
    """Measures some rows of TABLE again on BUNDLE, and says whether it still holds here.

    A row has drifted when its latency, or its energy where a meter tells it, is off by more than the tolerance and by
    more than chance explains. Exit code 0: holds; 1: rows have drifted, and are named; 2: cannot be told.

    \b
    Example:
      gearshift verify resnet20-cifar10.table.json bundles/resnet20-cifar10
    """
    import secrets

    from backends.registry import all_backends
    from calibration.host import fingerprint
    from calibration.table import read
    from calibration.verify import verify
    from cli._output import emit_json, progress
    from sensors import meters
    from subnets.bundle import Bundle

    found, opened = read(table), Bundle.open(bundle)
    if not force:
        host = fingerprint({row.backend for row in found.rows})
        found.check(bundle_key=opened.key, bundle_name=opened.name, host=host)
    with progress() as bar:
        task = bar.add_task("starting", total=None)
        verdict = verify(
            found,
            opened,
            all_backends(),
            rows=rows,
            rounds=rounds,
            tolerance=tolerance,
            false_alarm=false_alarm,
            seed=secrets.randbits(32) if seed is None else seed,
            meters=meters(),
            on_progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if json_file:
        emit_json(json_file, verdict)
    if json_file != "-":
        _print(verdict)
    context.exit(0 if verdict.holds else 1)


def _print(verdict: Verdict) -> None:
    from rich.table import Table as Grid

    from calibration.wording import number, percent
    from cli._output import console

    grid = Grid()
    grid.add_column("operating point", no_wrap=True)
    for heading in ("figure", "then", "now", "now / then", "between", ""):
        grid.add_column(heading, justify="right")
    for one in verdict.findings:
        scale, unit = (1.0, "p50, ms") if one.quantity == "latency_p50_ms" else (1e3, "mJ/image")
        high = "?" if one.ratio_high is None else f"{one.ratio_high:.3f}"
        grid.add_row(
            one.point,
            unit,
            number(scale * one.then),
            number(scale * one.now),
            f"{one.ratio:.3f}",
            f"{one.ratio_low:.3f} to {high}",
            "drifted" if one.drifted else "confirmed" if one.confirmed else "no sign of drift",
        )
    out = console()
    if not out.is_terminal:
        out.width = 140
    out.print(grid)
    out.print(
        f"{verdict.rows} of {verdict.of} rows in {verdict.rounds} rounds. Of a table whose figures are off by no more "
        f"than {percent(verdict.tolerance)}, up or down, any row is named with a chance of at most "
        f"{percent(verdict.false_alarm)}.",
        markup=False,
        soft_wrap=True,
    )
    if verdict.holds:
        out.print("The table holds.", style="green")
        return
    named = ", ".join(dict.fromkeys(one.point for one in verdict.drifted))
    out.print(f"The table no longer holds: {named}. Calibrate again.", style="red", markup=False, soft_wrap=True)
