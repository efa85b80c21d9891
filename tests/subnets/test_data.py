"""Data sets as users have them: whole, partial, damaged, hostile."""

import io
import os
import pickle
import struct

import numpy as np
import pytest

from subnets.data import ArraySplit, batches, digits, load, normalise, read_cifar10, read_image_folder
from subnets.errors import InputError

FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def batch_of(seed, count=40):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3072), dtype=np.uint8), [int(k) for k in np.arange(count) % 10]


def python2_pickle(pixels, labels):
    """What CIFAR-10's own files hold: cPickle of Python 2 with byte strings and numpy's old module path."""

    def text(value):
        return b"U" + struct.pack("<B", len(value)) + value  # SHORT_BINSTRING

    def whole(value):
        return b"J" + struct.pack("<i", value)  # BININT

    raw = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + whole(0) + b"t" + text(b"b") + b"tR"
        b"(" + whole(1) + b"(" + whole(pixels.shape[0]) + whole(pixels.shape[1]) + b"t"
        b"cnumpy\ndtype\n(" + text(b"u1") + whole(0) + whole(1) + b"tR"
        b"(" + whole(3) + text(b"|") + b"NNN" + whole(-1) + whole(-1) + whole(0) + b"tb"
        b"I00\n" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    numbers = b"](" + b"".join(whole(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def python3_pickle(pixels, labels):
    return pickle.dumps({b"batch_label": b"a batch", b"labels": labels, b"data": pixels}, protocol=2)


def write_cifar(folder, dump=python3_pickle, count=40):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(FILES):
        (folder / name).write_bytes(dump(*batch_of(seed, count)))
    return folder


@pytest.fixture
def cifar(tmp_path):
    return write_cifar(tmp_path / "cifar-10-batches-py")


class TestDigits:
    def test_the_splits_are_disjoint_and_always_the_same(self):
        first, again = digits(), digits()
        assert [len(getattr(first, name)) for name in ("train", "validation", "test")] == [1000, 200, 597]
        for name in ("train", "validation", "test"):
            assert np.array_equal(getattr(first, name).images, getattr(again, name).images)
        # 1,797 scans of hand-written digits are all different, so equal pixels would be a shared image.
        seen = [image.tobytes() for name in ("train", "validation", "test") for image in getattr(first, name).images]
        assert len(seen) == len(set(seen)) == 1797
        assert (
            np.bincount(np.concatenate([first.train.labels, first.validation.labels, first.test.labels])).sum() == 1797
        )

    def test_images_are_bytes_of_one_channel_and_normalise_to_about_zero_mean_and_unit_spread(self):
        dataset = load("digits")
        assert dataset.shape == (1, 16, 16) and dataset.train.images.dtype == np.uint8
        assert dataset.train.images.max() == 255 and not dataset.flip  # a mirrored 2 is no 2
        values = normalise(dataset.train.images, dataset.mean, dataset.std)
        assert values.dtype == np.float32
        assert abs(float(values.mean())) < 0.05 and abs(float(values.std()) - 1) < 0.1


class TestCifar10:
    @pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
    def test_the_official_layout_is_read(self, tmp_path, dump):
        dataset = load(str(write_cifar(tmp_path / "cifar-10-batches-py", dump)))
        assert (dataset.name, dataset.shape, len(dataset.classes)) == ("cifar10", (3, 32, 32), 10)
        assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (190, 10, 40)
        pixels, labels = batch_of(5)
        assert np.array_equal(dataset.test.images, pixels.reshape(-1, 3, 32, 32))
        assert np.array_equal(dataset.test.labels, labels)

    def test_the_folder_above_will_do(self, cifar):
        assert len(load(str(cifar.parent)).test) == 40

    def test_validation_is_stratified_disjoint_and_fixed(self, cifar):
        dataset, again = read_cifar10(cifar, holdout=0.2), read_cifar10(cifar, holdout=0.2)
        assert np.bincount(dataset.validation.labels).tolist() == [4] * 10
        assert np.array_equal(dataset.validation.images, again.validation.images)
        held = {image.tobytes() for image in dataset.validation.images}
        assert not held & {image.tobytes() for image in dataset.train.images}
        assert len(read_cifar10(cifar, holdout=0.0).validation) == 0

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_an_impossible_holdout_is_refused(self, cifar, share):
        with pytest.raises(InputError, match="holdout"):
            read_cifar10(cifar, holdout=share)

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_batch_is_named(self, cifar, name):
        (cifar / name).unlink()
        with pytest.raises(InputError, match=f"{name}: this CIFAR-10 batch is missing; unpack") as caught:
            load(str(cifar))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
    def test_a_truncated_batch_is_named(self, tmp_path, dump, share):
        folder = write_cifar(tmp_path / "c", dump)
        content = (folder / "data_batch_3").read_bytes()
        (folder / "data_batch_3").write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match="data_batch_3: not a readable CIFAR-10 batch") as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)

    def test_code_in_a_batch_is_refused_and_never_runs(self, cifar, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path}/owned",)

        (cifar / "data_batch_2").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}, protocol=2))
        with pytest.raises(InputError, match=r"data_batch_2: .*asks for (posix|os)\.system"):
            load(str(cifar))
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize(
        "asked",
        [(b"builtins", b"eval"), (b"numpy", b"load"), (b"numpy.f2py", b"compile"), (b"numpy", b"ndarray.tofile")],
    )
    def test_only_what_makes_an_array_may_be_asked_for(self, cifar, asked):
        module, name = asked
        (cifar / "data_batch_1").write_bytes(b"\x80\x02c" + module + b"\n" + name + b"\n.")
        with pytest.raises(InputError, match="which no CIFAR-10 batch needs"):
            load(str(cifar))

    @pytest.mark.parametrize(
        "content",
        [
            {b"data": np.zeros((2, 3072), np.uint8)},
            {b"data": np.zeros((2, 3071), np.uint8), b"labels": [0, 1]},
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1, 2]},
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]},
            {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
            [1, 2, 3],
        ],
    )
    def test_a_batch_of_the_wrong_content_is_refused(self, cifar, content):
        (cifar / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(InputError, match="test_batch"):
            load(str(cifar))

    def test_a_file_larger_than_any_batch_is_not_read(self, cifar):
        with (cifar / "test_batch").open("wb") as file:
            file.truncate(65 * 2**20)
        with pytest.raises(InputError, match="larger than any CIFAR-10 batch"):
            load(str(cifar))

    def test_recorded_images_survive_the_official_layout(self, shared_data, tmp_path):
        image = pytest.importorskip("PIL.Image")
        recorded = shared_data / "data" / "cifar10" / "test_1.npz"
        if not recorded.exists():
            pytest.skip("no recorded CIFAR-10")
        with np.load(recorded) as packed:
            start, end = packed["offsets"][:2]
            strip, labels = packed["webp"][start:end].tobytes(), packed["labels"]
        with image.open(io.BytesIO(strip)) as opened:
            images = np.asarray(opened.convert("RGB")).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
        labels = labels[: len(images)].astype(int).tolist()
        folder = write_cifar(tmp_path / "c")
        pixels = np.ascontiguousarray(images).reshape(len(images), -1)
        (folder / "test_batch").write_bytes(python2_pickle(pixels, labels))
        dataset = load(str(folder))
        assert np.array_equal(dataset.test.images, images) and dataset.test.labels.tolist() == labels
        values = normalise(images, dataset.mean, dataset.std)
        assert np.abs(values.mean((0, 2, 3))).max() < 0.1 and np.abs(values.std((0, 2, 3)) - 1).max() < 0.1


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        image = pytest.importorskip("PIL.Image")
        random = np.random.default_rng(0)
        for part, count in (("train", 10), ("val", 2)):
            for label, name in enumerate(("cat", "dog")):
                (tmp_path / part / name).mkdir(parents=True)
                for k in range(count):
                    pixels = random.integers(0, 60, (40 + 3 * k, 50, 3), dtype=np.uint8)
                    pixels[:, :, 1] = 60 + 120 * label
                    image.fromarray(pixels).save(tmp_path / part / name / f"{k}.png")
        return tmp_path

    def test_classes_are_folders_and_images_are_resized_and_cropped(self, folder):
        dataset = load(str(folder), image_size=32, holdout=0.2)
        assert dataset.classes == ("cat", "dog") and dataset.shape == (3, 32, 32)
        assert [len(getattr(dataset, name)) for name in ("train", "validation", "test")] == [16, 4, 4]
        assert np.bincount(dataset.validation.labels).tolist() == [2, 2]
        assert not set(dataset.train.paths) & set(dataset.validation.paths)
        for images, labels in batches(dataset.test, 3):
            assert images.shape[1:] == (3, 32, 32) and images.dtype == np.uint8
            assert np.array_equal(images[:, 1].mean((1, 2)) > 120, labels == 1)

    def test_the_centre_is_what_stays(self, folder):
        from PIL import Image

        pixels = np.zeros((32, 128, 3), np.uint8)
        pixels[:, 48:80] = 200
        Image.fromarray(pixels).save(folder / "val" / "cat" / "0.png")
        (image,) = load(str(folder), image_size=28).test.read(np.array([0]))
        assert image[:, :, 2:-2].min() > 150

    def test_without_training_images_there_is_only_a_test_split(self, folder):
        import shutil

        shutil.rmtree(folder / "train")
        dataset = load(str(folder), image_size=32)
        assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (0, 0, 4)

    @pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:200], lambda content: b"text"])
    def test_a_file_that_is_no_image_is_named(self, folder, damage):
        path = folder / "val" / "dog" / "1.png"
        path.write_bytes(damage(path.read_bytes()))
        dataset = load(str(folder), image_size=32)
        with pytest.raises(InputError, match=f"{path}: not a readable image"):
            dataset.test.read(np.arange(4))

    def test_a_class_in_only_one_part_is_named(self, folder):
        (folder / "train" / "dog").rename(folder / "train" / "wolf")
        with pytest.raises(InputError, match="class folder 'dog' is in only one of train/ and val/"):
            load(str(folder), image_size=32)

    def test_an_empty_folder_is_refused(self, tmp_path):
        pytest.importorskip("PIL")
        (tmp_path / "val" / "cat").mkdir(parents=True)
        with pytest.raises(InputError, match="expected ImageNet's folder layout"):
            read_image_folder(tmp_path)


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_what_is_no_data_set_is_refused_with_the_choices(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"give 'digits', a cifar-10-batches-py folder, or an image folder"):
        load(str(tmp_path / what))


def test_batches_cover_a_split_in_order():
    split = ArraySplit(np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1), np.arange(7))
    found = list(batches(split, 3))
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    assert np.concatenate([images.ravel() for images, _ in found]).tolist() == list(range(7))


def test_normalising_is_what_its_words_say():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    found = normalise(images, mean, std)
    for channel in range(3):
        expected = (images[:, channel].astype(np.float64) / 255 - mean[channel]) / std[channel]
        np.testing.assert_allclose(found[:, channel], expected, atol=1e-5)


def test_the_written_python2_stream_is_the_real_thing():
    """The hand-written pickle above loads with the standard unpickler too, as Python 2's did."""
    pixels, labels = batch_of(0, 3)
    found = pickle.load(io.BytesIO(python2_pickle(pixels, labels)), encoding="bytes")  # noqa: S301 (our own bytes)
    assert np.array_equal(found[b"data"], pixels) and found[b"labels"] == labels
