"""From a bundle's OpenVINO export to a network in TensorRT's own definition.

The export is a graph of a few kinds of operations with batch-norm folded already, and reading it needs neither torch
nor ONNX. Each operation becomes one or two layers:

* :func:`define`: the whole network; its input is called ``input``, its output ``logits``, both f32.
* :class:`Unsupported`: an operation that has no counterpart here, by name.

TensorRT's networks are strongly typed, so precision is decided here and not by the builder: weights are given in the
compute type (f32, f16, bf16), the input is cast to it and the logits are cast back. ``int8`` takes an export that NNCF
quantized: its FakeQuantize operations become explicit quantize and dequantize layers (symmetric, signed, one scale per
tensor), its 8-bit weights stay 8-bit with one scale per output channel, and what lies between is f16.

The vendor module (``tensorrt`` or ``tensorrt_rtx``; the two have the same builder classes) is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "input", "logits"

_Array = NDArray[Any]
_MAX_INT8 = 127.0


class Unsupported(Exception):
    """The export holds something that cannot be put into TensorRT's terms; the message names it."""


def define(vendor: Any, network: Any, model: Any, precision: str, batch_size: int | None) -> list[_Array]:
    """Fills an empty vendor network from an OpenVINO model.

    Args:
        vendor: the vendor's module.
        network: an empty ``INetworkDefinition``.
        model: an ``openvino.Model`` with one image input [N, C, H, W] and one output [N, classes].
        precision: ``f32``, ``f16``, ``bf16`` or, for a quantized model, ``int8``.
        batch_size: a fixed one, or None for one that optimization profiles decide.

    Returns:
        The arrays that the network's weights point to: keep them until it is built.

    Raises:
        Unsupported: an operation, or an option of one, has no counterpart here.
    """
    return _Definition(vendor, network, precision).run(model, batch_size)


