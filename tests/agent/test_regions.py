"""Shared memory regions: what is taken, what is refused, and what a client can do to one afterwards."""

import os
import threading

import numpy as np
import pytest

from agent.model import NotFound, TooMany, Unsupported
from agent.regions import Regions
from subnets.errors import InputError


@pytest.fixture
def regions(tmp_path):
    regions = Regions(enabled=True, max_regions=3, max_bytes=1000, folder=tmp_path)
    yield regions
    regions.close()


@pytest.fixture
def shared(tmp_path):
    """A client's object of 100 bytes, 0 to 99."""
    path = tmp_path / "object"
    path.write_bytes(bytes(range(100)))
    return path


def test_parts_are_read_and_written_where_the_region_lies(regions, shared):
    regions.register("r", "/object", 10, 50)
    assert regions.read("r", 5, 4).tolist() == [15, 16, 17, 18]
    regions.write("r", 48, b"\xff\xfe")
    assert shared.read_bytes() == bytes(range(58)) + b"\xff\xfe" + bytes(range(60, 100))
    for offset, size in ((0, 51), (50, 1), (-1, 2), (2**61, 2**61)):
        with pytest.raises(InputError, match="Invalid offset"):
            regions.read("r", offset, size)
    with pytest.raises(InputError, match="Invalid offset"):
        regions.write("r", 49, b"ab")
    assert len(shared.read_bytes()) == 100


def test_a_picture_of_its_own_does_not_change_when_its_client_writes_on(regions, shared):
    regions.register("r", "object", 0, 100)
    content = regions.read("r", 0, 100)
    shared.write_bytes(bytes(100))
    assert content.tolist() == list(range(100)) and content.flags.writeable


def test_an_object_cut_short_is_an_error_and_never_a_crash(regions, shared):
    regions.register("r", "object", 0, 100)
    os.truncate(shared, 50)
    with pytest.raises(InputError, match="shorter"):
        regions.read("r", 0, 100)
    with pytest.raises(InputError, match="shorter"):
        regions.write("r", 0, bytes(100))
    assert shared.stat().st_size == 50, "writing must not make it longer again"
    assert regions.read("r", 0, 50).tolist() == list(range(50))


def test_an_object_that_is_gone_still_answers_until_it_is_unregistered(regions, shared):
    regions.register("r", "object", 0, 100)
    shared.unlink()
    assert regions.read("r", 99, 1).tolist() == [99]
    regions.unregister("r")
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'r'"):
        regions.read("r", 0, 1)


def test_status_lists_what_is_registered(regions, shared):
    regions.register("b", "/object", 0, 10)
    regions.register("a", "/object", 10, 20)
    assert [(r.name, r.key, r.offset, r.byte_size) for r in regions.status()] == [
        ("b", "/object", 0, 10),
        ("a", "/object", 10, 20),
    ]
    assert [r.name for r in regions.status("a")] == ["a"]
    with pytest.raises(NotFound):
        regions.status("c")
    regions.unregister("c")  # no error, as in Triton
    regions.unregister()
    assert regions.status() == []


def test_descriptors_are_given_back(regions, shared):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a count of names, no paths)

    before = descriptors()
    for name in "abc":
        regions.register(name, "object", 0, 1)
    assert descriptors() == before + 3
    with pytest.raises(InputError, match="already"):
        regions.register("a", "object", 0, 1)
    regions.unregister("c")
    with pytest.raises(InputError, match="make it larger"):
        regions.register("d", "object", 0, 101)
    assert descriptors() == before + 2
    regions.unregister()
    assert descriptors() == before


@pytest.mark.parametrize(
    "key",
    ["", "/", ".", "..", "../object", "/a/b", "a\0b", "sem.object", "/sem.object", ".hidden", "x" * 300, "ö", "a b"],
)
def test_keys_that_lead_elsewhere_are_refused(regions, shared, key):
    with pytest.raises(InputError, match="is not taken"):
        regions.register("r", key, 0, 1)


def test_what_is_no_shared_memory_object_is_refused(regions, shared, tmp_path):
    (tmp_path / "link").symlink_to(shared)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for key in ("link", "folder", "pipe", "missing"):
        with pytest.raises(InputError, match="Unable to open shared memory region"):
            regions.register("r", key, 0, 1)


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (0, 0), (0, -5), (0, 101), (100, 1), (2**70, 1), (0, 2**70)])
def test_sizes_beyond_the_object_are_refused(regions, shared, offset, size):
    with pytest.raises(InputError):
        regions.register("r", "object", offset, size)
    assert regions.status() == []


def test_number_and_total_size_have_limits_that_unregistering_undoes(regions, tmp_path):
    (tmp_path / "large").write_bytes(bytes(2000))
    with pytest.raises(TooMany, match="at most 1000"):
        regions.register("r", "large", 0, 1001)
    regions.register("a", "large", 0, 600)
    with pytest.raises(TooMany, match="1001 bytes in all"):
        regions.register("b", "large", 0, 401)
    regions.register("b", "large", 0, 100)
    regions.register("c", "large", 0, 100)
    with pytest.raises(TooMany, match="3 shared memory regions"):
        regions.register("d", "large", 0, 1)
    regions.unregister("a")
    regions.register("d", "large", 0, 600)


def test_off_means_off(tmp_path, shared):
    regions = Regions(enabled=False, folder=tmp_path)
    with pytest.raises(Unsupported, match="shared_memory = true"):
        regions.register("r", "object", 0, 1)
    regions.unregister()
    assert regions.status() == []


def test_registering_and_unregistering_while_others_read_never_reads_another_object(regions, tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 100)
    wrong, done = [], threading.Event()

    def read():
        while not done.is_set():
            try:
                if set(regions.read("r", 0, 100).tolist()) != {ord("a")}:
                    wrong.append(1)
            except NotFound:
                continue

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        regions.register("r", "a", 0, 100)
        regions.unregister("r")
        regions.register("other", "b", 0, 100)  # takes the descriptor's number
        np.testing.assert_array_equal(regions.read("other", 0, 1), [ord("b")])
        regions.unregister("other")
    done.set()
    reader.join()
    assert not wrong
