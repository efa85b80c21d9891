"""OpenVINO on the CPU: one separately compiled model per subnet, resident, with one bound request.

An artifact is a directory with the subnet's IR (f16 weights, mapped from disk) and ``compiled.blob``, what the
compiler made of it without the weights (a hundred kilobytes). Loading takes the graph from the blob and the weights
from the mapped IR, so it needs neither the bundle nor torch. Precision ``int8`` takes an IR that was quantized
beforehand (:mod:`backends.quantize`) and travels in the bundle. ``docs/backends.md`` gives reasons and measurements.

* :class:`OpenVINOBackend`: builds and loads.
* :class:`OpenVINOEngine`: answers.

Knows nothing of other engines: nothing is shared between subnets but the plugin and the page cache.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backends import ir, requests
from backends.base import Artifact, Availability, Batch, CompileRequest, Engine
from backends.runtime import Processor, all_finite, growth, load_openvino, openvino_core, resident_bytes
from subnets import Bundle, EngineError, InputError, UnavailableError

SUM = "gearshift/sum"  # the output that tells of values that are not finite, in models of large images
_BLOB = "compiled.blob"
_F32 = np.dtype(np.float32)
_ALIGNED = 16  # values: a cache line
_COPIED_BYTES = 2**18  # up to here a copy takes less time than binding another array


class OpenVINOBackend(ir.IRBackend["OpenVINOEngine"]):
    """Compiles subnets with OpenVINO's CPU plugin.

    Args:
        cache: where artifacts lie; by default :func:`backends.base.cache_path`.
    """

    name = "openvino"
    device = "CPU"
    pins: ClassVar[bool] = True

    def available(self) -> Availability:
        """Whether openvino is installed and its CPU plugin loads."""
        try:
            version = load_openvino().__version__.partition("-")[0]
            capabilities = self._capabilities()
        except UnavailableError as error:
            return Availability(False, str(error))
        except RuntimeError as error:  # what the plugin loader raises
            return Availability(False, f"OpenVINO's CPU plugin does not load: {_cause(error)}")
        return Availability(True, f"OpenVINO {version} on {Processor.here().model} ({', '.join(capabilities)})")

    def precisions(self) -> tuple[str, ...]:
        """f32, then f16 and bf16 where both the plugin offers them and the processor computes in them.

        What a processor can only emulate (f16 by converting to f32 and back, int8 without dot products) is left out.
        """
        capabilities, processor = self._capabilities(), Processor.here()
        offered = ["f32"]
        if "FP16" in capabilities and processor.computes_f16:
            offered.append("f16")
        if "BF16" in capabilities and processor.computes_bf16:
            offered.append("bf16")
        return tuple(offered)

    def _make(self, bundle: Bundle, request: CompileRequest, folder: Path) -> int:
        return _compile(ir.place(bundle, request, folder), bundle, request)

    def _open(self, artifact: Artifact) -> OpenVINOEngine:
        return OpenVINOEngine(artifact)

    def _computes_int8(self) -> bool:
        return "INT8" in self._capabilities() and Processor.here().computes_int8

    def _capabilities(self) -> tuple[str, ...]:
        return tuple(sorted(openvino_core().get_property(self.device, "OPTIMIZATION_CAPABILITIES")))

    def _identity(self) -> dict[str, str]:
        return {
            "openvino": load_openvino().__version__,
            "processor": Processor.here().model,
            "capabilities": " ".join(self._capabilities()),
            "outputs": "logits, sum",
        }


class OpenVINOEngine(Engine):
    """One compiled subnet with one inference request.

    A small batch is copied into an array that stays bound. A large one is read where the caller keeps it, if it lies
    there contiguous, aligned and writable (OpenVINO shares no other memory); it stays bound, and so in memory, until
    the next one or :meth:`close`, and asking again with the same array costs nothing extra.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        before = resident_bytes()
        self._ov = load_openvino()
        directory = Path(artifact.path)
        options = _options(artifact.request) | {"WEIGHTS_PATH": str(directory / ir.WEIGHTS)}
        try:
            compiled = openvino_core().import_model((directory / _BLOB).read_bytes(), artifact.device, options)
            self._request: Any = compiled.create_infer_request()
            self._run = _bare(self._request)
        except (RuntimeError, OSError) as error:
            raise EngineError(f"{directory}: cannot be loaded ({_cause(error)}); build it again") from None
        self._buffers = {}
        sums = len(compiled.outputs) > 1
        for size in artifact.request.batch_sizes:
            buffer = _Buffer(self._ov, (size, *artifact.input_shape), (size, artifact.classes), sums)
            self._buffers[buffer.input.shape] = buffer
        self._reads: Batch | None = None  # the array bound as input, and a flat view of it
        self._flat = np.empty(0, np.float32)
        self._writes: Batch | None = None  # the array bound as output
        try:
            self._warm()
        except TypeError:  # of an OpenVINO whose layers are others: the front one is slower and always the same
            self._run = self._request.infer
            self._warm()
        self._memory_bytes = growth(before)

    def infer(self, batch: Batch) -> Batch:
        """Logits [N, classes], f32, for a batch [N, C, H, W]; see :meth:`backends.base.Engine.infer`."""
        if self._request is None:
            raise EngineError(f"the engine of subnet '{self.artifact.request.subnet}' is closed")
        if not isinstance(batch, np.ndarray) or batch.dtype != _F32:
            raise requests.refusal(self.artifact, batch)
        buffer = self._buffers.get(batch.shape)
        if buffer is None:
            raise requests.refusal(self.artifact, batch)
        try:
            if batch is not self._reads:
                self._take(batch, buffer)
            self._run()
        except RuntimeError as error:
            raise EngineError(f"subnet '{self.artifact.request.subnet}' failed: {_cause(error)}") from None
        # Looked at, not concluded from the answer, since a ReLU turns NaN into 0. Afterwards, since an inference leaves
        # no code in the nearest cache, and fetching the check's is then paid for once.
        if not (all_finite(buffer.whole) if buffer.copies else math.isfinite(buffer.sum.item())):
            self._judge(buffer)
        return buffer.output.copy()

    def _warm(self) -> None:
        """Twice: the first inference of a batch size creates its kernels, the second finds the weights in the cache."""
        for shape in self._buffers:
            for _ in range(2):
                self.infer(np.zeros(shape, np.float32))

    def _judge(self, buffer: _Buffer) -> None:
        """Raises what is to be said of images and logits whose sum is not finite; a sum may overflow by itself."""
        if not all_finite(self._flat):
            raise requests.not_finite()
        if not all_finite(buffer.output.reshape(-1)):
            raise EngineError(f"subnet '{self.artifact.request.subnet}' answered with NaN or infinity")

    def _take(self, batch: Batch, buffer: _Buffer) -> None:
        """Makes the request read ``batch``, in place or from a copy, and write to ``buffer``."""
        if buffer.copies or not _can_be_shared(batch):
            buffer.input[...] = batch
            if buffer.input is not self._reads:
                self._bind(buffer.input, buffer.input_tensor)
        else:
            self._bind(batch, self._ov.Tensor(batch, shared_memory=True))
        if buffer.output is not self._writes:
            self._request.set_output_tensor(0, buffer.output_tensor)
            if buffer.sum_tensor is not None:
                self._request.set_output_tensor(1, buffer.sum_tensor)
            self._writes = buffer.output

    def _bind(self, array: Batch, tensor: Any) -> None:
        self._request.set_input_tensor(tensor)
        self._reads, self._flat = array, array.reshape(-1)

    @property
    def memory_bytes(self) -> int | None:
        """Growth of the process's resident memory from before loading to after warming up.

        Includes the pages of the mapped IR, which the kernel can take back. An engine loaded where another was freed
        can reuse its memory and then measures less; None where nothing grew.
        """
        return self._memory_bytes

    def close(self) -> None:
        """Frees the compiled model; closing twice is harmless."""
        self._request = self._run = self._reads = self._writes = None  # type: ignore[assignment]
        self._flat = np.empty(0, np.float32)
        self._buffers = {}


