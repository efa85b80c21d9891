"""One subnet as a plain network: from a bundle, or from a folder of its own.

::

    spec.json             which network, how it is cut, what it takes and answers
    weights.safetensors   the subnet's own tensors, already cut

* :func:`save_module`: writes such a folder.
* :func:`from_pretrained`: the ``nn.Module``, ready to answer.

Needs torch when a network is built, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from subnets.bundle import Accuracy, Architecture, Bundle, InputSpec, Strict, sha256, write_atomically
from subnets.errors import InputError, UnavailableError
from subnets.spec import ChannelGroup, SubnetSpec

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
SPEC, WEIGHTS = "spec.json", "weights.safetensors"


class ModuleSpec(Strict, frozen=True, kw_only=True):
    """What ``spec.json`` holds."""

    schema: int
    bundle: str  # the name of the one it came from
    subnet: str
    architecture: Architecture
    input: InputSpec
    labels: tuple[str, ...]
    groups: tuple[ChannelGroup, ...]
    widths: dict[str, int]
    weights_sha256: str
    accuracy: Accuracy | None = None


def save_module(bundle: Bundle, subnet: str, folder: Path) -> list[Path]:
    """Writes a subnet as a folder that :func:`from_pretrained` reads; needs no torch.

    Returns:
        The files, the one to read first in front.

    Raises:
        InputError: there is no such subnet.
    """
    entry, manifest = bundle.entry(subnet), bundle.manifest
    weights = folder / WEIGHTS
    write_atomically(weights, save(bundle.tensors(subnet)))
    spec = ModuleSpec(
        schema=SCHEMA,
        bundle=bundle.name,
        subnet=subnet,
        architecture=manifest.architecture,
        input=manifest.input,
        labels=manifest.labels,
        groups=manifest.groups,
        widths=entry.widths,
        weights_sha256=sha256(weights),
        accuracy=entry.accuracy,
    )
    write_atomically(folder / SPEC, msgspec.json.format(msgspec.json.encode(spec), indent=1) + b"\n")
    return [folder / SPEC, weights]


def from_pretrained(
    path: Path | str, subnet: str | None = None, *, factory: Callable[..., nn.Module] | None = None
) -> nn.Module:
    """One subnet as a plain network in eval mode, with its own copies of the weights.

    Args:
        path: a bundle, or the folder of one exported subnet.
        subnet: which of a bundle's; by default the largest.
        factory: builds the full network, for a bundle made from a network of your own.

    Raises:
        InputError: nothing of the kind lies there, it is damaged, has no such subnet, or its network cannot be built.
        UnavailableError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UnavailableError("a plain network needs torch; install it with: pip install 'gearshift[train]'") from None
    from subnets import architectures
    from subnets.supernet import assemble, open_network

    path = Path(path)
    if (path / "bundle.json").is_file():
        bundle = Bundle.open(path)
        if factory is not None:
            architectures.register(bundle.manifest.architecture.name, factory)
        return open_network(bundle, subnet or bundle.ladder.names[-1])
    spec = _read(path)
    if subnet not in (None, spec.subnet):
        raise InputError(f"{path}: holds subnet '{spec.subnet}', not '{subnet}'; give its bundle instead")
    if factory is not None:
        architectures.register(spec.architecture.name, factory)
    tensors = {name: torch.from_numpy(value) for name, value in load_file(path / WEIGHTS).items()}
    return assemble(spec.architecture, spec.groups, SubnetSpec(spec.subnet, spec.widths), tensors)


def _read(folder: Path) -> ModuleSpec:
    file = folder / SPEC
    if not file.is_file():
        raise InputError(f"{folder}: neither a bundle (bundle.json) nor an exported subnet ({SPEC}); give one of them")
    try:
        spec = msgspec.json.decode(file.read_bytes(), type=ModuleSpec)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file}: damaged ({error}); export it again") from None
    if spec.schema != SCHEMA:
        raise InputError(f"{file}: schema is {spec.schema}, this version reads {SCHEMA}; export it again")
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256(weights) != spec.weights_sha256:
        raise InputError(f"{weights}: missing or damaged (its SHA-256 is not that of {SPEC}); export it again")
    try:
        load_file(weights)
    except SafetensorError as error:
        raise InputError(f"{weights}: damaged ({error}); export it again") from None
    return spec
