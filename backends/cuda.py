"""The GPU through the driver's own library: memory, streams and graphs, by ctypes.

``libcuda.so.1`` comes with every driver, so an engine needs no torch and no CUDA toolkit at serving time.

* :func:`open_gpu`: the GPU, or :class:`UnavailableError` with one sentence.
* :class:`Gpu`: who it is, and what allocates on it. :func:`identity`: what an engine compiled on it depends on.
* :class:`Stream`, :class:`Graph`: work in order, and recorded work launched as one.
* :class:`Transfer`: one array in pinned host memory and one on the GPU, with copies between them.

The context is the device's primary one, which CUDA's runtime (TensorRT, torch) uses too. It belongs to a thread, so
whoever runs work in a thread calls :meth:`Gpu.activate` there first. Knows nothing of networks.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Batch
from subnets import EngineError, UnavailableError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1
_THREAD_LOCAL = 1  # capture mode: other threads may go on allocating
_OUT_OF_MEMORY = 2

# Argument types as in cuda.h, under the names that the library exports.
_SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDriverGetVersion": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuMemGetInfo_v2": [POINTER(c_size_t), POINTER(c_size_t)],
    "cuMemAlloc_v2": [POINTER(c_uint64), c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemHostAlloc": [POINTER(c_void_p), c_size_t, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuStreamCreate": [POINTER(c_void_p), c_uint],
    "cuStreamDestroy_v2": [c_void_p],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, POINTER(c_void_p)],
    "cuGraphInstantiateWithFlags": [POINTER(c_void_p), c_void_p, c_uint64],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphDestroy": [c_void_p],
    "cuGraphExecDestroy": [c_void_p],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
}


class Gpu:
    """One GPU. Make it with :func:`open_gpu`.

    Args:
        library: the driver's library, or anything with its functions.
        index: which device, in the driver's order (``CUDA_VISIBLE_DEVICES`` counts).
        driver: the kernel driver's version, empty where it is not told.

    Raises:
        UnavailableError: there is no such device.
    """

    def __init__(self, library: Any, index: int = 0, driver: str = "") -> None:
        self._library = library
        try:
            for name, arguments in _SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, c_int
            self.call("cuInit", 0)
            device, version, context = c_int(), c_int(), c_void_p()
            self.call("cuDeviceGet", byref(device), index)
            self.call("cuDriverGetVersion", byref(version))
            text = ctypes.create_string_buffer(256)
            self.call("cuDeviceGetName", text, len(text), device)
            self.name = text.value.decode(errors="replace")
            self.capability = self._attribute(_MAJOR, device), self._attribute(_MINOR, device)
            self.call("cuDevicePrimaryCtxRetain", byref(context), device)  # kept for the life of the process
        except AttributeError as error:
            raise UnavailableError(f"the GPU's driver is too old ({error}); install a newer one") from None
        except EngineError as error:
            raise UnavailableError(f"GPU {index} cannot be used: {error}") from None
        self._context = context
        cuda = f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        self.driver = f"{driver} ({cuda})" if driver else cuda

    def call(self, name: str, *arguments: Any) -> None:
        """One call of the driver.

        Raises:
            EngineError: it failed, with the driver's name for the failure.
        """
        status = getattr(self._library, name)(*arguments)
        if status:
            text = c_char_p()
            known = self._library.cuGetErrorName(status, byref(text)) == 0 and text.value
            cause = text.value.decode() if known and text.value else f"error {status}"
            if status == _OUT_OF_MEMORY:
                cause += f", {self.free_bytes() >> 20} MiB of GPU memory are free"
            raise EngineError(f"{name}: {cause}")

    def activate(self) -> None:
        """Makes the device's context the calling thread's own. Takes about a microsecond."""
        self.call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """GPU memory that nobody uses at present."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def _attribute(self, which: int, device: c_int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), which, device)
        return value.value


