"""``gearshift sample``: from a trained network to a bundle with a ladder of nested subnets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli._modules import OwnNetwork, network_options
from cli._training import DATA_HELP, argument_option, checked_device, device_option, record


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@network_options
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's directory.")
@click.option("--budgets", default="0.25,0.5,0.75,1", show_default=True, help="Shares of the full network's MACs.")
@click.option("--score", default="taylor", show_default=True, help="taylor, norm, scale or noise.")
@click.option("--normalise", help="none, by group, or by type of layer.  [default: the score's own way]")
@click.option(
    "--allocation",
    default="greedy",
    show_default=True,
    help="greedy, threshold, progressive, latency (greedy, but in measured milliseconds) or uniform.",
)
@click.option("--per-mac/--no-per-mac", default=None, help="Scores count per MAC.  [default: the allocation's own way]")
@click.option("--sort/--no-sort", default=True, show_default=True, help="Put important channels first.")
@click.option("--backend", default="openvino", show_default=True, help="What allocation 'latency' measures on.")
@click.option("--precision", default="f32", show_default=True, help="At which precision it measures.")
@click.option("--threads", default=1, show_default=True, help="With how many threads it measures.")
@click.option(
    "--widths-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where measured widths are kept and looked up.  [default: beside the bundle]",
)
@click.option("--space", default="stages", show_default=True, help="stages, or interiors of blocks only.")
@click.option("--grouper", default="fx", show_default=True, help="fx, or torch-pruning (the extra 'prune').")
@click.option("--align", default=8, show_default=True, help="Widths are multiples of this.")
@click.option("--floor", default=0.125, show_default=True, help="Smallest share of a group that stays.")
@click.option("--last-floor", default=0.5, show_default=True, help="The same for the classifier's input.")
@argument_option
@click.option("--image-size", default=224, show_default=True, help="For image folders.")
@device_option
@click.option("--json", "json_file", type=click.Path(dir_okay=False, allow_dash=True), help="Write the ladder as JSON.")
def command(
    checkpoint: Path | None,
    own: OwnNetwork,
    data: str,
    out: Path,
    budgets: str,
    score: str,
    normalise: str | None,
    allocation: str,
    per_mac: bool | None,
    sort: bool,
    backend: str,
    precision: str,
    threads: int,
    widths_file: Path | None,
    space: str,
    grouper: str,
    align: int,
    floor: float,
    last_floor: float,
    arguments: tuple[str, ...],
    image_size: int,
    device: str,
    json_file: str | None,
) -> None:
    """Sample nested subnets from the trained network in CHECKPOINT (.safetensors, .pt, .pth, .th).

    CHECKPOINT may be a bundle, too: another ladder is sampled from its full network, which brings its own --arch.

    A network of your own is named as --module package.module:factory; its factory may bring the trained weights along,
    then CHECKPOINT is left out. --argument gives the factory its arguments.

    With --allocation latency the budgets are shares of the full network's milliseconds at batch 1, measured here.

    \b
    gearshift sample resnet20.safetensors --arch resnet20 --data cifar-10-batches-py --out bundles/mine
    gearshift sample bundles/mine --data cifar-10-batches-py --budgets 0.2,0.4,0.6,0.8,1 --align 4 --out bundles/five
    gearshift sample resnet18.pth --arch resnet18 --data imagenet --align 16 --out bundles/r18
    gearshift sample mine.pth --module my_nets:small --argument width=32 --data images --input-shape 3,64,64 \\
        --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 --out bundles/mine
    """
    from cli._output import console, emit_json
    from cli._widths import lookup
    from cli.bundle import print_bundle
    from subnets.allocation import Limits
    from subnets.data import load
    from subnets.errors import InputError
    from subnets.groups import trace_with
    from subnets.sampling import SampleOptions, as_bundled, checkpoint_record, full_network, sample

    try:
        shares = tuple(float(part) for part in budgets.split(","))
    except ValueError:
        raise InputError(f"--budgets '{budgets}' is not a list of shares; write for example 0.25,0.5,1") from None
    dataset = own.describe(load(data, image_size=own.image_size(image_size)))
    source = own.bundle(checkpoint, arguments)
    if source:
        described, dataset = source.manifest.architecture, as_bundled(source, dataset)
    else:
        described = own.architecture(arguments, dataset)
    options = SampleOptions(
        budgets=shares,
        score=score,
        allocation=allocation,
        limits=Limits(align=align, space=space, floor=floor, last_floor=last_floor),
        grouper=grouper,
        normalise=normalise,
        per_mac=per_mac,
        sort=sort,
    )
    network = full_network(source) if source else own.network(checkpoint, described)
    latency_ms = None
    if allocation == "latency":
        latency_ms = lookup(
            network,
            described,
            trace_with(grouper, network, dataset.shape),
            dataset,
            backend=backend,
            precision=precision,
            threads=threads,
            path=widths_file or out.resolve().with_name(f"{out.resolve().name}.widths.json"),
        )
    trained: dict[str, Any] = {"factory": described.name}
    if source:
        trained = {"bundle": source.name, "key": source.key, "made": source.manifest.provenance}
    elif checkpoint:
        trained = checkpoint_record(checkpoint)
    made = {"pretraining": trained, "sampled": record()}
    where = checked_device(device)
    bundle = sample(network, described, dataset, options, out, latency_ms=latency_ms, device=where, provenance=made)
    print_bundle(bundle)
    if latency_ms:
        for spec in bundle.ladder:
            console().print(f"{spec.name}: {latency_ms(spec.widths):.3f} ms")
        console().print(f"measured on {backend}: {latency_ms.measured} widths, others looked up")
    if json_file:
        emit_json(json_file, bundle.manifest)
