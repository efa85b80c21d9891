"""From a network of your own to nested subnets of it. Offline, on two cores in under a minute:

    python examples/own_network.py

With the commands the same is (from this folder: --module looks into the current one)

    gearshift sample own.safetensors --module own_network:build --data digits --budgets 0.35,0.6,1 --out own
    gearshift train own --module own_network:build --data digits --epochs 3 --learning-rate 0.05
    gearshift export own --module own_network:build
    gearshift calibrate own

From the export on, nobody needs this file any more: the device reads the bundle's exports.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A linear bottleneck with a squeeze-and-excite gate, as in MobileNetV3."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.up_norm = nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.spread = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.spread_norm = nn.BatchNorm2d(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, 8, 1), nn.Conv2d(8, hidden, 1)
        self.down, self.down_norm = nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, width, H, W] -> the same shape."""
        y = torch.relu(self.up_norm(self.up(x)))
        y = torch.relu(self.spread_norm(self.spread(y)))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.down_norm(self.down(y))


class OwnNetwork(nn.Module):
    """Any network of convolutions, batch-norm, activations, pooling, additions, products and concatenations will do.

    What will not: code that picks channels by their place (``chunk``, ``x[:, :8]``) or knows how many there are
    (``x.view(-1, 64)``). Gearshift says so, and names the operation.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width)
        self.first, self.second = Block(width, 3 * width), Block(width, 3 * width)
        self.head = nn.Conv2d(2 * width, 4 * width, 1)
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 1, 16, 16] -> logits [N, 10]."""
        x = torch.relu(self.norm(self.stem(x)))
        y = self.second(self.first(x))
        x = torch.relu(self.head(torch.cat([x, y], dim=1)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def build(width: int = 16) -> OwnNetwork:
    """The factory that a bundle names: builds the full network, its weights do not matter."""
    return OwnNetwork(width)


def main(out: Path) -> None:
    """Trains the network, samples three subnets, trains them jointly, exports them and asks one."""
    from backends.export import add_exports
    from cli.bundle import print_bundle
    from subnets import architectures, from_pretrained
    from subnets.allocation import Limits
    from subnets.bundle import Architecture
    from subnets.data import digits
    from subnets.sampling import SampleOptions, fine_tune, sample
    from subnets.training import PlainObjective, Recipe, train

    # 1. A trained network. You have one already; this one takes seconds on the digits that come with Gearshift.
    torch.manual_seed(0)
    dataset, network = digits(), build()
    recipe = Recipe(epochs=8, batch_size=64, learning_rate=0.1, average=0.9, precision="f32", compile=False)
    train(PlainObjective(network, recipe), dataset, recipe)

    # 2. Channels that must go together are found in the network's graph, ranked, and sorted once; every subnet is then
    #    a slice of the same weights. Before that, the plan is proved: cutting must equal ignoring.
    architecture = Architecture(name="own_network:build", arguments={"width": 16})
    architectures.register(architecture.name, build)  # on the command line: --module own_network:build
    options = SampleOptions(budgets=(0.35, 0.6, 1.0), limits=Limits(align=4))
    bundle = sample(network, architecture, dataset, options, out)

    # 3. All three learn together, the small ones from the large one.
    recipe = Recipe(epochs=3, batch_size=64, learning_rate=0.05, average=0.9, precision="f32", compile=False)
    bundle = fine_tune(bundle, dataset, recipe)

    # 4. Files that a device runs without torch and without this code ('gearshift calibrate', 'gearshift run').
    bundle = add_exports(bundle)
    print_bundle(bundle)

    # 5. One subnet as a plain module, if you want to go on with it in torch.
    smallest = from_pretrained(bundle.path, bundle.ladder.names[0])
    images = torch.from_numpy(bundle.input.preprocess(dataset.test.read(np.arange(10))))
    click.echo(f"labels of the first test images: {dataset.test.labels[:10].tolist()}")
    click.echo(f"the smallest subnet's answers:   {smallest(images).argmax(1).tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-network"))
