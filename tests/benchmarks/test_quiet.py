"""Rounds that others disturbed are measured again while patience lasts; never because of what they measured."""

import importlib
import sys

import pytest


@pytest.fixture
def quiet(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.delitem(sys.modules, "quiet", raising=False)
    module = importlib.import_module("quiet")
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


@pytest.fixture
def others(quiet, monkeypatch):
    """Shares that others use while each round is measured; between rounds it is quiet."""
    shares = []

    class Others:
        def __init__(self, *companions):
            pass

        def share(self):
            return shares.pop(0) if quiet.measuring else 0.0

    quiet.measuring = False
    monkeypatch.setattr(quiet, "_Others", Others)
    return shares


def measured(quiet, patience_s, rounds):
    asked = []

    def measure(number):
        quiet.measuring = True
        asked.append(number)
        return len(asked)

    watch = quiet.Quiet(patience_s)
    wait = watch._wait
    watch._wait = lambda: (setattr(quiet, "measuring", False), wait())
    return watch.rounds(rounds, measure), asked, watch.told()


def test_a_disturbed_round_is_measured_again_and_counted(quiet, others):
    others += [0.0, 0.9, 0.04, 0.0]
    results, asked, told = measured(quiet, 1e9, 3)
    assert (results, asked) == ([1, 3, 4], [0, 1, 1, 2])
    assert (told["rounds_undisturbed"], told["rounds_repeated"], told["rounds_disturbed"]) == (3, 1, 0)


def test_without_patience_rounds_count_as_they_come_and_it_is_told(quiet, others):
    others += [0.9, 0.0, 0.9]
    results, asked, told = measured(quiet, 0.0, 3)
    assert asked == [0, 1, 2] and results == [1, 2, 3]
    assert (told["rounds_undisturbed"], told["rounds_repeated"], told["rounds_disturbed"]) == (1, 0, 2)


def test_its_own_work_and_that_of_its_children_is_not_others(quiet):
    import subprocess

    def work():
        return sum(k * k for k in range(2_000_000))

    before = quiet._own_s()
    work()
    subprocess.run([sys.executable, "-c", "sum(k * k for k in range(2_000_000))"], check=True)
    assert quiet._own_s() - before > 0.02
    assert quiet._busy_s() > 0
