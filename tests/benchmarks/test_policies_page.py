"""docs/policies.md says what was recorded, and shows every policy."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from policies import names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module("policies_page")
    finally:
        sys.path.remove(folder)


def test_the_arenas_tables_are_those_of_the_recorded_result(page):
    text = page.PAGE.read_text()
    recorded = json.loads(page.RESULT.read_text())
    between = text.partition(page.BEGIN)[2].partition(page.END)[0]
    assert between == "\n" + page.tables(recorded)
    for arena in recorded["arenas"].values():
        for one in arena["policies"]:
            assert f"| {one['name']} | {100 * one['goodput']:.2f} %" in between
        for loss in arena["losses"]:
            assert f"{loss['scenario']} to {loss['winner']}" in between


def test_every_policy_has_its_picture_on_the_page(page):
    text = page.PAGE.read_text()
    for name in set(names()) - {"static"}:
        assert f"(pictures/policies/{name}.svg)" in text
        picture = (page.PICTURES / f"{name}.svg").read_text()
        assert picture.startswith("<svg") and name in picture and len(picture) < 20_000
