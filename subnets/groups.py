"""Which tensor axes must be cut together, found by tracing the network's graph.

:func:`trace` follows the channel axis of every activation through ``torch.fx``. A convolution starts a new axis; what
keeps channels apart (batch-norm, activations, pooling, depthwise convolutions) extends it; an addition or a product of
two activations ties two axes into one; a concatenation lays axes behind one another. Axes that reach the network's
input or output cannot be cut; every other one is a channel group.

The parameter-free pad shortcut is a fixed index map between two groups: its 0/1 matrix is permuted and cut like a
weight, so sorting the stages on both sides keeps every channel's path.

:func:`trace_with` does so with the grouper of the user's choice; whether what it found holds is shown by
:mod:`subnets.proof`. Knows nothing of importance or widths; :class:`Traced` counts MACs and parameters for any widths.
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
from subnets.spec import ChannelGroup, Member, SubnetSpec, cuts, kept_length

GROUPERS = ("fx", "torch-pruning")


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """A convolution or linear layer's cost: ``macs = per_pair * inputs * outputs`` (depthwise: ``* outputs``).

    ``sources`` are the groups that the inputs come from, with the number of inputs that each of their channels gives.
    """

    name: str
    per_pair: int
    inputs: int
    outputs: int
    sources: tuple[tuple[str, int], ...] = ()
    output_group: str | None = None
    depthwise: bool = False  # then sources counts outputs, and output_group says nothing

    @property
    def input_group(self) -> str | None:
        """The group that the inputs come from; None where there is none, or more than one."""
        return self.sources[0][0] if len(self.sources) == 1 else None


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
        total, full = 0, self.full
        for layer in self.layers:
            outputs = widths[layer.output_group] if layer.output_group else layer.outputs
            gone = sum((full[group] - widths[group]) * repeat for group, repeat in layer.sources)
            total += layer.per_pair * (layer.outputs - gone if layer.depthwise else outputs * (layer.inputs - gone))
        return total

    def parameter_count(self, widths: Mapping[str, int]) -> int:
        """Trainable numbers in the extracted subnet."""
        kept = cuts(self.groups, SubnetSpec("", dict(widths)))
        total = 0
        for name, shape in self.parameters.items():
            size = 1
            for axis, length in enumerate(shape):
                size *= kept_length(kept.get(name, {}).get(axis, length))
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


_Layout = tuple[tuple[_Axis, int], ...]
"""How an activation's channels lie: axes behind one another, each with its consecutive entries per channel."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, PadShortcut) or super().is_leaf_module(module, name)


_KEEPING_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.GELU,
    nn.ELU,
    nn.SELU,
    nn.Mish,
    nn.Tanh,
    nn.Softplus,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.Upsample,
)
_KEEPING_FUNCTIONS = {
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    torch.clamp,
    torch.squeeze,
    torch.unsqueeze,
    torch.mean,
    torch.sum,
    torch.amax,
    nn.functional.relu,
    nn.functional.relu6,
    nn.functional.silu,
    nn.functional.gelu,
    nn.functional.elu,
    nn.functional.mish,
    nn.functional.leaky_relu,
    nn.functional.hardswish,
    nn.functional.hardsigmoid,
    nn.functional.hardtanh,
    nn.functional.dropout,
    nn.functional.dropout2d,
    nn.functional.max_pool2d,
    nn.functional.avg_pool2d,
    nn.functional.adaptive_avg_pool2d,
    nn.functional.adaptive_max_pool2d,
    nn.functional.pad,
    nn.functional.interpolate,
}
_KEEPING_METHODS = {"relu", "contiguous", "clone", "sigmoid", "tanh", "clamp", "squeeze", "unsqueeze"}
_KEEPING_METHODS |= {"mean", "sum", "amax"}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}
_PIXELS = ((2, 3), (-2, -1), (3, 2), (-1, -2))
_ADDITIONS = {operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub, "add", "add_", "sub"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, operator.truediv, torch.div, "mul", "mul_", "div"}
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}
_POSITIONAL = {"chunk", "split", "tensor_split", "unbind", "narrow", "getitem", "pixel_shuffle", "channel_shuffle"}
_EXAMPLES = 2  # images in the traced batch: more than one, so that no axis of length 1 is taken for the batch


