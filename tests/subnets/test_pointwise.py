"""Strided 1 x 1 convolutions where torch's weight gradient is at fault: same answers, same gradients, another way."""

import pytest
import torch
from torch import nn

from subnets.pointwise import sound_gradients


@pytest.fixture
def without_avx512(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.fixture
def asked(monkeypatch):
    """The (input channels, stride) that torch's own convolution is asked for."""
    seen, original = [], nn.functional.conv2d

    def conv2d(x, weight, bias, stride=1, *rest):
        seen.append((x.shape[1], stride))
        return original(x, weight, bias, stride, *rest)

    monkeypatch.setattr(nn.functional, "conv2d", conv2d)
    return seen


def gradients(layer, x):
    """By hand, in f64: output y[o] = sum_i w[o, i] x[i] at every stride-th pixel; all outputs summed."""
    kept = x.detach().double()[:, :, :: layer.stride[0], :: layer.stride[1]]
    weight = layer.weight.detach().double()[:, :, 0, 0]
    answer = torch.einsum("oi,nihw->nohw", weight, kept) + layer.bias.detach().double()[None, :, None, None]
    return answer, kept.sum((0, 2, 3)).expand(weight.shape)[:, :, None, None]


@pytest.mark.parametrize(("channels", "stride"), [(4, 2), (12, (2, 3)), (7, 2)])
def test_the_layer_answers_and_learns_as_before_and_torch_sees_no_stride(without_avx512, asked, channels, stride):
    layer = nn.Conv2d(channels, 6, 1, stride=stride)
    x = torch.randn(3, channels, 9, 9).contiguous(memory_format=torch.channels_last)
    with sound_gradients():
        answer = layer(x)
        answer.sum().backward()
    expected, weight_gradient = gradients(layer, x)
    torch.testing.assert_close(answer.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.weight.grad.double(), weight_gradient, rtol=1e-5, atol=1e-5)
    assert asked == [(channels, 1)]


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 6, 1, stride=2), nn.Conv2d(4, 6, 3, stride=2), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 4, 1, 2, groups=2)],
)
def test_every_other_layer_is_left_alone(without_avx512, asked, layer):
    with sound_gradients():
        layer(torch.zeros(1, layer.in_channels, 8, 8))
    assert asked == [(layer.in_channels, layer.stride)]


def test_other_processors_are_left_alone_and_so_is_everything_afterwards(monkeypatch, asked):
    layer, x = nn.Conv2d(4, 6, 1, stride=2), torch.zeros(1, 4, 8, 8)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with sound_gradients():
        layer(x)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with sound_gradients():
        pass
    layer(x)
    assert asked == [(4, (2, 2)), (4, (2, 2))]
