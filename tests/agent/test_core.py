"""Answers, splitting, switching under load, the queue and holds."""

import threading
import time

import numpy as np
import pytest

from agent import Busy
from policies.base import Goals, SlackStep
from subnets.errors import EngineError, InputError


def test_an_answer_comes_from_the_operating_point_the_policy_chose(make_agent, images, helpers):
    answer = make_agent().infer(images[:1])
    assert (answer.subnet, answer.point) == ("s100", helpers.point("s100"))
    assert answer.reason == "the script says s100@fake:f32:b1"
    np.testing.assert_array_equal(answer.logits, helpers.expected("s100", images[:1]))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_number_of_images_is_answered_whatever_the_engines_batch_sizes(make_agent, images, helpers, count):
    np.testing.assert_array_equal(make_agent().infer(images[:count]).logits, helpers.expected("s100", images[:count]))


def test_policies_see_all_batch_sizes_and_large_requests_use_them(make_agent, images, backend):
    agent = make_agent()
    assert {row.batch_size for row in agent.table.rows} == {1, 4}
    backend.sizes.clear()
    agent.infer(images[:5])
    assert sorted(backend.sizes) == [1, 4]


def test_padding_is_cut_off_again(make_agent, bundle, images, helpers, backend):
    agent = make_agent(
        table=helpers.make_table(bundle, batch_sizes=(4,)), policy=helpers.Scripted(helpers.point("s50", 4))
    )
    backend.sizes.clear()
    answer = agent.infer(images)
    assert backend.sizes == [4, 4]
    np.testing.assert_array_equal(answer.logits, helpers.expected("s50", images))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((1, 1, 4, 5), np.float32), "shape"),
        (np.zeros((0, 1, 4, 4), np.float32), "at least 1"),
        (np.zeros((1, 1, 4, 4), np.float64), "float32"),
        (np.zeros((4, 4), np.float32), "float32"),
        ([[1.0]], "list"),
        (np.full((1, 1, 4, 4), np.nan, np.float32), "finite"),
    ],
)
def test_a_wrong_batch_is_refused_and_blamed_on_nobody_else(make_agent, batch, words):
    agent = make_agent()
    with pytest.raises(InputError, match=words):
        agent.infer(batch)
    assert agent.status().counters.failed == agent.status().counters.engine_failures == 0


def test_thousands_of_switches_under_load_lose_and_mix_nothing(make_agent, policy, images, helpers, backend):
    agent = make_agent(queue_limit=64)
    for name in helpers.LADDER:
        agent.infer(images[:1], subnet=name)  # all resident, so that every tick can switch at once
    policy.point = helpers.point("s75")
    agent.tick()  # the first switch below, to s25, is then one
    before = agent.status().counters.switches
    stop, wrong, answered = threading.Event(), [], []

    def client(seed: int) -> None:
        random = np.random.Generator(np.random.PCG64(seed))
        while not stop.is_set():
            batch = random.uniform(0.5, 1.5, (int(random.integers(1, 7)), 1, 4, 4)).astype(np.float32)
            use = agent.infer if seed % 2 else lambda b: agent.submit(b).result(10)
            answer = use(batch)
            answered.append(answer.subnet)
            if not np.array_equal(answer.logits, helpers.expected(answer.subnet, batch)):
                wrong.append(answer)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    switches = 0
    while switches < 3000 or len(set(answered)) < 4:
        policy.point = helpers.point(helpers.LADDER[switches % 4])
        agent.tick()
        switches += 1
    stop.set()
    for thread in threads:
        thread.join()
    counters = agent.status().counters
    assert not wrong
    assert counters.switches - before == switches
    assert counters.requests == len(answered) + 4
    assert counters.failed == counters.engine_failures == backend.reentered == backend.asked_closed == 0