class _Definition:
    """One walk over the export in the order of computation."""

    def __init__(self, vendor: Any, network: Any, precision: str) -> None:
        self.vendor, self.network, self.precision = vendor, network, precision
        names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "int8": "float16"}
        self.type: Any = getattr(vendor, names[precision])
        self.held: list[_Array] = []
        self.tensors: dict[str, Any] = {}  # by the operation's name: a vendor tensor
        self.constants: dict[str, _Array] = {}  # likewise: a value known now
        self.scales: dict[str, tuple[_Array, _Array]] = {}  # 8-bit weights and their scale per output channel
        self.convolutions: dict[str, Any] = {}  # layers that may still take a bias

    def run(self, model: Any, batch_size: int | None) -> list[_Array]:
        for node in model.get_ordered_ops():
            kind = node.get_type_name()
            if kind == "Parameter":
                _, *image = node.get_output_partial_shape(0)
                shape = (-1 if batch_size is None else batch_size, *(side.get_length() for side in image))
                self.put(node, self.cast(self.network.add_input(INPUT, self.vendor.float32, shape), self.type))
            elif kind == "Result":
                logits = self.cast(self.tensor(node, 0), self.vendor.float32)
                logits.name = OUTPUT
                self.network.mark_output(logits)
            elif not self.fold(node):
                emit = _EMITTERS.get(kind)
                if emit is None:
                    raise Unsupported(f"operation {kind} ('{node.get_friendly_name()}')")
                emit(self, node)
        if self.precision == "int8" and not self.scales:
            raise Unsupported("8-bit weights: the export is not quantized")
        return self.held

    # What is known when the engine is built: weights and the arithmetic that unpacks them.

    def fold(self, node: Any) -> bool:
        """Evaluates an operation whose inputs are all constants; whether it was one."""
        kind, name = node.get_type_name(), node.get_name()
        if kind == "Constant":
            self.constants[name] = node.get_data()
            return True
        known = [self.constants.get(_source(node, index)) for index in range(node.get_input_size())]
        if not known or any(value is None for value in known):
            return False
        values: list[Any] = known
        if kind == "Convert":
            value = values[0]
            self.constants[name] = value.astype(np.float32) if value.dtype == np.float16 else value
            return True
        if kind == "Multiply":
            weights, scale = values
            if weights.dtype == np.int8 and scale.size in (1, len(weights)):
                scale = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1), (len(weights),)), np.float32)
                self.scales[name] = weights, scale
            self.constants[name] = weights.astype(np.float32) * values[1]
            return True
        return False

    def constant(self, node: Any, index: int) -> _Array:
        """An operation's input that must be known now."""
        value = self.constants.get(_source(node, index))
        if value is None:
            raise Unsupported(f"{node.get_type_name()} with a computed parameter ('{node.get_friendly_name()}')")
        return value

    # Layers.

    def put(self, node: Any, tensor: Any) -> None:
        self.tensors[node.get_name()] = tensor

    def tensor(self, node: Any, index: int) -> Any:
        """An operation's input as a vendor tensor; a constant becomes one in the compute type."""
        name = _source(node, index)
        if name not in self.tensors:
            value = self.constants[name].astype(np.float32)
            rank = len(node.get_output_partial_shape(0))
            value = value.reshape((1,) * (rank - value.ndim) + value.shape)  # both sides of an addition need one rank
            self.tensors[name] = self.network.add_constant(value.shape, self.weights(value)).get_output(0)
        return self.tensors[name]

    def weights(self, value: _Array) -> Any:
        """f32 values as the vendor's weights in the compute type."""
        if self.type == self.vendor.bfloat16:  # numpy has no such type: the upper half of an f32, rounded to even
            bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
            packed = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            self.held.append(packed)
            return self.vendor.Weights(self.type, packed.ctypes.data, packed.size)
        return self.raw(value.astype(np.float16 if self.type == self.vendor.float16 else np.float32))

    def raw(self, value: _Array) -> Any:
        """An array as weights in its own type."""
        value = np.ascontiguousarray(value)
        self.held.append(value)
        return self.vendor.Weights(value)

    def cast(self, tensor: Any, to: Any) -> Any:
        return tensor if tensor.dtype == to else self.network.add_cast(tensor, to).get_output(0)

    def dequantized(self, name: str) -> Any | None:
        """8-bit weights followed by a dequantize layer, or None where the weights are not 8-bit or not wanted so."""
        if self.precision != "int8" or name not in self.scales:
            return None
        values, scale = self.scales[name]
        packed = self.network.add_constant(values.shape, self.raw(values)).get_output(0)
        factor = self.network.add_constant(scale.shape, self.raw(scale)).get_output(0)
        layer = self.network.add_dequantize(packed, factor, self.type)
        layer.axis = 0
        return layer.get_output(0)

    # One method per operation of the export.

    def convolution(self, node: Any) -> None:
        attributes, kernel = _explicit(node), self.constant(node, 1)
        groups = 1
        if node.get_type_name() == "GroupConvolution":  # [groups, out / groups, in / groups, h, w]
            groups = kernel.shape[0]
            kernel = kernel.reshape(-1, *kernel.shape[2:])
        weights = self.dequantized(_source(node, 1)) if groups == 1 else None
        given = self.vendor.Weights(self.type) if weights is not None else self.weights(kernel)
        layer = self.network.add_convolution_nd(
            self.tensor(node, 0), kernel.shape[0], kernel.shape[2:], given, self.vendor.Weights(self.type)
        )
        if weights is not None:
            layer.set_input(1, weights)
        layer.num_groups = groups
        layer.stride_nd, layer.dilation_nd = tuple(attributes["strides"]), tuple(attributes["dilations"])
        layer.pre_padding, layer.post_padding = tuple(attributes["pads_begin"]), tuple(attributes["pads_end"])
        self.convolutions[node.get_name()] = layer
        self.put(node, layer.get_output(0))

    def add(self, node: Any) -> None:
        """An addition; of a constant per channel to a convolution, that convolution's bias."""
        layer = self.convolutions.get(_source(node, 0))
        value = self.constants.get(_source(node, 1))
        if layer is not None and value is not None and _readers(node, 0) == 1:
            channels = layer.num_output_maps
            if value.shape in ((1, channels, 1, 1), (channels, 1, 1)):
                layer.bias = self.weights(value.reshape(-1))
                self.put(node, layer.get_output(0))
                return
        self.combine(node, self.vendor.ElementWiseOperation.SUM)

    def combine(self, node: Any, operation: Any) -> None:
        self.put(node, self.both(self.tensor(node, 0), self.tensor(node, 1), operation))

    def both(self, left: Any, right: Any, operation: Any) -> Any:
        return self.network.add_elementwise(left, right, operation).get_output(0)

    def activation(self, node: Any, kind: str, alpha: float | None = None, beta: float | None = None) -> Any:
        layer = self.network.add_activation(self.tensor(node, 0), getattr(self.vendor.ActivationType, kind))
        if alpha is not None:
            layer.alpha = alpha
        if beta is not None:
            layer.beta = beta
        self.put(node, layer.get_output(0))
        return layer.get_output(0)

    def clamp(self, node: Any) -> None:
        attributes = node.get_attributes()
        self.activation(node, "CLIP", attributes["min"], attributes["max"])

    def leaky(self, node: Any) -> None:
        slope = self.constant(node, 1)
        if slope.size != 1:
            raise Unsupported(f"PRelu with a slope per channel ('{node.get_friendly_name()}')")
        self.activation(node, "LEAKY_RELU", float(slope.reshape(-1)[0]))

    def hard_sigmoid(self, node: Any) -> None:
        self.activation(node, "HARD_SIGMOID", 1 / 6, 0.5)

    def gelu(self, node: Any) -> None:
        exact = node.get_attributes()["approximation_mode"].upper() == "ERF"
        self.activation(node, "GELU_ERF" if exact else "GELU_TANH")

    def gated(self, node: Any, kind: str, *constants: float) -> None:
        """x * gate(x), for Swish and HSwish."""
        if node.get_input_size() > 1:
            raise Unsupported(f"Swish with a factor of its own ('{node.get_friendly_name()}')")
        gate = self.activation(node, kind, *constants)
        self.put(node, self.both(self.tensor(node, 0), gate, self.vendor.ElementWiseOperation.PROD))

    def pool(self, node: Any, kind: str) -> None:
        attributes = _explicit(node)
        if any(step != 1 for step in attributes.get("dilations", ())):
            raise Unsupported(f"{node.get_type_name()} with dilation ('{node.get_friendly_name()}')")
        if kind == "AVERAGE" and attributes["rounding_type"] != "floor":  # what the last window divides by is unclear
            raise Unsupported(f"AvgPool that rounds up ('{node.get_friendly_name()}')")
        pooling = getattr(self.vendor.PoolingType, kind)
        layer = self.network.add_pooling_nd(self.tensor(node, 0), pooling, tuple(attributes["kernel"]))
        layer.stride_nd = tuple(attributes["strides"])
        layer.pre_padding, layer.post_padding = tuple(attributes["pads_begin"]), tuple(attributes["pads_end"])
        mode = "EXPLICIT_ROUND_DOWN" if attributes["rounding_type"] == "floor" else "EXPLICIT_ROUND_UP"
        layer.padding_mode = getattr(self.vendor.PaddingMode, mode)
        if kind == "AVERAGE":
            layer.average_count_excludes_padding = bool(attributes["exclude-pad"])
        self.put(node, layer.get_output(0))

    def reduce(self, node: Any, kind: str) -> None:
        rank = len(node.get_input_partial_shape(0))
        axes = sum(1 << int(axis) % rank for axis in self.constant(node, 1).reshape(-1))
        keep = bool(node.get_attributes()["keep_dims"])
        operation = getattr(self.vendor.ReduceOperation, kind)
        self.put(node, self.network.add_reduce(self.tensor(node, 0), operation, axes, keep).get_output(0))

    def reshape(self, node: Any) -> None:
        """To the shape that OpenVINO worked out; the batch stays what it is."""
        (batch, *before), (same, *after) = node.get_input_partial_shape(0), node.get_output_partial_shape(0)
        sides = [*before, *after]
        if batch.is_static or same.is_static or any(side.is_dynamic for side in sides) or _size(before) != _size(after):
            raise Unsupported(f"{node.get_type_name()} across images ('{node.get_friendly_name()}')")
        layer = self.network.add_shuffle(self.tensor(node, 0))
        layer.reshape_dims = (0, *(side.get_length() for side in after))  # 0: as in the input
        self.put(node, layer.get_output(0))

    def multiply_matrices(self, node: Any) -> None:
        attributes = node.get_attributes()
        if attributes["transpose_a"]:
            raise Unsupported(f"MatMul of a transposed batch ('{node.get_friendly_name()}')")
        weights = self.dequantized(_source(node, 1)) if attributes["transpose_b"] else None
        right = self.tensor(node, 1) if weights is None else weights
        plain, turned = self.vendor.MatrixOperation.NONE, self.vendor.MatrixOperation.TRANSPOSE
        operation = turned if attributes["transpose_b"] else plain
        self.put(node, self.network.add_matrix_multiply(self.tensor(node, 0), plain, right, operation).get_output(0))

    def quantize(self, node: Any) -> None:
        """FakeQuantize: to 8 bits and back in ``int8``.

        TensorRT knows signed symmetric 8-bit activations only, so the scale covers the larger end of the range.
        """
        low, high = (float(np.min(self.constant(node, 1))), float(np.max(self.constant(node, 2))))
        whole = all(self.constant(node, index).size == 1 for index in (1, 2))
        if self.precision != "int8" or node.get_attributes()["levels"] not in (255, 256) or not whole:
            raise Unsupported(f"FakeQuantize in {self.precision} ('{node.get_friendly_name()}')")
        scale = np.array(max(abs(low), abs(high)) / _MAX_INT8, np.float32)
        factor = self.network.add_constant(scale.shape, self.raw(scale)).get_output(0)
        packed = self.network.add_quantize(self.tensor(node, 0), factor, self.vendor.int8).get_output(0)
        self.put(node, self.network.add_dequantize(packed, factor, self.type).get_output(0))


