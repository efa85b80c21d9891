"""``gearshift table``: show, diff, merge, export."""

import csv
import errno
import io
import json
import os
import re

import msgspec
import pytest

from calibration import read, write


@pytest.fixture
def second(table_file, tmp_path):
    """The same machine another day: one row a little slower, one far off."""
    found = read(table_file)
    factors = (1.01, 1.5)
    rows = tuple(
        msgspec.structs.replace(
            row,
            latency_p50_ms=factor * row.latency_p50_ms,
            latency_p50_low_ms=factor * row.latency_p50_low_ms,
            latency_p50_high_ms=factor * row.latency_p50_high_ms,
        )
        for row, factor in zip(found.rows, factors, strict=True)
    )
    write(msgspec.structs.replace(found, rows=rows), tmp_path / "second.json")
    return tmp_path / "second.json"


def test_diff_says_for_how_many_rows_the_intervals_overlap(gearshift, table_file, second):
    result = gearshift("table", "diff", table_file, second)
    assert result.code == 0 and "1 of 2 rows: the 95 % intervals of the median overlap." in result.out
    found = json.loads(gearshift("table", "diff", table_file, second, "--json", "-").out)
    assert found["overlapping"] == 1 and found["common_ratio"] == pytest.approx((1.01 * 1.5) ** 0.5)


def test_merge_puts_one_kind_into_one_table_and_keeps_others_apart(gearshift, table_file, second, tmp_path):
    other = read(table_file)
    write(msgspec.structs.replace(other, host=msgspec.structs.replace(other.host, cpu="B")), tmp_path / "other.json")
    result = gearshift("table", "merge", table_file, second, "other.json", "--out", "merged", "--json", "m.json")
    assert result.code == 0, result.err
    assert "other.json is kept apart" in result.out and "cpu is 'B', the table's is 'A'" in result.out
    told = json.loads((tmp_path / "m.json").read_text())["tables"]
    assert [len(one["from"]) for one in told] == [2, 1]
    merged = read(told[0]["table"])
    assert merged.protocol.tables == 2 and {str(path) for path in tmp_path.glob("merged/*")} == {
        str(tmp_path / one["table"]) for one in told
    }
    assert "Merged from 2 tables" in gearshift("table", "show", told[0]["table"]).out


def test_export_writes_csv_and_parquet_and_to_stdout(gearshift, table_file, second, tmp_path):
    assert gearshift("table", "export", table_file, second, "rows.csv").code == 0
    lines = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert len(lines) == 4 and float(lines[0]["latency_p50_ms"]) == 2.0
    assert (
        gearshift("table", "export", table_file, "-").out.splitlines()[1:]
        == ((tmp_path / "rows.csv").read_text().splitlines()[1:3])
    )
    pytest.importorskip("pyarrow")
    assert gearshift("table", "export", table_file, "rows.parquet").code == 0
    assert (tmp_path / "rows.parquet").read_bytes()[:4] == b"PAR1"


def test_an_unknown_format_is_refused(gearshift, table_file):
    result = gearshift("table", "export", table_file, "rows.xls")
    assert result.code == 2 and ".csv or .parquet" in result.err


@pytest.mark.parametrize("arguments", [("export", "TABLE", "rows.csv"), ("show", "TABLE", "--report", "r.html")])
def test_a_full_disk_is_one_sentence(refused, table_file, monkeypatch, arguments):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("subnets.bundle.os.fsync", full)
    words = refused("table", *(str(table_file) if word == "TABLE" else word for word in arguments))
    assert "no room to write it (No space left on device)" in words


def test_the_report_is_one_file_that_loads_nothing(gearshift, table_file, tmp_path):
    assert gearshift("table", "show", table_file, "--report", "r.html").code == 0
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"https?:|//|url\(|@import|src=|href=|<script", page)
