"""The agent as the network sees it: one model whose versions are its subnets. Every front door builds on this.

The version is a subnet's place on the ladder, ``"1"`` = smallest, since clients of the Open Inference Protocol take
whole numbers only; without a version, whichever subnet is right now answers. Metadata, configuration and index are
plain dictionaries with the protocol's own names, in JSON and protobuf alike.

* :class:`Wishes`: what one request asks for beside its answer, from its ``parameters``.
* :class:`ServedModel`: all that HTTP, gRPC and the native socket tell of the model and ask of the agent.

Knows nothing of bytes, sockets or protocols' envelopes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np

from agent.core import Agent
from agent.values import Answer
from backends.base import Batch
from backends.runtime import usable_processors
from subnets.errors import Busy, GearshiftError, InputError

INPUT, OUTPUT = "input", "logits"
PLATFORM = "gearshift"
_MAX_NAME = 128  # characters of a stream's name
_MAX_TIMEOUT_US = 2**53


class NotFound(InputError):
    """No such model, version or shared memory region: "not found" in every protocol."""


class Unsupported(GearshiftError):
    """The request asks for a part of the protocol that is not offered."""


class TooMany(Busy):
    """A client has reached a limit of its own: it must give something back before it gets more."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a request may ask for; None = nothing."""

    deadline_ms: float | None = None
    subnet: str | None = None
    min_accuracy: float | None = None  # share 0..1
    stream: str | None = None

    def keywords(self) -> dict[str, Any]:
        """Those that are asked for, as :meth:`agent.core.Agent.submit` takes them."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}


NO_WISHES = Wishes()


class ServedModel:
    """One started agent, told and asked in the protocol's terms. Safe from several threads.

    Args:
        agent: answers.
        version: of the program, told to clients.
        name: what the server calls itself.
        max_images: largest batch of one request.
        model_control: whether clients may unload the model.

    Attributes:
        spare_core: whether a thread may look for something, instead of sleeping until it comes, without taking a core
            from an engine.
    """

    def __init__(
        self,
        agent: Agent,
        version: str = "",
        *,
        name: str = "gearshift",
        max_images: int = 256,
        model_control: bool = False,
    ) -> None:
        self.agent, self.version, self.server_name = agent, version, name
        self.max_images, self.model_control = max_images, model_control
        self.name = agent.bundle.name
        self.shape = agent.bundle.input.shape
        self._names = agent.bundle.ladder.names
        rows = {row.subnet for row in agent.table.rows}
        self._places = {subnet: str(place) for place, subnet in enumerate(self._names, 1) if subnet in rows}
        self._subnets = {place: subnet for subnet, place in self._places.items()}
        self.versions = tuple(self._subnets)
        self._loaded = True
        threads = max(row.threads for row in agent.table.rows)
        self.spare_core = usable_processors() > threads

    # -- names

    def subnet_of(self, model: str, version: str | None) -> str | None:
        """The subnet that a name and a version pin; None where no version (or an empty one) is given.

        Raises:
            NotFound: another model, or no such version.
        """
        if model != self.name:
            raise NotFound(f"Request for unknown model: '{model[:80]}' is not found; this is '{self.name}'")
        if not version:
            return None
        subnet = self._subnets.get(version)
        if subnet is None:
            have = ", ".join(self.versions)
            raise NotFound(f"Request for unknown model: '{model}' has no version {version[:20]}; it has {have}")
        return subnet

    def version_of(self, subnet: str) -> str:
        """A subnet's version."""
        return self._places[subnet]

    # -- health

    @property
    def ready(self) -> bool:
        """Whether a request for the model would be answered now."""
        return self._loaded and self.agent.ready

    def require_ready(self) -> None:
        """Raises what a request for an unloaded model gets.

        Raises:
            Busy: a client has unloaded it.
        """
        if not self._loaded:
            raise Busy(f"Request for unknown model: '{self.name}' has no available versions; a client has unloaded it")

    # -- descriptions

    def metadata(self) -> dict[str, Any]:
        """Inputs, outputs and versions; the leading -1 of a shape is the batch."""
        return {
            "name": self.name,
            "versions": list(self.versions),
            "platform": PLATFORM,
            "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *self.shape]}],
            "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, self.agent.classes]}],
        }

    def config(self) -> dict[str, Any]:
        """Triton's model configuration; ``parameters`` tells which version is which subnet."""
        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "version_policy": {"all": {}},
            "max_batch_size": self.max_images,
            "input": [
                {"name": INPUT, "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": list(self.shape)},
            ],
            "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [self.agent.classes]}],
            "parameters": {f"subnet.{place}": {"string_value": subnet} for subnet, place in self._places.items()},
        }

    def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """The repository: one entry a version."""
        if self.ready:
            state, reason = "READY", ""
        elif ready_only:
            return []
        else:
            state, reason = "UNAVAILABLE", "unloaded" if not self._loaded else "no engine answers"
        return [{"name": self.name, "version": place, "state": state, "reason": reason} for place in self.versions]

    # -- control

    def load(self, model: str, parameters: Mapping[str, Any]) -> None:
        """Serves the model again after an unload; for a served one it changes nothing.

        Raises:
            NotFound: another model.
            InputError: the configuration given with it is not JSON, or not the one in use.
            Unsupported: files come with it.
        """
        failed = f"failed to load '{model[:80]}'"
        if any(key.startswith("file:") for key in parameters):
            raise Unsupported(f"{failed}: files are not taken over the network; put the bundle on the device")
        if model != self.name:
            raise NotFound(f"{failed}: there is no such model; this is '{self.name}'")
        if (override := parameters.get("config")) is not None:
            self._check_override(failed, override)
        self._loaded = True

    def unload(self, model: str) -> None:
        """Refuses requests for the model until the next load. Its engines stay, and in-process callers are answered.

        Raises:
            NotFound: another model.
            Unsupported: clients may not do that here.
        """
        self.subnet_of(model, None)
        if not self.model_control:
            raise Unsupported(
                f"failed to unload '{model}': clients may not stop the model; set model_control = true under [serve]"
            )
        self._loaded = False

    def _check_override(self, failed: str, override: object) -> None:
        try:
            wanted = json.loads(override) if isinstance(override, str) else None
        except (ValueError, RecursionError):
            wanted = None
        if not isinstance(wanted, dict):
            raise InputError(f"{failed}: 'config' must be a string that holds a JSON object")
        config = self.config()
        for key, value in wanted.items():
            if key not in config or str(config[key]) != str(value):
                raise InputError(f"{failed}: '{key[:40]}' cannot be changed; edit the agent's configuration")

    # -- answering

    def wishes(self, parameters: Mapping[str, Any], pinned: str | None) -> Wishes:
        """What a request's parameters ask for: ``timeout`` (microseconds from now), ``subnet``, ``min_accuracy``,
        ``stream``. ``priority`` and the sequence parameters are taken and change nothing; others are ignored.

        Args:
            parameters: of the request.
            pinned: the subnet that the version names, or None.

        Raises:
            InputError: a value makes no sense, or contradicts the version.
        """
        if not parameters:
            return NO_WISHES if pinned is None else Wishes(subnet=pinned)
        get = parameters.get
        if (timeout_us := get("timeout")) is not None and not (_whole(timeout_us) and timeout_us <= _MAX_TIMEOUT_US):
            raise InputError(f"parameter 'timeout' is {_short(timeout_us)}; give whole microseconds")
        if (priority := get("priority")) is not None and not _whole(priority):
            raise InputError(f"parameter 'priority' is {_short(priority)}; give a whole number")
        least = get("min_accuracy")
        if least is not None and (isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1):
            raise InputError(f"parameter 'min_accuracy' is {_short(least)}; give a share from 0 to 1")
        stream = get("stream")
        if stream is not None and not (isinstance(stream, str) and 0 < len(stream) <= _MAX_NAME):
            raise InputError(f"parameter 'stream' is {_short(stream)}; give a name of at most {_MAX_NAME} characters")
        subnet = get("subnet")
        if subnet is not None and (not isinstance(subnet, str) or subnet not in self._places):
            raise InputError(f"parameter 'subnet' is {_short(subnet)}; there are {', '.join(self._places)}")
        if subnet is not None and pinned not in (None, subnet):
            raise InputError(f"parameter 'subnet' is '{subnet}', but the version asks for '{pinned}'; give one of them")
        return Wishes(
            deadline_ms=timeout_us / 1000 if timeout_us else None,
            subnet=subnet or pinned,
            min_accuracy=None if least is None else float(least),
            stream=stream,
        )

    def submit(self, batch: Batch, wishes: Wishes) -> Future[Answer]:
        """Asks the agent.

        Raises:
            Busy, InputError, EngineError: as :meth:`agent.core.Agent.submit`, at once or from the future; ``Busy`` also
                while a client has the model unloaded.
        """
        if not self._loaded:
            self.require_ready()
        return self.agent.submit(batch, **wishes.keywords())

    def infer(self, batch: Batch, wishes: Wishes) -> Answer:
        """As :meth:`submit`, in the caller's thread."""
        if not self._loaded:
            self.require_ready()
        if wishes is NO_WISHES:
            return self.agent.infer(batch)
        return self.agent.infer(batch, **wishes.keywords())

    def reply_parameters(self, answer: Answer) -> dict[str, str | float]:
        """Who answered and why; ``energy_j`` is missing where it cannot be told."""
        parameters: dict[str, str | float] = {
            "subnet": answer.subnet,
            "expected_accuracy": answer.accuracy,
            "point": answer.point,
            "reason": answer.reason,
            "bound": answer.bound,
            "queue_ms": round(answer.queue_ms, 4),
            "infer_ms": round(answer.infer_ms, 4),
            "energy_source": answer.energy_source,
        }
        if answer.energy_j is not None:
            parameters["energy_j"] = answer.energy_j
        return parameters

    def classify(self, logits: Batch, k: int) -> tuple[list[bytes], tuple[int, int]]:
        """The classification extension: the ``k`` best classes of each image, ``score:index:label``, best first.

        Args:
            logits: float32 [N, classes].
            k: at least 1; more than there are classes gives all of them.

        Returns:
            N times k strings in row order, and their shape.
        """
        k = min(k, logits.shape[1])
        labels = self.agent.bundle.labels
        best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
        told = [
            f"{row[index]:f}:{index}:{labels[index]}".encode()
            for row, indices in zip(logits, best, strict=True)
            for index in indices.tolist()
        ]
        return told, (len(logits), k)


def pack_bytes(strings: list[bytes]) -> bytes:
    """BYTES as a binary tensor: each string after its length, four bytes little-endian."""
    return b"".join(len(string).to_bytes(4, "little") + string for string in strings)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: object) -> str:
    return repr(value)[:60]
