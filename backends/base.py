"""What every backend is: three small values and two small classes.

::

    Backend.available() -> Availability        can this machine do it, and if not, why
    Backend.precisions() -> ("f32", "bf16")    what the processor really computes in, best for accuracy first
    Backend.build(bundle, request) -> Artifact on disk, by key, rebuilt when damaged
    Backend.load(artifact) -> Engine           answers; needs no torch where the backend does not

Knows nothing of measuring, choosing or serving.
"""

from __future__ import annotations

import abc
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from subnets import Bundle

Batch = NDArray[np.float32]


class Availability(msgspec.Struct, frozen=True):
    """Whether a backend can be used here, and why or why not in one sentence."""

    ok: bool
    why: str


class CompileRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to compile: one subnet for certain batch sizes, at one precision, for so many threads.

    ``pinned`` binds each thread to a processor, where a backend can; see docs/backends.md for why not to.
    """

    subnet: str
    precision: str = "f32"
    batch_sizes: tuple[int, ...] = (1,)
    threads: int = 1
    pinned: bool = False


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend built on this device, as a directory that can be loaded by another process."""

    path: str
    key: str
    backend: str
    device: str
    request: CompileRequest
    input_shape: tuple[int, int, int]  # (channels, height, width)
    classes: int


class Engine(abc.ABC):
    """A loaded artifact that answers. Not reentrant: one thread at a time; different engines run side by side."""

    artifact: Artifact

    @abc.abstractmethod
    def infer(self, batch: Batch) -> Batch:
        """Logits for a batch of preprocessed images.

        Args:
            batch: float32 [N, C, H, W], N one of the request's batch sizes.

        Returns:
            float32 [N, classes], owned by the caller.

        Raises:
            InputError: wrong shape or type, or values that are not finite.
            EngineError: the engine failed or is closed.
        """

    @property
    @abc.abstractmethod
    def memory_bytes(self) -> int | None:
        """Resident memory this engine added when it was loaded, measured; None where it cannot be told."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees it; closing twice is harmless."""


class Backend(abc.ABC):
    """Turns a bundle's subnets into engines on one kind of device."""

    name: str
    device: str

    @abc.abstractmethod
    def available(self) -> Availability:
        """Whether it can be used on this machine."""

    @abc.abstractmethod
    def precisions(self) -> tuple[str, ...]:
        """Precisions the processor computes in natively; an emulated one is not offered."""

    def precisions_for(self, bundle: Bundle) -> tuple[str, ...]:
        """Those that can be had for this bundle: more than :meth:`precisions` where it carries exports of its own."""
        return self.precisions()

    @abc.abstractmethod
    def build(self, bundle: Bundle, request: CompileRequest) -> Artifact:
        """The artifact for a request, from the cache when it is there and sound.

        Raises:
            InputError: the subnet, precision or a batch size is not to be had.
            UnavailableError: something it needs is not installed.
        """

    @abc.abstractmethod
    def load(self, artifact: Artifact) -> Engine:
        """An engine, warmed for each of its batch sizes.

        Raises:
            EngineError: the artifact is damaged or of another version of the library.
        """


def artifact_key(bundle: Bundle, request: CompileRequest, **identity: Any) -> str:
    """16 hex digits over everything that could make a stored artifact wrong: bundle, request, library, device."""
    content = {"bundle": bundle.key, "request": msgspec.to_builtins(request), **identity}
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def cache_path(override: Path | None = None) -> Path:
    """Where artifacts lie: ``override``, ``$GEARSHIFT_CACHE``, ``$CACHE_DIRECTORY``, or the user's cache folder."""
    import os

    if override:
        return override
    for variable in ("GEARSHIFT_CACHE", "CACHE_DIRECTORY"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gearshift"