_EMITTERS: dict[str, Callable[[_Definition, Any], Any]] = {
    "Convolution": _Definition.convolution,
    "GroupConvolution": _Definition.convolution,
    "Add": _Definition.add,
    "Multiply": lambda to, node: to.combine(node, to.vendor.ElementWiseOperation.PROD),
    "Relu": lambda to, node: to.activation(node, "RELU"),
    "Sigmoid": lambda to, node: to.activation(node, "SIGMOID"),
    "Gelu": _Definition.gelu,
    "PRelu": _Definition.leaky,
    "Clamp": _Definition.clamp,
    "HSigmoid": _Definition.hard_sigmoid,
    "HSwish": lambda to, node: to.gated(node, "HARD_SIGMOID", 1 / 6, 0.5),
    "Swish": lambda to, node: to.gated(node, "SIGMOID"),
    "MaxPool": lambda to, node: to.pool(node, "MAX"),
    "AvgPool": lambda to, node: to.pool(node, "AVERAGE"),
    "ReduceMean": lambda to, node: to.reduce(node, "AVG"),
    "ReduceMax": lambda to, node: to.reduce(node, "MAX"),
    "Reshape": _Definition.reshape,
    "Squeeze": _Definition.reshape,
    "MatMul": _Definition.multiply_matrices,
    "FakeQuantize": _Definition.quantize,
}


def _source(node: Any, index: int) -> str:
    """Unique name of the operation that an input comes from."""
    output = node.input_value(index)
    if output.get_index():
        raise Unsupported(f"a second output of {output.get_node().get_type_name()}")
    return str(output.get_node().get_name())


def _size(sides: list[Any]) -> int:
    return math.prod(side.get_length() for side in sides)


def _readers(node: Any, index: int) -> int:
    """How many operations read the same value."""
    return len(node.input_value(index).get_target_inputs())


def _explicit(node: Any) -> dict[str, Any]:
    """An operation's attributes, its padding being given in numbers."""
    attributes: dict[str, Any] = node.get_attributes()
    if attributes["auto_pad"] not in ("explicit", "valid"):
        raise Unsupported(f"{node.get_type_name()} with padding '{attributes['auto_pad']}'")
    return attributes
