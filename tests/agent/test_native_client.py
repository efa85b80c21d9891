"""The Python client of the native path: arrays in, answers out, over real sockets and restarts."""

import contextlib
import gc
import inspect
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import agent.client
from agent import Agent, Answer, client_session, lifecycle, wire
from agent.client import Client
from agent.client_link import Link
from agent.lifecycle import Instance, RunningAgent
from agent.native import listen
from subnets.errors import Busy, EngineError, InputError, UnavailableError


@pytest.fixture
def running(make_agent):
    return make_agent()


@pytest.fixture
def server(running, make_native):
    return make_native(running)


@pytest.fixture
def client(server):
    with Client(server.path, timeout_s=20) as made:
        yield made


def test_the_client_knows_the_model(client):
    assert (client.model, client.subnets) == ("tiny", ("s25", "s50", "s75", "s100"))
    assert (client.input_shape, client.classes) == ((1, 4, 4), 3)


def test_an_answer_is_the_agents_own(client, images, helpers):
    answer = client.infer(images)
    np.testing.assert_array_equal(answer.logits, helpers.expected("s100", images))
    assert answer.logits.dtype == np.float32 and answer.logits.flags.writeable and answer.logits.flags.owndata
    assert (answer.subnet, answer.point, answer.accuracy) == ("s100", helpers.point("s100"), 0.95)
    assert answer.energy_j is None and "script" in answer.reason and answer.bound == "none"
    assert answer.infer_ms > 0 and answer.queue_ms >= 0


def test_answers_and_requests_have_the_fields_they_have_in_process():
    assert set(agent.client.Answer._fields) == set(Answer.__struct_fields__)
    keywords = [name for name in inspect.signature(Agent.infer).parameters if name != "self"]
    for method in (Client.infer, Client.submit):
        assert [name for name in inspect.signature(method).parameters if name != "self"] == keywords


def test_a_buffer_is_read_where_it_is_and_can_be_filled_again(client, images, helpers, server):
    buffer = client.buffer(2)
    assert buffer.shape == (2, 1, 4, 4) and buffer.dtype == np.float32
    for start in range(3):
        buffer[:] = images[start : start + 2]
        np.testing.assert_array_equal(client.infer(buffer).logits, helpers.expected("s100", images[start : start + 2]))
    held = server.memory_bytes
    assert held > 0
    for _ in range(50):
        client.infer(buffer)
    # A request that comes before the last one's copy is given back has one of its own; both are kept for later.
    assert server.memory_bytes <= held + buffer.nbytes


def test_parts_of_a_buffer_are_batches_too(client, images, helpers):
    buffer = client.buffer(5)
    buffer[:] = images
    for part, expected in (
        (buffer[:2], images[:2]),
        (buffer[3:], images[3:]),
        (buffer[::-1], images[::-1]),
        (buffer[1:4].reshape(3, 1, 4, 4), images[1:4]),
        (np.asfortranarray(buffer), images),
    ):
        np.testing.assert_array_equal(client.infer(part).logits, helpers.expected("s100", expected))


def test_buffers_go_back_when_nobody_refers_to_them(client, images):
    told = client._session.link.told["regions"]
    for _ in range(10 * told):
        client.infer(client.buffer(1))
    kept = [client.buffer(1) for _ in range(4 * told)]
    assert len({buffer.__array_interface__["data"][0] for buffer in kept}) == len(kept)
    with pytest.raises(InputError, match="let go of some buffers"):
        client.buffer(1)
    del kept[3:7]
    gc.collect()
    kept += [client.buffer(1) for _ in range(4)]
    kept[0][:] = images[:1]
    assert client.infer(kept[0]).subnet == "s100"
    del kept
    gc.collect()
    assert client.buffer(7).shape == (7, 1, 4, 4)  # another size: a region that nobody uses goes for it
    assert client.infer(client.buffer(7)).logits.shape == (7, 3)


def test_a_client_that_looks_for_its_answers_tells_the_agent_to_look_for_its_requests(server, images, helpers):
    for spin_ms, flags in ((0.0, 0), (5.0, wire.MORE_SOON)):
        with Client(server.path, spin_ms=spin_ms) as client:
            sent = []
            genuine = client._session.link.send
            client._session.link.send = lambda *parts, genuine=genuine, sent=sent, **more: (
                sent.append(bytes(parts[0])),
                genuine(*parts, **more),
            )
            for _ in range(3):
                np.testing.assert_array_equal(client.infer(images[:1]).logits, helpers.expected("s100", images[:1]))
            heads = [wire.read_request(head, len(head)) for head in sent if len(head) == wire.REQUEST_BYTES]
            assert [head.flags for head in heads] == [flags] * 3


