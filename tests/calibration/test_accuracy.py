"""Accuracy through an engine whose every answer is known."""

import numpy as np
import pytest

from backends.base import CompileRequest
from calibration.accuracy import data_for, evaluate, measure_accuracy
from subnets.data import ArraySplit, Dataset, digits
from subnets.errors import InputError

ABLE = {"s25": 7, "s50": 8, "s100": 9}  # the fake engine recognises labels below; above it answers 0


def _dataset(count=103, size=16, classes=10, seed=0):
    labels = np.random.default_rng(seed).integers(0, classes, count)
    images = np.zeros((count, 1, size, size), np.uint8)
    images[:, 0, 0, 0] = labels
    split, empty = ArraySplit(images, labels), ArraySplit(images[:0], labels[:0])
    names = tuple(map(str, range(classes)))
    return Dataset(name="made", classes=names, mean=(0.0,), std=(1.0,), train=split, validation=empty, test=split)


@pytest.fixture
def engine(bundle, fakes):
    backend = fakes.Backend(fakes.Time())

    def make(subnet, sizes):
        return backend.load(backend.build(bundle, CompileRequest(subnet=subnet, batch_sizes=sizes)))

    return make


@pytest.mark.parametrize("sizes", [(1,), (8,), (1, 64), (103,)])
def test_each_image_counts_once_whatever_the_batch_size(engine, bundle, sizes):
    data = _dataset()
    right = int(np.sum(data.test.labels < ABLE["s50"]))
    found = measure_accuracy(engine("s50", sizes), bundle, data)
    assert (found.n, found.split) == (103, "test")
    assert found.value == pytest.approx(right / 103)
    assert found.low < found.value < found.high


def test_images_that_fill_up_the_last_batch_are_not_counted(engine, bundle):
    data = _dataset(count=65)
    seen = []
    found = measure_accuracy(engine("s25", (64,)), bundle, data, on_images=seen.append)
    assert seen == [64, 1] and found.n == 65
    assert found.value == pytest.approx(np.mean(data.test.labels < ABLE["s25"]))


def test_every_subnet_is_evaluated_smallest_first_and_its_engine_closed(bundle, fakes):
    backend, data = fakes.Backend(fakes.Time()), _dataset()
    found = evaluate(bundle, backend, data)
    assert list(found) == ["s25", "s50", "s100"]
    assert [accuracy.value for accuracy in found.values()] == [
        pytest.approx(np.mean(data.test.labels < able)) for able in ABLE.values()
    ]
    assert [engine.closed for engine in backend.engines] == [1, 1, 1]


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        (_dataset(size=8), "test", "images of 'made' are 1 x 8 x 8, bundle 'toy' takes 1 x 16 x 16"),
        (_dataset(classes=7), "test", "'made' has 7 classes, bundle 'toy' has 10"),
        (_dataset(), "validation", "the validation split of 'made' is empty"),
        (_dataset(), "train", "split 'train' is not one to measure on"),
    ],
)
def test_data_that_cannot_be_fed_is_refused(engine, bundle, data, split, message):
    with pytest.raises(InputError, match=message):
        measure_accuracy(engine("s25", (1,)), bundle, data, split)


def test_the_shipped_digits_are_offered_to_the_bundles_trained_on_them(bundle, digits_bundle):
    assert data_for(bundle) is None
    offered = data_for(digits_bundle)
    assert offered is not None and np.array_equal(offered.test.labels, digits().test.labels)
