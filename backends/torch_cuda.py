"""Torch on an NVIDIA GPU: where there is a GPU and no TensorRT for it.

Each engine is a plain network of its subnet's widths on the GPU, batch-norm folded, channels last, in f32, f16 or bf16,
and one CUDA graph per batch size, so that a request costs one launch instead of one per layer. It needs torch at
serving time. An artifact is a pointer to the bundle and its key, as for :mod:`backends.torch`.

* :class:`TorchCudaBackend`: builds and loads.
* :class:`TorchCudaEngine`: answers from pinned memory.
* :class:`Device`: what is asked of CUDA by way of torch; the seam for tests.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backends import requests
from backends.base import Artifact, Availability, Batch, CompileRequest, Engine
from backends.cuda import Gpu, identity, open_gpu
from backends.runtime import all_finite, load_torch
from backends.store import CachedBackend
from backends.tensorrt import native_precisions
from backends.torch import Pointer
from subnets import Bundle, EngineError, UnavailableError

_INSTALL = "pip install torch --index-url https://download.pytorch.org/whl/cu130"


class Device:
    """The current CUDA device as torch gives it."""

    name = "cuda"

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()  # graphs of one engine run one at a time and share memory

    def pinned(self, shape: tuple[int, ...]) -> Any:
        """A float32 tensor in host memory that the GPU copies from without a detour."""
        return self.torch.zeros(shape, pin_memory=True)

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """What is queued within runs in this device's order, beside that of other engines."""
        return self.torch.cuda.stream(self.stream)  # type: ignore[no-any-return]

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """Records ``run`` as a CUDA graph: what replays it, and the tensor that it then writes to."""
        with self.on_stream():
            for _ in range(3):  # creates kernels and workspaces, which cannot be done while recording
                run()
        self.stream.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            output = run()
        return graph.replay, output

    def synchronize(self) -> None:
        """Waits for what was queued."""
        self.stream.synchronize()

    def free_bytes(self) -> int:
        """GPU memory that neither torch nor anybody else holds."""
        self.torch.cuda.empty_cache()
        return int(self.torch.cuda.mem_get_info()[0])


class TorchCudaBackend(CachedBackend["TorchCudaEngine"]):
    """Runs subnets with torch on a GPU.

    Args:
        cache: where artifacts lie; by default :func:`backends.base.cache_path`.
        gpu: gives the GPU; the seam for tests.
        device: gives an engine's :class:`Device`; likewise.
    """

    name = "torch-cuda"
    device = "GPU"

    def __init__(
        self,
        cache: Path | None = None,
        *,
        gpu: Callable[[], Gpu] = open_gpu,
        device: Callable[[Any], Device] | None = None,
    ) -> None:
        super().__init__(cache)
        self._gpu, self._device = gpu, device

    def available(self) -> Availability:
        """Whether there is a GPU, and a torch that can use it."""
        try:
            gpu = self._gpu()
            torch = load_torch()
            if self._device is None:
                _check_torch(torch)
        except UnavailableError as error:
            return Availability(False, str(error))
        return Availability(True, f"torch {torch.__version__} on {gpu.name} ({', '.join(self.precisions())})")

    def precisions(self) -> tuple[str, ...]:
        """f32 (and not TF32 in its place), then f16 and bf16 where the GPU computes in them.

        Raises:
            UnavailableError: there is no GPU.
        """
        return native_precisions(self._gpu().capability)

    def _sources(self, bundle: Bundle, request: CompileRequest) -> dict[str, Any]:
        return {"path": Pointer.to(bundle).path}

    def _make(self, bundle: Bundle, request: CompileRequest, folder: Path) -> int:
        torch = load_torch()
        Pointer.to(bundle).write(folder)
        with torch.inference_mode():
            return int(_network(torch, bundle, request.subnet)(torch.zeros(1, *bundle.input.shape)).shape[1])

    def _open(self, artifact: Artifact) -> TorchCudaEngine:
        torch = load_torch()
        return TorchCudaEngine(artifact, torch, (self._device or Device)(torch))

    def _identity(self) -> dict[str, str]:
        return {"torch": str(load_torch().__version__), **identity(self._gpu())}


