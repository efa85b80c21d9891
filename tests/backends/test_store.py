"""Artifacts on disk: whole or not there, checked byte for byte, and one sentence when something is wrong."""

import errno
import shutil
from pathlib import Path

import msgspec
import pytest

from backends import Artifact, CompileRequest, store
from subnets import EngineError, UnavailableError

IDENTITY = {"library": "1.0", "gpu": "A"}


@pytest.fixture
def final(tmp_path):
    return tmp_path / "cache" / "kind" / "0123456789abcdef"


def artifact_at(final):
    return Artifact(
        path=str(final),
        key=final.name,
        backend="kind",
        device="GPU",
        request=CompileRequest(subnet="s50"),
        input_shape=(3, 8, 8),
        classes=4,
    )


def published(final, content=b"plan", identity=IDENTITY):
    with store.staging(final) as temporary:
        (temporary / "engine.plan").write_bytes(content)
        return store.publish(temporary, artifact_at(final), identity)


def test_what_was_published_is_found_and_nothing_else_is_left(final):
    artifact = published(final)
    assert store.find(final, IDENTITY) == artifact == store.read(final)
    assert [path.name for path in final.parent.iterdir()] == [final.name]


def test_an_abandoned_build_leaves_nothing(final):
    with pytest.raises(KeyboardInterrupt), store.staging(final) as temporary:
        (temporary / "engine.plan").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(final.parent.iterdir()) == []
    assert store.find(final, IDENTITY) is None


@pytest.mark.parametrize("what", IDENTITY)
def test_another_library_or_device_is_refused_by_name(final, what):
    artifact = published(final)
    now = IDENTITY | {what: "other"}
    with pytest.raises(EngineError, match=f"built with {what} '{IDENTITY[what]}', here it is 'other'; build it again"):
        store.check(artifact, now)
    assert store.find(final, now) is None


def test_a_sound_artifact_of_another_process_is_kept_and_a_damaged_one_replaced(final):
    published(final, b"first")
    published(final, b"second")
    assert (final / "engine.plan").read_bytes() == b"first"
    (final / "engine.plan").write_bytes(b"damaged")
    published(final, b"third")
    assert (final / "engine.plan").read_bytes() == b"third"
    assert [path.name for path in final.parent.iterdir()] == [final.name]


def test_an_artifact_in_anothers_place_is_refused(final):
    artifact = published(final)
    other = final.with_name("f" * 16)
    shutil.copytree(final, other)
    wanted = msgspec.structs.replace(artifact, path=str(other), key=other.name)
    with pytest.raises(EngineError, match=f"holds artifact {final.name}, not {other.name}"):
        store.check(wanted, IDENTITY)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "damaged"),
        (b"{}", "damaged"),
        (b" " * (2**20 + 1), "larger than"),
        (b'{"schema": 99, "artifact": ARTIFACT, "identity": {}, "files": {}}', "schema is 99, this version reads 1"),
    ],
)
def test_a_record_that_cannot_be_is_refused(final, content, said):
    artifact = published(final)
    (final / store.RECORD).write_bytes(content.replace(b"ARTIFACT", msgspec.json.encode(artifact)))
    with pytest.raises(EngineError, match=said):
        store.read(final)


def test_a_record_cannot_name_files_outside_its_directory(final, tmp_path):
    artifact = published(final)
    (tmp_path / "cache" / "outside").write_bytes(b"x")
    record = msgspec.json.decode((final / store.RECORD).read_bytes())
    record["files"] = {"../../outside": store.sha256(tmp_path / "cache" / "outside")}
    (final / store.RECORD).write_bytes(msgspec.json.encode(record))
    with pytest.raises(EngineError, match="missing or damaged"):
        store.check(artifact, IDENTITY)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(final, code):
    with (
        pytest.raises(
            UnavailableError, match=r"no room to store an artifact \(.+\); free some, or set GEARSHIFT_CACHE"
        ),
        store.staging(final),
    ):
        raise OSError(code, "full")
    assert list(final.parent.iterdir()) == []


def test_other_failures_of_the_system_are_not_mistaken_for_a_full_disk(final):
    with pytest.raises(FileNotFoundError), store.staging(final):
        Path("nowhere/at/all").read_bytes()


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UnavailableError, match="set GEARSHIFT_CACHE"),
        store.staging(tmp_path / "file" / "kind" / "key"),
    ):
        raise AssertionError("not reached")
