"""The way of a request in a running agent: order, batches, streams, wishes, admission, touching, faults in between."""

import threading
import time

import msgspec
import numpy as np
import pytest

from agent import Busy, Journal
from policies.base import Goals, SlackStep
from subnets.errors import EngineError, Expired, InputError, Superseded


class Held:
    """An agent whose engine is kept busy by a first request until :meth:`let_go`."""

    def __init__(self, agent, backend, images):
        self.agent, self.backend = agent, backend
        self.gate = backend.blocking = threading.Event()
        backend.entered.clear()
        self.first = agent.submit(images[:1])
        assert backend.entered.wait(10)
        backend.sizes.clear()

    def let_go(self):
        self.gate.set()
        return self.first.result(10)


@pytest.fixture
def hold(backend, images):
    held = []

    def begin(agent):
        held.append(Held(agent, backend, images))
        return held[-1]

    yield begin
    for one in held:
        one.gate.set()


def all_resident(agent, images, helpers):
    for name in helpers.LADDER:
        agent.infer(images[:1], subnet=name)


def waiting_thread(work):
    """Runs ``work`` in a thread; what it returned or raised is in ``outcome``."""
    outcome = []

    def run():
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def until(condition):
    for _ in range(20_000):
        if condition():
            return
        time.sleep(0.0005)
    raise AssertionError("it never came to that")


def test_the_earliest_deadline_is_answered_first_however_it_was_asked(make_agent, images, hold):
    agent = make_agent()
    held = hold(agent)
    order, futures = [], []
    for name, deadline_ms in (("none", None), ("late", 900.0), ("early", 100.0), ("also none", None), ("soon", 500.0)):
        future = agent.submit(images[:1], deadline_ms=deadline_ms)
        future.add_done_callback(lambda done, name=name: order.append(name))
        futures.append(future)
    thread, outcome = waiting_thread(lambda: (agent.infer(images[:1], deadline_ms=50.0), order.append("thread")))
    until(lambda: agent.status().queue_depth == 6)
    held.let_go()
    for future in futures:
        future.result(10)
    thread.join(10)
    assert len(outcome) == 1
    assert [name for name in order if name != "thread"] == ["early", "soon", "late", "none", "also none"]
    waits = {future.result().queue_ms for future in futures}
    assert outcome[0][0].queue_ms < min(waits)  # the shortest deadline, although it came last


def test_those_who_wait_go_together_and_each_gets_its_own_logits(make_agent, images, helpers, backend, hold):
    agent = make_agent(policy=helpers.Scripted(helpers.point("s50", 4)))
    held = hold(agent)
    futures = [agent.submit(image[None]) for image in images]
    assert held.let_go().point == helpers.point("s50")
    answers = [future.result(10) for future in futures]
    assert backend.sizes == [4, 1]
    assert [answer.point for answer in answers] == [helpers.point("s50", 4)] * 4 + [helpers.point("s50")]
    for answer, image in zip(answers, images, strict=True):
        np.testing.assert_array_equal(answer.logits, helpers.expected("s50", image[None]))
    assert len({answer.infer_ms for answer in answers[:4]}) == 1
    assert agent.status().counters.requests == 6


def test_what_a_batch_was_filled_up_with_is_blank_whatever_lay_there_before(make_agent, images, helpers, backend, hold):
    agent = make_agent(policy=helpers.Scripted(helpers.point("s50", 4)))
    held = hold(agent)
    bad = [agent.submit(batch) for batch in (images[:1], images[1:2], images[2:3], np.full_like(images[:1], np.nan))]
    held.let_go()
    with pytest.raises(InputError):
        bad[3].result(10)
    held = hold(agent)
    futures = [agent.submit(images[place : place + 1]) for place in range(3)]
    held.let_go()
    for place, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(10).logits, helpers.expected("s50", images[place : place + 1]))
    assert backend.sizes == [4]  # none of it had to be asked for alone


def test_energy_is_the_whole_requests_share_of_its_batch(make_agent, images, helpers, bundle, backend, hold):
    table = helpers.make_table(bundle)
    rows = [msgspec.structs.replace(row, energy_j=0.3 if row.batch_size == 1 else 0.1) for row in table.rows]
    agent = make_agent(
        table=msgspec.structs.replace(table, rows=tuple(rows)), policy=helpers.Scripted(helpers.point("s50", 4))
    )
    assert agent.infer(images[:1]).energy_j == pytest.approx(0.3)
    assert agent.infer(images[:4]).energy_j == pytest.approx(0.4)
    assert agent.infer(images[:2]).energy_j == pytest.approx(0.4)  # two of the four are blank
    assert agent.infer(images[:5]).energy_j == pytest.approx(0.7)  # 4 and 1
    held = hold(agent)
    futures = [agent.submit(images[:2]), agent.submit(images[:1])]
    held.let_go()
    joules = [future.result(10).energy_j for future in futures]
    assert joules == pytest.approx([0.4 * 2 / 3, 0.4 / 3])


