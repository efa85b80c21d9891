"""Which tensor axes must be cut together, found by tracing the network's graph.

:func:`trace` follows the channel axis of every activation through ``torch.fx``. A convolution starts a new axis; what
keeps channels apart (batch-norm, activations, pooling, depthwise convolutions) extends it; an addition ties two axes
into one. Axes that reach the network's input or output cannot be cut; every other one is a channel group.

The parameter-free pad shortcut is a fixed index map between two groups: its 0/1 matrix is permuted and cut like a
weight, so sorting the stages on both sides keeps every channel's path.

Knows nothing of importance or widths; :class:`Traced` counts MACs and parameters for any widths.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from subnets.architectures import PadShortcut
from subnets.errors import InputError
from subnets.spec import ChannelGroup, Member, SubnetSpec, cuts


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A convolution or linear layer's cost: ``macs = per_pair * inputs * outputs`` (depthwise: ``* outputs``)."""

    name: str
    per_pair: int
    inputs: int
    outputs: int
    input_group: str | None
    output_group: str | None
    input_repeat: int = 1
    depthwise: bool = False


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """Channel groups of a network and what its layers cost."""

    groups: tuple[ChannelGroup, ...]
    layers: tuple[Layer, ...]
    parameters: Mapping[str, tuple[int, ...]]  # shapes at full width

    def group(self, name: str) -> ChannelGroup:
        """The group of that name (KeyError where there is none)."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def full(self) -> dict[str, int]:
        """The full network's widths."""
        return {group.name: group.width for group in self.groups}

    def macs(self, widths: Mapping[str, int]) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        total = 0
        for layer in self.layers:
            outputs = widths[layer.output_group] if layer.output_group else layer.outputs
            inputs = widths[layer.input_group] * layer.input_repeat if layer.input_group else layer.inputs
            total += layer.per_pair * outputs * (1 if layer.depthwise else inputs)
        return total

    def parameter_count(self, widths: Mapping[str, int]) -> int:
        """Trainable numbers in the extracted subnet."""
        kept = cuts(self.groups, SubnetSpec("", dict(widths)))
        total = 0
        for name, shape in self.parameters.items():
            size = 1
            for axis, length in enumerate(shape):
                size *= kept.get(name, {}).get(axis, length)
            total += size
        return total


class _Axis:
    """A channel axis in the making; union-find by ``parent``."""

    def __init__(self, name: str, width: int, *, fixed: bool = False) -> None:
        self.name, self.width, self.fixed, self.coupled = name, width, fixed, False
        self.members: list[Member] = []
        self.parent: _Axis | None = None

    def root(self) -> _Axis:
        axis = self
        while axis.parent is not None:
            axis = axis.parent
        return axis


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, PadShortcut) or super().is_leaf_module(module, name)


_KEEPING_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.Identity,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
_KEEPING_FUNCTIONS = {
    torch.relu,
    torch.sigmoid,
    nn.functional.relu,
    nn.functional.relu6,
    nn.functional.silu,
    nn.functional.dropout,
    nn.functional.max_pool2d,
    nn.functional.avg_pool2d,
    nn.functional.adaptive_avg_pool2d,
}
_KEEPING_METHODS = {"relu", "contiguous", "clone", "sigmoid"}
_ADDITIONS = {operator.add, operator.iadd, torch.add}


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Traced:
    """Finds the channel groups of ``network``.

    Args:
        network: any convolutional classifier that ``torch.fx`` can trace.
        input_shape: (channels, height, width) of one image.

    Raises:
        InputError: the graph holds an operation whose channels cannot be followed; the message names it.
    """
    return _Walk(network, input_shape).traced()


