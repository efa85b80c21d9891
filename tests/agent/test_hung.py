"""An inference that does not end is given up and the next engine answers; when all hang, a new process must."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest

from agent.hung import HangWatch
from agent.running import UnderWay
from calibration import table as tables
from calibration.host import fingerprint
from subnets.errors import EngineError


@pytest.fixture
def hanging(helpers):
    """A backend whose engines hang while their subnet is in ``hangs``, until ``let_go``."""

    class Engine:
        def __init__(self, inner, backend):
            self.inner, self.backend, self.artifact = inner, backend, inner.artifact

        def infer(self, batch):
            subnet = self.artifact.request.subnet
            if subnet in self.backend.hangs:
                self.backend.inside[subnet].set()
                assert self.backend.let_go.wait(60)
            return self.inner.infer(batch)

        @property
        def memory_bytes(self):
            return self.inner.memory_bytes

        def close(self):
            self.inner.close()

    class Hanging(helpers.FakeBackend):
        def __init__(self):
            super().__init__()
            self.hangs, self.let_go = set(), threading.Event()
            self.inside = {name: threading.Event() for name in helpers.LADDER}

        def load(self, artifact):
            return Engine(super().load(artifact), self)

    made = Hanging()
    yield made
    made.let_go.set()


@pytest.fixture
def agent(make_agent, hanging, clock, images, helpers):
    made = make_agent(start=False, backends={"fake": hanging}, clock=clock, touch=False)
    made.seen = []
    made.on_event(lambda event: made.seen.append(event))
    made.start()
    for name in helpers.LADDER:
        made.infer(images, subnet=name)
    return made


def hung(agent):
    return [event.detail for event in agent.seen if event.name == "engine_hung"]


def test_a_request_whose_engine_hangs_is_answered_by_the_next_one_and_so_are_those_behind_it(
    agent, hanging, clock, images, helpers
):
    hanging.hangs.add("s100")
    futures = [agent.submit(images) for _ in range(5)]
    assert hanging.inside["s100"].wait(10)
    clock.now_s += 1.9
    assert not agent.tick().faults and not any(future.done() for future in futures)
    clock.now_s += 0.2
    told = agent.tick()
    assert told.faults == ("engine hung: s100: no answer within 2.0 s; it hangs and is given up",)
    for future in futures:
        answer = future.result(10)
        assert answer.subnet == "s75"
        np.testing.assert_array_equal(answer.logits, helpers.expected("s75", images))
    (detail,) = hung(agent)
    assert (detail["subnet"], detail["backoff_s"]) == ("s100", 60.0)
    status = agent.status()
    assert status.counters.engine_hangs == 1 and status.counters.failed == 0 and status.state == "running"
    assert agent.infer(images).subnet == "s75"
    # The one that hung comes back: nobody notices.
    hanging.hangs.clear()
    hanging.let_go.set()
    for _ in range(20):
        assert agent.infer(images).subnet == "s75"


def test_a_caller_in_whose_own_thread_the_engine_hangs_holds_up_nobody_else(agent, hanging, clock, images):
    hanging.hangs.add("s100")
    outcome = []

    def call():
        try:
            outcome.append(agent.infer(images))
        except EngineError as error:
            outcome.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    assert hanging.inside["s100"].wait(10)
    waiting = agent.submit(images)
    clock.now_s += 2.1
    agent.tick()
    assert waiting.result(10).subnet == "s75" and agent.infer(images).subnet == "s75" and not outcome
    hanging.let_go.set()
    caller.join(10)
    assert isinstance(outcome[0], EngineError) and "hung" in str(outcome[0])


def test_an_engine_that_hangs_again_stays_away_longer(agent, hanging, clock, images):
    hanging.hangs.add("s100")
    waits = []
    for _ in range(4):
        hanging.inside["s100"].clear()
        future = agent.submit(images)
        assert hanging.inside["s100"].wait(10)
        clock.now_s += 2.1
        agent.tick()
        assert future.result(10).subnet == "s75"
        waits.append(hung(agent)[-1]["backoff_s"])
        hanging.hangs.clear()  # it can be loaded again
        back = threading.Event()
        agent.on_event(lambda event, back=back: back.set() if event.name == "switch" else None)
        clock.now_s += waits[-1]
        agent.tick()
        assert back.wait(10)
        hanging.hangs.add("s100")
    assert waits == [60.0, 600.0, 3600.0, 3600.0]


@pytest.mark.parametrize(("slowdown", "bound_s"), [(1.0, 10.0), (3.0, 30.0), (0.5, 10.0)])
def test_slow_engines_and_slow_machines_are_given_their_time(agent, hanging, clock, images, helpers, slowdown, bound_s):
    """200 ms at the 99th percentile: fifty times that, and the slowdown on top."""
    rows = {row.point: row for row in agent.table.rows}
    row = msgspec.structs.replace(rows[helpers.point("s100")], latency_p50_ms=100.0, latency_p99_ms=200.0)
    active = msgspec.structs.replace(agent._pool.current, row=row)
    agent._figures.slowdown = lambda now_s, point: slowdown
    watch = HangWatch(lambda: None, lambda *given: True, int, agent._guard, agent._pool, agent._figures, clock)
    assert watch.bound_s(UnderWay(active, (), 1, 0.0, 100.0)) == pytest.approx(bound_s)


def test_an_answer_that_comes_in_the_very_moment_it_is_given_up_counts(agent, hanging, clock, images):
    watch = agent._watching.hangs
    watch._abandon = lambda under_way, error: False
    hanging.hangs.add("s100")
    future = agent.submit(images)
    assert hanging.inside["s100"].wait(10)
    clock.now_s += 2.1
    agent.tick()
    hanging.let_go.set()
    assert future.result(10).subnet == "s100"
    (engine,) = [engine for engine in agent.status().engines if engine.subnet == "s100"]
    assert engine.quarantined_s == 0 and engine.current


def test_when_the_next_engines_hang_too_each_is_found_and_the_last_one_answers(agent, hanging, clock, images, helpers):
    hanging.hangs.update(("s100", "s75", "s50"))
    future = agent.submit(images)
    for name in ("s100", "s75", "s50"):
        assert hanging.inside[name].wait(10), name
        clock.now_s += 2.1
        agent.tick()
    assert future.result(10).subnet == "s25"
    assert [detail["subnet"] for detail in hung(agent)] == ["s100", "s75", "s50"]


def test_when_loading_the_next_one_hangs_too_the_agent_is_hopeless_after_a_minute(
    make_agent, hanging, clock, images, helpers, bundle
):
    """A small memory budget keeps one engine at a time, and the first answer of the next hangs in the loader."""
    hanging.memory = dict.fromkeys(helpers.LADDER, 100)
    agent = make_agent(
        backends={"fake": hanging},
        clock=clock,
        touch=False,
        memory_budget_bytes=100,
        table=helpers.make_table(bundle, memory_bytes=100),
    )
    hanging.hangs.update(helpers.LADDER)
    future = agent.submit(images)
    assert hanging.inside["s100"].wait(10)
    clock.now_s += 2.1
    agent.tick()
    assert hanging.inside["s75"].wait(10)
    clock.now_s += 60.0
    agent.tick()
    assert not agent.hopeless and not future.done()
    clock.now_s += 1.0
    with pytest.raises(EngineError, match="no other is to be had"):
        agent.tick()
    hanging.let_go.set()


def test_when_every_engine_hangs_the_agent_is_hopeless_and_the_watchdog_is_not_fed(
    agent, hanging, clock, images, helpers
):
    fed = []
    agent.on_tick(lambda: fed.append(clock.now_s))
    hanging.hangs.update(helpers.LADDER)
    future = agent.submit(images)
    for name in reversed(helpers.LADDER):
        assert hanging.inside[name].wait(10), name
        assert not agent.hopeless
        clock.now_s += 2.1
        if name != "s25":
            agent.tick()
    with pytest.raises(EngineError, match="every engine hangs"):
        agent.tick()
    assert "every engine hangs" in agent.hopeless
    with pytest.raises(EngineError, match="every engine hangs"):
        agent.tick()
    with pytest.raises(EngineError):
        future.result(10)


HANGS = """
import sys, threading
import backends.registry
from backends.openvino import OpenVINOBackend

