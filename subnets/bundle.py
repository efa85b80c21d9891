"""The bundle: one weight set, its nested subnets and their exports, as a directory.

::

    bundle.json           manifest: architecture, channel groups, ladder, input, accuracy, hashes, provenance
    weights.safetensors   shared tensors once, at full width, channels sorted; batch-norm per subnet as "s25/bn1.weight"
    README.md             model card
    exports/openvino/     per subnet an IR that needs no torch to read

Reads with numpy and safetensors alone. Opening checks the manifest, the nesting, every shape and the weights' hash;
what does not fit is refused with one sentence. Building networks from a bundle is :mod:`subnets.supernet`'s job.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from subnets.data import normalise
from subnets.errors import InputError
from subnets.spec import ChannelGroup, Ladder, SubnetSpec, cuts, kept_length, slice_tensor

SCHEMA = 1
_MAX_MANIFEST_BYTES = 16 * 2**20
_DIGEST = "manifest_sha256"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Array = NDArray[np.float32]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything in the manifest: frozen, and unknown keys are errors."""


class Architecture(Strict, frozen=True, kw_only=True):
    """How to build the full network: a name in :mod:`subnets.architectures` and its arguments.

    A name with a colon, ``package.module:factory``, is a user's own code, which opening a bundle never imports.
    """

    name: str
    arguments: dict[str, Any] = {}


