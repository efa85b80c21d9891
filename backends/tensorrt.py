"""TensorRT on an NVIDIA GPU: one serialized engine per subnet, one CUDA graph per batch size.

Building takes the bundle's export into the vendor's network definition (:mod:`backends.gpu_network`), with an
optimization profile for each batch size, and stores the serialized engine under a key over weights, widths, request,
TensorRT's version, GPU and driver. Serving needs the vendor's module and the GPU's driver, and no torch.

* :class:`TensorRTBackend`: builds and loads; :mod:`backends.tensorrt_rtx` is the same with another vendor module.
* :class:`TensorRTEngine`: answers from pinned memory.
* :func:`load_vendor`: the vendor's module, or one sentence why not.

Knows nothing of other engines: nothing is shared between subnets but the GPU's context.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backends import ir, requests, store
from backends.base import Artifact, Availability, Batch, CompileRequest, Engine
from backends.cuda import Gpu, Graph, Stream, Transfer, identity, open_gpu
from backends.gpu_network import INPUT, Unsupported, define
from backends.runtime import all_finite, openvino_core
from subnets import Bundle, EngineError, InputError, UnavailableError

_PLAN = "engine.plan"
_INSTALL_CONVERTER = "pip install 'gearshift[torch-tensorrt]' --extra-index-url https://pypi.nvidia.com"


def load_vendor(module: str, install: str) -> Any:
    """A vendor's module.

    Raises:
        UnavailableError: it is not installed or does not load here; ``install`` is the command that helps.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a missing driver or library surfaces as any class, bare Exception among them
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"{module} does not import ({cause}); try: {install}") from None


