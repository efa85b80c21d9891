"""Labelled images, read with numpy alone so that a device can measure accuracy without torch.

* ``digits``: the 1,797 handwritten digits of the UCI repository, shipped with the package (see ``NOTICE``).
* :func:`read_cifar10`: CIFAR-10 in its official python layout.
* :func:`read_image_folder`: ``train/<class>/*`` and ``val/<class>/*``, ImageNet's layout (needs pillow).
* :func:`load`: picks among them by looking at what it is given.

Every choice (epochs, statistics, thresholds) is made on ``validation``, a part of the training images held out by
a fixed rule; ``test`` is only ever reported.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from subnets.errors import InputError, UnavailableError

Images = NDArray[np.uint8]  # [N, C, H, W]
Labels = NDArray[np.int64]  # [N]

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_BATCH_FILE_BYTES = 64 * 2**20


class Split(Protocol):
    """Labelled images that are read when they are asked for."""

    labels: Labels

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> Images:
        """The images at ``indices``: uint8 [len(indices), C, H, W]."""


class ArraySplit:
    """Images held in memory."""

    def __init__(self, images: Images, labels: Labels) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: NDArray[np.int64]) -> Images:
        """The images at ``indices``: uint8 [len(indices), C, H, W]."""
        return self.images[indices]


class FolderSplit:
    """Image files decoded on demand: shorter side resized, centre cropped."""

    def __init__(self, paths: list[Path], labels: Labels, size: int) -> None:
        self.paths, self.labels, self.size = paths, labels, size
        self._pool = ThreadPoolExecutor(2)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: NDArray[np.int64]) -> Images:
        """The images at ``indices``: uint8 [len(indices), 3, size, size].

        Raises:
            InputError: a file is not a readable image.
        """
        return np.stack(list(self._pool.map(self._decode, (self.paths[i] for i in indices))))

    def _decode(self, path: Path) -> Images:
        from PIL import Image

        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # pillow raises many kinds for damaged or absurdly large files
            raise InputError(f"{path}: not a readable image ({error}); remove or replace the file") from None
        if min(image.size) != self.size or image.width != image.height:
            short = self.size * 8 // 7
            scale = short / min(image.size)
            image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image).transpose(2, 0, 1)


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Three splits with what is needed to feed them to a network.

    ``pad`` and ``flip`` say which augmentation keeps a label true: shifts by up to ``pad`` pixels, mirroring.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixels scaled to 0..1
    std: tuple[float, ...]
    train: Any  # Split; msgspec cannot check a Protocol
    validation: Any
    test: Any
    pad: int = 0
    flip: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.test.read(np.zeros(1, np.int64)).shape[1:]
        return int(channels), int(height), int(width)


def normalise(images: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """uint8 [N, C, H, W] -> float32 of the same shape: pixels to 0..1, minus ``mean``, over ``std``."""
    scale = (1.0 / (255.0 * np.asarray(std))).astype(np.float32)
    shift = (np.asarray(mean) / np.asarray(std)).astype(np.float32)
    return np.asarray(images * scale[:, None, None] - shift[:, None, None], np.float32)


def batches(split: Split, size: int) -> Iterator[tuple[Images, Labels]]:
    """The split in order, ``size`` images at a time; the last batch may be smaller."""
    for start in range(0, len(split), size):
        indices = np.arange(start, min(start + size, len(split)))
        yield split.read(indices), split.labels[indices]


def load(source: str, *, image_size: int = 224, holdout: float = 0.05) -> Dataset:
    """The data set named or lying at ``source``: ``digits``, a CIFAR-10 folder, or an ImageNet-style folder.

    Args:
        source: ``digits`` or a folder.
        image_size: side in pixels for image folders; others have their own.
        holdout: share of the training images kept aside for validation.

    Raises:
        InputError: nothing readable lies there, or a file is damaged.
    """
    if source == "digits":
        return digits()
    root = Path(source)
    for folder in (root, root / "cifar-10-batches-py"):
        if (folder / "batches.meta").exists() or any(folder.glob("data_batch_*")) or (folder / "test_batch").exists():
            return read_cifar10(folder, holdout=holdout)
    if (root / "val").is_dir():
        return read_image_folder(root, size=image_size, holdout=holdout)
    what = "is not there" if not root.exists() else "holds neither CIFAR-10's batches nor train/ and val/ folders"
    raise InputError(f"data '{source}' {what}; give 'digits', a cifar-10-batches-py folder, or an image folder")


def digits() -> Dataset:
    """The shipped digits, 8 x 8 grey levels enlarged to 16 x 16: 1,000 train, 200 validation, 597 test."""
    with np.load(Path(__file__).with_name("digits.npz")) as packed:
        images, labels = packed["images"], packed["labels"].astype(np.int64)
    order = np.random.Generator(np.random.PCG64(1797)).permutation(len(labels))
    images = _enlarge(images[order].astype(np.float32) * np.float32(255.0 / 16.0))
    labels = labels[order]
    cuts = {"test": slice(0, 597), "validation": slice(597, 797), "train": slice(797, None)}
    splits: dict[str, Any] = {name: ArraySplit(images[cut], labels[cut]) for name, cut in cuts.items()}
    return Dataset(name="digits", classes=tuple("0123456789"), mean=(0.305,), std=(0.345,), pad=2, **splits)


def _enlarge(images: NDArray[np.float32]) -> Images:
    """[N, 8, 8] -> uint8 [N, 1, 16, 16], bilinear between pixel centres."""
    size = images.shape[1]
    at = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
    low = np.minimum(at.astype(int), size - 2)
    share = (at - low).astype(np.float32)
    rows = images[:, low] * (1 - share)[:, None] + images[:, low + 1] * share[:, None]
    both = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    return np.asarray(np.round(both)[:, None], np.uint8)


_ARRAY_PARTS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _NumpyOnly(pickle.Unpickler):
    """Unpickles arrays and plain containers, nothing else: CIFAR-10's own format is pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")
        return super().find_class(module, name)


