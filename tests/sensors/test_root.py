"""The seam to files: bounded, plain reasons, no exception."""

import errno
import os

import pytest

from sensors.contract import FaultyRoot
from sensors.root import Root


def test_a_number_is_scaled(tree):
    assert Root(tree({"a": " 61000\n"})).number("a", 1e-3).value == pytest.approx(61.0)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.EACCES, "permission denied"),
        (errno.EAGAIN, "not ready"),
        (errno.EINVAL, "refused by the driver"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_an_error_of_the_system_becomes_a_reason_with_the_path(tree, error, words):
    root = FaultyRoot(tree({"sys/a": "1"}), error)
    found = root.number("sys/a")
    assert found.value is None
    assert words in found.why
    assert root.where("sys/a") in found.why


def test_a_missing_file_and_a_folder_are_reasons(tree):
    root = Root(tree({"folder/file": "1"}))
    assert "not there" in root.text("nothing").why
    assert "not there" in root.text("folder/file/deeper").why
    assert "not a regular file" in root.text("folder").why


def test_a_fifo_does_not_block(tree):
    path = tree({"a": "1"})
    os.mkfifo(path / "fifo")
    assert "not a regular file" in Root(path).text("fifo").why


@pytest.mark.parametrize("content", ["nan", "inf", "-inf", "1e999", "twelve", "", "1 2"])
def test_what_is_no_finite_number_is_a_reason(tree, content):
    found = Root(tree({"a": content})).number("a")
    assert found.value is None
    assert "not a" in found.why


def test_a_long_file_is_refused_as_an_attribute_and_cut_as_a_head(tree):
    root = Root(tree({"long": "x" * 200_000}))
    assert root.text("long").text is None
    assert len(root.head("long").text or "") == 64 * 1024


def test_bytes_that_are_no_text_and_nuls_are_harmless(tree):
    path = tree({"a": ""})
    (path / "a").write_bytes(b"\xff\xfeVDD_IN\x00")
    assert "VDD_IN" in (Root(path).text("a").text or "")


def test_names_are_in_natural_order_and_match_whole(tree):
    root = Root(tree({"d/hwmon10/x": "", "d/hwmon2/x": "", "d/hwmon2x/x": ""}))
    assert root.names("d", r"hwmon\d+") == ("hwmon2", "hwmon10")
    assert root.names("nowhere") == ()
