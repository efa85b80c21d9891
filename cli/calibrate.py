"""``gearshift calibrate``: measures a bundle's operating points on this machine and writes their table."""

from __future__ import annotations

import re
from pathlib import Path

import click

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def _duration(context: click.Context, parameter: click.Parameter, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if match is None or float(match[1]) <= 0:
        raise click.BadParameter(f"'{text}' is not a duration; give one such as 90s, 5m or 1h")
    return float(match[1]) * _SECONDS[match[2] or ""]


def _share(context: click.Context, parameter: click.Parameter, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%)?", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise click.BadParameter(f"'{text}' is not between 0 and 1; give one such as 3% or 0.03")
    return value


@click.command("calibrate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend", "backends", multiple=True, help="Measure this backend only; may be repeated.  [default: all]"
)
@click.option("--precision", "precisions", multiple=True, help="This precision only; may be repeated.  [default: all]")
@click.option(
    "--batch-size", "batch_sizes", type=click.IntRange(1, 1024), multiple=True, default=(1,), help="May be repeated."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads per engine.  [default: all usable cores]")
@click.option("--budget", default="90s", show_default=True, callback=_duration, help="Time for answering, at most.")
@click.option(
    "--rel-precision",
    default="3%",
    show_default=True,
    callback=_share,
    help="Stop once half of every median's 95 % interval is below this share of it.",
)
@click.option("--data", help="'digits' or a folder of labelled images, to measure accuracy on.")
@click.option("--split", type=click.Choice(["test", "validation"]), default="test", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The table.  [default: ./<bundle's name>.table.json]"
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Also a report, as one HTML file.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="The table as JSON; - for stdout."
)
def command(
    bundle: Path,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: int | None,
    budget: float,
    rel_precision: float,
    data: str | None,
    split: str,
    seed: int,
    out: Path | None,
    report: Path | None,
    json_file: str | None,
) -> None:
    """Measures every operating point of BUNDLE on this machine: latency, energy, memory, accuracy, switch costs.

    Writes a table that policies, simulation and the agent read. Points are measured in turns, in random order, until
    each median is known well enough or the budget is spent. Accuracy is measured where --data is given or the bundle
    was trained on the digits that come with the package; otherwise the bundle's own figures are taken.

    \b
    Example:
      gearshift calibrate bundles/resnet20-cifar10
      gearshift calibrate bundles/resnet20-cifar10 --backend openvino --budget 5m --report calibration.html
    """
    from backends.registry import all_backends, create
    from calibration import table as tables
    from calibration.measure import Settings, calibrate
    from cli._output import console, emit_json, progress
    from cli.table import print_table
    from sensors import meters
    from subnets.bundle import Bundle, write_atomically
    from subnets.data import load

    opened = Bundle.open(bundle)
    chosen = [create(name) for name in dict.fromkeys(backends)] if backends else all_backends()
    with progress() as bar:
        task = bar.add_task("starting", total=None)
        table = calibrate(
            opened,
            chosen,
            precisions=precisions or None,
            batch_sizes=batch_sizes,
            threads=threads,
            settings=Settings(budget_s=budget, rel_precision=rel_precision, seed=seed),
            data=load(data, image_size=opened.input.height) if data else None,
            split=split,
            meters=meters(),
            on_progress=lambda what, done, total: bar.update(
                task, description=what, completed=round(done), total=round(total)
            ),
        )
    target = out or Path(f"{opened.name}.table.json")
    tables.write(table, target)
    if report:
        from calibration.report import report as page

        write_atomically(report, page(table).encode())
    if json_file:
        emit_json(json_file, table)
    if json_file == "-":
        return
    print_table(table)
    console().print(f"Written: {target}" + (f", {report}" if report else ""), markup=False, soft_wrap=True)
