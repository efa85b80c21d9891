"""``gearshift train``: joint training of a bundle's subnets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli._modules import module_option
from cli._training import DATA_HELP, checked_device, device_option, recipe, recipe_options, record, training_bar


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--middle", type=int, help="Subnets between smallest and largest per step; all by default.")
@click.option("--full-weight", default=1.0, show_default=True, help="Weight of the full network's loss.")
@click.option("--soft", default=0.9, show_default=True, help="Weight of the teacher against the labels.")
@click.option("--teacher", default="live", show_default=True, help="live, frozen or averaged.")
@click.option("--affine", default="private", show_default=True, help="Batch-norm's scale and shift: private or shared.")
@click.option("--heads/--no-heads", default=False, show_default=True, help="A classifier of its own for each subnet.")
@click.option("--image-size", default=224, show_default=True, help="For image folders.")
@module_option
@device_option
@recipe_options(epochs=30, learning_rate=0.05)
def command(
    bundle: Path,
    data: str,
    middle: int | None,
    full_weight: float,
    soft: float,
    teacher: str,
    affine: str,
    heads: bool,
    image_size: int,
    device: str,
    **options: Any,
) -> None:
    """Train all subnets of BUNDLE jointly, and write the result back.

    A run that was stopped continues from its checkpoint beside the bundle; exports are dropped, since they hold the
    old weights ('gearshift export' makes new ones). Several processes share each batch when torchrun starts them.

    \b
    gearshift train bundles/mine --data cifar-10-batches-py --epochs 16 --learning-rate 0.08 --middle 1
    torchrun --nproc-per-node 2 --no-python gearshift train bundles/mine --data cifar-10-batches-py
    """
    from cli.bundle import print_bundle
    from subnets.bundle import Bundle
    from subnets.data import load
    from subnets.heap import keep_freed_memory
    from subnets.joint import JointOptions
    from subnets.sampling import fine_tune
    from subnets.team import joined

    bundle = bundle.resolve()  # '.' has no name for the checkpoint
    opened = Bundle.open(bundle)
    dataset = load(data, image_size=image_size)
    checkpoint = bundle.with_name(f"{bundle.name}.checkpoint")
    joint = JointOptions(middle=middle, full_weight=full_weight, soft=soft, teacher=teacher, affine=affine, heads=heads)
    keep_freed_memory()
    with joined() as team, training_bar(f"training {opened.name}", shown=team.rank == 0) as on_step:
        trained = fine_tune(
            opened,
            dataset,
            recipe(device, options),
            joint,
            checkpoint=checkpoint,
            team=team,
            device=checked_device(device),
            provenance=record(),
            on_step=on_step,
        )
    if team.rank == 0:
        checkpoint.unlink(missing_ok=True)
        print_bundle(trained)