class TensorRTBackend(ir.IRBackend["TensorRTEngine"]):
    """Builds and loads engines with the ``tensorrt`` module (10 or newer).

    Args:
        cache: where artifacts lie; by default :func:`backends.base.cache_path`.
        vendor: gives the vendor's module; the seam for tests.
        gpu: gives the GPU; likewise.
    """

    name = "tensorrt"
    device = "GPU"
    module: ClassVar[str] = "tensorrt"
    install: ClassVar[str] = "pip install 'gearshift[tensorrt]' --extra-index-url https://pypi.nvidia.com"

    def __init__(
        self,
        cache: Path | None = None,
        *,
        vendor: Callable[[], Any] | None = None,
        gpu: Callable[[], Gpu] = open_gpu,
    ) -> None:
        super().__init__(cache)
        self._vendor = vendor or functools.partial(load_vendor, self.module, self.install)
        self._gpu = gpu

    def available(self) -> Availability:
        """Whether there is a GPU, and the vendor's module loads."""
        try:
            gpu = self._gpu()
            version = self._vendor().__version__
            self._check_gpu(gpu)
        except UnavailableError as error:
            return Availability(False, str(error))
        return Availability(True, f"{self.module} {version} on {gpu.name} ({', '.join(self.precisions())})")

    def precisions(self) -> tuple[str, ...]:
        """f32 (and not TF32 in its place), then f16 and bf16 where the GPU computes in them.

        Raises:
            UnavailableError: there is no GPU.
        """
        return native_precisions(self._gpu().capability)

    def _make(self, bundle: Bundle, request: CompileRequest, folder: Path) -> int:
        plan, classes = self._plan(bundle, request, folder)
        (folder / _PLAN).write_bytes(plan)
        return classes

    def _open(self, artifact: Artifact) -> TensorRTEngine:
        gpu = self._gpu()
        self._check_gpu(gpu)
        return TensorRTEngine(artifact, self._vendor(), gpu)

    # What the other flavours do otherwise.

    def _check_gpu(self, gpu: Gpu) -> None:
        """Refuses a GPU that the vendor's module knows nothing of; TensorRT itself says so when building."""

    def _computes_int8(self) -> bool:
        return self._gpu().capability >= (7, 5)  # where the tensor cores do

    def _identity(self) -> dict[str, str]:
        """What a stored engine was built with and for. An engine fits one version and one kind of GPU only."""
        return {self.module: str(self._vendor().__version__), **identity(self._gpu())}

    def _convert(self, bundle: Bundle, request: CompileRequest, why: Unsupported) -> bytes:
        """The engine of a network that :mod:`backends.gpu_network` cannot express, by torch-tensorrt."""
        if request.precision == "int8":
            raise EngineError(f"{bundle.path}: int8 '{request.subnet}' cannot be put into TensorRT's terms: {why}")
        try:
            converter = load_vendor("torch_tensorrt", _INSTALL_CONVERTER)
        except UnavailableError as error:
            raise UnavailableError(
                f"{bundle.path}: '{request.subnet}' holds {why}, which takes torch-tensorrt; {error}"
            ) from None
        from backends.torch_tensorrt import convert

        return convert(bundle, request, converter)

    def _plan(self, bundle: Bundle, request: CompileRequest, folder: Path) -> tuple[bytes, int]:
        """The serialized engine and its number of classes; ``folder`` may be used meanwhile and is left as it was."""
        with store.staging(folder / "export") as temporary:
            model = _read_model(ir.place(bundle, request, temporary))
        classes = int(model.outputs[0].get_partial_shape()[1].get_length())
        vendor, log = self._vendor(), _log(self._vendor())
        sizes, shape = request.batch_sizes, bundle.input.shape
        log.errors.clear()
        builder = vendor.Builder(log)
        network = builder.create_network(1 << int(vendor.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        try:
            held = define(vendor, network, model, request.precision, sizes[0] if len(sizes) == 1 else None)
        except Unsupported as why:
            return self._convert(bundle, request, why), classes
        config = builder.create_builder_config()
        config.clear_flag(vendor.BuilderFlag.TF32)
        if len(sizes) > 1:
            for size in sizes:
                profile = builder.create_optimization_profile()
                profile.set_shape(INPUT, *[(size, *shape)] * 3)
                config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        del held
        if plan is None:
            raise EngineError(f"{bundle.path}: {self.module} does not build '{request.subnet}': {log.cause}")
        return bytes(memoryview(plan)), classes


class TensorRTEngine(Engine):
    """One deserialized engine: per batch size an execution context, pinned buffers and a CUDA graph."""

    def __init__(self, artifact: Artifact, vendor: Any, gpu: Gpu) -> None:
        self.artifact = artifact
        self._gpu, self._log = gpu, _log(vendor)
        self._slots: dict[tuple[int, ...], _Slot] = {}
        self._stream: Stream | None = None
        gpu.activate()
        before = gpu.free_bytes()
        self._log.errors.clear()
        plan = (Path(artifact.path) / _PLAN).read_bytes()
        runtime = vendor.Runtime(self._log)
        loaded = runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            raise EngineError(f"{artifact.path}: does not load ({self._log.cause}); build it again")
        self._loaded: Any = (loaded, runtime)
        try:
            self._stream = Stream(gpu)
            names = _tensor_names(vendor, loaded, artifact)
            for index, size in enumerate(artifact.request.batch_sizes):
                profile = index if loaded.num_optimization_profiles > 1 else 0
                slot = _Slot(artifact, size, gpu)
                self._slots[slot.input.host.shape] = slot
                slot.bind(loaded, names, profile, self._stream, self._log)
                slot.prepare()
        except BaseException:
            self.close()
            raise
        used = before - gpu.free_bytes()
        self._memory_bytes = used if used > 0 else None

    def infer(self, batch: Batch) -> Batch:
        """Logits [N, classes], f32, for a batch [N, C, H, W]; see :meth:`backends.base.Engine.infer`."""
        subnet = self.artifact.request.subnet
        if self._stream is None:
            raise EngineError(f"the engine of subnet '{subnet}' is closed")
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32:
            raise requests.refusal(self.artifact, batch)
        slot = self._slots.get(batch.shape)
        if slot is None:
            raise requests.refusal(self.artifact, batch)
        np.copyto(slot.input.host, batch)
        if not all_finite(slot.input.flat):
            raise requests.not_finite()
        try:
            self._gpu.activate()
            slot.run()
        except EngineError as error:
            raise EngineError(f"subnet '{subnet}' failed: {error}") from None
        if not all_finite(slot.output.flat):
            raise EngineError(f"subnet '{subnet}' answered with NaN or infinity")
        return slot.output.host.copy()

    def repeat(self, batch_size: int, times: int) -> None:
        """Runs the network ``times`` times on the images last given, with no copies: the GPU's own time.

        Raises:
            EngineError: it failed or is closed.
        """
        slot = self._slots.get((batch_size, *self.artifact.input_shape))
        if self._stream is None or slot is None:
            raise EngineError(f"the engine of subnet '{self.artifact.request.subnet}' is closed or has no such batch")
        self._gpu.activate()
        for _ in range(times):
            slot.compute()
        self._stream.synchronize()

    @property
    def graphs(self) -> int:
        """For how many of the batch sizes the work was recorded as a CUDA graph."""
        return sum(slot.graph is not None for slot in self._slots.values())

    @property
    def memory_bytes(self) -> int | None:
        """GPU memory that loading and warming up took, as the driver's free memory tells it; None where none was.

        Another process that allocates or frees meanwhile falsifies it.
        """
        return self._memory_bytes

    def close(self) -> None:
        """Frees it; closing twice is harmless."""
        if self._stream is None:
            return
        with contextlib.suppress(EngineError):
            self._gpu.activate()
        for slot in self._slots.values():
            slot.close()
        self._slots = {}
        self._loaded = None
        with contextlib.suppress(EngineError):
            self._stream.close()
        self._stream = None


class _Slot:
    """Everything one batch size needs: buffers, an execution context bound to them, and the recorded work."""

    def __init__(self, artifact: Artifact, size: int, gpu: Gpu) -> None:
        self.input = Transfer(gpu, (size, *artifact.input_shape))
        try:
            self.output = Transfer(gpu, (size, artifact.classes))
        except EngineError:
            self.input.close()
            raise
        self.graph: Graph | None = None
        self.context: Any = None

    def bind(self, loaded: Any, names: tuple[str, str], profile: int, stream: Stream, log: Any) -> None:
        """An execution context for one optimization profile, reading and writing the buffers."""
        self.stream, self.log = stream, log
        self.context = loaded.create_execution_context()
        steps: tuple[Callable[[], Any], ...] = (
            lambda: self.context.set_optimization_profile_async(profile, stream.handle.value),
            lambda: self.context.set_input_shape(names[0], self.input.host.shape),
            lambda: self.context.set_tensor_address(names[0], self.input.address),
            lambda: self.context.set_tensor_address(names[1], self.output.address),
        )
        if self.context is None or not all(step() for step in steps):
            raise EngineError(f"no execution context for batch size {self.input.host.shape[0]}: {log.cause}")

    def prepare(self) -> None:
        """Runs twice, since the first time creates kernels, and records the work where it can be recorded."""
        for _ in range(2):
            self.enqueue()
            self.stream.synchronize()
        try:
            self.graph = self.stream.capture(self.enqueue)
        except EngineError:
            self.graph = None  # a layer that synchronizes; answering works without
            return
        self.run()

    def run(self) -> None:
        """One inference, from pinned memory to pinned memory."""
        if self.graph is not None:
            self.graph.launch()
        else:
            self.enqueue()
        self.stream.synchronize()

    def enqueue(self) -> None:
        """Queues copy, network and copy."""
        self.input.upload(self.stream)
        self.compute()
        self.output.download(self.stream)

    def compute(self) -> None:
        """Queues the network alone."""
        if not self.context.execute_async_v3(self.stream.handle.value):
            raise EngineError(self.log.cause)

    def close(self) -> None:
        """Frees all of it, also on a GPU that failed."""
        parts: list[Graph | Transfer | None] = [self.graph, self.input, self.output]
        self.graph = self.context = None
        for part in parts:
            if part is not None:
                with contextlib.suppress(EngineError):
                    part.close()


def native_precisions(capability: tuple[int, int]) -> tuple[str, ...]:
    """What a GPU of that compute capability computes in at speed, the exact one first."""
    offered = ["f32"]
    if capability >= (7, 0) or capability in ((5, 3), (6, 0), (6, 2)):  # 6.1 has f16 at a 64th of the speed
        offered.append("f16")
    if capability >= (8, 0):
        offered.append("bf16")
    return tuple(offered)


@functools.cache
def _log(vendor: Any) -> Any:
    """The process's one logger for a vendor's module, which keeps the first it gets; holds the last errors."""

    class Log(vendor.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            vendor.ILogger.__init__(self)
            self.errors: collections.deque[str] = collections.deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity <= vendor.ILogger.ERROR:
                self.errors.append(message)

        @property
        def cause(self) -> str:
            """The first error since the last clearing, which later ones follow from, on one line."""
            return " ".join(self.errors[0].split()) if self.errors else "it gives no reason"

    return Log()


def _tensor_names(vendor: Any, loaded: Any, artifact: Artifact) -> tuple[str, str]:
    """Names of the engine's one input and one output."""
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    inputs = [name for name in names if loaded.get_tensor_mode(name) == vendor.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if len(inputs) != 1 or len(outputs) != 1:
        raise EngineError(
            f"{artifact.path}: has inputs {inputs} and outputs {outputs}, not one of each; build it again"
        )
    return inputs[0], outputs[0]


def _read_model(file: Path) -> Any:
    try:
        return openvino_core().read_model(file, config={"ENABLE_MMAP": False})
    except RuntimeError as error:
        raise InputError(f"{file}: OpenVINO cannot read it ({str(error).splitlines()[-1]}); export it again") from None