def test_one_bad_image_spoils_no_batch(make_agent, images, helpers, backend, hold):
    agent = make_agent(policy=helpers.Scripted(helpers.point("s50", 4)))
    held = hold(agent)
    bad = np.full_like(images[:1], np.nan)
    futures = [agent.submit(batch) for batch in (images[:1], bad, images[1:2])]
    held.let_go()
    with pytest.raises(InputError, match="finite"):
        futures[1].result(10)
    for future, image in ((futures[0], images[:1]), (futures[2], images[1:2])):
        np.testing.assert_array_equal(future.result(10).logits, helpers.expected("s50", image))
    counters = agent.status().counters
    assert (counters.engine_failures, counters.failed) == (0, 0)


def test_when_an_engine_fails_on_a_batch_each_of_its_requests_is_rescued(make_agent, images, helpers, backend, hold):
    agent = make_agent(policy=helpers.Scripted(helpers.point("s50", 4)))
    all_resident(agent, images, helpers)
    held = hold(agent)
    futures = [agent.submit(images[place : place + 1]) for place in range(3)]
    backend.broken.add("s50")
    held.let_go()
    for place, future in enumerate(futures):
        answer = future.result(10)
        assert answer.subnet == "s25"
        np.testing.assert_array_equal(answer.logits, helpers.expected("s25", images[place : place + 1]))
    assert agent.status().counters.failed == 0


def test_a_minimum_accuracy_holds_for_the_rescue_too(make_agent, images, helpers, backend):
    agent = make_agent(policy=helpers.Scripted(helpers.point("s50")))
    all_resident(agent, images, helpers)
    backend.broken.add("s50")
    assert agent.infer(images[:1], min_accuracy=0.85).subnet == "s75"


def test_a_newer_frame_takes_the_place_of_the_one_that_waits(make_agent, images, helpers, hold):
    agent = make_agent()
    held = hold(agent)
    old = agent.submit(images[:1], stream="front")
    other = agent.submit(images[:1], stream="rear")
    thread, outcome = waiting_thread(lambda: agent.infer(images[1:2], stream="front"))
    with pytest.raises(Superseded, match="stream 'front'"):
        old.result(10)
    new = agent.submit(images[2:3], stream="front")
    thread.join(10)
    assert isinstance(outcome[0], Superseded) and isinstance(outcome[0], Busy)
    assert agent.status().queue_depth == 2
    held.let_go()
    np.testing.assert_array_equal(new.result(10).logits, helpers.expected("s100", images[2:3]))
    other.result(10)
    counters = agent.status().counters
    assert (counters.superseded, counters.requests, counters.refused) == (2, 3, 0)


def test_a_newer_frame_needs_no_room_in_a_full_queue(make_agent, images, hold):
    agent = make_agent(queue_limit=1)
    held = hold(agent)
    agent.submit(images[:1], stream="front")
    with pytest.raises(Busy):
        agent.submit(images[:1], stream="rear")
    newest = agent.submit(images[:1], stream="front")
    held.let_go()
    newest.result(10)