class _Buffer:
    """For one batch size, an array a request reads and one it writes, shared with OpenVINO without copies.

    Both lie in one array, so that a small batch and its logits can be checked in one pass.

    Args:
        ov: the library.
        input_shape, output_shape: of the batch and its logits.
        sums: whether the model adds up both itself.
    """

    def __init__(self, ov: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...], sums: bool) -> None:
        images, logits = math.prod(input_shape), math.prod(output_shape)
        start = -(-images // _ALIGNED) * _ALIGNED
        self.whole = np.zeros(start + logits, np.float32)
        self.input, self.output = self.whole[:images].reshape(input_shape), self.whole[start:].reshape(output_shape)
        self.input_tensor = ov.Tensor(self.input, shared_memory=True)
        self.output_tensor = ov.Tensor(self.output, shared_memory=True)
        self.sum = np.zeros((1, 1), np.float32)
        self.sum_tensor = ov.Tensor(self.sum, shared_memory=True) if sums else None
        self.copies = self.input.nbytes <= _COPIED_BYTES


def _bare(request: Any) -> Callable[[], Any]:
    """``request.infer`` without its Python layer, which looks for inputs given by name: all is bound already.

    Where OpenVINO's classes are layered otherwise it may raise TypeError when it is called.
    """
    below = getattr(super(type(request), request), "infer", request.infer)
    return functools.partial(below, {}, share_outputs=True, decode_strings=False)


def _can_be_shared(batch: Batch) -> bool:
    flags = batch.flags
    return flags.c_contiguous and flags.aligned and flags.writeable


def _options(request: CompileRequest) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": request.threads,
        "ENABLE_CPU_PINNING": request.pinned,  # a pinned thread waits behind whoever else is pinned to its core
        # The default is whatever is fastest, not what was asked for. Of a quantized model it is what the rest runs in.
        "INFERENCE_PRECISION_HINT": "f32" if request.precision == "int8" else request.precision,
        "CACHE_MODE": "OPTIMIZE_SIZE",  # the blob leaves the weights in the IR
    }


