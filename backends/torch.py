"""Torch on the CPU, eager: the reference that other backends are compared with.

Every engine of a bundle runs on views of one weight set, held once in the process for as long as any engine uses it.
An artifact is only a pointer to the bundle and its key; loading refuses a bundle that has changed since.

* :class:`TorchBackend`: builds and loads.
* :class:`TorchEngine`: answers.
* :class:`Pointer`: the artifact's one file.

Not made for speed: compiled engines answer several times faster.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backends import requests
from backends.base import Artifact, Availability, Batch, CompileRequest, Engine
from backends.runtime import Processor, all_finite, growth, load_torch, resident_bytes
from backends.store import CachedBackend
from subnets import Bundle, EngineError, InputError, UnavailableError

_POINTER = "pointer.json"


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights of an artifact lie, and which they must be."""

    path: str
    key: str

    @staticmethod
    def to(bundle: Bundle) -> Pointer:
        """The pointer to a bundle as it is now."""
        return Pointer(str(bundle.path.absolute()), bundle.key)

    @staticmethod
    def read(directory: Path) -> Pointer:
        """The pointer in an artifact's directory, whose hash was checked."""
        return msgspec.json.decode((directory / _POINTER).read_bytes(), type=Pointer)

    def write(self, directory: Path) -> None:
        """Puts it into an artifact's directory."""
        (directory / _POINTER).write_bytes(msgspec.json.encode(self))

    def open(self) -> Bundle:
        """The bundle.

        Raises:
            EngineError: it is gone, damaged or another one by now.
        """
        try:
            bundle = Bundle.open(self.path)
        except InputError as error:
            raise EngineError(f"the artifact's bundle cannot be opened: {error}") from None
        if bundle.key != self.key:
            raise EngineError(f"{self.path}: the bundle has changed since this artifact was made; build it again")
        return bundle


class _Shared:
    """One bundle's supernet, the number of engines on it, and a lock per subnet.

    Running a subnet lends the views to a template module, so two threads must not run the same subnet at once.
    """

    def __init__(self, bundle: Bundle) -> None:
        from subnets.supernet import Supernet

        self.supernet = Supernet.from_bundle(bundle).eval()
        self.users = 0
        self.locks = {name: threading.Lock() for name in bundle.ladder.names}


_held: dict[str, _Shared] = {}
_registry_lock = threading.Lock()


def _acquire(pointer: Pointer) -> _Shared:
    with _registry_lock:
        bundle = pointer.open()
        shared = _held.get(pointer.key)
        if shared is None:
            shared = _held[pointer.key] = _Shared(bundle)
        shared.users += 1
        return shared


def _release(key: str) -> None:
    with _registry_lock:
        shared = _held[key]
        shared.users -= 1
        if shared.users == 0:
            del _held[key]


class TorchBackend(CachedBackend["TorchEngine"]):
    """Runs subnets with eager torch.

    Args:
        cache: where artifacts lie; by default :func:`backends.base.cache_path`.
    """

    name = "torch"
    device = "CPU"

    def available(self) -> Availability:
        """Whether torch is installed."""
        try:
            return Availability(True, f"torch {load_torch().__version__} on {Processor.here().model}")
        except UnavailableError as error:
            return Availability(False, str(error))

    def precisions(self) -> tuple[str, ...]:
        """f32, and bf16 (autocast) where the processor computes in it."""
        return ("f32", "bf16") if Processor.here().computes_bf16 else ("f32",)

    def _sources(self, bundle: Bundle, request: CompileRequest) -> dict[str, Any]:
        return {"path": Pointer.to(bundle).path}

    def _make(self, bundle: Bundle, request: CompileRequest, folder: Path) -> int:
        torch, pointer = load_torch(), Pointer.to(bundle)
        pointer.write(folder)
        with _shared_weights(pointer) as shared, torch.inference_mode():
            return int(shared.supernet(torch.zeros(1, *bundle.input.shape), request.subnet).shape[1])

    def _open(self, artifact: Artifact) -> TorchEngine:
        return TorchEngine(artifact)

    def _identity(self) -> dict[str, str]:
        return {"torch": str(load_torch().__version__), "processor": Processor.here().model}


class TorchEngine(Engine):
    """One subnet run eagerly on views of the shared weights."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        before = resident_bytes()
        self._torch = load_torch()
        self._pointer = Pointer.read(Path(artifact.path))
        shared = _acquire(self._pointer)
        self._run: Callable[[Any], Any] | None = shared.supernet.subnet(artifact.request.subnet)
        self._lock = shared.locks[artifact.request.subnet]
        self._shapes = {(size, *artifact.input_shape) for size in artifact.request.batch_sizes}
        try:
            for shape in sorted(self._shapes):
                self.infer(np.zeros(shape, np.float32))
        except BaseException:
            self.close()
            raise
        self._memory_bytes = growth(before)

    def infer(self, batch: Batch) -> Batch:
        """Logits [N, classes], f32, for a batch [N, C, H, W]; see :meth:`backends.base.Engine.infer`."""
        run, torch, request = self._run, self._torch, self.artifact.request
        if run is None:
            raise EngineError(f"the engine of subnet '{request.subnet}' is closed")
        if not isinstance(batch, np.ndarray) or batch.dtype != np.float32 or batch.shape not in self._shapes:
            raise requests.refusal(self.artifact, batch)
        # A copy: torch takes neither read-only arrays nor negative strides.
        images = np.array(batch, order="C")
        if not all_finite(images.reshape(-1)):
            raise requests.not_finite()
        if torch.get_num_threads() != request.threads:
            torch.set_num_threads(request.threads)  # holds for the calling thread and those started from it
        half = torch.autocast("cpu", torch.bfloat16) if request.precision == "bf16" else contextlib.nullcontext()
        try:
            with self._lock, torch.inference_mode(), half:
                logits: Batch = run(torch.from_numpy(images)).float().numpy()
        except RuntimeError as error:
            raise EngineError(f"subnet '{request.subnet}' failed: {error}") from None
        if not all_finite(logits.reshape(-1)):
            raise EngineError(f"subnet '{request.subnet}' answered with NaN or infinity")
        return logits

    @property
    def memory_bytes(self) -> int | None:
        """Growth of the process's resident memory while loading and warming up; None where nothing grew.

        The first engine of a bundle carries the shared weights (and torch's own start-up), later ones next to nothing.
        """
        return self._memory_bytes

    def close(self) -> None:
        """Gives up the weights, which go with the last engine on them; closing twice is harmless."""
        if self._run is not None:
            self._run = None
            _release(self._pointer.key)


@contextlib.contextmanager
def _shared_weights(pointer: Pointer) -> Iterator[_Shared]:
    shared = _acquire(pointer)
    try:
        yield shared
    finally:
        _release(pointer.key)
