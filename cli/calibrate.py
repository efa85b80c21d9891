"""``gearshift calibrate``: measures a bundle's operating points on this machine and writes their table."""

from __future__ import annotations

import re
from pathlib import Path

import click

from cli._modules import module_option

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


def _told_apart(texts: tuple[str, ...], rel_precision: float) -> tuple[tuple[str, ...], float]:
    """--precision means a number format, or with a per cent sign how well medians are to be known."""
    shares = [text for text in texts if text.strip().endswith("%")]
    if len(shares) > 1:
        raise click.UsageError(f"--precision was given as {' and '.join(shares)}; give one share")
    formats = tuple(text for text in texts if text not in shares)
    if not shares:
        return formats, rel_precision
    context = click.get_current_context()
    return formats, _share(context, context.command.params[0], shares[0])


@click.command("calibrate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend", "backends", multiple=True, help="Measure this backend only; may be repeated.  [default: all]"
)
@module_option
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    help="Measure this number format only, e.g. bf16; may be repeated.  [default: all]  With a %: --rel-precision.",
)
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
    help="Leave a point alone once half of its median's 95 % interval is below this share of it.",
)
@click.option("--data", help="'digits' or a folder of labelled images, to measure accuracy on.")
@click.option("--split", type=click.Choice(["test", "validation"]), default="test", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="The table.  [default: ./<bundle's name>.table.json]"
)
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Also a report, as one HTML file.")
@click.option("--fresh", is_flag=True, help="Start over where an interrupted calibration would be resumed.")
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
    fresh: bool,
    json_file: str | None,
) -> None:
    """Measures every operating point of BUNDLE on this machine: latency, energy, memory, accuracy, switch costs.

    Writes a table that policies, simulation and the agent read. Points are measured in turns, in random order, until
    each median is known well enough or the budget is spent. Accuracy is measured where --data is given or the bundle
    was trained on the digits that come with the package; otherwise the bundle's own figures are taken.

    Every finished round is kept in <table>.partial. Interrupted, the same command goes on from there.

    \b
    Example:
      gearshift calibrate bundles/resnet20-cifar10
      gearshift calibrate bundles/resnet20-cifar10 --precision 2% --budget 2m
      gearshift calibrate bundles/resnet20-cifar10 --backend openvino --budget 5m --report calibration.html
    """
    from backends.registry import all_backends, create
    from calibration import table as tables
    from calibration.ledger import SUFFIX, opened_ledger
    from calibration.measure import Settings, calibrate
    from cli._output import console, emit_json, progress
    from cli.table import print_table, write_report
    from sensors import meters
    from subnets.bundle import Bundle
    from subnets.data import load

    formats, rel_precision = _told_apart(precisions, rel_precision)
    opened = Bundle.open(bundle)
    target = out or Path(f"{opened.name}.table.json")
    chosen = [create(name) for name in dict.fromkeys(backends)] if backends else all_backends()
    partial = target.with_name(target.name + SUFFIX)
    with opened_ledger(partial, fresh=fresh) as ledger, progress() as bar:
        task = bar.add_task("starting", total=None)
        table = calibrate(
            opened,
            chosen,
            precisions=formats or None,
            batch_sizes=batch_sizes,
            threads=threads,
            settings=Settings(budget_s=budget, rel_precision=rel_precision, seed=seed),
            data=load(data, image_size=opened.input.height) if data else None,
            split=split,
            meters=meters(),
            ledger=ledger,
            on_progress=lambda what, done, total: bar.update(
                task, description=what, completed=round(done), total=round(total)
            ),
        )
        tables.write(table, target)
        partial.unlink()
    if report:
        write_report(table, report)
    if json_file:
        emit_json(json_file, table)
    if json_file == "-":
        return
    print_table(table)
    if table.protocol.sessions > 1:
        console().print(f"Resumed an interrupted calibration: {table.protocol.sessions} sessions in all.")
    console().print(f"Written: {target}" + (f", {report}" if report else ""), markup=False, soft_wrap=True)