@pytest.fixture
def regular(monkeypatch):
    """Answers are regular however long they take on this machine."""
    monkeypatch.setattr(wire, "AT_ONCE_MS", 1e6)
    monkeypatch.setattr(client_session, "_LONGEST_LOOKED_FOR_MS", 1e6)


@pytest.fixture
def dues(monkeypatch):
    """When each frame was due that the client has waited for; 0 where it did not know."""
    dues = []
    genuine = Link.receive
    monkeypatch.setattr(
        Link, "receive", lambda link, due_ns=0, *more: dues.append(due_ns) or genuine(link, due_ns, *more)
    )
    return dues


@pytest.mark.parametrize(
    ("spare", "spin_ms", "looks"), [(True, None, True), (False, None, False), (True, 0.0, False), (True, 5.0, False)]
)
def test_an_answer_is_due_when_the_one_before_has_told_how_long_they_take(
    server, images, helpers, regular, dues, spare, spin_ms, looks
):
    server._model.spare_core = spare
    expected = helpers.expected("s100", images[:1])
    with Client(server.path, spin_ms=spin_ms) as client:
        buffer = client.buffer()
        for turn, batch in enumerate((images[:1], buffer, buffer)):
            buffer[:] = images[:1]
            dues.clear()
            before_ns = time.monotonic_ns()
            answer = client.infer(batch)
            np.testing.assert_array_equal(answer.logits, expected)
            assert (dues[-1] > before_ns) == (turn > 0 and looks) and (turn > 0 or not any(dues))
        dues.clear()
        parts = [client.submit(images[:1]) for _ in range(3)]
        for part in parts:
            np.testing.assert_array_equal(part.result().logits, expected)
        assert dues[0] == dues[1] == 0  # one of several: which comes first is open


@pytest.mark.parametrize("limit", [(wire, "AT_ONCE_MS"), (client_session, "_LONGEST_LOOKED_FOR_MS")])
def test_after_an_answer_that_waited_or_took_long_nobody_knows_when_the_next_is_due(
    server, images, monkeypatch, regular, dues, limit
):
    monkeypatch.setattr(*limit, -1.0)
    server._model.spare_core = True
    with Client(server.path) as client:
        assert [client.infer(images[:1]).subnet for _ in range(3)] == ["s100"] * 3
    assert not any(dues)


def test_a_frame_is_slept_for_until_shortly_before_it_is_due_and_again_when_it_is_late(tmp_path):
    rehearsed = []

    def rehearse():
        rehearsed.append(time.monotonic_ns())

    with listen(tmp_path / "sock") as listener:
        connecting = threading.Thread(target=lambda: agents.append(listener.accept()[0]))
        agents: list[socket.socket] = []
        connecting.start()
        # The agent's first frame waits in the socket before it is read.
        told = {"model": "", "subnets": {}, "input": [1, 1, 1], "classes": 1, "max_images": 1, "in_flight": 1}
        welcoming = threading.Thread(
            target=lambda: (connecting.join(), agents[0].send(wire.welcome({**told, "regions": 1, "looks": True})))
        )
        welcoming.start()
        link = Link(tmp_path / "sock", 20.0, None)
        welcoming.join()
        with agents[0] as agent_side:
            assert link.looks
            agent_side.send(wire.done(1))
            assert link.receive(time.monotonic_ns() + 60_000_000_000, rehearse)[1] == wire.Kind.DONE
            assert not rehearsed  # it was there before anybody woke up
            due_ns = time.monotonic_ns() + 20_000_000
            late = threading.Timer(0.1, agent_side.send, [wire.done(2)])
            late.start()
            link.receive(due_ns, rehearse)
            assert time.monotonic_ns() > due_ns and rehearsed and rehearsed[0] > due_ns - 1_000_000
            assert wire.frame_id(link.frame, wire.PREFIX_BYTES) == 2
            late.join()
        link.close()


def test_a_buffer_that_is_asked_for_in_a_loop_gets_its_own_answers_whatever_comes_between(client, images, helpers):
    buffer, session = client.buffer(), client._session
    for turn in range(5):
        buffer[:] = images[turn : turn + 1]
        if turn == 2:
            buffer[:] = np.nan
            with pytest.raises(InputError, match="finite"):
                client.infer(buffer)
            continue
        if turn == 3:  # as if somebody had given up waiting: the answer to another request comes first
            late = bytearray(session._prepared.head)
            wire.set_id(late, 99_999)
            session.link.send(late)
        np.testing.assert_array_equal(client.infer(buffer).logits, helpers.expected("s100", images[turn : turn + 1]))
        assert not session._owed
    session.link.close()  # as a broken connection: another one takes over
    np.testing.assert_array_equal(client.infer(buffer).logits, helpers.expected("s100", images[4:]))


