"""From an export to TensorRT's network: computed by the scripted vendor, and accepted by the real builder of RTX."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from backends import CompileRequest, tensorrt
from backends.gpu_network import Unsupported, define
from backends.runtime import load_openvino, openvino_core
from backends.tensorrt_rtx import TensorRTRTXBackend
from subnets import EngineError, UnavailableError

TOLERANCE = {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2}


class Rank2(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * 0.5


# Each holds what its name says beside a convolution; 12 x 9 images of 4 channels, so that no two axes are alike.
NETWORKS = {
    "strides, dilation and a bias": lambda: [
        nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(2, 1), dilation=(2, 1)),
        Rank2(),
    ],
    "depthwise": lambda: [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.ReLU6(), Rank2()],
    "grouped": lambda: [nn.Conv2d(4, 6, 1, groups=2), nn.LeakyReLU(0.2), Rank2()],
    "hardswish": lambda: [nn.Conv2d(4, 5, 1, bias=False), nn.Hardswish(), Rank2()],
    "hardsigmoid": lambda: [nn.Conv2d(4, 5, 1), nn.Hardsigmoid(), Rank2()],
    "swish": lambda: [nn.Conv2d(4, 5, 1), nn.SiLU(), Rank2()],
    "gelu and sigmoid": lambda: [nn.Conv2d(4, 5, 1), nn.GELU(), nn.Sigmoid(), Rank2()],
    "pooling": lambda: [nn.Conv2d(4, 5, 1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(30, 3)],
    "average without padding": lambda: [nn.Conv2d(4, 5, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), Rank2()],
    "maximum of all": lambda: [nn.Conv2d(4, 5, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(5, 3)],
    "two linear layers": lambda: [
        nn.Conv2d(4, 5, 1),
        nn.Flatten(),
        nn.Linear(540, 7),
        nn.ReLU(),
        nn.Linear(7, 3, bias=False),
    ],
}


@pytest.fixture(scope="module")
def converted():
    """name -> (torch network, the same as OpenVINO reads it back from disk, images)."""
    found = {}

    def convert(name):
        if name not in found:
            with torch.random.fork_rng():
                torch.manual_seed(5)
                network = nn.Sequential(*NETWORKS[name]()).eval()
                images = torch.randn(2, 4, 12, 9)
            model = load_openvino().convert_model(network, example_input=images, input=[-1, 4, 12, 9])
            found[name] = network, model, images
        return found[name]

    return convert


def run(vendor, model, precision, images):
    """Defines the network for the scripted vendor and computes it."""
    network = vendor.Builder(None).create_network(1)
    held = define(vendor, network, model, precision, len(images))
    assert held and network.output.name == "logits"
    with torch.inference_mode():
        return network.compute(torch.as_tensor(images))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_network_computes_what_torch_computes(vendor, converted, name):
    network, model, images = converted(name)
    with torch.inference_mode():
        expected = network(images)
    for precision, tolerance in TOLERANCE.items():
        found = run(vendor, model, precision, images)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= tolerance * expected.abs().max(), precision


# What cannot be expressed is named.


def op_model(build):
    from openvino import opset13 as op

    ov = load_openvino()
    images = op.parameter([-1, 4, 12, 9], np.float32)
    return ov.Model([build(op, images).output(0)], [images], "one")


def classes(op, images):
    return op.reduce_mean(images, op.constant(np.array([2, 3])), False)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda op, x: classes(op, op.erf(x)), "operation Erf"),
        (
            lambda op, x: classes(op, op.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], False, "ceil")),
            "AvgPool that rounds",
        ),
        (
            lambda op, x: classes(op, op.max_pool(x, [1, 1], [2, 2], [0, 0], [0, 0], [2, 2]).output(0)),
            "MaxPool with dilation",
        ),
        (lambda op, x: op.reshape(x, op.constant(np.array([-1, 8])), False), "Reshape across images"),
        (lambda op, x: classes(op, op.prelu(x, op.constant(np.ones(4, np.float32)))), "PRelu with a slope per channel"),
        (
            lambda op, x: classes(op, op.convolution(x, x, [1, 1], [0, 0], [0, 0], [1, 1])),
            "Convolution with a computed parameter",
        ),
        (
            lambda op, x: classes(
                op,
                op.convolution(
                    x, op.constant(np.ones((3, 4, 3, 3), np.float32)), [1, 1], [0, 0], [0, 0], [1, 1], "same_upper"
                ),
            ),
            "Convolution with padding 'same_upper'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_counterpart_is_named(vendor, build, named):
    with pytest.raises(Unsupported, match=named):
        define(vendor, vendor.Builder(None).create_network(1), op_model(build), "f32", None)


# Quantized exports.


def quantized_model(levels=256, low=-2.5):
    """Two quantized convolutions and a quantized linear layer, in the form in which NNCF's models are stored."""
    from openvino import opset13 as op

    ov = load_openvino()
    random = np.random.default_rng(3)

    def weights(*shape):
        values = random.integers(-127, 128, shape).astype(np.int8)
        scale = random.uniform(0.002, 0.01, (shape[0],) + (1,) * (len(shape) - 1)).astype(np.float32)
        return op.multiply(op.convert(op.constant(values), "f32"), op.constant(scale))

    def fake(x, low, high):
        ends = [op.constant(np.float32(value)) for value in (low, high, low, high)]
        return op.fake_quantize(x, *ends, levels)

    images = op.parameter([-1, 4, 12, 9], np.float32)
    hidden = op.convolution(fake(images, low, 2.5), weights(8, 4, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
    hidden = op.relu(op.add(hidden, op.constant(random.standard_normal((1, 8, 1, 1)).astype(np.float32))))
    hidden = op.relu(op.convolution(fake(hidden, 0, 8.0), weights(6, 8, 1, 1), [2, 2], [0, 0], [0, 0], [1, 1]))
    features = op.reduce_mean(hidden, op.constant(np.array([2, 3])), False)
    logits = op.matmul(fake(features, 0, 2.0), weights(5, 6), False, True)
    return ov.Model([logits.output(0)], [images], "quantized")


def test_a_quantized_export_keeps_8_bit_weights_and_answers_like_openvino(vendor):
    model, images = quantized_model(), np.random.default_rng(4).standard_normal((2, 4, 12, 9), np.float32)
    # In f32 between the quantized steps: 8-bit kernels without dot products keep sums in 16 bits, which overflow here.
    options = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    expected = openvino_core().compile_model(model, "CPU", options)(images)[0]
    found = run(vendor, model, "int8", images).numpy()
    # One signed step more or less in each of three places; without any quantization it is off by as much.
    assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()
    network = vendor.Builder(None).create_network(1)
    held = define(vendor, network, model, "int8", 1)
    assert [value.shape for value in held if value.dtype == np.int8] == [(8, 4, 3, 3), (6, 8, 1, 1), (5, 6)]


def test_a_quantized_export_serves_no_other_precision_and_needs_8_bits(vendor):
    for precision, model in (("f32", quantized_model()), ("int8", quantized_model(levels=16))):
        with pytest.raises(Unsupported, match="FakeQuantize"):
            run(vendor, model, precision, np.zeros((1, 4, 12, 9), np.float32))


# The real builder, which needs no GPU.


@pytest.fixture
def rtx(tmp_path):
    pytest.importorskip("tensorrt_rtx")

    def nothing():
        raise UnavailableError("no NVIDIA GPU here")

    return TensorRTRTXBackend(tmp_path / "cache", gpu=nothing)


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["f32", "f16", "bf16"])
def test_the_real_builder_makes_engines_ahead_of_time(rtx, tiny_bundle, hand_bundle, precision):
    for bundle in (tiny_bundle, hand_bundle):
        request = CompileRequest(subnet="s100", precision=precision, batch_sizes=(1, 8))
        artifact = rtx.build(bundle, request)
        plan = rtx.cache / "tensorrt-rtx" / artifact.key / "engine.plan"
        assert plan.stat().st_size > 10_000 and artifact.classes == len(bundle.labels)
        assert rtx.build(bundle, request) == artifact


@pytest.mark.rtx
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_real_builder_takes_every_operation(rtx, converted):
    models = [(converted(name)[1], "f16") for name in NETWORKS]
    vendor = rtx._vendor()
    log = tensorrt._log(vendor)
    for model, precision in [*models, (quantized_model(), "int8")]:
        builder = vendor.Builder(log)
        network = builder.create_network(0)
        held = define(vendor, network, model, precision, 2)
        log.errors.clear()
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        assert held and plan is not None, log.cause


@pytest.mark.rtx
def test_the_real_builder_refuses_in_one_sentence(rtx, hand_bundle, monkeypatch):
    def broken(vendor, network, model, precision, batch_size):
        network.add_input("input", vendor.float32, (1, 2, 6, 5))  # no output
        return []

    monkeypatch.setattr("backends.tensorrt.define", broken)
    with pytest.raises(EngineError, match=r"tensorrt_rtx does not build 's50': .+"):
        rtx.build(hand_bundle, CompileRequest(subnet="s50"))


@pytest.mark.rtx
def test_loading_without_a_gpu_is_refused_in_one_sentence(rtx, hand_bundle):
    artifact = rtx.build(hand_bundle, CompileRequest(subnet="s50"))
    with pytest.raises(UnavailableError, match="no NVIDIA GPU here"):
        rtx.load(artifact)
    assert not rtx.available().ok


@pytest.mark.rtx
def test_the_real_builder_names_what_it_cannot_be_given(rtx, hand_bundle):
    file = hand_bundle.path / "exports/openvino/s50.xml"
    load_openvino().save_model(op_model(lambda op, x: classes(op, op.erf(x))), file)
    fresh = hand_bundle.add_export("s50", "openvino", [file, file.with_suffix(".bin")])
    with pytest.raises(EngineError, match=r"holds operation Erf .* use another backend"):
        rtx.build(fresh, CompileRequest(subnet="s50"))
