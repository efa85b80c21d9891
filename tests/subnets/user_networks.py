"""Small networks in the shapes that users bring, written as users write them."""

import torch
from torch import nn


class Vgg(nn.Module):
    """Convolutions in a row, pooling, a flattened feature map, two linear layers."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        layers, inputs = [], channels
        for width in (8, "pool", 16, 16, "pool", 24):
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(24 * 16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, classes))

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class LinearBottleneck(nn.Module):
    """1 x 1 up, 3 x 3 depthwise, 1 x 1 down without activation (MobileNetV2)."""

    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden = inputs * expand
        self.shortcut = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        plan = [(8, 8, 1, 3), (8, 16, 2, 3), (16, 16, 1, 2)]
        self.blocks = nn.Sequential(*(LinearBottleneck(*block) for block in plan))
        self.head = nn.Conv2d(16, 32, 1)
        self.classifier = nn.Linear(32, classes)

    def forward(self, x):
        x = nn.functional.relu6(self.head(self.blocks(self.stem(x))))
        return self.classifier(x.mean([2, 3]))


class DenseNet(nn.Module):
    """Every layer reads what all layers before it made; batch-norm comes first, as in the original."""

    def __init__(self, classes=10, channels=1, growth=8, tail=True):
        super().__init__()
        self.tail = tail
        self.stem = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + k * growth) for k in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(8 + k * growth, growth, 3, padding=1, bias=False) for k in range(3))
        inputs = 8 + 3 * growth
        self.norm = nn.BatchNorm2d(inputs)
        self.transition = nn.Conv2d(inputs, 16, 1, bias=False)
        if tail:
            self.last = nn.Conv2d(16, 8, 3, padding=1)
        self.classifier = nn.Linear((16 + 8 * tail) * 4, classes)

    def forward(self, x):
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(torch.relu(norm(x)))], 1)
        x = nn.functional.avg_pool2d(self.transition(torch.relu(self.norm(x))), 2)
        if self.tail:
            x = torch.cat([self.last(x), x], dim=1)  # flattened behind one another
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 2), 1))


class SqueezeExcite(nn.Module):
    """A gate per channel from the channels' means, once with linear layers and once with 1 x 1 convolutions."""

    def __init__(self, width, squeezed, linear):
        super().__init__()
        self.linear = linear
        layer = nn.Linear if linear else lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1)
        self.down, self.up = layer(width, squeezed), layer(squeezed, width)

    def forward(self, x):
        if not self.linear:
            gate = nn.functional.adaptive_avg_pool2d(x, 1)
            return x * torch.sigmoid(self.up(torch.relu(self.down(gate))))
        batch, channels, _, _ = x.size()
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * gate.view(batch, channels, 1, 1)


class SeNet(nn.Module):
    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, 2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(24)
        self.gate = SqueezeExcite(24, 8, linear=True)
        self.outer = nn.Conv2d(24, 16, 1)
        self.last_gate = SqueezeExcite(16, 8, linear=False)
        self.classifier = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = self.gate(nn.functional.silu(self.inner_norm(self.inner(x))))
        x = torch.relu(x + self.last_gate(self.outer(y)))
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))


class Chunked(nn.Module):
    """Half of the channels go one way, half another (ShuffleNetV2): no subnet of it is a slice."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, 2, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(16, classes)

    def forward(self, x):
        kept, changed = torch.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([kept, self.branch(changed)], dim=1)
        return self.classifier(x.mean((2, 3)))


class KnowsItsWidth(nn.Module):
    """A number of channels written into the forward pass."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.width = 16
        self.stem = nn.Conv2d(channels, self.width, 3, 2, padding=1)
        self.classifier = nn.Linear(self.width, classes)

    def forward(self, x):
        return self.classifier(torch.relu(self.stem(x)).mean((2, 3)).reshape(-1, self.width))


SHAPES = {"vgg": Vgg, "mobilenet": MobileNet, "densenet": DenseNet, "squeeze-excite": SeNet}
