"""``docs/benchmarks.md``: every recorded figure as it was recorded, losses too."""

import importlib
import json
import sys

import pytest


@pytest.fixture
def report(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.delitem(sys.modules, "benchmarks.report", raising=False)
    return importlib.import_module("benchmarks.report")


RECORD = {
    "what": "latency of two things, in turns",
    "points": [
        {"subnet": "s25", "took_us": 12.3456, "took_low_us": 11.0, "took_high_us": 14.0, "samples": [1.0] * 9},
        {"subnet": "s|50", "took_us": 123456.7, "took_low_us": None, "took_high_us": None, "samples": []},
    ],
    "pairs": [{"threads": 2, "rows": [{"point": "a", "ratio": 1.5, "ratio_low": 1.0, "ratio_high": 2.0}]}],
    "promises": {"regret": {"value": 0.07, "limit": 0.05, "kept": False}},
    "quiet": {"rounds_repeated": 3},
    "allowed_us": 15.0,
    "shown": {"f32": False, "f16": True},
    "not_measured": {"bf16": "not native here"},
    "command": "python benchmarks/x.py --fast",
    "versions": {"numpy": "2.4"},
    "host": {"cpu": "Some CPU", "cores": 2, "system": "Linux", "accelerator": ""},
    "created": "2026-01-01T00:00:00+00:00",
    "commit": "abc123",
}


def test_a_record_is_told_with_origin_verdict_bounds_and_intervals(report):
    text = report.section("x", RECORD)
    for part in (
        "## x",
        "Latency of two things, in turns.",
        "python benchmarks/x.py --fast",
        "Some CPU, 2 cores, Linux, numpy 2.4, commit abc123, 2026-01-01T00:00:00+00:00.",
        "* f32: **not shown**",
        "* f16: **shown**",
        "* bf16: not native here",
        "allowed us: 15",
        "| s25 | 12.35 (11 to 14) |",
        "| s\\|50 | 123,457 |",
        "| a | 1.5 (1 to 2) |",
        "| regret | 0.07 | 0.05 | no |",
        "rounds repeated: 3",
    ):
        assert part in text, (part, text)
    assert "took low us" not in text and "samples" not in text


def test_the_page_lists_every_record_and_leaves_out_what_is_none(report, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(RECORD))
    (tmp_path / "a.json").write_text(json.dumps({"what": "one number", "value": 3, "shown": True}))
    (tmp_path / "table.json").write_text(json.dumps({"schema": 1, "rows": []}))
    text = report.page(tmp_path)
    assert "* [a](#a): shown\n* [b](#b): f32 not shown, f16 shown, bf16 not measured\n" in text
    assert text.index("## a") < text.index("## b") and "**Shown.**" in text and "table" not in text.split("\n## ")[0]


def test_the_recorded_page_is_what_the_records_give(report, root):
    """Nobody edited it, and nobody recorded something without writing it again."""
    assert (root / "docs" / "benchmarks.md").read_text() == report.page(root / "benchmarks" / "results")
