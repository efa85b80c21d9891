"""``gearshift sample``: from a trained network to a bundle with a ladder of nested subnets."""

from __future__ import annotations

from pathlib import Path

import click

from cli._training import DATA_HELP, argument_option, record
from cli._training import architecture as described_by


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--arch", "architecture", required=True, help="The network's architecture, e.g. resnet20.")
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's directory.")
@click.option("--budgets", default="0.25,0.5,0.75,1", show_default=True, help="Shares of the full network's MACs.")
@click.option("--score", default="taylor", show_default=True, help="taylor or norm.")
@click.option("--allocation", default="greedy", show_default=True, help="greedy or threshold.")
@click.option("--space", default="stages", show_default=True, help="stages, or interiors of blocks only.")
@click.option("--align", default=8, show_default=True, help="Widths are multiples of this.")
@click.option("--floor", default=0.125, show_default=True, help="Smallest share of a group that stays.")
@click.option("--last-floor", default=0.5, show_default=True, help="The same for the classifier's input.")
@argument_option
@click.option("--image-size", default=224, show_default=True, help="For image folders.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write the ladder as JSON.")
def command(
    checkpoint: Path,
    architecture: str,
    data: str,
    out: Path,
    budgets: str,
    score: str,
    allocation: str,
    space: str,
    align: int,
    floor: float,
    last_floor: float,
    arguments: tuple[str, ...],
    image_size: int,
    json_file: str | None,
) -> None:
    """Sample nested subnets from the trained network in CHECKPOINT (.safetensors, .pt, .pth, .th).

    \b
    gearshift sample resnet20.safetensors --arch resnet20 --data cifar-10-batches-py --out bundles/mine
    gearshift sample resnet18.pth --arch resnet18 --data imagenet --align 16 --out bundles/r18
    """
    from cli._output import emit_json
    from cli.bundle import print_bundle
    from subnets.allocation import Limits
    from subnets.data import load
    from subnets.errors import InputError
    from subnets.sampling import SampleOptions, checkpoint_record, open_checkpoint, sample

    try:
        shares = tuple(float(part) for part in budgets.split(","))
    except ValueError:
        raise InputError(f"--budgets '{budgets}' is not a list of shares; write for example 0.25,0.5,1") from None
    dataset = load(data, image_size=image_size)
    described = described_by(architecture, arguments, dataset)
    options = SampleOptions(
        budgets=shares,
        score=score,
        allocation=allocation,
        limits=Limits(align=align, space=space, floor=floor, last_floor=last_floor),
    )
    network = open_checkpoint(checkpoint, described)
    made = {"pretraining": checkpoint_record(checkpoint), "sampled": record()}
    bundle = sample(network, described, dataset, options, out, provenance=made)
    print_bundle(bundle)
    if json_file:
        emit_json(json_file, bundle.manifest)
