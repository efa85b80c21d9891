"""``gearshift cache``: what is kept, and what goes."""

import json
import os
import shutil
from pathlib import Path

import pytest

BUNDLE = "bundles/digits"


@pytest.fixture
def kept(root, tmp_path, monkeypatch):
    """A cache with two compiled subnets of the digits, one of them last used 40 days ago."""
    from backends import CompileRequest
    from backends.openvino import OpenVINOBackend
    from subnets.bundle import Bundle

    monkeypatch.setenv("GEARSHIFT_CACHE", str(tmp_path / "cache"))
    bundle = Bundle.open(shutil.copytree(root / BUNDLE, tmp_path / "digits"))
    backend = OpenVINOBackend()
    old, new = (backend.build(bundle, CompileRequest(subnet=name)) for name in ("s12", "s25"))
    os.utime(old.path, (1.0, 1.0))
    return old, new


def test_show_lists_them_and_doctor_says_how_many(gearshift, kept):
    shown = gearshift("cache", "show", "--json", "-")
    told = json.loads(shown.out)
    assert [one["subnet"] for one in told["artifacts"]] == ["s12", "s25"] and told["size_bytes"] > 0
    assert "2 compiled engines" in gearshift("cache", "show").out
    doctor = json.loads(gearshift("doctor", "--json", "-").out)["cache"]
    assert (doctor["artifacts"], doctor["size_bytes"]) == (2, told["size_bytes"])


def test_prune_removes_the_unused_one_and_a_dry_run_nothing(gearshift, kept):
    old, new = kept
    dry = gearshift("cache", "prune", "--dry-run")
    assert dry.code == 0 and "1 of 2 compiled engines would be removed" in dry.out and Path(old.path).is_dir()
    before = json.loads(gearshift("cache", "show", "--json", "-").out)["size_bytes"]
    done = json.loads(gearshift("cache", "prune", "--json", "-").out)
    assert [one["path"] for one in done["artifacts"]] == [old.path]
    assert not Path(old.path).exists() and Path(new.path).is_dir()
    assert done["freed_bytes"] == before - json.loads(gearshift("cache", "show", "--json", "-").out)["size_bytes"]


def test_a_time_that_makes_no_sense_is_refused(refused, kept):
    assert "--unused-for -5 s lies in the future" in refused("cache", "prune", "--unused-for=-5")
    assert "'soon' is not a duration" in refused("cache", "prune", "--unused-for", "soon")
