"""``gearshift verify``: exit code 0 where the table holds, 1 where rows drifted, 2 where it cannot be told."""

import json

import msgspec
import pytest

from calibration import read, write

CALIBRATE = ("--budget", "1s", "--backend", "openvino", "--precision", "f32", "--threads", 1, "--data", "digits")


@pytest.fixture
def table(gearshift, bundle, tmp_path):
    result = gearshift("calibrate", bundle, *CALIBRATE)
    assert result.code == 0, result.err
    return tmp_path / "toy.table.json"


def _times(table, factor):
    """The same table, with other latencies."""
    found = read(table)
    names = ("latency_p50_ms", "latency_p50_low_ms", "latency_p50_high_ms")
    rows = []
    for row in found.rows:
        changed = {name: factor * getattr(row, name) for name in names}
        changed["latency_p50_low_ms"], changed["latency_p50_high_ms"] = (
            0.99 * changed["latency_p50_ms"],
            1.01 * changed["latency_p50_ms"],
        )
        rows.append(msgspec.structs.replace(row, **changed))
    write(msgspec.structs.replace(found, rows=tuple(rows)), table)
    return found


@pytest.mark.parametrize("factor", [30.0, 1 / 30.0])
def test_a_table_that_is_wrong_either_way_is_rejected_by_name(gearshift, bundle, table, factor):
    rows = _times(table, factor).rows
    result = gearshift("verify", table, bundle, "--rounds", 12, "--json", "v.json")
    assert result.code == 1, result.out + result.err
    assert "no longer holds" in result.out and all(row.point in result.out for row in rows)


def test_json_tells_the_numbers_and_the_promise(gearshift, bundle, table):
    result = gearshift("verify", table, bundle, "--rounds", 4, "--tolerance", 0.9, "--seed", 1, "--json", "-")
    verdict = json.loads(result.out)
    assert result.code == (0 if verdict["holds"] else 1)
    assert (verdict["tolerance"], verdict["false_alarm"], verdict["rounds"]) == (0.9, 0.01, 4)
    assert {finding["quantity"] for finding in verdict["findings"]} == {"latency_p50_ms"}
    assert verdict["rows"] == verdict["of"] == 2


def test_a_table_of_another_machine_or_bundle_cannot_be_told(gearshift, refused, bundle, table):
    found = read(table)
    write(msgspec.structs.replace(found, host=msgspec.structs.replace(found.host, cpu="other")), table)
    assert "measured on another machine" in refused("verify", table, bundle)
    write(msgspec.structs.replace(found, bundle_key="f" * 16), table)
    assert "not of 'toy'" in refused("verify", table, bundle)
    assert gearshift("verify", table, bundle, "--force", "--rounds", 4).code in (0, 1)


def test_bad_numbers_are_refused(refused, bundle, table):
    assert "tolerance" in refused("verify", table, bundle, "--tolerance", "1.5")


def test_a_missing_table_says_how_to_make_one(refused, bundle):
    assert "gearshift calibrate" in refused("verify", "none.json", bundle)