class Stream:
    """Work that runs in order, beside that of other streams."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.handle = gpu, c_void_p()
        gpu.call("cuStreamCreate", byref(self.handle), _NON_BLOCKING)

    def synchronize(self) -> None:
        """Waits until everything queued is done; a failure of any of it surfaces here."""
        self.gpu.call("cuStreamSynchronize", self.handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Records what ``enqueue`` queues on this stream, without running it.

        Raises:
            EngineError: something it does cannot be recorded.
        """
        recorded = c_void_p()
        self.gpu.call("cuStreamBeginCapture_v2", self.handle, _THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(EngineError):  # ends the recording, which is spoilt
                self.gpu.call("cuStreamEndCapture", self.handle, byref(recorded))
            raise
        self.gpu.call("cuStreamEndCapture", self.handle, byref(recorded))
        try:
            return Graph(self, recorded)
        finally:
            self.gpu.call("cuGraphDestroy", recorded)

    def close(self) -> None:
        """Frees it; closing twice is harmless."""
        if self.handle:
            self.gpu.call("cuStreamDestroy_v2", self.handle)
            self.handle = c_void_p()


class Graph:
    """Recorded work that is launched by one call."""

    def __init__(self, stream: Stream, recorded: c_void_p) -> None:
        self._stream, self._handle = stream, c_void_p()
        stream.gpu.call("cuGraphInstantiateWithFlags", byref(self._handle), recorded, 0)

    def launch(self) -> None:
        """Queues all of it."""
        self._stream.gpu.call("cuGraphLaunch", self._handle, self._stream.handle)

    def close(self) -> None:
        """Frees it; closing twice is harmless."""
        if self._handle:
            self._stream.gpu.call("cuGraphExecDestroy", self._handle)
            self._handle = c_void_p()


class Transfer:
    """A float32 array in pinned host memory (``host``) and its twin on the GPU (``address``)."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...]) -> None:
        self._gpu, self._bytes = gpu, 4 * math.prod(shape)
        self._pinned, self._device = c_void_p(), c_uint64()
        gpu.call("cuMemHostAlloc", byref(self._pinned), self._bytes, 0)
        try:
            gpu.call("cuMemAlloc_v2", byref(self._device), self._bytes)
        except EngineError:
            self.close()
            raise
        memory = (ctypes.c_float * math.prod(shape)).from_address(self._pinned.value or 0)
        self.host: Batch = np.ctypeslib.as_array(memory).reshape(shape)
        self.host[:] = 0
        self.flat: Batch = self.host.reshape(-1)

    @property
    def address(self) -> int:
        """Where it lies on the GPU."""
        return self._device.value

    def upload(self, stream: Stream) -> None:
        """Queues the copy to the GPU."""
        self._gpu.call("cuMemcpyHtoDAsync_v2", self._device, self._pinned, self._bytes, stream.handle)

    def download(self, stream: Stream) -> None:
        """Queues the copy from the GPU."""
        self._gpu.call("cuMemcpyDtoHAsync_v2", self._pinned, self._device, self._bytes, stream.handle)

    def close(self) -> None:
        """Frees both; ``host`` must not be touched afterwards. Closing twice is harmless."""
        if self._device:
            self._gpu.call("cuMemFree_v2", self._device)
            self._device = c_uint64()
        if self._pinned:
            self._gpu.call("cuMemFreeHost", self._pinned)
            self._pinned = c_void_p()


@functools.cache
def open_gpu() -> Gpu:
    """The first GPU that this process may see.

    Raises:
        UnavailableError: there is no driver or no device.
    """
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise UnavailableError("no NVIDIA GPU here: its driver's library libcuda.so.1 does not load") from None
    return Gpu(library, driver=_kernel_driver())


def identity(gpu: Gpu) -> dict[str, str]:
    """What decides whether an engine compiled on this GPU may run on another: its name, capability and driver."""
    return {"gpu": gpu.name, "compute capability": "{}.{}".format(*gpu.capability), "driver": gpu.driver}


def _kernel_driver(file: Path = Path("/sys/module/nvidia/version")) -> str:
    """Version of the kernel's driver; the CUDA version alone does not tell two drivers apart. Empty on a Jetson."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