def _compile(file: Path, bundle: Bundle, request: CompileRequest) -> int:
    """Compiles an IR into ``compiled.blob`` beside it; the number of classes."""
    ov, core = load_openvino(), openvino_core()
    try:
        model = core.read_model(file)
        smallest, largest = request.batch_sizes[0], request.batch_sizes[-1]
        batch = ov.Dimension(smallest) if smallest == largest else ov.Dimension(1, largest)
        model.reshape(ov.PartialShape([batch, *bundle.input.shape]))
        found, rank = model.outputs[0].get_partial_shape(), len(model.outputs[0].get_partial_shape())
        if len(model.inputs) != 1 or len(model.outputs) != 1 or rank != 2 or found[1].is_dynamic:
            raise InputError(f"{bundle.path}: the export of '{request.subnet}' is no classifier; export it again")
        if 4 * largest * math.prod(bundle.input.shape) > _COPIED_BYTES:
            _add_sum(model)
        compiled = core.compile_model(model, "CPU", _options(request))
        file.with_name(_BLOB).write_bytes(compiled.export_model().getvalue())
        return int(found[1].get_length())
    except RuntimeError as error:
        raise InputError(
            f"{bundle.path}: the export of '{request.subnet}' does not compile ({_cause(error)}); export it again"
        ) from None


def _add_sum(model: Any) -> None:
    """Adds an output [1, 1]: the sum of all images and logits, which is finite only if every one of them is.

    The model reads its images anyway, with all its threads; ``docs/backends.md`` sets its time beside that of a pass of
    ours.
    """
    import openvino.opset13 as ops  # type: ignore[import-untyped]  # it has no types

    logits = model.outputs[0].get_node().input_value(0)
    of_images = ops.reduce_sum(model.inputs[0], np.array([0, 1, 2, 3]), name=f"{SUM}/images")
    of_logits = ops.reduce_sum(logits, np.array([0, 1]), keep_dims=True, name=f"{SUM}/logits")
    model.add_results([ops.result(ops.add(of_logits, of_images, name=SUM))])


def _cause(error: BaseException) -> str:
    """The last non-empty line of a library's message: the cause, without its source locations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
