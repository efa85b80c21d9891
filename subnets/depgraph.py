"""Channel groups from Torch-Pruning's dependency graph (Fang et al., DepGraph, CVPR 2023), for networks that
``torch.fx`` cannot trace: it follows autograd's record of one forward pass instead of the code.

:func:`trace` gives what :func:`subnets.groups.trace` gives. The record holds no constants of the code, so what it says
may be wrong; :mod:`subnets.proof` shows whether it holds.

Needs the extra ``prune``.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from subnets.errors import InputError, UnavailableError
from subnets.groups import Layer, Traced
from subnets.spec import ChannelGroup, Member

_Norm = nn.modules.batchnorm._BatchNorm


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Traced:
    """Finds the channel groups of ``network`` from one forward pass.

    Args:
        network: any convolutional classifier.
        input_shape: (channels, height, width) of one image.

    Raises:
        UnavailableError: torch-pruning is not installed.
        InputError: the network does not take such images, or a layer cannot be cut; the message names it.
    """
    try:
        torch_pruning: Any = importlib.import_module("torch_pruning")
    except ImportError:
        raise UnavailableError(
            "grouper 'torch-pruning' needs torch-pruning; install it with: pip install 'gearshift[prune]'"
        ) from None
    trial = copy.deepcopy(network).cpu().float().eval().requires_grad_()  # the graph is read from its gradients
    names = {layer: name for name, layer in trial.named_modules()}
    shapes = _output_shapes(trial, input_shape)
    try:
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(trial, example_inputs=torch.zeros(1, *input_shape), verbose=False)
        found = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    except Exception as error:  # it raises many kinds for graphs it cannot read
        raise InputError(f"torch-pruning cannot follow this network ({error}); try --grouper fx") from None
    groups = sorted(
        (group for items in found if (group := _group(items, names, shapes)) is not None),
        key=lambda group: list(shapes).index(group.name),
    )
    return Traced(
        groups=tuple(groups),
        layers=tuple(_layers(trial, groups, shapes)),
        parameters={name: tuple(value.shape) for name, value in network.named_parameters()},
    )


def _output_shapes(network: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """{convolution or linear layer: shape of its output for one image}, in the order they run."""
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            shapes.setdefault(name, tuple(output.shape))

        return note

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers]
    try:
        with torch.no_grad():
            network(torch.zeros(1, *input_shape))
    except Exception as error:  # whatever the network's layers raise
        shape = " x ".join(map(str, input_shape))
        why = str(error).splitlines()[0]
        raise InputError(f"the network does not take images of shape {shape} ({why})") from None
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _group(items: Any, names: dict[nn.Module, str], shapes: dict[str, tuple[int, ...]]) -> ChannelGroup | None:
    """A group in our terms; None where nothing reads its channels: these are the network's answers."""
    members: set[Member] = set()
    producers: list[str] = []
    width, coupled, read = len(items[0].idxs), False, False
    for item in items:
        layer, reads = item.dep.target.module, "in_channels" in item.dep.handler.__name__
        if layer not in names:  # an operation between layers
            coupled |= "AddBackward" in item.dep.target.name
            continue
        name = names[layer]
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
        if isinstance(layer, nn.Conv2d) and layer.groups > 1 and not depthwise:
            raise InputError(f"layer '{name}' is a grouped convolution, whose channels cannot be cut; use groups=1")
        if isinstance(layer, nn.Conv2d | nn.Linear) and not depthwise:
            axis = 1 if reads else 0
            tensors = ["weight"] if reads or layer.bias is None else ["weight", "bias"]
            read |= reads
            if not reads:
                producers.append(name)
        elif depthwise or isinstance(layer, _Norm):
            axis = 0
            tensors = ["weight", "bias", "running_mean", "running_var"]
        else:
            raise InputError(f"layer '{name}' ({type(layer).__name__}) cannot be cut; Gearshift cuts Conv2d and Linear")
        for tensor in tensors:
            value = getattr(layer, tensor, None)
            if value is not None:
                members.add(_member(f"{name}.{tensor}", axis, item, width, value.shape[axis]))
    if not read or not producers:
        return None
    first = min(producers, key=list(shapes).index)
    return ChannelGroup(name=first, width=width, members=tuple(sorted(members)), coupled=coupled)


def _member(tensor: str, axis: int, item: Any, width: int, length: int) -> Member:
    entries = list(item.idxs)
    roots = list(item.root_idxs) if item.root_idxs is not None else list(range(width))
    start, repeat = entries[0], len(entries) // width
    in_order = [k // repeat for k in range(repeat * width)]
    if entries != list(range(start, start + repeat * width)) or roots != in_order:
        raise InputError(
            f"the channels of tensor '{tensor}' do not lie in order (they are shuffled or interleaved), "
            "so a subnet of them is no slice; remove the shuffle"
        )
    whole = start == 0 and len(entries) == length
    return Member(tensor, axis, repeat) if whole else Member(tensor, axis, repeat, (start, length))


def _layers(network: nn.Module, groups: Sequence[ChannelGroup], shapes: dict[str, tuple[int, ...]]) -> Iterator[Layer]:
    at: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for group in groups:
        for member in group.members:
            at.setdefault((member.tensor, member.axis), []).append((group.name, member.repeat))
    for name, shape in shapes.items():
        layer = network.get_submodule(name)
        weight = f"{name}.weight"
        if isinstance(layer, nn.Conv2d):
            per_pair = shape[2] * shape[3] * layer.kernel_size[0] * layer.kernel_size[1]
            inputs, outputs, depthwise = layer.in_channels, layer.out_channels, layer.groups > 1
        else:
            assert isinstance(layer, nn.Linear)
            per_pair, inputs, outputs, depthwise = 1, layer.in_features, layer.out_features, False
        made = at.get((weight, 0), [])
        yield Layer(
            name=name,
            per_pair=per_pair,
            inputs=inputs,
            outputs=outputs,
            sources=tuple(made if depthwise else at.get((weight, 1), [])),
            output_group=made[0][0] if made and not depthwise else None,
            depthwise=depthwise,
        )
