"""The artifacts' cache: what lies there, what may go, and what killed builds left."""

import contextlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from backends import CompileRequest, cache, store
from backends.openvino import OpenVINOBackend
from subnets import UnavailableError

NOW_S = time.time()
DAY_S = 86_400.0


@pytest.fixture
def backend(tmp_path):
    return OpenVINOBackend(tmp_path / "cache")


@pytest.fixture
def artifacts(backend, hand_bundle):
    """Two, last used 40 days and 1 day before NOW_S."""
    built = {subnet: backend.build(hand_bundle, CompileRequest(subnet=subnet)) for subnet in ("s50", "s100")}
    for artifact, days in zip(built.values(), (40, 1), strict=True):
        os.utime(artifact.path, (NOW_S - days * DAY_S,) * 2)
    return built


def test_what_lies_there_is_listed_the_longest_unused_first(backend, artifacts):
    found = cache.stored(backend.cache, NOW_S)
    assert [(one.backend, one.subnet, one.precision) for one in found] == [
        ("openvino", "s50", "f32"),
        ("openvino", "s100", "f32"),
    ]
    assert [one.unused_s / DAY_S for one in found] == pytest.approx([40, 1])
    for one in found:
        assert one.size_bytes == sum(file.stat().st_size for file in Path(one.path).iterdir())


def test_a_file_that_two_artifacts_link_to_counts_once(backend, artifacts, hand_bundle):
    first = cache.size_bytes(cache.stored(backend.cache))
    twin = backend.build(hand_bundle, CompileRequest(subnet="s50", batch_sizes=(2,)))
    own = sum(f.stat().st_size for f in Path(twin.path).iterdir() if not f.name.startswith("model."))
    assert cache.size_bytes(cache.stored(backend.cache)) == first + own


def test_only_what_was_unused_for_so_long_goes_and_it_is_built_again_when_needed(backend, artifacts, hand_bundle):
    images = np.ones((1, 2, 6, 5), np.float32)
    with contextlib.closing(backend.load(artifacts["s50"])) as engine:
        os.utime(artifacts["s50"].path, (NOW_S - 40 * DAY_S,) * 2)
        expected = engine.infer(images)
        gone = cache.prune(backend.cache, 30 * DAY_S, NOW_S)
        assert [one.subnet for one in gone] == ["s50"]
        assert [path.name for path in (backend.cache / "openvino").iterdir()] == [artifacts["s100"].key]
        np.testing.assert_array_equal(engine.infer(images), expected)  # a loaded engine goes on
    assert backend.build(hand_bundle, CompileRequest(subnet="s50")) == artifacts["s50"]
    assert not cache.prune(backend.cache, 30 * DAY_S, NOW_S)


@pytest.mark.parametrize("use", ["build", "load"])
def test_building_and_loading_one_count_as_use(backend, artifacts, hand_bundle, use):
    if use == "build":
        backend.build(hand_bundle, CompileRequest(subnet="s50"))
    else:
        backend.load(artifacts["s50"]).close()
    (one,) = [one for one in cache.stored(backend.cache) if one.subnet == "s50"]
    assert one.unused_s < DAY_S


def test_what_a_killed_build_left_goes_a_day_later_and_a_build_under_way_stays(backend, artifacts, hand_bundle):
    folder = backend.cache / "openvino"
    for name, age_s in ((".0123-killed", 2 * DAY_S), (".4567-underway", 60.0)):
        (folder / name).mkdir()
        (folder / name / "model.bin").write_bytes(b"half")
        os.utime(folder / name, (NOW_S - age_s,) * 2)
    store.sweep(folder, NOW_S)
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [".4567-underway"]
    os.utime(folder / ".4567-underway", (1.0, 1.0))
    shutil.rmtree(artifacts["s100"].path)
    backend.build(hand_bundle, CompileRequest(subnet="s100"))  # the next build sweeps
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_damaged_artifact_is_listed_all_the_same(backend, artifacts):
    (Path(artifacts["s50"].path) / store.RECORD).write_text("{")
    assert [one.subnet for one in cache.stored(backend.cache, NOW_S)] == ["", "s100"]


def test_what_is_not_the_caches_is_left_alone(backend, artifacts):
    """A user may point the cache at a folder that holds other things."""
    (backend.cache / "photographs" / "2019").mkdir(parents=True)
    (backend.cache / "openvino" / "notes.txt").write_text("mine")
    os.utime(backend.cache / "photographs" / "2019", (1.0, 1.0))
    assert len(cache.prune(backend.cache, 0.0, NOW_S)) == 2
    assert (backend.cache / "photographs" / "2019").is_dir() and (backend.cache / "openvino" / "notes.txt").exists()


def test_no_cache_holds_nothing(tmp_path):
    assert cache.stored(tmp_path / "none") == [] == cache.prune(tmp_path / "none", 0.0)


def test_a_directory_that_cannot_be_removed_is_named(backend, artifacts, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.shutil, "rmtree", refuse)
    with pytest.raises(UnavailableError, match=r"cannot be removed \(Permission denied\)"):
        cache.prune(backend.cache, 30 * DAY_S, NOW_S)