hang = threading.Event()

class Hanging(OpenVINOBackend):
    def load(self, artifact):
        engine = super().load(artifact)
        answer = engine.infer
        def infer(batch):
            if batch.max() > 1000:
                hang.set()
            if hang.is_set():
                threading.Event().wait()
            return answer(batch)
        engine.infer = infer
        return engine

backends.registry.create = lambda name: Hanging()
import agent.hung
import agent.service
agent.hung.LEAST_S, agent.hung.NOBODY_S, agent.service._LAST_WORDS_S = 0.2, 1.0, 1.0
sys.argv = ["gearshift", *sys.argv[1:]]
import cli
cli.main()
"""


def test_the_process_ends_with_an_error_when_every_engine_hangs(openvino_bundle, helpers, tmp_path):
    """So that whoever watches it starts it again: nothing else would help."""
    table = helpers.make_table(openvino_bundle, backend="openvino", host=fingerprint({"openvino"}))
    tables.write(table, tmp_path / "table.json")
    (tmp_path / "agent.toml").write_text(
        f'[agent]\nbundle = "{openvino_bundle.path}"\ntable = "table.json"\npolicy = "largest"\njournal = "journal"\n'
        'control_period = "50ms"\n[serve]\nport = 0\n'
    )
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(tmp_path / "run"), "GEARSHIFT_CACHE": str(tmp_path / "cache")}
    output = tmp_path / "output.txt"
    with output.open("wb") as out:
        command = [sys.executable, "-c", HANGS, "run", "--config", str(tmp_path / "agent.toml")]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=helpers.root, env=environment)
    try:
        deadline_s = time.monotonic() + 120
        while "serving" not in output.read_text():
            assert process.poll() is None and time.monotonic() < deadline_s, output.read_text()
            time.sleep(0.05)
        running = json.loads((tmp_path / "run" / "agent.json").read_bytes())
        connection = http.client.HTTPConnection(running["host"], running["port"], timeout=60)
        data = [2000.0] * 16
        request = {"inputs": [{"name": "input", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": data}]}
        connection.request("POST", "/v2/models/tiny/infer", json.dumps(request))
        assert process.wait(120) == 70, output.read_text()
        connection.close()
    finally:
        process.kill()
        process.wait()
    text = output.read_text()
    assert ("every engine hangs" in text or "no other is to be had" in text) and "Traceback" not in text
    lines = map(json.loads, (tmp_path / "journal" / "journal.jsonl").read_bytes().splitlines())
    assert "engine_hung" in [line.get("name") for line in lines]
