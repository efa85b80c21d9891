"""Interrupted at any moment: no finished round is lost, nothing is half written, and nothing is mixed up."""

import errno
import multiprocessing
import os
import signal
import time as real_time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration import ledger as ledgers
from calibration import read, write
from calibration.disturbance import Watch
from calibration.ledger import opened_ledger
from calibration.measure import Settings, calibrate
from subnets.errors import InputError, MismatchError, UnavailableError

SETTINGS = Settings(budget_s=10.0, max_rounds=7, rel_precision=1e-6)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def go(bundle, fakes, tmp_path):
    """Calibrates with a ledger; ``die_at`` is the inference at which the process ends."""

    def run(path, die_at=None, seed=1, **changes):
        time = fakes.Time(jitter=0.05, seed=seed)
        asked = 0

        def count(subnet):
            nonlocal asked
            asked += 1
            if asked == die_at:
                raise Killed

        time.on_infer = count
        arguments = {"settings": SETTINGS, "meters": [fakes.Meter(time)], "threads": 1, **changes}
        with opened_ledger(path, fresh=arguments.pop("fresh", False)) as ledger:
            table = calibrate(
                bundle,
                [fakes.Backend(time, precisions=("f32",))],
                clocks=time.clocks(),
                watch=Watch(tmp_path / "nothing"),
                ledger=ledger,
                **arguments,
            )
        return table, asked

    return run


def _kinds(path):
    return [msgspec.json.decode(line)["kind"] for line in path.read_bytes().splitlines()]


def test_what_is_finished_is_on_disk_at_once_and_in_order(go, tmp_path):
    path = tmp_path / "t.partial"
    table, _ = go(path)
    kinds = _kinds(path)
    assert kinds[:2] == ["begin", "session"]
    assert kinds.count("round") == table.protocol.rounds and kinds.count("idle") == 1
    assert kinds.count("rests") >= 4 and kinds.count("walk") >= 3 and kinds.count("accuracy") == 3
    assert table.protocol.sessions == 1


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_killed_at_any_inference_it_goes_on_and_no_finished_round_is_measured_again(go, tmp_path, share):
    whole = tmp_path / "whole.partial"
    if not whole.exists():
        go(whole)
        (tmp_path / "asked").write_text(str(go(tmp_path / "count.partial")[1]))
    path = tmp_path / "t.partial"
    path.unlink(missing_ok=True)
    with pytest.raises(Killed):
        go(path, die_at=1 + int(share * (int((tmp_path / "asked").read_text()) - 1)))
    before = path.read_bytes()
    table, _ = go(path, seed=2)
    after = path.read_bytes()
    assert after.startswith(before), "a finished line was lost or changed"
    kinds = _kinds(path)
    assert kinds.count("round") == table.protocol.rounds == 7
    assert kinds.count("accuracy") == 3 and kinds.count("idle") == 1
    assert table.protocol.sessions == 2
    orders = [
        [cell[0] for cell in msgspec.json.decode(line)["value"]["cells"]]
        for line in after.splitlines()
        if msgspec.json.decode(line)["kind"] == "round"
    ]
    uninterrupted = [
        [cell[0] for cell in msgspec.json.decode(line)["value"]["cells"]]
        for line in whole.read_bytes().splitlines()
        if msgspec.json.decode(line)["kind"] == "round"
    ]
    assert orders == uninterrupted, "the order of a round depends on the seed and its number alone"


def test_finished_and_killed_before_the_table_was_written_nothing_is_measured_again(go, tmp_path):
    path = tmp_path / "t.partial"
    first, asked = go(path)
    second, again = go(path, seed=9)
    assert again < asked / 20  # engines are loaded and warmed, no cell is visited
    same = [(row.latency_p50_ms, row.energy_j, row.duty, row.round_p50_ms) for row in first.rows]
    assert same == [(row.latency_p50_ms, row.energy_j, row.duty, row.round_p50_ms) for row in second.rows]
    assert second.switches == first.switches


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_line_torn_at_any_byte_costs_that_line_alone(go, tmp_path, share):
    whole = tmp_path / "whole.partial"
    if not whole.exists():
        go(whole)
    content = whole.read_bytes()
    torn = tmp_path / "torn.partial"
    torn.write_bytes(content[: int(share * len(content))])
    lines = torn.read_bytes().count(b"\n")
    with opened_ledger(torn) as ledger:
        assert len(ledger._lines) == lines
        ledger.append("mark", 1)
    if lines:
        assert _kinds(torn) == [*_kinds(whole)[:lines], "mark"]