def test_engines_evicted_under_load_are_never_asked_after_closing(make_agent, policy, images, helpers, backend, bundle):
    backend.memory = dict.fromkeys(helpers.LADDER, 100)
    agent = make_agent(memory_budget_bytes=250, table=helpers.make_table(bundle, memory_bytes=100))
    stop, wrong, count = threading.Event(), [], [0, 0, 0]

    def client(slot: int) -> None:
        while not stop.is_set():
            answer = agent.infer(images[:2])
            count[slot] += 1
            if not np.array_equal(answer.logits, helpers.expected(answer.subnet, images[:2])):
                wrong.append(answer)

    threads = [threading.Thread(target=client, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for step in range(300):
        policy.point = helpers.point(helpers.LADDER[(step * 3) % 4])
        agent.tick()
        assert sum(engine.memory_bytes for engine in agent.status().engines if engine.resident) <= 250
        time.sleep(0.001)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and backend.asked_closed == 0 and agent.status().counters.failed == 0
    assert min(count) > 0 and len(backend.closed) > 10


def test_a_switch_waits_for_loading_while_the_old_engine_answers(make_agent, policy, images, helpers, backend, bundle):
    backend.memory = dict.fromkeys(helpers.LADDER, 100)
    agent = make_agent(memory_budget_bytes=100 * 2, table=helpers.make_table(bundle, memory_bytes=100))
    backend.loading.clear()
    policy.point = helpers.point("s50")
    told = agent.tick()
    assert agent.infer(images).subnet == "s100"
    assert told.applied == helpers.point("s100") and "being loaded" in told.applied_why
    switched = threading.Event()
    agent.on_event(lambda event: switched.set() if event.name == "switch" else None)
    backend.loading.set()
    assert switched.wait(10)
    assert agent.infer(images).subnet == "s50"


def test_a_full_queue_refuses_and_the_waiting_are_answered_in_order(make_agent, images, helpers, backend):
    agent = make_agent(queue_limit=3)
    backend.blocking = threading.Event()
    order: list[int] = []
    futures = []
    for number in range(4):
        future = agent.submit(images[:1])
        future.add_done_callback(lambda done, number=number: order.append(number))
        futures.append(future)
    assert backend.entered.wait(10)
    with pytest.raises(Busy, match="3 requests wait"):
        agent.infer(images[:1])
    with pytest.raises(Busy):
        agent.submit(images[:1])
    assert agent.status().queue_depth == 3
    backend.blocking.set()
    for future in futures:
        future.result(10)
    assert order == [0, 1, 2, 3]
    assert agent.status().counters.refused == 2
    assert agent.infer(images[:1]).subnet == "s100"


def test_a_cancelled_request_costs_no_inference(make_agent, images, backend):
    agent = make_agent()
    backend.blocking = threading.Event()
    first = agent.submit(images[:1])
    assert backend.entered.wait(10)
    second = agent.submit(images[:1])
    assert second.cancel()
    backend.sizes.clear()
    backend.blocking.set()
    first.result(10)
    agent.infer(images[:1])
    assert len(backend.sizes) == 1


def test_closing_answers_those_who_wait_and_refuses_newcomers(make_agent, images, backend, helpers):
    agent = make_agent()
    backend.blocking = threading.Event()
    waiting = [agent.submit(images[:1]) for _ in range(3)]
    assert backend.entered.wait(10)
    closer = threading.Thread(target=agent.close)
    closer.start()
    while agent.status().state != "closing":
        time.sleep(0.001)
    with pytest.raises(Busy, match="closing"):
        agent.infer(images[:1])
    backend.blocking.set()
    for future in waiting:
        np.testing.assert_array_equal(future.result(10).logits, helpers.expected("s100", images[:1]))
    closer.join(10)
    assert sorted(backend.closed) == sorted(backend.loaded)
    assert agent.status().state == "closed"
    agent.close()


def test_a_pinned_subnet_answers_whatever_is_current(make_agent, images, helpers):
    agent = make_agent()
    for name in helpers.LADDER:
        assert agent.infer(images, subnet=name).subnet == name
        answer = agent.submit(images, subnet=name).result(10)
        np.testing.assert_array_equal(answer.logits, helpers.expected(name, images))
    assert agent.infer(images).subnet == "s100"
    with pytest.raises(InputError, match="s25, s50, s75, s100"):
        agent.infer(images, subnet="s60")


def test_pinned_subnets_that_push_each_other_out_of_memory_are_all_answered(
    make_agent, images, helpers, backend, bundle
):
    backend.memory = dict.fromkeys(helpers.LADDER, 100)
    agent = make_agent(memory_budget_bytes=200, table=helpers.make_table(bundle, memory_bytes=100))
    wrong: list = []

    def client(name: str) -> None:
        for _ in range(30):
            answer = agent.infer(images, subnet=name)
            if answer.subnet != name or not np.array_equal(answer.logits, helpers.expected(name, images)):
                wrong.append(answer)

    threads = [threading.Thread(target=client, args=(name,)) for name in ("s25", "s50", "s75")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = agent.status().counters
    assert not wrong and counters.requests == 90
    assert counters.failed == counters.engine_failures == backend.asked_closed == 0


def test_a_hold_overrides_the_policy_until_it_expires(make_agent, images, helpers, clock):
    agent = make_agent(clock=clock)
    agent.infer(images, subnet="s25")
    hold = agent.hold("s25", 60, "demonstration")
    assert (hold.until_s, agent.infer(images).subnet) == (1060.0, "s25")
    clock.now_s = 1059.0
    told = agent.tick()
    assert (told.decided, told.applied) == (helpers.point("s100"), helpers.point("s25"))
    assert told.applied_why == "hold: demonstration"
    assert agent.status().hold.remaining_s == pytest.approx(1.0)
    assert agent.status().bound == "hold"
    clock.now_s = 1060.0
    agent.tick()
    assert agent.infer(images).subnet == "s100"
    assert agent.status().hold is None


def test_a_hold_can_be_released_and_a_senseless_one_is_refused(make_agent, images):
    agent = make_agent()
    agent.infer(images, subnet="s50")
    agent.hold("s50", 60, "test")
    assert agent.infer(images).subnet == "s50"
    agent.release()
    agent.release()
    assert agent.infer(images).subnet == "s100"
    for subnet, for_s in (("s60", 10.0), ("s50", 0.0), ("s50", float("inf")), ("s50", float("nan"))):
        with pytest.raises(InputError):
            agent.hold(subnet, for_s, "wrong")


def test_a_late_request_is_answered_by_the_slack_plan_at_or_below_the_ceiling(
    make_agent, images, helpers, policy, clock
):
    policy.slack_plan = (SlackStep(0.0, helpers.point("s25")), SlackStep(50.0, helpers.point("s100")))
    agent = make_agent(clock=clock)
    agent.infer(images, subnet="s25")
    assert agent.infer(images, deadline_ms=60).subnet == "s100"
    late = agent.infer(images, deadline_ms=40)
    assert late.subnet == "s25" and "40.0 ms left" in late.reason
    assert [agent.infer(images[:1], deadline_ms=ms).subnet for ms in (60, 40)] == ["s100", "s25"]
    assert agent.infer(images).subnet == "s100"


def test_the_agents_own_figures_reach_the_policy(make_agent, images, policy, clock, helpers):
    agent = make_agent(clock=clock, goals=Goals(deadline_ms=50.0), sensors=helpers.Readings({"battery_charge": 0.5}))
    for _ in range(10):
        agent.infer(images[:2])
    clock.now_s += 2.0
    agent.tick()
    conditions, current = policy.seen[-1]
    assert current == helpers.point("s100")
    assert conditions.arrival_rate_hz == pytest.approx(10.0)  # 20 images in 2 s
    assert (conditions.miss_rate, conditions.queue_depth, conditions.battery_charge) == (0.0, 0, 0.5)
    assert conditions.temperature_c is None


def test_a_dry_run_tells_decisions_without_acting_on_them(make_agent, policy, images, helpers):
    agent = make_agent(dry_run=True)
    seen: list[str] = []
    agent.on_event(lambda event: seen.append(event.detail["to"]) if event.name == "would_switch" else None)
    policy.point = helpers.point("s75")
    agent.tick()
    policy.point = helpers.point("s50")
    told = agent.tick()
    assert agent.infer(images).subnet == "s25"  # the cheapest that keeps the (absent) goals
    assert (told.decided, told.applied) == (helpers.point("s50"), helpers.point("s25"))
    assert policy.seen[-1][1] == helpers.point("s75")
    assert "dry run" in told.applied_why
    assert seen == [helpers.point("s75"), helpers.point("s50")]


def test_equal_decisions_in_a_row_are_explained_once(make_agent, policy, helpers):
    agent = make_agent()
    for _ in range(3):
        agent.tick()
    policy.point = helpers.point("s75")
    agent.infer(np.ones((1, 1, 4, 4), np.float32), subnet="s75")
    agent.tick()
    first, second = agent.explain(5)[-2:]
    assert (first.decided, second.decided) == (helpers.point("s100"), helpers.point("s75"))
    assert agent.explain(1) == [second] and agent.explain(0) == []
    assert first.ticks == 3  # the very first decision was made before any engine answered


def test_reconfiguring_takes_up_another_policy_and_other_goals(make_agent, images, helpers):
    agent = make_agent()
    agent.infer(images, subnet="s50")
    agent.reconfigure(policy=helpers.Scripted(helpers.point("s50")), goals=Goals(deadline_ms=5.0))
    agent.tick()
    assert agent.infer(images).subnet == "s50"
    assert agent.status().goals.deadline_ms == 5.0
    with pytest.raises(InputError):
        agent.reconfigure(goals=Goals(deadline_ms=-1.0))
    assert agent.status().goals.deadline_ms == 5.0


def test_a_table_without_usable_rows_is_refused(make_agent, backend):
    with pytest.raises(InputError, match="rows of fake"):
        make_agent(backends={"other": backend})


def test_an_agent_that_was_not_started_says_so(make_agent, images):
    with pytest.raises(EngineError, match="not been started"):
        make_agent(start=False).infer(images)


def test_the_control_loop_ticks_by_itself(make_agent, policy):
    ticks, enough = [], threading.Event()

    def count() -> None:
        ticks.append(None)
        if len(ticks) == 3:
            enough.set()

    agent = make_agent(control_period_s=0.01)
    agent.on_tick(count)
    assert enough.wait(10)
    assert policy.decided >= 4
