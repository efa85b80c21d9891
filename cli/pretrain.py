"""``gearshift pretrain``: a network from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli._training import DATA_HELP, argument_option, recipe_options, record, training_bar
from cli._training import architecture as described_by


@click.command()
@click.argument("architecture")
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the weights go (.safetensors).")
@argument_option
@recipe_options(epochs=30, learning_rate=0.2)
def command(architecture: str, data: str, out: Path, arguments: tuple[str, ...], **recipe: Any) -> None:
    """Train ARCHITECTURE (resnet20 ... resnet110, resnet18 ... resnet50, tinynet) from scratch.

    A run that was stopped continues from its checkpoint beside --out.

    \b
    gearshift pretrain resnet20 --data cifar-10-batches-py --out resnet20.safetensors
    gearshift pretrain tinynet --data digits --argument width=16 --no-compile --out tinynet.safetensors
    """
    import msgspec
    import torch

    from cli._output import console
    from subnets import architectures
    from subnets.data import load
    from subnets.sampling import save_network
    from subnets.training import PlainObjective, Recipe, accuracy, logits, train

    dataset = load(data)
    plan = Recipe(**recipe).check()
    torch.manual_seed(plan.seed)
    described = described_by(architecture, arguments, dataset)
    network = architectures.build(described.name, **described.arguments).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint = out.with_suffix(".checkpoint")
    with training_bar(f"training {architecture}") as on_step:
        train(PlainObjective(network, plan), dataset, plan, checkpoint=checkpoint, on_step=on_step)
    save_network(network, out, {"recipe": msgspec.to_builtins(plan), "data": dataset.name, **record()})
    checkpoint.unlink(missing_ok=True)
    for split in ("validation", "test"):
        images = getattr(dataset, split)
        if len(images):
            share = accuracy(logits(network, images, dataset), images)
            console().print(f"{split}: {share:.2%} of {len(images)}")
    console().print(f"weights: {out}")