def test_it_goes_on_only_with_what_it_was_begun_with(go, tmp_path, digits_bundle):
    path = tmp_path / "t.partial"
    with pytest.raises(Killed):
        go(path, die_at=600)
    before = path.read_bytes()
    other = msgspec.structs.replace(SETTINGS, budget_s=11.0)
    with pytest.raises(MismatchError, match=r"settings.budget_s is 11.0, was 10.0.*start over with --fresh"):
        go(path, settings=other)
    with pytest.raises(MismatchError, match="batch_sizes"):
        go(path, batch_sizes=(2,))
    assert path.read_bytes() == before
    table, _ = go(path, settings=other, fresh=True)
    assert table.protocol.sessions == 1 and table.protocol.budget_s == 11.0


def test_two_at_once_are_refused(tmp_path):
    path = tmp_path / "t.partial"
    with (
        opened_ledger(path) as ledger,
        pytest.raises(InputError, match="another calibration is writing it"),
        opened_ledger(path),
    ):
        pass
    del ledger
    assert not path.exists()  # nothing was begun


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n", "line 1 is damaged"),
        (b'{"kind":"round","value":{}}\n', "no interrupted calibration"),
        (b'{"kind":"begin","value":{}}\n\xff\xfe\n', "line 2 is damaged"),
    ],
)
def test_what_is_no_ledger_is_refused_with_a_way_out(tmp_path, content, message):
    path = tmp_path / "t.partial"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{message}.*--fresh"), opened_ledger(path):
        pass


class TestFullDisk:
    def full(self, *arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def test_a_round_that_does_not_fit_ends_in_one_sentence_and_those_before_stay(self, go, tmp_path, monkeypatch):
        path = tmp_path / "t.partial"
        real, written = os.write, 0

        def write_some(descriptor, content):
            nonlocal written
            if written > 9_000:
                real(descriptor, bytes(content)[:10])  # a disk takes what it can first
                self.full()
            written += len(content)
            return real(descriptor, content)

        monkeypatch.setattr(ledgers.os, "write", write_some)
        with pytest.raises(
            UnavailableError, match=r"t\.partial: no room to write it \(No space left on device\)"
        ) as told:
            go(path)
        assert "\n" not in str(told.value)
        monkeypatch.undo()
        kept = _kinds(path)
        assert path.read_bytes().endswith(b"\n") and "round" in kept
        table, _ = go(path)
        assert _kinds(path)[: len(kept)] == kept and table.protocol.rounds == 7

    def test_a_table_that_does_not_fit_leaves_the_old_one(self, make_table, tmp_path, monkeypatch):
        path = tmp_path / "t.json"
        write(make_table(), path)
        monkeypatch.setattr("subnets.bundle.os.fsync", self.full)
        with pytest.raises(UnavailableError, match="no room to write it"):
            write(make_table(bundle_name="newer"), path)
        assert read(path).bundle_name == "toy" and [p.name for p in tmp_path.iterdir()] == ["t.json"]

    def test_the_kernels_own_full_disk_says_the_same(self):
        if not os.path.exists("/dev/full"):  # noqa: PTH110 -- a device
            pytest.skip("no /dev/full here")
        descriptor = os.open("/dev/full", os.O_WRONLY)
        try:
            with pytest.raises(OSError, match="No space left"):
                ledgers._write_all(descriptor, b"x")
        finally:
            os.close(descriptor)

    def test_other_refusals_are_the_users_to_mend(self, make_table, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be written"):
            write(make_table(), tmp_path / "file" / "t.json")


def _append_for_ever(path):
    with opened_ledger(path) as ledger:
        ledger.begin({})
        for number in range(1_000_000):
            ledger.append("round", {"number": number, "filler": "x" * 5000})


def test_a_real_kill_loses_no_line_that_was_reported_finished(tmp_path):
    path = tmp_path / "t.partial"
    process = multiprocessing.get_context("spawn").Process(target=_append_for_ever, args=(path,))
    process.start()
    deadline = real_time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 100_000) and real_time.monotonic() < deadline:
        real_time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with opened_ledger(path) as ledger:
        numbers = [line.value["number"] for line in ledger._lines[1:]]
    assert numbers == list(range(len(numbers))) and len(numbers) > 10
