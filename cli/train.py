"""``gearshift train``: joint training of a bundle's subnets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli._training import DATA_HELP, recipe_options, record, training_bar


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--middle", type=int, help="Subnets between smallest and largest per step; all by default.")
@click.option("--full-weight", default=1.0, show_default=True, help="Weight of the full network's loss.")
@click.option("--image-size", default=224, show_default=True, help="For image folders.")
@recipe_options(epochs=30, learning_rate=0.05)
def command(bundle: Path, data: str, middle: int | None, full_weight: float, image_size: int, **recipe: Any) -> None:
    """Train all subnets of BUNDLE jointly, and write the result back.

    A run that was stopped continues from its checkpoint beside the bundle; exports are dropped, since they hold the
    old weights ('gearshift export' makes new ones).

    \b
    gearshift train bundles/mine --data cifar-10-batches-py --epochs 16 --learning-rate 0.08 --middle 1
    """
    from cli.bundle import print_bundle
    from subnets.bundle import Bundle
    from subnets.data import load
    from subnets.sampling import fine_tune
    from subnets.training import Recipe

    bundle = bundle.resolve()  # '.' has no name for the checkpoint
    opened = Bundle.open(bundle)
    dataset = load(data, image_size=image_size)
    checkpoint = bundle.with_name(f"{bundle.name}.checkpoint")
    with training_bar(f"training {opened.name}") as on_step:
        trained = fine_tune(
            opened,
            dataset,
            Recipe(**recipe),
            middle=middle,
            full_weight=full_weight,
            checkpoint=checkpoint,
            provenance=record(),
            on_step=on_step,
        )
    checkpoint.unlink(missing_ok=True)
    print_bundle(trained)