def trace_with(grouper: str, network: nn.Module, input_shape: tuple[int, int, int]) -> Traced:
    """The channel groups of ``network``, found by a grouper of :data:`GROUPERS`.

    Raises:
        InputError: the grouper is unknown, or it cannot follow the network's channels.
        UnavailableError: it is not installed.
    """
    if grouper == "fx":
        return trace(network, input_shape)
    if grouper == "torch-pruning":
        from subnets import depgraph

        return depgraph.trace(network, input_shape)
    raise InputError(f"grouper '{grouper}' is unknown; use one of {', '.join(GROUPERS)}")


def trace(network: nn.Module, input_shape: tuple[int, int, int]) -> Traced:
    """Finds the channel groups of ``network``.

    Args:
        network: any convolutional classifier that ``torch.fx`` can trace.
        input_shape: (channels, height, width) of one image.

    Raises:
        InputError: the network does not take such images, or its graph holds an operation whose channels cannot be
            followed; the message names it.
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
        self.layouts: dict[fx.Node, _Layout] = {}
        self.all: list[_Axis] = []
        self.costs: list[tuple[Layer, _Layout, _Layout]] = []
        self.seen: set[int] = set()  # ids of the parameters met so far

    def traced(self) -> Traced:
        self._propagate_shapes()
        for node in self.module.graph.nodes:
            self._visit(node)
        groups: dict[_Axis, str] = {}
        found = []
        for axis in self.all:
            if axis.parent is None and not axis.fixed:
                groups[axis] = axis.name
                members = tuple(sorted(set(axis.members)))
                found.append(ChannelGroup(name=axis.name, width=axis.width, members=members, coupled=axis.coupled))
        layers = []
        for layer, inputs, outputs in self.costs:
            sources = tuple((groups[axis.root()], repeat) for axis, repeat in inputs if axis.root() in groups)
            made = None if layer.depthwise else groups.get(outputs[0][0].root())
            layers.append(msgspec.structs.replace(layer, sources=sources, output_group=made))
        shapes = {name: tuple(value.shape) for name, value in self.network.named_parameters()}
        return Traced(groups=tuple(found), layers=tuple(layers), parameters=shapes)

    def _propagate_shapes(self) -> None:
        mode = self.network.training
        self.network.eval()
        device = next(self.network.parameters()).device
        try:
            with torch.no_grad():
                ShapeProp(self.module).propagate(torch.zeros(_EXAMPLES, *self.input_shape, device=device))
        except Exception as error:  # whatever the network's layers raise
            # fx adds its own notes behind the first line; the cause has the layer's own words.
            why = str(error.__cause__ or error).splitlines()[0]
            shape = " x ".join(map(str, self.input_shape))
            raise InputError(f"the network does not take images of shape {shape} ({why})") from None
        finally:
            self.network.train(mode)

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.layouts[node] = ((self._new(f"input {node.name}", self.input_shape[0], fixed=True), 1),)
        elif node.op == "output":
            for source in node.all_input_nodes:
                for axis, _ in self._layout(source):
                    axis.fixed = True
        elif node.op == "call_module":
            self._visit_module(node, str(node.target), self.module.get_submodule(str(node.target)))
        elif "tensor_meta" not in node.meta:
            return  # a size, or arithmetic with sizes
        elif node.op == "get_attr":
            raise self._refuse(node)
        elif node.target in _ADDITIONS:
            self._join(node, couple=True)
        elif node.target in _PRODUCTS:
            self._join(node, couple=False)
        elif node.target in _CONCATENATIONS:
            self._concatenate(node)
        elif node.target in (torch.flatten, "flatten"):
            self._flatten(node)
        elif node.target in ("view", "reshape", torch.reshape):
            self._reshape(node)
        elif node.target is operator.getitem:
            self._index(node)
        elif node.target in _KEEPING_FUNCTIONS or node.target in _KEEPING_METHODS:
            if node.target in _REDUCTIONS and self._dims(node) not in _PIXELS:
                raise self._refuse(node)
            if node.target is nn.functional.pad and len(self._second(node, "pad")) > 4:  # it moves channels
                raise self._refuse(node)
            self._keep(node)
        else:
            raise self._refuse(node)

    def _visit_module(self, node: fx.Node, name: str, module: nn.Module) -> None:
        layout = self._input(node)
        own = {id(value) for value in module.parameters()}
        if own & self.seen:
            raise InputError(
                f"layer '{name}' uses weights a second time in one pass, so its channels cannot be cut apart; "
                "give each place in the network a layer of its own"
            )
        self.seen |= own
        if isinstance(module, nn.Conv2d):
            self._convolution(node, name, module, layout)
        elif isinstance(module, nn.Linear):
            if len(self._shape(self._source(node))) != 2:  # it would act on the image's columns
                raise self._refuse(node)
            self._own(layout, f"{name}.weight", 1)
            out = self._produce(node, name, module, module.out_features)
            layer = Layer(name=name, per_pair=1, inputs=module.in_features, outputs=module.out_features)
            self.costs.append((layer, layout, out))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                if getattr(module, tensor, None) is not None:
                    self._own(layout, f"{name}.{tensor}", 0)
            self.layouts[node] = layout
        elif isinstance(module, PadShortcut):
            self._own(layout, f"{name}.select", 1)
            axis = self._new(name, module.select.shape[0])
            axis.members.append(Member(f"{name}.select", 0))
            self.layouts[node] = ((axis, 1),)
        elif isinstance(module, nn.PReLU):
            if module.num_parameters > 1:
                self._own(layout, f"{name}.weight", 0)
            self._keep(node)
        elif isinstance(module, nn.Flatten):
            self._flatten(node)
        elif isinstance(module, _KEEPING_MODULES):
            self._keep(node)
        else:
            raise self._refuse(node)

    def _convolution(self, node: fx.Node, name: str, module: nn.Conv2d, layout: _Layout) -> None:
        shape = self._shape(node)
        per_pair = int(shape[2] * shape[3] * module.kernel_size[0] * module.kernel_size[1])
        layer = Layer(name=name, per_pair=per_pair, inputs=module.in_channels, outputs=module.out_channels)
        if module.groups > 1:
            if module.groups != module.in_channels:
                raise self._refuse(node)
            each = module.out_channels // module.groups
            layout = tuple((axis, repeat * each) for axis, repeat in layout)
            for tensor in ("weight", "bias"):
                if getattr(module, tensor) is not None:
                    self._own(layout, f"{name}.{tensor}", 0)
            self.layouts[node] = layout
            self.costs.append((msgspec.structs.replace(layer, depthwise=True), layout, layout))
        else:
            self._own(layout, f"{name}.weight", 1)
            self.costs.append((layer, layout, self._produce(node, name, module, module.out_channels)))

    def _produce(self, node: fx.Node, name: str, module: nn.Module, width: int) -> _Layout:
        out = self._new(name, width)
        out.members.append(Member(f"{name}.weight", 0))
        if getattr(module, "bias", None) is not None:
            out.members.append(Member(f"{name}.bias", 0))
        self.layouts[node] = ((out, 1),)
        return self.layouts[node]

    def _own(self, layout: _Layout, tensor: str, axis: int) -> None:
        """Makes the entries of one tensor's axis members of the axes that they come from."""
        length, start = sum(one.width * repeat for one, repeat in layout), 0
        for one, repeat in layout:
            shared = len(layout) > 1
            one.members.append(
                Member(tensor, axis, repeat, (start, length)) if shared else Member(tensor, axis, repeat)
            )
            start += one.width * repeat

    def _join(self, node: fx.Node, *, couple: bool) -> None:
        """An operation on two activations, channel by channel: both get the same channels."""
        sources = [source for source in node.all_input_nodes if source in self.layouts]
        if len(sources) == 1:  # with itself or a constant
            self._keep(node)
            return
        if len(sources) != 2 or len(self._shape(sources[0])) != len(self._shape(sources[1])):
            raise self._refuse(node)
        one, other = self._layout(sources[0]), self._layout(sources[1])
        if [(axis.width, repeat) for axis, repeat in one] != [(axis.width, repeat) for axis, repeat in other]:
            raise self._refuse(node)
        for (first, _), (second, _) in zip(one, other, strict=True):
            self._merge(first.root(), second.root())
            first.root().coupled |= couple
        self.layouts[node] = self._layout(sources[0])

    def _merge(self, first: _Axis, second: _Axis) -> None:
        if first is second:
            return
        if self.all.index(second) < self.all.index(first):
            first, second = second, first
        second.parent = first
        first.members += second.members
        first.fixed |= second.fixed
        first.coupled |= second.coupled

    def _concatenate(self, node: fx.Node) -> None:
        parts: Any = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        if dim not in (1, 1 - len(self._shape(node))) or not all(part in self.layouts for part in parts):
            raise self._refuse(node)
        self.layouts[node] = tuple(piece for part in parts for piece in self._layout(part))

    def _flatten(self, node: fx.Node) -> None:
        before, after = self._shape(self._source(node)), self._shape(node)
        if len(after) != 2 or after[0] != before[0]:
            raise self._refuse(node)
        pixels = 1
        for length in before[2:]:
            pixels *= int(length)
        self.layouts[node] = tuple((axis, repeat * pixels) for axis, repeat in self._input(node))

    def _reshape(self, node: fx.Node) -> None:
        sizes: Any = node.args[1:] if len(node.args) > 1 else (node.kwargs.get("shape", ()),)
        if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
            sizes = sizes[0]
        if len(sizes) < 2 or (isinstance(sizes[1], int) and sizes[1] != -1):  # a width written into the code
            raise self._refuse(node)
        if len(self._shape(node)) == 2:
            self._flatten(node)
        else:
            self._keep(node)

    def _index(self, node: fx.Node) -> None:
        whole, index = slice(None), node.args[1]
        if not isinstance(index, tuple) or len(index) < 2 or index[0] != whole or index[1] != whole:
            raise self._refuse(node)
        self._keep(node)

    def _keep(self, node: fx.Node) -> None:
        """An operation that leaves every channel where it is."""
        if self._shape(node)[:2] != self._shape(self._source(node))[:2]:
            raise self._refuse(node)
        self.layouts[node] = self._input(node)

    def _dims(self, node: fx.Node) -> Any:
        dims = self._second(node, "dim")
        return tuple(dims) if isinstance(dims, list | tuple) else dims

    def _second(self, node: fx.Node, name: str) -> Any:
        """The argument after the activation."""
        return node.args[1] if len(node.args) > 1 else node.kwargs.get(name)

    def _source(self, node: fx.Node) -> fx.Node:
        for source in node.all_input_nodes:
            if source in self.layouts:
                return source
        raise self._refuse(node)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        shape = getattr(node.meta.get("tensor_meta"), "shape", None)
        if shape is None:  # several tensors
            raise self._refuse(node)
        return tuple(int(length) for length in shape)

    def _input(self, node: fx.Node) -> _Layout:
        return self._layout(self._source(node))

    def _layout(self, node: fx.Node) -> _Layout:
        if node not in self.layouts:
            raise self._refuse(node)
        return tuple((axis.root(), repeat) for axis, repeat in self.layouts[node])

    def _new(self, name: str, width: int, *, fixed: bool = False) -> _Axis:
        axis = _Axis(name, width, fixed=fixed)
        self.all.append(axis)
        return axis

    def _refuse(self, node: fx.Node) -> InputError:
        what: Any = node.target
        if node.op == "call_module":
            what = type(self.module.get_submodule(str(node.target)))
        name = str(getattr(what, "__name__", what))
        why = ", which picks them by their place while sorting moves them" if name in _POSITIONAL else ""
        if name in ("view", "reshape"):
            why = ", which must take the number of channels from its input and keep them apart"
        return InputError(
            f"channels cannot be followed through '{name}' (graph node '{node.name}'){why}; Gearshift cuts "
            "convolutions, linear layers, batch-norm, activations, pooling, additions, products and concatenations"
        )