def test_a_rehearsal_changes_nothing_whatever_came_last(make_agent, make_native, images, helpers):
    server = make_native(make_agent(), max_images=4096)
    wide = np.resize(images, (3000, 1, 4, 4))  # its logits come in the region
    with Client(server.path) as client:
        session = client._session
        for ask in (
            lambda: client.infer(images[:2]),
            lambda: client.infer(wide),
            lambda: client.infer(images[:1], subnet="s25"),
            lambda: client.infer(np.full_like(images, np.nan)),
        ):
            with contextlib.suppress(InputError):
                ask()
            before = bytes(session.link.frame)
            session._rehearse()
            assert bytes(session.link.frame) == before and not session._owed
        np.testing.assert_array_equal(client.infer(images[:2]).logits, helpers.expected("s100", images[:2]))


def test_a_buffer_outlives_its_client(server, images):
    with Client(server.path) as client:
        buffer = client.buffer(5)
    buffer[:] = images
    np.testing.assert_array_equal(buffer, images)
    with pytest.raises(InputError, match="closed"):
        client.infer(buffer)


def test_batches_too_large_for_a_frame_are_put_into_shared_memory(make_agent, make_native, helpers, images):
    server = make_native(make_agent(), max_images=4096)
    batch = np.resize(images, (3000, 1, 4, 4))  # 192 KB in, 36 KB out: neither fits a frame
    assert batch.nbytes > wire.FRAME_BYTES and helpers.expected("s100", batch).nbytes > wire.INLINE_LOGITS_BYTES
    with Client(server.path, timeout_s=20) as client:
        np.testing.assert_array_equal(client.infer(batch).logits, helpers.expected("s100", batch))
        buffer = client.buffer(4000)
        buffer[:] = np.resize(images[::-1], (4000, 1, 4, 4))
        parts = [client.submit(buffer[start : start + 2000]) for start in (0, 2000)]
        for start, part in zip((0, 2000), parts, strict=True):
            expected = helpers.expected("s100", buffer[start : start + 2000])
            np.testing.assert_array_equal(part.result().logits, expected)


def test_requests_can_be_pipelined_and_read_in_any_order(client, images, helpers):
    for _ in range(5):
        pending = [client.submit(images[n % 5 :][:1], subnet=helpers.LADDER[n % 4]) for n in range(40)]
        for n in reversed(range(40)):
            expected = helpers.expected(helpers.LADDER[n % 4], images[n % 5 :][:1])
            np.testing.assert_array_equal(pending[n].result().logits, expected)
            assert pending[n].done
        assert client.infer(images[:1]).subnet == "s100"