class InputSpec(Strict, frozen=True, kw_only=True):
    """What engines take: float32 [N, channels, height, width], pixels scaled to 0..1, minus ``mean``, over ``std``."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    def preprocess(self, images: NDArray[np.uint8]) -> Array:
        """uint8 [N, C, H, W] -> what an engine takes."""
        return normalise(images, self.mean, self.std)


class Accuracy(Strict, frozen=True, kw_only=True):
    """Top-1 accuracy as a share 0..1 with its 95 % Wilson interval, and where it was measured."""

    value: float
    low: float
    high: float
    n: int
    split: str


class SubnetEntry(Strict, frozen=True, kw_only=True):
    """One rung of the ladder with what is known of it. MACs count convolutions and linear layers, per image."""

    name: str
    widths: dict[str, int]
    macs: int
    parameters: int
    accuracy: Accuracy | None = None


class Export(Strict, frozen=True, kw_only=True):
    """One subnet in a portable form: relative file names and their SHA-256, the one to open first."""

    subnet: str
    format: str  # "openvino", "openvino-int8", "onnx" or "module"
    files: dict[str, str]


class Manifest(Strict, frozen=True, kw_only=True):
    """What ``bundle.json`` holds."""

    schema: int
    name: str
    architecture: Architecture
    input: InputSpec
    labels: tuple[str, ...]
    groups: tuple[ChannelGroup, ...]
    subnets: tuple[SubnetEntry, ...]  # smallest first
    weights_sha256: str
    exports: tuple[Export, ...] = ()
    provenance: dict[str, Any] = {}


def wilson(correct: int, n: int, split: str) -> Accuracy:
    """``correct`` of ``n`` with the 95 % Wilson score interval (Wilson 1927)."""
    z = 1.959964
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return Accuracy(value=share, low=min(share, centre - half), high=max(share, centre + half), n=n, split=split)


class Bundle:
    """An opened bundle. Weights stay on disk until :meth:`tensors` is called."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.ladder = Ladder([SubnetSpec(entry.name, entry.widths) for entry in manifest.subnets])

    @property
    def name(self) -> str:
        """The bundle's own name."""
        return self.manifest.name

    @property
    def input(self) -> InputSpec:
        """What engines of this bundle take."""
        return self.manifest.input

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in logit order."""
        return self.manifest.labels

    @property
    def key(self) -> str:
        """16 hex digits that change whenever any subnet's answers could."""
        identity = msgspec.structs.replace(self.manifest, exports=(), provenance={}, name="", labels=())
        rungs = tuple(msgspec.structs.replace(entry, accuracy=None) for entry in identity.subnets)
        text = msgspec.json.encode(msgspec.structs.replace(identity, subnets=rungs), order="sorted")
        return hashlib.sha256(text).hexdigest()[:16]

    def entry(self, subnet: str) -> SubnetEntry:
        """What is known of one subnet.

        Raises:
            InputError: there is none of that name.
        """
        self.ladder.named(subnet)
        return next(entry for entry in self.manifest.subnets if entry.name == subnet)

    def added(self) -> tuple[dict[str, int], int]:
        """What the smaller subnets add to the full network, in numbers stored.

        Returns:
            ({"batch-norm": numbers, "heads": numbers}, numbers of the full network with its own batch-norm). What is
            private to the largest subnet is part of the full network.
        """
        full, sizes = self.ladder.names[-1], {}
        with safe_open(self.path / "weights.safetensors", framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                sizes[name] = int(np.prod(file.get_slice(name).get_shape()))
        added, whole = {"batch-norm": 0, "heads": 0}, 0
        for name, count in sizes.items():
            subnet, slash, _ = name.partition("/")
            if not slash or subnet == full:
                whole += count
            else:
                norm = f"{name.rpartition('.')[0]}.running_var" in sizes
                added["batch-norm" if norm else "heads"] += count
        return added, whole

    def export(self, subnet: str, format: str) -> Path | None:
        """The first file of a subnet's export, or None where the bundle carries none."""
        for export in self.manifest.exports:
            if (export.subnet, export.format) == (subnet, format):
                return self.path / next(iter(export.files))
        return None

    def tensors(self, subnet: str | None = None) -> dict[str, Array]:
        """The full weight set, or one subnet's tensors under the plain network's names.

        Returns:
            f32 arrays; for a subnet, contiguous and cut to its widths, with its own batch-norm.

        Raises:
            InputError: there is no such subnet.
        """
        with safe_open(self.path / "weights.safetensors", framework="numpy") as file:
            everything = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if subnet is None:
            return everything
        kept = cuts(self.manifest.groups, self.ladder.named(subnet))
        shared = {
            name: slice_tensor(value, kept.get(name, {})) for name, value in everything.items() if "/" not in name
        }
        prefix = f"{subnet}/"
        private = {name.removeprefix(prefix): value for name, value in everything.items() if name.startswith(prefix)}
        return {name: np.ascontiguousarray(value) for name, value in {**shared, **private}.items()}

    @staticmethod
    def open(path: Path | str) -> Bundle:
        """Opens and checks a bundle.

        Raises:
            InputError: it is not a bundle, or anything in it is damaged, non-nested or of the wrong shape.
        """
        path = Path(path)
        bundle = Bundle(path, _read_manifest(path))
        _check_names(bundle)
        _check_files(path, {"weights.safetensors": bundle.manifest.weights_sha256})
        _check_shapes(bundle)
        return bundle

    def verify(self) -> None:
        """Checks the exports' hashes too (opening leaves them, they can be large).

        Raises:
            InputError: an export is missing or damaged.
        """
        for export in self.manifest.exports:
            _check_files(self.path, export.files)

    def with_accuracy(self, measured: Mapping[str, Accuracy]) -> Bundle:
        """The same bundle on disk with these accuracies recorded in its manifest."""
        subnets = tuple(
            msgspec.structs.replace(entry, accuracy=measured.get(entry.name, entry.accuracy))
            for entry in self.manifest.subnets
        )
        return self.rewrite(subnets=subnets)

    def rewrite(self, **changes: Any) -> Bundle:
        """Replaces fields of the manifest, on disk and in the returned bundle."""
        manifest = msgspec.structs.replace(self.manifest, **changes)
        write_atomically(self.path / "bundle.json", _encode(manifest))
        return Bundle(self.path, manifest)

    def add_export(self, subnet: str, format: str, files: list[Path]) -> Bundle:
        """Records files already lying inside the bundle as a subnet's export; ``files[0]`` is the one to open."""
        hashes = {file.relative_to(self.path).as_posix(): sha256(file) for file in files}
        others = tuple(e for e in self.manifest.exports if (e.subnet, e.format) != (subnet, format))
        return self.rewrite(exports=(*others, Export(subnet=subnet, format=format, files=hashes)))


def save(path: Path, manifest: Manifest, tensors: Mapping[str, Array], card: str) -> Bundle:
    """Writes a bundle beside ``path`` and moves it there whole; an existing bundle at ``path`` is replaced.

    ``manifest.weights_sha256`` is filled in here.

    Raises:
        InputError: ``path`` exists and is not a bundle, or the tensors do not fit the manifest.
    """
    if path.exists() and not (path / "bundle.json").exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not a bundle; choose another place for --out")
    path = path.resolve()  # "." has no name to move to
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary / "weights.safetensors"
        )
        manifest = msgspec.structs.replace(manifest, weights_sha256=sha256(temporary / "weights.safetensors"))
        (temporary / "bundle.json").write_bytes(_encode(manifest))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        _check_names(Bundle(temporary, manifest))
        _check_shapes(Bundle(temporary, manifest))
        temporary.chmod(0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
            path.replace(old / path.name)
            try:
                temporary.replace(path)
            except BaseException:
                (old / path.name).replace(path)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Bundle(path, manifest)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encode(manifest: Manifest) -> bytes:
    """The manifest as text whose last key is the SHA-256 of the text without it."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    digest = hashlib.sha256(text).hexdigest()
    return text.removesuffix(b"\n}") + f',\n "{_DIGEST}": "{digest}"\n}}\n'.encode()


def _undigested(file: Path) -> bytes:
    """The manifest's text without its own digest, which must be right where there is one."""
    content = file.read_bytes()
    text, separator, tail = content.rpartition(f',\n "{_DIGEST}": "'.encode())
    if not separator:
        return content  # written by hand or by another tool
    text += b"\n}"
    if tail != hashlib.sha256(text).hexdigest().encode() + b'"\n}\n':
        raise InputError(
            f"{file}: damaged or edited (its own SHA-256 does not match); get the bundle again, "
            f"or remove its last key '{_DIGEST}' if you edited it"
        )
    return text


def _read_manifest(path: Path) -> Manifest:
    file = path / "bundle.json"
    if not file.is_file():
        raise InputError(f"{path}: not a bundle (it has no bundle.json); make one with 'gearshift sample'")
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise InputError(
            f"{file}: larger than {_MAX_MANIFEST_BYTES} bytes, no bundle's manifest is; get the bundle again"
        )
    try:
        raw = msgspec.json.decode(_undigested(file))
        found = raw.get("schema") if isinstance(raw, dict) else None
        if found != SCHEMA:
            raise InputError(f"{file}: schema is {found}, this version reads {SCHEMA}; convert the bundle or update")
        return msgspec.convert(raw, Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file}: damaged ({error}); get the bundle again") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{file}: {error}; get the bundle again") from None


