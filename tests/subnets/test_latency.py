"""Measured widths: once, kept, looked up, and refused where they are of something else."""

import json
import math

import pytest

from subnets.errors import InputError, MismatchError
from subnets.latency import Lookup

HERE = {"backend": "openvino", "host": "A"}


class Clock:
    """Measures the sum of the widths, and counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, widths):
        self.asked.append(dict(widths))
        return float(sum(widths.values()))


def test_each_choice_of_widths_is_measured_once_and_looked_up_by_the_next_run(tmp_path):
    first = Lookup(clock := Clock(), HERE, tmp_path / "deep" / "w.json")
    assert [first({"a": 8, "b": 4}), first({"b": 4, "a": 8}), first({"a": 4, "b": 8})] == [12.0, 12.0, 12.0]
    assert len(clock.asked) == first.measured == 2
    second = Lookup(again := Clock(), HERE, tmp_path / "deep" / "w.json")
    assert second({"a": 4, "b": 8}) == 12.0 and second({"a": 4, "b": 4}) == 8.0
    assert again.asked == [{"a": 4, "b": 4}] and second.measured == 1


def test_without_a_file_it_remembers_all_the_same():
    lookup = Lookup(clock := Clock(), HERE)
    assert lookup({"a": 1}) == lookup({"a": 1}) == 1.0 and len(clock.asked) == 1


def test_a_stopped_run_keeps_what_it_measured(tmp_path):
    def stops(widths):
        if widths["a"] == 2:
            raise KeyboardInterrupt
        return 1.0

    lookup = Lookup(stops, HERE, tmp_path / "w.json")
    lookup({"a": 1})
    with pytest.raises(KeyboardInterrupt):
        lookup({"a": 2})
    assert Lookup(lambda widths: math.nan, HERE, tmp_path / "w.json")({"a": 1}) == 1.0


@pytest.mark.parametrize("identity", [{"backend": "openvino", "host": "B"}, {"backend": "openvino"}])
def test_measurements_of_another_machine_are_refused(tmp_path, identity):
    Lookup(Clock(), HERE, tmp_path / "w.json")({"a": 1})
    with pytest.raises(MismatchError, match=r"w.json: measured with host 'A', here it is '(B|not named)'"):
        Lookup(Clock(), identity, tmp_path / "w.json")


def test_measurements_of_another_networks_groups_are_refused(tmp_path):
    Lookup(Clock(), HERE, tmp_path / "w.json")({"a": 1})
    with pytest.raises(MismatchError, match="other channel groups"):
        Lookup(Clock(), HERE, tmp_path / "w.json")({"a": 1, "b": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 7}, "schema is 7"),
        ({"ms": {"1": "fast"}}, "not a file of measured widths"),
        ({"ms": {"1": -2.0}}, "widths 1 have -2.0 ms"),
        ({"extra": 1}, "not a file of measured widths"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, message):
    place = tmp_path / "w.json"
    Lookup(Clock(), HERE, place)({"a": 1})
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        Lookup(Clock(), HERE, place)


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_latency_is_refused(ms):
    with pytest.raises(InputError, match="is no latency"):
        Lookup(lambda widths: ms, HERE)({"a": 1})