def test_an_ordinary_array_may_be_overwritten_as_soon_as_it_was_submitted(client, images, helpers, backend):
    backend.blocking = threading.Event()
    batch = images[:1].copy()
    pending = client.submit(batch)
    batch[:] = 0
    backend.blocking.set()
    np.testing.assert_array_equal(pending.result().logits, helpers.expected("s100", images[:1]))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((1, 1, 4, 5), np.float32), r"has \[1, 1, 4, 5\]"),
        (np.zeros((0, 1, 4, 4), np.float32), "N from 1 to 8"),
        (np.zeros((9, 1, 4, 4), np.float32), "N from 1 to 8"),
        (np.zeros((1, 4, 4), np.float32), "float32"),
        (np.zeros((1, 1, 4, 4)), "float64"),
        (np.zeros((1, 1, 4, 4), ">f4"), "float32"),
        ([[1.0]], "list"),
        (np.full((1, 1, 4, 4), np.inf, np.float32), "finite"),
    ],
)
def test_a_wrong_batch_is_refused_in_one_sentence_and_nothing_is_lost(client, images, batch, words):
    with pytest.raises(InputError, match=words):
        client.infer(batch)
    assert client.infer(images).subnet == "s100"


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"deadline_ms": 0}, "deadline_ms is 0"),
        ({"deadline_ms": float("nan")}, "deadline_ms is nan"),
        ({"min_accuracy": 1.1}, "share"),
        ({"subnet": "s33"}, "s25, s50, s75, s100"),
        ({"stream": ""}, "1 to 56 bytes"),
        ({"stream": "x" * 57}, "1 to 56 bytes"),
        ({"stream": "a\0b"}, "none of them zero"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_before_it_is_sent(client, images, wish, words):
    with pytest.raises(InputError, match=words):
        client.infer(images, **wish)


def test_what_went_wrong_in_the_agent_is_raised_as_what_it_is(client, images, backend):
    backend.broken = {"s25", "s50", "s75", "s100"}
    with pytest.raises(EngineError, match="broken"):
        client.infer(images)


def test_a_full_queue_is_busy(make_agent, make_native, images, backend):
    server = make_native(make_agent(queue_limit=0))
    backend.blocking = threading.Event()
    with Client(server.path) as first, Client(server.path) as second:
        pending = first.submit(images[:1])
        assert backend.entered.wait(10)
        with pytest.raises(Busy, match="queue_limit"):
            second.infer(images[:1])
        backend.blocking.set()
        assert pending.result().subnet == "s100"


def test_no_agent_is_told_at_once(tmp_path):
    with pytest.raises(UnavailableError, match="no agent listens there"):
        Client(tmp_path / "nobody.sock")


def test_without_a_path_the_state_file_tells_where(server, monkeypatch, tmp_path, images):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    with pytest.raises(UnavailableError, match="gearshift run"):
        Client()
    with Instance(tmp_path) as instance:
        instance.announce(RunningAgent(pid=os.getpid(), host="127.0.0.1", port=1))
        with pytest.raises(UnavailableError, match="--native"):
            Client()
        instance.announce(RunningAgent(pid=os.getpid(), native=str(server.path)))
        assert lifecycle.find_running().native == str(server.path)
        with Client() as client:
            assert client.infer(images).subnet == "s100"


def test_times_that_make_no_sense_are_refused(server):
    for change in ({"timeout_s": 0}, {"timeout_s": float("nan")}, {"reconnect_s": -1}, {"reconnect_s": float("inf")}):
        with pytest.raises(InputError, match=next(iter(change))):
            Client(server.path, **change)


def test_two_threads_in_one_client_are_told_apart(client, images, backend):
    backend.blocking = threading.Event()
    first = threading.Thread(target=client.infer, args=(images[:1],))
    first.start()
    assert backend.entered.wait(10)
    with pytest.raises(InputError, match="another thread"):
        client.infer(images[:1])
    backend.blocking.set()
    first.join(10)
    assert client.infer(images[:1]).subnet == "s100"


def test_a_silent_agent_is_given_up_and_found_again(server, images, backend, helpers):
    with Client(server.path, timeout_s=0.05) as client:
        buffer = client.buffer()
        buffer[:] = images[:1]
        backend.blocking = threading.Event()
        with pytest.raises(UnavailableError, match=r"0.05 s"):
            client.infer(buffer)
        backend.blocking.set()
        client._timeout_s = 20
        np.testing.assert_array_equal(client.infer(buffer).logits, helpers.expected("s100", images[:1]))


def test_a_restarted_agent_is_found_again_with_buffers_and_all(make_agent, make_native, images, helpers, tmp_path):
    path = tmp_path / "native.sock"
    server = make_native(make_agent(), path=path)
    with Client(path, timeout_s=20) as client:
        buffer = client.buffer(5)
        buffer[:] = images
        pending = client.submit(buffer)
        assert pending.result().subnet == "s100"
        servers = [server]
        for _ in range(3):
            servers[-1].stop()
            later = threading.Timer(0.2, lambda: servers.append(make_native(make_agent(), path=path)))
            later.start()
            np.testing.assert_array_equal(client.infer(buffer).logits, helpers.expected("s100", images))
            later.join()
        np.testing.assert_array_equal(client.infer(images[:2]).logits, helpers.expected("s100", images[:2]))


def test_an_agent_that_does_not_come_back_is_told_after_the_time_given(make_agent, make_native, images):
    server = make_native(make_agent())
    with Client(server.path, reconnect_s=0.1) as client:
        server.stop()
        with pytest.raises(UnavailableError, match=r"tried for 0.1 s"):
            client.infer(images)
        with pytest.raises(UnavailableError, match="no agent listens"):
            client.submit(images)


def test_what_was_pending_when_the_agent_died_is_told(make_agent, make_native, images, backend):
    server = make_native(make_agent())
    with Client(server.path, reconnect_s=0.1) as client:
        backend.blocking = threading.Event()
        pending = [client.submit(images[:1]) for _ in range(3)]
        assert backend.entered.wait(10)
        connection = next(iter(server._connections))
        connection._socket.shutdown(2)  # as if the process had been killed
        for one in pending:
            with pytest.raises(UnavailableError, match="send the request again"):
                one.result()
        backend.blocking.set()
        assert client.infer(images[:1]).subnet == "s100"


def test_importing_the_client_imports_no_more_than_the_standard_library(helpers):
    program = (
        "import sys; before = set(sys.modules); import agent.client\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=helpers.root, check=True)
    assert ran.stdout.strip() == "['agent', 'subnets']"