class TorchCudaEngine(Engine):
    """One subnet on the GPU: per batch size pinned buffers and a recorded graph."""

    def __init__(self, artifact: Artifact, torch: Any, device: Device) -> None:
        self.artifact = artifact
        self._torch, self._device = torch, device
        self._slots: dict[tuple[int, ...], _Slot] = {}
        bundle = Pointer.read(Path(artifact.path)).open()
        request = artifact.request
        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[request.precision]
        try:
            before = device.free_bytes()
            network = _network(torch, bundle, request.subnet).to(
                device=device.name, dtype=kind, memory_format=torch.channels_last
            )
            for size in request.batch_sizes:
                slot = _Slot(torch, device, network, kind, (size, *artifact.input_shape))
                self._slots[slot.images.shape] = slot
                slot.run()
            used = before - device.free_bytes()
        except RuntimeError as error:  # torch.cuda.OutOfMemoryError among them
            self.close()
            raise EngineError(f"subnet '{request.subnet}' does not load on the GPU: {_cause(error)}") from None
        self._memory_bytes = used if used > 0 else None

    def infer(self, batch: Batch) -> Batch:
        """Logits [N, classes], f32, for a batch [N, C, H, W]; see :meth:`backends.base.Engine.infer`."""
        subnet = self.artifact.request.subnet
        if not self._slots:
            raise EngineError(f"the engine of subnet '{subnet}' is closed")
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
            raise requests.refusal(self.artifact, batch)
        slot = self._slots.get(batch.shape)
        if slot is None:
            raise requests.refusal(self.artifact, batch)
        np.copyto(slot.images, batch)
        if not all_finite(slot.images.reshape(-1)):
            raise requests.not_finite()
        try:
            slot.run()
        except RuntimeError as error:
            raise EngineError(f"subnet '{subnet}' failed: {_cause(error)}") from None
        if not all_finite(slot.logits.reshape(-1)):
            raise EngineError(f"subnet '{subnet}' answered with NaN or infinity")
        return slot.logits.copy()

    def repeat(self, batch_size: int, times: int) -> None:
        """Runs the network ``times`` times on the images last given, with no copies: the GPU's own time.

        Raises:
            EngineError: it failed or is closed.
        """
        slot = self._slots.get((batch_size, *self.artifact.input_shape))
        if slot is None:
            raise EngineError(f"the engine of subnet '{self.artifact.request.subnet}' is closed or has no such batch")
        try:
            with self._device.on_stream():
                for _ in range(times):
                    slot.replay()
            self._device.synchronize()
        except RuntimeError as error:
            raise EngineError(f"subnet '{self.artifact.request.subnet}' failed: {_cause(error)}") from None

    @property
    def memory_bytes(self) -> int | None:
        """GPU memory that loading and recording took, as the driver's free memory tells it; None where none was.

        Another process that allocates or frees meanwhile falsifies it, and torch hands out memory that it kept.
        """
        return self._memory_bytes

    def close(self) -> None:
        """Gives weights, buffers and graphs back to torch; closing twice is harmless."""
        self._slots = {}


class _Slot:
    """Everything one batch size needs: buffers on both sides and the recorded network between them."""

    def __init__(self, torch: Any, device: Device, network: Any, kind: Any, shape: tuple[int, ...]) -> None:
        self._device = device
        self._pinned_in = device.pinned(shape)
        self._input = torch.zeros(shape, device=device.name)

        def compute() -> Any:
            return network(self._input.to(dtype=kind, memory_format=torch.channels_last)).float()

        # Recorded once, kernels stay: so their choice is made here. cuDNN would take TF32 for f32 unasked, and its
        # benchmark could choose another kernel, of another rounding, at the next start.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            self.replay, self._output = device.record(compute)
        self._pinned_out = device.pinned(tuple(self._output.shape))
        self._inference = torch.inference_mode
        self.images: Batch = self._pinned_in.numpy()
        self.logits: Batch = self._pinned_out.numpy()

    def run(self) -> None:
        """One inference, from pinned memory to pinned memory."""
        with self._inference(), self._device.on_stream():
            self._input.copy_(self._pinned_in, non_blocking=True)
            self.replay()
            self._pinned_out.copy_(self._output, non_blocking=True)
        self._device.synchronize()


def _network(torch: Any, bundle: Bundle, subnet: str) -> Any:
    """One subnet as a plain network on the CPU, its batch-norm folded into the convolutions."""
    from subnets.supernet import open_network

    network = open_network(bundle, subnet)
    try:
        traced = torch.fx.symbolic_trace(network)
    except Exception:  # fx raises many kinds for control flow it cannot follow; the answers are the same unfolded
        return network
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module":
            continue
        module, source = modules[node.target], node.args[0]
        if (
            isinstance(module, torch.nn.BatchNorm2d)
            and source.op == "call_module"
            and isinstance(modules[source.target], torch.nn.Conv2d)
            and len(source.users) == 1
        ):
            traced.set_submodule(source.target, torch.nn.utils.fuse_conv_bn_eval(modules[source.target], module))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced.eval()


def _check_torch(torch: Any) -> None:
    if torch.version.cuda is None:
        raise UnavailableError(f"torch {torch.__version__} is built without CUDA; try: {_INSTALL}")
    with warnings.catch_warnings(record=True) as told:  # why not is told as a warning
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return
    why = _cause(told[0].message) if told else "it sees no device"
    raise UnavailableError(f"torch {torch.__version__} cannot use the GPU: {why}")


def _cause(error: Any) -> str:
    """The first line of torch's message; the rest is advice on debugging."""
    return (str(error).splitlines() or [type(error).__name__])[0]
