"""Accuracy of what really answers: an engine on labelled images, with numpy alone.

* :func:`measure_accuracy`: one engine on one split.
* :func:`evaluate`: each subnet of a bundle through one backend.
* :func:`accuracy_of_points`: of every operating point of a table, measured or as the bundle records it.
* :func:`data_for`: the data to use when none is given: the digits ship with the package, others do not.

Knows nothing of time. Figures of the test split are for reporting; choices belong to the validation split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from backends.base import Backend, CompileRequest, Engine
from subnets import data
from subnets.bundle import Accuracy, Bundle, wilson
from subnets.data import Dataset, Split
from subnets.errors import InputError

BATCH = 64
SPLITS = ("test", "validation")


def data_for(bundle: Bundle) -> Dataset | None:
    """The data set that ships with the package, when the bundle was trained on it; else None."""
    return data.digits() if bundle.manifest.provenance.get("dataset") == "digits" else None


def chosen_split(bundle: Bundle, dataset: Dataset, split: str) -> Split:
    """One split of a data set, after checking that it can be fed to the bundle's engines.

    Raises:
        InputError: there is no such split, it is empty, or images or classes do not fit the bundle.
    """
    if split not in SPLITS:
        raise InputError(f"split '{split}' is not one to measure on; choose {' or '.join(SPLITS)}")
    images: Split = getattr(dataset, split)
    if len(images) == 0:
        raise InputError(f"the {split} split of '{dataset.name}' is empty; choose another split or data set")
    if dataset.shape != bundle.input.shape:
        raise InputError(
            f"images of '{dataset.name}' are {_by(dataset.shape)}, bundle '{bundle.name}' takes "
            f"{_by(bundle.input.shape)}; give the data it was trained on"
        )
    if len(dataset.classes) != len(bundle.labels):
        raise InputError(
            f"'{dataset.name}' has {len(dataset.classes)} classes, bundle '{bundle.name}' has {len(bundle.labels)}; "
            "give the data it was trained on"
        )
    return images


def measure_accuracy(
    engine: Engine,
    bundle: Bundle,
    dataset: Dataset,
    split: str = "test",
    on_images: Callable[[int], None] = lambda count: None,
) -> Accuracy:
    """Top-1 accuracy of an engine, with its 95 % Wilson interval.

    Feeds the largest batch size the engine has; the last batch is filled up and the filling not counted.

    Raises:
        InputError: see :func:`chosen_split`.
        EngineError: the engine failed.
    """
    images = chosen_split(bundle, dataset, split)
    size = max(engine.artifact.request.batch_sizes)
    correct = 0
    for pixels, labels in data.batches(images, size):
        batch = bundle.input.preprocess(pixels)
        if len(batch) < size:
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        answers = engine.infer(batch)[: len(labels)].argmax(axis=1)
        correct += int(np.count_nonzero(answers == labels))
        on_images(len(labels))
    return wilson(correct, len(images), split)


def evaluate(
    bundle: Bundle,
    backend: Backend,
    dataset: Dataset,
    *,
    split: str = "test",
    precision: str = "f32",
    threads: int = 1,
    on_images: Callable[[str, int], None] = lambda subnet, count: None,
) -> dict[str, Accuracy]:
    """Accuracy of each subnet through one backend, smallest subnet first.

    Raises:
        InputError: the data does not fit, or the precision is not to be had.
        UnavailableError: the backend lacks something.
    """
    images = chosen_split(bundle, dataset, split)
    measured = {}
    for name in bundle.ladder.names:
        request = CompileRequest(
            subnet=name, precision=precision, batch_sizes=(min(BATCH, len(images)),), threads=threads
        )
        engine = backend.load(backend.build(bundle, request))
        try:
            measured[name] = measure_accuracy(engine, bundle, dataset, split, partial(on_images, name))
        finally:
            engine.close()
    return measured


def accuracy_of_points(
    bundle: Bundle,
    pairs: Sequence[tuple[Backend, str]],
    dataset: Dataset | None,
    split: str,
    threads: int,
    on_progress: Callable[[str, float, float], None],
) -> dict[tuple[str, str, str], tuple[Accuracy, str]]:
    """(accuracy, where it comes from) by subnet, backend name and precision.

    Measured where there is data, else as the bundle records it.

    Raises:
        InputError: there is no data and the bundle records none, or the data does not fit.
    """
    found: dict[tuple[str, str, str], tuple[Accuracy, str]] = {}
    if dataset is None:
        for entry in bundle.manifest.subnets:
            recorded = entry.accuracy
            if recorded is None:
                raise InputError(
                    f"bundle '{bundle.name}' records no accuracy for subnet '{entry.name}'; give --data, "
                    "or run 'gearshift evaluate --record' first"
                )
            for backend, precision in pairs:
                note = "" if precision == "f32" else ", not measured at this precision"
                source = f"bundle: {recorded.split}, n={recorded.n}{note}"
                found[entry.name, backend.name, precision] = recorded, source
        return found
    total = len(pairs) * len(bundle.ladder) * (len(getattr(dataset, split)) if split in SPLITS else 0)
    done = 0

    def count(subnet: str, images: int) -> None:
        nonlocal done
        done += images
        on_progress(f"accuracy of {subnet}", done, total)

    for backend, precision in pairs:
        measured = evaluate(
            bundle, backend, dataset, split=split, precision=precision, threads=threads, on_images=count
        )
        for name, accuracy in measured.items():
            found[name, backend.name, precision] = accuracy, f"measured: {split}, n={accuracy.n}"
    return found


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
