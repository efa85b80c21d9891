"""The loader: one job at a time, wanted ones first, at a lower priority once it has stepped back."""

import os
import sys
import threading

import pytest

from agent.loader import NICER, USEFUL, WANTED, Loader


@pytest.fixture
def loader():
    made = Loader()
    yield made
    made.close()


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_jobs_that_somebody_waits_for_come_first_and_a_job_can_become_one(loader):
    gate, done = threading.Event(), []
    loader.submit(lambda: gate.wait(10))
    jobs = {
        name: loader.submit(lambda name=name: done.append(name), urgency=urgency)
        for name, urgency in (("a", USEFUL), ("b", USEFUL), ("c", WANTED), ("d", USEFUL))
    }
    loader.hurry(jobs["d"])
    gate.set()
    for job in jobs.values():
        job.result(10)
    assert done == ["c", "d", "a", "b"]


def test_callbacks_run_before_the_next_job(loader):
    gate, order = threading.Event(), []
    loader.submit(lambda: gate.wait(10))
    loader.submit(lambda: order.append("first")).add_done_callback(lambda done: order.append("told"))
    last = loader.submit(lambda: order.append("second"))
    gate.set()
    last.result(10)
    assert order == ["first", "told", "second"]


def test_a_job_that_fails_tells_who_waits_and_no_one_else(loader):
    def fail():
        raise ValueError("no")

    failed, fine = loader.submit(fail), loader.submit(lambda: 1)
    with pytest.raises(ValueError, match="no"):
        failed.result(10)
    assert fine.result(10) == 1


def test_closing_ends_the_job_under_way_and_cancels_the_rest():
    loader, gate, inside = Loader(), threading.Event(), threading.Event()

    def work():
        inside.set()
        return gate.wait(10)

    first, second = loader.submit(work), loader.submit(lambda: 1)
    assert inside.wait(10)
    closer = threading.Thread(target=loader.close)
    closer.start()
    gate.set()
    closer.join(10)
    assert first.result(0) is True and second.cancelled()
    with pytest.raises(RuntimeError):
        loader.submit(lambda: 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority per thread")
def test_it_steps_back_alone_and_only_when_told(loader):
    mine = priority()
    assert loader.submit(priority).result(10) == mine
    loader.step_back()
    assert loader.submit(priority).result(10) == min(19, mine + NICER)
    assert loader.submit(priority).result(10) == min(19, mine + NICER)
    assert priority() == mine