def _check_names(bundle: Bundle) -> None:
    """Subnet names become parts of file names; exports must belong to a subnet and lie inside the bundle."""
    for name in bundle.ladder.names:
        if not _SAFE_NAME.fullmatch(name):
            raise InputError(f"{bundle.path}: subnet name {name!r} is not made of letters, digits, '.', '_' and '-'")
    for export in bundle.manifest.exports:
        bundle.ladder.named(export.subnet)
        if not export.files:
            raise InputError(f"{bundle.path}: the {export.format} export of '{export.subnet}' lists no files")
        for name in export.files:
            _inside(bundle.path, name)


def _inside(root: Path, name: str) -> Path:
    file = root / name
    if not file.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{root}: its manifest names '{name}', which lies outside the bundle; get the bundle again")
    return file


def _check_files(root: Path, hashes: Mapping[str, str]) -> None:
    for name, expected in hashes.items():
        file = _inside(root, name)
        if not file.is_file():
            raise InputError(f"{file}: named in bundle.json but missing; get the bundle again")
        if (found := sha256(file)) != expected:
            raise InputError(
                f"{file}: damaged (SHA-256 is {found[:12]}, bundle.json says {expected[:12]}); get the bundle again"
            )


def _check_shapes(bundle: Bundle) -> None:
    file = bundle.path / "weights.safetensors"
    manifest = bundle.manifest
    try:
        with safe_open(file, framework="numpy") as weights:
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{file}: damaged ({error}); get the bundle again") from None
    for name in shapes:
        subnet, slash, _ = name.partition("/")
        if slash and subnet not in bundle.ladder.names:
            raise InputError(f"{file}: tensor '{name}' belongs to no subnet of the ladder; get the bundle again")
    for spec in bundle.ladder:
        for name, kept in cuts(manifest.groups, spec).items():
            private = f"{spec.name}/{name}"
            if private not in shapes and name not in shapes:
                raise InputError(f"{file}: tensor '{name}' of subnet '{spec.name}' is missing; get the bundle again")
            shape = shapes.get(private, shapes.get(name, ()))
            for axis, entries in kept.items():
                count = kept_length(entries)
                reach = entries if isinstance(entries, int) else entries[-1][1]
                fits = axis < len(shape) and (shape[axis] == count if private in shapes else shape[axis] >= reach)
                if not fits:
                    which = private if private in shapes else name
                    raise InputError(
                        f"{file}: tensor '{which}' has shape {list(shape)}, subnet '{spec.name}' needs {count} "
                        f"on axis {axis}; get the bundle again"
                    )
    classes = len(manifest.labels)
    if classes and not any(shape and shape[0] == classes for name, shape in shapes.items() if name.endswith("weight")):
        raise InputError(
            f"{bundle.path}: bundle.json lists {classes} labels, no layer has as many outputs; fix 'labels'"
        )