def test_a_minimum_accuracy_is_kept_whatever_is_current(make_agent, images, helpers, policy):
    agent = make_agent(policy=helpers.Scripted(helpers.point("s25")))
    for floor, subnet in ((0.0, "s25"), (0.80, "s25"), (0.81, "s50"), (0.90, "s75"), (0.95, "s100")):
        answer = agent.infer(images, min_accuracy=floor)
        assert answer.accuracy >= floor
        assert agent.submit(images, min_accuracy=floor).result(10).subnet == answer.subnet == subnet
        np.testing.assert_array_equal(answer.logits, helpers.expected(subnet, images))
    assert agent.infer(images).subnet == "s25"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"min_accuracy": 0.96}, "96 %, and the best subnet has 95.0 %"),
        ({"min_accuracy": 0.9, "subnet": "s50"}, "subnet 's50' has 85.0 %"),
        ({"min_accuracy": 90.0}, "share from 0 to 1"),
        ({"min_accuracy": float("nan")}, "share from 0 to 1"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_refused_at_once(make_agent, images, wish, words):
    agent = make_agent()
    for ask in (agent.infer, agent.submit):
        with pytest.raises(InputError, match=words):
            ask(images, **wish)


def test_wishes_are_kept_while_engines_come_and_go(make_agent, images, helpers, backend, bundle, policy):
    """Memory for two engines, one of them current: pinned and accurate ones push each other out all the time."""
    backend.memory = dict.fromkeys(helpers.LADDER, 100)
    agent = make_agent(memory_budget_bytes=200, table=helpers.make_table(bundle, memory_bytes=100))
    wrong, answered = [], []
    wishes = [{"subnet": "s25"}, {"min_accuracy": 0.88}, {"subnet": "s50"}, {"min_accuracy": 0.84}, {}]

    def client(seed):
        random = np.random.Generator(np.random.PCG64(seed))
        for _ in range(40):
            wish = wishes[int(random.integers(len(wishes)))]
            batch = random.uniform(0.5, 1.5, (int(random.integers(1, 4)), 1, 4, 4)).astype(np.float32)
            answer = agent.submit(batch, **wish).result(20) if seed % 2 else agent.infer(batch, **wish)
            answered.append(answer)
            if (
                answer.subnet != wish.get("subnet", answer.subnet)
                or answer.accuracy < wish.get("min_accuracy", 0.0)
                or not np.array_equal(answer.logits, helpers.expected(answer.subnet, batch))
            ):
                wrong.append((wish, answer))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    step = 0
    while any(thread.is_alive() for thread in threads):
        policy.point = helpers.point(helpers.LADDER[(step * 3) % 4])
        agent.tick()
        step += 1
        time.sleep(0.002)
    for thread in threads:
        thread.join()
    counters = agent.status().counters
    assert not wrong and len(answered) == counters.requests == 160
    assert counters.failed == counters.refused == backend.asked_closed == backend.reentered == 0
    assert len(backend.closed) > 10


def test_hopeless_requests_are_refused_only_where_that_is_asked_for(make_agent, images, helpers, backend, hold, clock):
    agent = make_agent(clock=clock, admission=True)
    with pytest.raises(Busy, match=r"3.0 ms are left, the fastest engine that may answer takes 4.0 ms after 0.0 ms"):
        agent.infer(images[:1], deadline_ms=3.0)
    assert agent.infer(images[:1], deadline_ms=4.0).subnet == "s100"
    held = hold(agent)  # 4 ms of work that has just begun
    with pytest.raises(Busy, match=r"after 4.0 ms for others"):
        agent.submit(images[:1], deadline_ms=7.0)
    waiting = agent.submit(images[:1], deadline_ms=8.0)
    # Those who wait count with their share of a full batch, 3.2 ms, if they are due earlier.
    with pytest.raises(Busy, match=r"after 7.2 ms for others"):
        agent.submit(images[:1], deadline_ms=11.0)
    early = agent.submit(images[:1], subnet="s25", deadline_ms=7.5)
    free = agent.submit(images[:1])
    held.let_go()
    for future in (waiting, early, free):
        future.result(10)
    assert agent.status().counters.refused == 3
    assert make_agent(clock=clock).infer(images[:1], deadline_ms=0.1).subnet == "s100"


def test_admission_counts_with_what_the_slack_plan_may_use_and_with_the_slowdown(
    make_agent, images, helpers, policy, clock
):
    policy.slack_plan = (SlackStep(0.0, helpers.point("s25")), SlackStep(50.0, helpers.point("s100")))
    agent = make_agent(clock=clock, admission=True)
    all_resident(agent, images, helpers)
    assert agent.infer(images[:1], deadline_ms=1.0).subnet == "s25"
    with pytest.raises(Busy, match=r"takes 4\.0 ms"):
        agent.infer(images[:1], deadline_ms=3.0, min_accuracy=0.95)
    agent._figures.slowdown = lambda now_s, point: 3.0
    with pytest.raises(Busy, match=r"takes 3\.0 ms"):
        agent.infer(images[:1], deadline_ms=2.0)


def test_late_requests_are_given_up_only_where_that_is_asked_for(make_agent, images, hold, clock, tmp_path):
    journal = Journal(tmp_path, clock=clock)
    agent = make_agent(clock=clock, drop_late=True, journal=journal)
    held = hold(agent)
    late, fine = agent.submit(images[:1], deadline_ms=5.0), agent.submit(images[:1], deadline_ms=50.0)
    clock.now_s += 0.01
    held.let_go()
    assert fine.result(10).queue_ms == pytest.approx(10.0)
    with pytest.raises(Expired, match="5 ms passed") as told:
        late.result(10)
    assert isinstance(told.value, Busy)
    assert agent.status().counters.expired == 1
    agent.tick()
    assert agent.status().conditions.miss_rate > 0
    agent.close()
    lines = [msgspec.json.decode(line) for line in journal.path.read_bytes().splitlines()]
    assert [line["ok"] for line in lines if line["kind"] == "batch"] == [True, False, True]


def test_policies_see_how_many_images_wait(make_agent, images, policy, hold):
    agent = make_agent()
    held = hold(agent)
    futures = [agent.submit(images[:3]), agent.submit(images[:2])]
    agent.tick()
    assert policy.seen[-1][0].queue_depth == 5
    assert agent.status().queue_depth == 2
    held.let_go()
    for future in futures:
        future.result(10)


def test_an_engine_is_touched_after_a_switch_to_it_and_never_otherwise(
    make_agent, images, helpers, policy, backend, clock
):
    agent = make_agent(clock=clock)
    all_resident(agent, images, helpers)
    clock.now_s += 60.0  # hardly any load since
    backend.blanks.clear()
    agent.tick()
    agent.infer(images)
    assert backend.blanks == []
    for name in ("s50", "s25"):
        policy.point = helpers.point(name)
        agent.tick()
        until(lambda: backend.blanks)
        assert backend.blanks == [name]
        backend.blanks.clear()
        assert agent.infer(images).subnet == name


def test_an_engine_is_not_touched_while_it_is_busy_nor_when_that_is_switched_off(
    make_agent, images, helpers, policy, backend, hold, clock
):
    agent = make_agent(clock=clock)
    all_resident(agent, images, helpers)
    held = hold(agent)
    backend.blanks.clear()
    policy.point = helpers.point("s50")
    agent.tick()
    held.let_go()
    backend.blocking = None
    for _ in range(200):
        agent.infer(images[:1])
    clock.now_s += 1.0
    agent.tick()  # 200 images a second of 2 ms each
    policy.point = helpers.point("s75")
    agent.tick()
    assert agent.infer(images).subnet == "s75"
    assert backend.blanks == []
    quiet = make_agent(touch=False)
    all_resident(quiet, images, helpers)
    backend.blanks.clear()
    policy.point = helpers.point("s25")
    quiet.tick()
    assert quiet.infer(images).subnet == "s25"
    assert backend.blanks == []


def test_a_caller_who_is_interrupted_leaves_the_line(make_agent, images, hold, monkeypatch):
    agent = make_agent()
    held = hold(agent)

    class Interrupted:
        def __init__(self, real=threading.Lock):
            self.lock, self.tries = real(), 0

        def acquire(self):
            self.tries += 1
            if self.tries == 2:
                raise KeyboardInterrupt
            return self.lock.acquire()

        def release(self):
            self.lock.release()

    monkeypatch.setattr("agent.answering.threading.Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.infer(images[:1])
    monkeypatch.undo()
    assert agent.status().queue_depth == 0
    held.let_go()
    assert agent.infer(images[:1]).subnet == "s100"


def test_closing_gives_those_who_wait_too_long_an_error(make_agent, images, hold):
    agent = make_agent()
    held = hold(agent)
    waiting = agent.submit(images[:1])
    thread, outcome = waiting_thread(lambda: agent.infer(images[:1]))
    until(lambda: agent.status().queue_depth == 2)
    closer = threading.Thread(target=lambda: agent.close(drain_s=0.01))
    closer.start()
    with pytest.raises(Busy, match="closed before"):
        waiting.result(10)
    thread.join(10)
    assert isinstance(outcome[0], Busy)
    held.let_go()
    closer.join(20)
    assert agent.status().state == "closed"


def test_an_engine_that_a_request_asks_for_is_loaded_while_others_are_answered(
    make_agent, images, helpers, backend, bundle
):
    backend.memory = dict.fromkeys(helpers.LADDER, 100)
    agent = make_agent(memory_budget_bytes=200, table=helpers.make_table(bundle, memory_bytes=100))
    until(lambda: sum(engine.resident for engine in agent.status().engines) == 2)
    backend.loading.clear()
    pinned = agent.submit(images[:1], subnet="s25")
    for _ in range(20):
        assert agent.infer(images[:1]).subnet == "s100"
    assert not pinned.done() and agent.status().queue_depth == 1
    backend.loading.set()
    assert pinned.result(10).subnet == "s25"


def test_an_engine_that_cannot_be_loaded_fails_only_who_asks_for_it(make_agent, images, helpers, backend):
    backend.unloadable.add("s50")
    agent = make_agent()
    for ask in (lambda: agent.infer(images, subnet="s50"), lambda: agent.submit(images, subnet="s50").result(10)):
        with pytest.raises(EngineError, match="cannot be loaded"):
            ask()
    assert agent.infer(images).subnet == "s100"


def test_accounts_are_complete_whenever_somebody_looks(make_agent, images, helpers, tmp_path):
    journal = Journal(tmp_path)
    agent = make_agent(journal=journal, goals=Goals(deadline_ms=1e-6))
    for count in range(1, 150):
        agent.infer(images[:1])
        if count % 7 == 0:
            assert agent.status().counters.requests == agent.status().counters.late == count
            assert agent.tallies.by_point()[helpers.point("s100")].requests == count
    agent.close()
    lines = [msgspec.json.decode(line) for line in journal.path.read_bytes().splitlines()]
    arrived = [line["arrived_ns"] for line in lines if line["kind"] == "batch"]
    assert len(arrived) == 149 and arrived == sorted(arrived)
