"""Keeps training from a fault of torch's convolutions on processors with AVX2 and no AVX-512.

There, the weight gradient of a strided 1 x 1 convolution whose input channels are no multiple of 8 writes past the end
of a buffer (oneDNN's ``jit_avx2_1x1_convolution_bwd_weights``, seen with torch 2.13), and the process dies some steps
later. Every downsampling shortcut of a narrow subnet is such a layer. Taking every stride-th pixel first and convolving
without stride is the same function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 8  # channels that an AVX2 register holds in f32


@contextmanager
def sound_gradients() -> Iterator[None]:
    """Within, and on such a processor only, these convolutions take the other way; answers stay the same."""
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        yield
        return
    original = nn.Conv2d._conv_forward

    def forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        pointwise = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1
        if not pointwise or self.stride == (1, 1) or x.shape[1] % _BLOCK == 0:
            return original(self, x, weight, bias)
        return nn.functional.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], weight, bias)

    nn.Conv2d._conv_forward = forward  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Conv2d._conv_forward = original  # type: ignore[method-assign]
