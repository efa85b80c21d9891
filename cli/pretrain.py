"""``gearshift pretrain``: a network from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli._training import (
    DATA_HELP,
    argument_option,
    checked_device,
    device_option,
    recipe,
    recipe_options,
    record,
    training_bar,
)
from cli._training import architecture as described_by


@click.command()
@click.argument("architecture")
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the weights go (.safetensors).")
@argument_option
@click.option("--sparsity", default=0.0, show_default=True, help="Strength of the group lasso, e.g. 1e-4; 0 is none.")
@click.option("--sparsity-from", default=0.7, show_default=True, help="Share of the run after which it acts.")
@device_option
@recipe_options(epochs=30, learning_rate=0.2)
def command(architecture: str, data: str, out: Path, arguments: tuple[str, ...], device: str, **options: Any) -> None:
    """Train ARCHITECTURE (resnet20 ... resnet110, resnet18 ... resnet50, tinynet) from scratch.

    A run that was stopped continues from its checkpoint beside --out. Several processes share each batch when torchrun
    starts them. With --sparsity, channels that the network can spare end at zero; their norms before and after are
    written and drawn beside --out.

    \b
    gearshift pretrain resnet20 --data cifar-10-batches-py --out resnet20.safetensors
    gearshift pretrain resnet20 --data cifar-10-batches-py --sparsity 1e-4 --out sparse.safetensors
    gearshift pretrain tinynet --data digits --argument width=16 --no-compile --out tinynet.safetensors
    """
    import msgspec
    import torch

    from cli._norms import NormRecord
    from cli._output import console
    from subnets import architectures
    from subnets.data import load
    from subnets.groups import trace
    from subnets.heap import keep_freed_memory
    from subnets.sampling import save_network
    from subnets.sparsity import SparseObjective
    from subnets.team import joined
    from subnets.training import Objective, PlainObjective, Progress, accuracy, logits, train

    dataset = load(data)
    plan = recipe(device, options)
    torch.manual_seed(plan.seed)
    described = described_by(architecture, arguments, dataset)
    network = architectures.build(described.name, **described.arguments).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.to(checked_device(device))
    objective: Objective = PlainObjective(network, plan)
    norms = None
    if plan.sparsity:
        traced = trace(network, dataset.shape)
        objective = SparseObjective(objective, traced, plan)
        norms = NormRecord(network, traced, plan, out.with_suffix(".norms.json"))
    checkpoint = out.with_suffix(".checkpoint")
    keep_freed_memory()
    with joined() as team, training_bar(f"training {architecture}", shown=team.rank == 0) as show:

        def on_step(progress: Progress) -> None:
            show(progress)
            if norms and team.rank == 0:
                norms.on_step(progress)

        train(objective, dataset, plan, checkpoint=checkpoint, team=team, on_step=on_step)
    if team.rank:
        return
    save_network(network, out, {"recipe": msgspec.to_builtins(plan), "data": dataset.name, **record()})
    checkpoint.unlink(missing_ok=True)
    if norms:
        console().print(norms.finish())
    for split in ("validation", "test"):
        images = getattr(dataset, split)
        if len(images):
            share = accuracy(logits(network, images, dataset), images)
            console().print(f"{split}: {share:.2%} of {len(images)}")
    console().print(f"weights: {out}")