def _read_cifar_batch(path: Path) -> tuple[Images, Labels]:
    if not path.exists():
        raise InputError(f"{path}: this CIFAR-10 batch is missing; unpack cifar-10-python.tar.gz again")
    if path.stat().st_size > _MAX_BATCH_FILE_BYTES:
        raise InputError(f"{path}: larger than any CIFAR-10 batch; give the folder of the official python version")
    try:
        content = _NumpyOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels = np.asarray(content[b"data"], np.uint8)
        labels = np.asarray(content[b"labels"], np.int64)
        images = pixels.reshape(-1, 3, 32, 32)
    except Exception as error:  # the unpickler raises whatever a damaged stream makes it do
        raise InputError(
            f"{path}: not a readable CIFAR-10 batch ({error}); unpack cifar-10-python.tar.gz again"
        ) from None
    if len(images) != len(labels) or len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise InputError(f"{path}: {len(images)} images and {len(labels)} labels do not fit; unpack the archive again")
    return images, labels


def read_cifar10(folder: Path, *, holdout: float = 0.05) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009) from ``data_batch_1`` .. ``5`` and ``test_batch``.

    Raises:
        InputError: a batch is missing or damaged.
    """
    parts = [_read_cifar_batch(folder / f"data_batch_{k}") for k in range(1, 6)]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    train, validation = _hold_out(labels, holdout)
    test_images, test_labels = _read_cifar_batch(folder / "test_batch")
    return Dataset(
        name="cifar10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        pad=4,
        flip=True,
        train=ArraySplit(images[train], labels[train]),
        validation=ArraySplit(images[validation], labels[validation]),
        test=ArraySplit(test_images, test_labels),
    )


def read_image_folder(root: Path, *, size: int = 224, holdout: float = 0.05) -> Dataset:
    """``root/train/<class>/*`` (optional) and ``root/val/<class>/*``; ``val`` becomes the test split.

    Raises:
        InputError: a folder is empty or the class folders of train and val differ.
        UnavailableError: pillow is not installed.
    """
    try:
        import PIL  # noqa: F401  (only its presence matters here)
    except ImportError:
        raise UnavailableError("image folders need pillow; install it with: pip install 'gearshift[train]'") from None
    names, test = _list_images(root / "val", size)
    if (root / "train").is_dir():
        train_names, everything = _list_images(root / "train", size)
        if train_names != names:
            odd = sorted(set(train_names) ^ set(names))[0]
            raise InputError(f"{root}: class folder '{odd}' is in only one of train/ and val/; both need the same")
    else:
        everything = FolderSplit([], np.zeros(0, np.int64), size)
    train, validation = _hold_out(everything.labels, holdout)
    part = {
        name: FolderSplit([everything.paths[i] for i in indices], everything.labels[indices], size)
        for name, indices in (("train", train), ("validation", validation))
    }
    return Dataset(
        name=root.name,
        classes=names,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        pad=size // 16,
        flip=True,
        test=test,
        **part,
    )


def _list_images(folder: Path, size: int) -> tuple[tuple[str, ...], FolderSplit]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    paths, labels = [], []
    for index, name in enumerate(names):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in (".jpeg", ".jpg", ".png"))
        paths += files
        labels += [index] * len(files)
    if not paths:
        raise InputError(f"{folder}: no <class>/*.jpeg or *.png found; expected ImageNet's folder layout")
    return names, FolderSplit(paths, np.asarray(labels, np.int64), size)


def _hold_out(labels: Labels, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(kept, held out) indices, stratified by class, the same on every run and machine."""
    if not 0.0 <= share < 1.0:
        raise InputError(f"holdout {share} is not a share of the training images; give at least 0 and below 1")
    random = np.random.Generator(np.random.PCG64(2020))
    held = [
        random.permutation(np.flatnonzero(labels == label))[: round(share * int(np.sum(labels == label)))]
        for label in np.unique(labels)
    ]
    out = np.sort(np.concatenate(held)) if held else np.zeros(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), out), out
