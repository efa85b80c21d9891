"""The network families Gearshift builds by name, as plain ``nn.Module`` trees.

* ``resnet20`` .. ``resnet110``: the CIFAR ResNets of He et al. 2016, section 4.2 (6n + 2 layers, widths 16/32/64),
  with the parameter-free ``pad`` shortcut (option A) or the ``conv`` shortcut (option B).
* ``resnet18``, ``resnet34``, ``resnet50``: the ImageNet ResNets, with the parameter names torchvision uses.
* ``tinynet``: a small residual network for 16 x 16 images, for the demo and for tests.
* ``package.module:factory``: a user's own network, once :func:`register` has been told what builds it. Gearshift never
  imports such a module because a bundle names it, only because the user does (:mod:`subnets.modules`).

Knows nothing of subnets: widths are cut by :mod:`subnets.supernet` from the traced graph, not here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subnets.errors import InputError


class PadShortcut(nn.Module):
    """The parameter-free shortcut: every second pixel, new channels zero (He et al. 2016, option A).

    Written as a strided 1 x 1 convolution whose weight is the fixed 0/1 matrix ``select`` [out, in, 1, 1], so that
    permuting or cutting either side's channels is the same operation as for any other weight. In f32 the result is
    bit-equal to slicing and padding.
    """

    select: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        select = torch.zeros(out_channels, in_channels, 1, 1)
        select[before : before + in_channels, :, 0, 0] = torch.eye(in_channels)
        self.register_buffer("select", select, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        return nn.functional.conv2d(x, self.select.to(x.dtype), stride=self.stride)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, channels, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (strided, as torchvision does it), 1 x 1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, channels * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, 4 * channels, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


Block = type[BasicBlock] | type[Bottleneck]


def _stage(block: Block, in_channels: int, channels: int, depth: int, stride: int, shortcut: str) -> nn.Sequential:
    out_channels = channels * block.expansion
    downsample: nn.Module | None = None
    if stride != 1 or in_channels != out_channels:
        if shortcut == "pad":
            downsample = PadShortcut(in_channels, out_channels, stride)
        else:
            downsample = nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
    blocks = [block(in_channels, channels, stride, downsample)]
    blocks += [block(out_channels, channels, 1, None) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """A residual network: stem, stages, global average, linear classifier."""

    def __init__(
        self,
        block: Block,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        num_classes: int,
        in_channels: int = 3,
        imagenet_stem: bool = False,
        shortcut: str = "conv",
    ) -> None:
        super().__init__()
        if shortcut not in ("pad", "conv"):
            raise InputError(f"shortcut '{shortcut}' is unknown; use 'pad' (option A) or 'conv' (option B)")
        stem = widths[0]
        if imagenet_stem:
            self.conv1 = nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = _conv(in_channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if imagenet_stem else nn.Identity()
        channels, self.stages = stem, len(depths)
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            stage = _stage(block, channels, width, depth, 1 if index == 1 else 2, shortcut)
            self.add_module(f"layer{index}", stage)
            channels = width * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W], normalised -> logits [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(1, self.stages + 1):
            x = getattr(self, f"layer{index}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _cifar(depth: int) -> Callable[..., ResNet]:
    def build(num_classes: int = 10, in_channels: int = 3, shortcut: str = "pad") -> ResNet:
        blocks = (depth - 2) // 6
        return ResNet(
            BasicBlock,
            (blocks,) * 3,
            (16, 32, 64),
            num_classes=num_classes,
            in_channels=in_channels,
            shortcut=shortcut,
        )

    return build


def _imagenet(block: Block, depths: tuple[int, ...]) -> Callable[..., ResNet]:
    def build(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
        widths = (64, 128, 256, 512)
        return ResNet(block, depths, widths, num_classes=num_classes, in_channels=in_channels, imagenet_stem=True)

    return build


def _tinynet(num_classes: int = 10, in_channels: int = 1, width: int = 32, shortcut: str = "conv") -> ResNet:
    widths = (width, 2 * width, 4 * width)
    return ResNet(BasicBlock, (1, 1, 1), widths, num_classes=num_classes, in_channels=in_channels, shortcut=shortcut)


Factory = Callable[..., nn.Module]

ARCHITECTURES: Mapping[str, Factory] = {
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18": _imagenet(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _imagenet(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _imagenet(Bottleneck, (3, 4, 6, 3)),
    "tinynet": _tinynet,
}


def take_any_layout(network: nn.Module) -> nn.Module:
    """Has a user's network see its images in torch's plain memory layout; batches arrive channels-last.

    Code that flattens with ``view`` fails on a channels-last activation. Networks of :data:`ARCHITECTURES` stay as they
    are, and doing it twice does no harm.
    """
    if not isinstance(network, ResNet) and _contiguous not in network._forward_pre_hooks.values():
        network.register_forward_pre_hook(_contiguous)
    return network


def _contiguous(network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # A clone: contiguous() leaves the strides of one-channel images, which are both layouts at once, as they are.
    plain = torch.contiguous_format
    return tuple(value.clone(memory_format=plain) if isinstance(value, Tensor) else value for value in inputs)


_own: dict[str, Factory] = {}  # networks of the user's, by the name their bundles carry


def register(name: str, factory: Factory) -> None:
    """Lets :func:`build` make a user's own network in this process.

    Args:
        name: as in the bundle, ``package.module:factory``.
        factory: called with the architecture's arguments, returns the full network.
    """
    _own[name] = factory


def build(name: str, **arguments: Any) -> nn.Module:
    """The network of that name, with whatever weights its builder gives it.

    Raises:
        InputError: the name or an argument is unknown, or it is a user's own network and was not registered.
    """
    if ":" in name:
        return _build_own(name, arguments)
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(ARCHITECTURES)}"
        raise InputError(f"architecture '{name}' is unknown; {hint}")
    try:
        return ARCHITECTURES[name](**arguments)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"architecture '{name}' does not take these arguments: {error}") from None


def _build_own(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    if name not in _own:
        raise InputError(
            f"this network is built by '{name}', code that comes with no bundle and runs only when you name it: "
            f"add --module {name} (in Python: subnets.modules.use('{name}')); exports made before work without it"
        )
    try:
        network = _own[name](**arguments)
    except Exception as error:  # it is the user's code, anything may come
        raise InputError(f"'{name}' failed with arguments {dict(arguments)}: {type(error).__name__}: {error}") from None
    if not isinstance(network, nn.Module):
        raise InputError(f"'{name}' returns a {type(network).__name__}; it must return a torch.nn.Module")
    return take_any_layout(network)


# Other people's names for the same tensors (akamaster's and chenyaofo's CIFAR ResNets).
_ALIASES = (("linear.", "fc."), ("shortcut.", "downsample."))


def load_weights(network: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Copies a state dict into ``network``, undoing common wrappers and names.

    Accepts ``{"state_dict": ...}`` and ``{"model": ...}`` wrappers, the prefixes of DataParallel and ``torch.compile``,
    and ``linear``/``shortcut`` for ``fc``/``downsample``. ``source`` names the file in errors.

    Raises:
        InputError: tensors are missing, left over or of another shape.
    """
    for wrapper in ("state_dict", "model", "net"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    own = network.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            bare = name if name in own else name.removeprefix("_orig_mod.").removeprefix("module.")
            tensors[bare if bare in own else _own_name(bare)] = value
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    extra = [name for name in tensors if name not in own]
    wrong = [name for name, value in tensors.items() if name in own and own[name].shape != value.shape]
    if missing or extra or wrong:
        if wrong:
            name = wrong[0]
            what = f"'{name}' is {tuple(tensors[name].shape)} there and {tuple(own[name].shape)} in the network"
        elif missing:
            what = f"'{missing[0]}' is missing ({len(missing)} tensors are)"
        else:
            what = f"'{extra[0]}' has no place in the network ({len(extra)} tensors have none)"
        raise InputError(f"{source}: this checkpoint is of another architecture: {what}; name the right --arch")
    network.load_state_dict({**own, **tensors})


def _own_name(name: str) -> str:
    """What a tensor of somebody else's checkpoint is called here."""
    for theirs, ours in _ALIASES:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
        name = name.replace(f".{theirs}", f".{ours}")
    return name
