"""Forward and backward of one network over one batch; on an NVIDIA GPU recorded once and replayed.

A training step of a small network is some hundred kernels of a few microseconds each, which Python launches more slowly
than the GPU runs them. :class:`Pass` therefore captures them as a CUDA graph when it first meets a shape of batch, and
from then on launches the whole graph. Elsewhere, and where a network cannot be captured (one that looks at values on
the host, say), it runs them one by one; gradients are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec
import torch
from torch import Tensor, nn

Loss = Callable[..., tuple[Tensor, Tensor]]  # inputs of one batch -> (loss, the network's answers)

_WARM_UP = 3  # runs before the capture, in which libraries choose their kernels
_log = logging.getLogger(__name__)


class Pass:
    """Adds the gradients of ``loss`` to ``module``'s parameters, batch after batch.

    Args:
        module: owns every tensor that the loss reads or changes, besides its inputs.
        loss: from a batch's tensors to (scalar loss, output); called anew for each batch, or once a shape on a GPU.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self._module, self._loss = module, loss
        self._captured: dict[tuple[torch.Size, ...], _Captured | None] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and output of this batch, detached; valid until the next call."""
        if inputs[0].device.type == "cuda" and (captured := self._recorded(inputs)):
            return captured.replay(inputs)
        loss, output = self._loss(*inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), output.detach()

    def _recorded(self, inputs: Sequence[Tensor]) -> _Captured | None:
        shapes = tuple(each.shape for each in inputs)
        if shapes not in self._captured:
            # What a training step changes as it runs, batch-norm's statistics, must not see the warm-up.
            kept = [(value, value.detach().clone()) for value in self._module.buffers()]
            try:
                self._captured[shapes] = _capture(self._module, self._loss, inputs)
            except RuntimeError as error:
                _log.warning("training runs without a CUDA graph, which is slower: %s", str(error).splitlines()[0])
                self._captured[shapes] = None
            with torch.no_grad():
                for value, before in kept:
                    value.copy_(before)
        return self._captured[shapes]


class _Captured(msgspec.Struct, frozen=True):
    """A recorded pass: what it reads, what it writes, and the parameters that its gradients belong to."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    loss: Tensor
    output: Tensor
    parameters: list[nn.Parameter]
    gradients: list[Tensor]

    @torch.no_grad()
    def replay(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        have, add = [], []
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient  # until the next replay, which is in the next step
            else:
                have.append(parameter.grad)
                add.append(gradient)
        if have:
            torch._foreach_add_(have, add)
        return self.loss.clone(), self.output


def _capture(module: nn.Module, loss: Loss, inputs: Sequence[Tensor]) -> _Captured:
    inputs = [each.clone() for each in inputs]
    every = [value for value in module.parameters() if value.requires_grad]

    def used() -> list[nn.Parameter]:
        value, _ = loss(*inputs)
        found = torch.autograd.grad(value, every, allow_unused=True)
        return [each for each, gradient in zip(every, found, strict=True) if gradient is not None]

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            parameters = used()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value, output = loss(*inputs)
        found = torch.autograd.grad(value, parameters)
        # In memory as their parameters are, or the optimizer takes them one by one.
        gradients = [torch.empty_like(each).copy_(gradient) for each, gradient in zip(parameters, found, strict=True)]
    return _Captured(graph, inputs, value.detach(), output.detach(), parameters, gradients)