class _Walk:
    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
        try:
            graph = _Tracer().trace(network)
        except Exception as error:  # fx raises many kinds for control flow it cannot follow
            why = str(error).split(". ")[0]  # fx explains itself at length
            raise InputError(f"the network cannot be traced ({why}); remove data-dependent control flow") from None
        self.network = network
        self.module = fx.GraphModule(network, graph)
        self.input_shape = input_shape
        self.axes: dict[fx.Node, tuple[_Axis, int]] = {}  # node -> (axis, entries per channel)
        self.all: list[_Axis] = []
        self.costs: list[tuple[Layer, _Axis, _Axis]] = []
        self.seen: set[int] = set()  # ids of the parameters met so far

    def traced(self) -> Traced:
        mode = self.network.training
        self.network.eval()
        with torch.no_grad():
            device = next(self.network.parameters()).device
            ShapeProp(self.module).propagate(torch.zeros(1, *self.input_shape, device=device))
        self.network.train(mode)
        for node in self.module.graph.nodes:
            self._visit(node)
        groups: dict[_Axis, str] = {}
        found = []
        for axis in self.all:
            if axis.parent is None and not axis.fixed:
                groups[axis] = axis.name
                members = tuple(sorted(set(axis.members)))
                found.append(ChannelGroup(name=axis.name, width=axis.width, members=members, coupled=axis.coupled))
        layers = tuple(
            msgspec.structs.replace(layer, input_group=groups.get(a.root()), output_group=groups.get(b.root()))
            for layer, a, b in self.costs
        )
        shapes = {name: tuple(value.shape) for name, value in self.network.named_parameters()}
        return Traced(groups=tuple(found), layers=layers, parameters=shapes)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.axes[node] = (self._new(f"input {node.name}", self.input_shape[0], fixed=True), 1)
        elif node.op == "output":
            for source in node.all_input_nodes:
                self.axes[source][0].root().fixed = True
        elif node.op == "call_module":
            self._visit_module(node, str(node.target), self.module.get_submodule(str(node.target)))
        elif node.op == "call_function" and node.target in _ADDITIONS:
            self._add(node)
        elif (node.op == "call_function" and node.target is torch.flatten) or (
            node.op == "call_method" and node.target == "flatten"
        ):
            self._flatten(node)
        elif (
            (node.op == "call_function" and node.target in _KEEPING_FUNCTIONS)
            or (node.op == "call_method" and node.target in _KEEPING_METHODS)
            or (node.op == "call_method" and node.target == "mean" and self._dims(node) in ((2, 3), (-2, -1), (-1, -2)))
        ):
            self.axes[node] = self._input(node)
        else:
            raise self._refuse(node)

    def _visit_module(self, node: fx.Node, name: str, module: nn.Module) -> None:
        axis, repeat = self._input(node)
        own = {id(value) for value in module.parameters()}
        if own & self.seen:
            raise InputError(
                f"layer '{name}' uses weights a second time in one pass, so its channels cannot be cut apart; "
                "give each place in the network a layer of its own"
            )
        self.seen |= own
        if isinstance(module, nn.Conv2d):
            self._convolution(node, name, module, axis)
        elif isinstance(module, nn.Linear):
            if len(self._source(node).meta["tensor_meta"].shape) != 2:  # it would act on the image's columns
                raise self._refuse(node)
            axis.root().members.append(Member(f"{name}.weight", 1, repeat))
            out = self._produce(node, name, module, module.out_features)
            layer = Layer(
                name=name,
                per_pair=1,
                inputs=module.in_features,
                outputs=module.out_features,
                input_group=None,
                output_group=None,
                input_repeat=repeat,
            )
            self.costs.append((layer, axis, out))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, tensor, None) is not None:
                    axis.root().members.append(Member(f"{name}.{tensor}", 0, repeat))
            self.axes[node] = (axis, repeat)
        elif isinstance(module, PadShortcut):
            axis.root().members.append(Member(f"{name}.select", 1))
            out = self._new(name, module.select.shape[0])
            out.members.append(Member(f"{name}.select", 0))
            self.axes[node] = (out, 1)
        elif isinstance(module, nn.Flatten):
            self._flatten(node)
        elif isinstance(module, _KEEPING_MODULES):
            self.axes[node] = (axis, repeat)
        else:
            raise self._refuse(node)

    def _convolution(self, node: fx.Node, name: str, module: nn.Conv2d, axis: _Axis) -> None:
        shape = node.meta["tensor_meta"].shape
        per_pair = int(shape[2] * shape[3] * module.kernel_size[0] * module.kernel_size[1])
        depthwise = module.groups > 1
        if depthwise:
            if not module.groups == module.in_channels == module.out_channels:
                raise self._refuse(node)
            for tensor in ("weight", "bias"):
                if getattr(module, tensor) is not None:
                    axis.root().members.append(Member(f"{name}.{tensor}", 0))
            self.axes[node] = (axis, 1)
            out = axis
        else:
            axis.root().members.append(Member(f"{name}.weight", 1))
            out = self._produce(node, name, module, module.out_channels)
        layer = Layer(
            name=name,
            per_pair=per_pair,
            inputs=module.in_channels,
            outputs=module.out_channels,
            input_group=None,
            output_group=None,
            depthwise=depthwise,
        )
        self.costs.append((layer, axis, out))

    def _produce(self, node: fx.Node, name: str, module: nn.Module, width: int) -> _Axis:
        out = self._new(name, width)
        out.members.append(Member(f"{name}.weight", 0))
        if getattr(module, "bias", None) is not None:
            out.members.append(Member(f"{name}.bias", 0))
        self.axes[node] = (out, 1)
        return out

    def _add(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        if len(sources) == 1:  # a constant was added
            self.axes[node] = self._input(node)
            return
        if len(sources) != 2:
            raise self._refuse(node)
        (first, repeat), (second, other_repeat) = self.axes[sources[0]], self.axes[sources[1]]
        first, second = first.root(), second.root()
        if repeat != other_repeat or first.width != second.width:
            raise self._refuse(node)
        if first is not second:
            if self.all.index(second) < self.all.index(first):
                first, second = second, first
            second.parent = first
            first.members += second.members
            first.fixed = first.fixed or second.fixed
        first.coupled = True
        self.axes[node] = (first, repeat)

    def _flatten(self, node: fx.Node) -> None:
        axis, repeat = self._input(node)
        before = self._source(node).meta["tensor_meta"].shape
        after = node.meta["tensor_meta"].shape
        if len(after) != 2:
            raise self._refuse(node)
        pixels = 1
        for length in before[2:]:
            pixels *= int(length)
        self.axes[node] = (axis, repeat * pixels)

    def _dims(self, node: fx.Node) -> Any:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return tuple(dims) if isinstance(dims, list | tuple) else dims

    def _source(self, node: fx.Node) -> fx.Node:
        return node.all_input_nodes[0]

    def _input(self, node: fx.Node) -> tuple[_Axis, int]:
        axis, repeat = self.axes[self._source(node)]
        return axis.root(), repeat

    def _new(self, name: str, width: int, *, fixed: bool = False) -> _Axis:
        axis = _Axis(name, width, fixed=fixed)
        self.all.append(axis)
        return axis

    def _refuse(self, node: fx.Node) -> InputError:
        what = type(self.module.get_submodule(str(node.target))).__name__ if node.op == "call_module" else node.target
        what = getattr(what, "__name__", what)
        return InputError(
            f"channels cannot be followed through '{what}' (graph node '{node.name}'); "
            "Gearshift cuts convolutions, linear layers, batch-norm, activations, pooling and additions"
        )
