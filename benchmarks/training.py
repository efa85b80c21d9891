"""What sharing costs in training: one joint step of all subnets against the sum of the subnets' own steps.

Both sides are compiled and take the same batch: the joint step runs every subnet on slices of one weight set, the
others are the extracted subnets, each a network of its own with an optimizer of its own. They take turns in alternating
order, so that what else the machine does hits both. Times include the optimizer's step.

    python benchmarks/training.py bundles/resnet20-cifar10 --batch-size 128 --rounds 20 > training.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from common import provenance
from torch import Tensor

from calibration.statistics import positive_interval
from subnets.bundle import Bundle
from subnets.heap import keep_freed_memory
from subnets.joint import JointObjective
from subnets.supernet import Supernet
from subnets.training import Objective, PlainObjective, Recipe

_WARMUP = 3


def step_of(objective: Objective, recipe: Recipe, images: Tensor, labels: Tensor) -> Callable[[], float]:
    """A function that takes one training step and gives its wall time in ms."""
    module = objective.module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=recipe.momentum, nesterov=True)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        float(objective.backward(images, labels, 0.5))
        optimizer.step()
        return 1e3 * (time.perf_counter() - started)

    return step


def main() -> None:
    """Measures and prints one JSON document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true", help="eager on both sides, to see what compiling gives")
    options = parser.parse_args()
    if options.rounds < 2 or options.batch_size < 2:
        parser.error("--rounds and --batch-size must be at least 2")

    keep_freed_memory()
    bundle = Bundle.open(options.bundle)
    recipe = Recipe(epochs=1, precision=options.precision, compile=not options.no_compile)
    random = torch.Generator().manual_seed(0)
    shape = (options.batch_size, *bundle.input.shape)
    images = torch.randn(shape, generator=random).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, len(bundle.labels), (options.batch_size,), generator=random)
    supernet = Supernet.from_bundle(bundle)
    joint = step_of(JointObjective(supernet, recipe), recipe, images, labels)
    alone = {
        name: step_of(
            PlainObjective(supernet.extract(name).to(memory_format=torch.channels_last), recipe),  # type: ignore[call-overload]
            recipe,
            images,
            labels,
        )
        for name in bundle.ladder.names
    }
    for step in (joint, *alone.values()):
        for _ in range(_WARMUP):
            step()
    joint_ms: list[float] = []
    alone_ms: dict[str, list[float]] = {name: [] for name in alone}
    for turn in range(options.rounds):
        if turn % 2 == 0:
            joint_ms.append(joint())
        for name, step in alone.items():
            alone_ms[name].append(step())
        if turn % 2:
            joint_ms.append(joint())
    sums = [sum(times) for times in zip(*alone_ms.values(), strict=True)]
    ratios = [one / other for one, other in zip(joint_ms, sums, strict=True)]
    ratio = positive_interval(statistics.median(ratios), ratios)
    result = {
        "what": "wall time of one joint training step over the sum of the subnets' own steps, paired by round",
        "bundle": bundle.name,
        "bundle_key": bundle.key,
        "subnets": list(bundle.ladder.names),
        "batch_size": options.batch_size,
        "precision": options.precision,
        "compiled": recipe.compile,
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "joint_ms": statistics.median(joint_ms),
        "alone_ms": {name: statistics.median(times) for name, times in alone_ms.items()},
        "sum_alone_ms": statistics.median(sums),
        "ratio": ratio.value,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "joint_rounds_ms": joint_ms,
        "alone_rounds_ms": alone_ms,
        **provenance(__file__, ["torch"]),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
