"""Whether a plan holds: cutting channels must give what ignoring them gives.

A grouper can misread a network, and a network can know its own widths (``x.view(-1, 64)``) where no graph shows it. So
before a plan is used it is tried out, on a copy in f64 whose weights and batch-norm are random (trained statistics near
0 and 1 would hide a mistake):

1. permuting channels within their groups leaves the answers as they are;
2. each subnet, extracted, answers like the full network whose layers do not read the channels that go;
3. and like the same slice of the supernet.

:func:`prove` does so for a ladder, :func:`prove_groups` before there is one. Needs no data; knows nothing of how groups
were found or widths chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from subnets.errors import InputError
from subnets.spec import ChannelGroup, Ladder, SubnetSpec, own_entries
from subnets.supernet import Supernet, extract, sort_channels

TOLERANCE = 1e-5  # of the largest answer, or absolute where that is below 1
_EXAMPLES = 2


@torch.no_grad()
def prove(
    network: nn.Module, groups: Sequence[ChannelGroup], ladder: Ladder, input_shape: tuple[int, int, int]
) -> None:
    """Makes sure that every subnet of ``ladder`` is what it should be; the network stays as it is.

    Args:
        network: the full network.
        groups: its channel groups.
        ladder: the plan.
        input_shape: (channels, height, width) of one image.

    Raises:
        InputError: it does not hold; the message names the operation that defeats it.
    """
    trial = _scrambled(network)
    images = torch.randn(_EXAMPLES, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = trial(images)
    random = torch.Generator().manual_seed(3)
    shuffled = copy.deepcopy(trial)
    sort_channels(shuffled, groups, {group.name: torch.rand(group.width, generator=random) for group in groups})
    if not _equal(shuffled(images), whole):
        raise _defeat("sorting channels changes the answers", _recorded(trial, images))
    supernet = Supernet(trial, groups, ladder).eval()
    for spec in ladder:
        _prove_one(trial, groups, spec, images)
        sliced, plain = supernet(images, spec.name), extract(trial, groups, spec)(images)
        if not _equal(sliced, plain):
            raise _defeat(f"the slice of '{spec.name}' does not answer like the extracted subnet", [])


def prove_groups(network: nn.Module, groups: Sequence[ChannelGroup], input_shape: tuple[int, int, int]) -> None:
    """:func:`prove` before widths are known: for half of every group's channels.

    Raises:
        as :func:`prove`.
    """
    half = SubnetSpec("half", {group.name: max(1, group.width // 2) for group in groups})
    prove(
        network, groups, Ladder([half, SubnetSpec("full", {group.name: group.width for group in groups})]), input_shape
    )


def _prove_one(trial: nn.Module, groups: Sequence[ChannelGroup], spec: SubnetSpec, images: Tensor) -> None:
    expected = _ignoring(trial, groups, spec)(images)
    what = f"subnet '{spec.name}' cannot be cut"
    calls: list[str] = []
    try:
        found = _recorded_answer(extract(trial, groups, spec), images, calls)
    except InputError:
        raise
    except Exception as error:  # whatever a layer raises that is given too few channels
        raise _defeat(f"{what} ({str(error).splitlines()[0]})", calls, failed=True) from None
    if not _equal(found, expected):
        raise _defeat(f"{what}: it does not answer as the network does without these channels", calls)


def _ignoring(trial: nn.Module, groups: Sequence[ChannelGroup], spec: SubnetSpec) -> nn.Module:
    """The full network whose layers give no weight to the channels that go: it cuts nothing."""
    masked = copy.deepcopy(trial)
    tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
    for group in groups:
        for member in group.members:
            if member.axis == 1:  # a layer that reads the channels; the others make or scale them
                own = own_entries(tensors[member.tensor], member, group.width)
                own[:, spec.widths[group.name] * member.repeat :] = 0
    return masked


def _scrambled(network: nn.Module) -> nn.Module:
    """A copy in f64 and eval mode with random layers, scaled so that answers stay of order one."""
    trial = copy.deepcopy(network).to("cpu", torch.float64).eval()
    random = torch.Generator().manual_seed(1)

    def between(value: Tensor, low: float, high: float) -> None:
        value.copy_(torch.rand(value.shape, generator=random, dtype=torch.float64) * (high - low) + low)

    for layer in trial.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for name, low, high in (
                ("weight", 0.5, 1.5),
                ("bias", -0.5, 0.5),
                ("running_mean", -0.5, 0.5),
                ("running_var", 0.5, 2.0),
            ):
                if getattr(layer, name, None) is not None:
                    between(getattr(layer, name), low, high)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1.5 / layer.weight[0].numel() ** 0.5
            between(layer.weight, -bound, bound)
            if layer.bias is not None:
                between(layer.bias, -0.5, 0.5)
    return trial


def _equal(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    scale = max(1.0, float(expected.abs().max()))
    return bool(((found - expected).abs() <= TOLERANCE * scale).all())  # so written, NaN fails too


# What keeps channels apart, in the names torch's functions have; anything else may be what defeats a plan.
_HARMLESS = {"conv2d", "linear", "batch_norm", "dropout", "add", "add_", "iadd", "sub", "mul", "mul_", "imul", "cat"}
_HARMLESS |= {"relu", "relu_", "relu6", "hardtanh", "silu", "gelu", "elu", "leaky_relu", "hardswish", "hardsigmoid"}
_HARMLESS |= {"sigmoid", "tanh", "max_pool2d", "boolean_dispatch", "avg_pool2d", "adaptive_avg_pool2d", "size", "dim"}


class _Recorder(TorchFunctionMode):
    """Writes down the name of every torch function that is called."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", func)).lstrip("_").rstrip("_") or "?"
        if name not in ("get", "set"):  # attributes
            self.calls.append(name)
        return func(*args, **(kwargs or {}))


def _recorded_answer(network: Callable[[Tensor], Tensor], images: Tensor, calls: list[str]) -> Tensor:
    with _Recorder(calls):
        return network(images)


def _recorded(network: Callable[[Tensor], Tensor], images: Tensor) -> list[str]:
    calls: list[str] = []
    _recorded_answer(network, images, calls)
    return calls


def _suspects(calls: Sequence[str]) -> Iterator[str]:
    return (name for name in calls if name not in _HARMLESS)


def _defeat(what: str, calls: Sequence[str], *, failed: bool = False) -> InputError:
    """The refusal; it names the first operation that may mix channels, or the last one before a failure."""
    suspects = list(_suspects(calls))
    if not suspects:
        suspects = list(calls[-1:]) or ["unknown"]
    name = suspects[-1 if failed else 0]
    return InputError(
        f"{what}; operation '{name}' defeats the plan: write that place so that every layer takes its number of "
        "channels from its input, or leave the network as it is"
    )
