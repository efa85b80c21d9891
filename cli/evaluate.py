"""``gearshift evaluate``: the accuracy of each subnet, through an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli._modules import module_option

if TYPE_CHECKING:
    from backends.base import Backend


@click.command("evaluate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="'digits', a CIFAR-10 folder, or a folder of images in train/ and val/.")
@module_option
@click.option("--backend", help="Through which backend.  [default: openvino where usable, else the next that is]")
@click.option("--precision", help="At which precision.  [default: f32 where there is, else the first]")
@click.option("--split", type=click.Choice(["test", "validation"]), default="test", show_default=True)
@click.option("--record", is_flag=True, help="Write the accuracies into the bundle's manifest.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write it as JSON; - for stdout."
)
def command(
    bundle: Path,
    data: str,
    backend: str | None,
    precision: str | None,
    split: str,
    record: bool,
    json_file: str | None,
) -> None:
    """Measures the accuracy of every subnet of BUNDLE on labelled images, with 95 % Wilson intervals.

    Runs at full precision unless told otherwise; only such figures can be recorded. Works without torch where the
    bundle carries its OpenVINO exports.

    \b
    Example:
      gearshift evaluate bundles/digits --data digits
      gearshift evaluate bundles/resnet20-cifar10 --data data/cifar-10-batches-py --record --json accuracy.json
      gearshift evaluate bundles/resnet20-cifar10 --data data/cifar-10-batches-py --precision int8
    """
    from rich.table import Table

    from calibration.accuracy import chosen_split, evaluate
    from cli._output import console, emit_json, progress
    from subnets.bundle import Bundle
    from subnets.data import load

    if record and precision not in (None, "f32"):
        raise click.UsageError(f"--record keeps accuracies of f32 alone; leave it out to measure {precision}")
    opened = Bundle.open(bundle)
    engine_maker = _usable(backend)
    precisions = engine_maker.precisions_for(opened)
    precision = precision or ("f32" if "f32" in precisions else precisions[0])
    dataset = load(data, image_size=opened.input.height)
    images = len(chosen_split(opened, dataset, split))
    with progress() as bar:
        task = bar.add_task("images", total=images * len(opened.ladder))
        measured = evaluate(
            opened,
            engine_maker,
            dataset,
            split=split,
            precision=precision,
            on_images=lambda name, count: bar.update(task, advance=count, description=name),
        )
    if record:
        opened = opened.with_accuracy(measured)
    rows = [
        {
            "name": entry.name,
            "macs": entry.macs,
            "parameters": entry.parameters,
            "accuracy": measured[entry.name].value,
            "accuracy_low": measured[entry.name].low,
            "accuracy_high": measured[entry.name].high,
            "n": measured[entry.name].n,
        }
        for entry in opened.manifest.subnets
    ]
    if json_file:
        emit_json(
            json_file,
            {
                "bundle": opened.name,
                "bundle_key": opened.key,
                "data": dataset.name,
                "split": split,
                "backend": engine_maker.name,
                "precision": precision,
                "subnets": rows,
            },
        )
    if json_file == "-":
        return
    grid = Table(title=f"{opened.name} on {dataset.name}, {split} split, n={images}", title_justify="left")
    grid.add_column("subnet")
    for heading in ("MACs, M", "parameters, k", "accuracy, %", "95 % interval"):
        grid.add_column(heading, justify="right")
    for entry in opened.manifest.subnets:
        found = measured[entry.name]
        interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        grid.add_row(
            entry.name, f"{entry.macs / 1e6:.2f}", f"{entry.parameters / 1e3:.1f}", f"{100 * found.value:.1f}", interval
        )
    out = console()
    out.print(grid)
    out.print(f"Through {engine_maker.name} at {precision}." + (" Recorded in the bundle." if record else ""))


def _usable(name: str | None) -> Backend:
    from backends.registry import all_backends, create
    from subnets.errors import UnavailableError

    candidates = [create(name)] if name else all_backends()
    whys = []
    for backend in candidates:
        availability = backend.available()
        if availability.ok:
            return backend
        whys.append(f"{backend.name}: {availability.why}")
    raise UnavailableError(f"no backend can be used here ({'; '.join(whys)}); 'gearshift doctor' tells more")
