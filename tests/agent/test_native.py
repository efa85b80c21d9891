"""The agent's side of the native path, asked by clients that keep to the wire format and by some that do not."""

import contextlib
import ctypes
import fcntl
import gc
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent import native, native_connection, wire
from agent.memfd import Arrays, Budget
from agent.native import may_connect
from agent.wire import Failure, Kind
from policies.base import SlackStep
from subnets.errors import Busy, InputError

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
IMAGE = (1, 1, 4, 4)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def memfd(size, seals=SEALS, flags=os.MFD_ALLOW_SEALING):
    descriptor = os.memfd_create("test", flags | os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class Peer:
    """A client without manners: it sends what it is told to."""

    def __init__(self, server) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        self.socket.connect(str(server.path))
        self.kind, self.frame = self.receive()
        self.told = wire.read_welcome(self.frame, len(self.frame)) if self.kind == Kind.WELCOME else {}

    def send(self, *parts, descriptors=()):
        if descriptors:
            socket.send_fds(self.socket, list(parts), list(descriptors))
        else:
            self.socket.sendmsg(parts)

    def receive(self):
        """(kind, frame); (0, b"") when the agent has closed."""
        try:
            frame = self.socket.recv(65536)
        except ConnectionResetError:
            return 0, b""
        return (wire.kind_of(frame, len(frame)), frame) if frame else (0, b"")

    def error(self):
        """(id, failure, sentence) of the next frame, which must be an error."""
        kind, frame = self.receive()
        assert kind == Kind.ERROR, frame
        return wire.read_error(frame, len(frame))

    def answer(self):
        """(head and text, inline logits) of the next frame, which must be an answer."""
        kind, frame = self.receive()
        assert kind == Kind.ANSWER, wire.read_error(frame, len(frame))
        reply = wire.read_answer(frame, len(frame))
        values = np.frombuffer(frame, np.float32, reply.images * reply.classes, wire.ANSWER_BYTES)
        texts = wire.read_told(frame[len(frame) - reply.text_bytes :])
        return SimpleNamespace(**reply._asdict(), **texts._asdict()), values.reshape(reply.images, reply.classes)

    def ask(self, batch, identifier=1, **more):
        self.send(wire.request(identifier, batch.shape, **more), batch.tobytes())

    def share(self, descriptor, size, number=1, identifier=9):
        self.send(wire.region(identifier, number, size), descriptors=[descriptor])
        return self.receive()

    def works(self, image, expected):
        """Whether the connection still answers."""
        self.ask(image, 77)
        reply, logits = self.answer()
        return reply.id == 77 and np.array_equal(logits, expected)

    def close(self):
        self.socket.close()


@pytest.fixture
def agent(make_agent):
    return make_agent()


@pytest.fixture
def server(agent, make_native):
    return make_native(agent)


@pytest.fixture
def connect(server):
    """Connects peers and closes them."""
    peers = []

    def make(to=None) -> Peer:
        peers.append(Peer(to or server))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


@pytest.fixture
def peer(connect):
    return connect()


@pytest.fixture
def region():
    """Makes memfds and closes them."""
    made = []

    def make(size, **more):
        made.append(memfd(size, **more))
        return made[-1]

    yield make
    for descriptor in made:
        os.close(descriptor)


def test_the_agent_tells_the_model_and_the_limits_first(peer):
    told = peer.told
    assert (told["model"], told["agent"], told["input"], told["classes"]) == ("tiny", "1.2.3", [1, 4, 4], 3)
    assert told["subnets"] == {"s25": 1, "s50": 2, "s75": 3, "s100": 4}
    assert (told["max_images"], told["in_flight"], told["regions"]) == (8, 16, 8)


@pytest.mark.parametrize("count", [1, 5])
def test_an_inline_batch_is_answered_with_the_engines_logits_and_why(peer, images, helpers, count):
    peer.ask(images[:count], 3)
    reply, logits = peer.answer()
    np.testing.assert_array_equal(logits, helpers.expected("s100", images[:count]))
    assert (reply.id, reply.images, reply.classes, reply.place) == (3, count, 3, 4)
    assert (reply.subnet, reply.point, reply.accuracy) == ("s100", helpers.point("s100"), 0.95)
    assert "script" in reply.reason and np.isnan(reply.energy_j) and reply.queue_ms >= 0


@pytest.fixture
def looked(monkeypatch):
    """Connections that have looked for a frame, one after the other: it has ended, with a frame or without."""
    looked = []

    def look(connection):
        genuine(connection)
        looked.append(connection)

    genuine = native_connection.Connection._look
    monkeypatch.setattr(native_connection.Connection, "_look", look)
    return looked


def test_after_a_request_that_says_so_the_next_is_looked_for_awake_and_for_a_moment_only(
    server, connect, images, helpers, looked
):
    server._model.spare_core = False
    peer, expected = connect(), helpers.expected("s100", images[:1])
    assert peer.works(images[:1], expected) and not looked
    for count in (1, 2, 3):
        peer.ask(images[:1], count, more_soon=True)
        np.testing.assert_array_equal(peer.answer()[1], expected)
        wait_until(lambda count=count: len(looked) == count)
    assert peer.works(images[:1], expected) and len(looked) == 3


def test_the_next_request_of_a_loop_is_looked_for_where_a_core_is_to_spare(
    server, connect, images, helpers, looked, monkeypatch
):
    monkeypatch.setattr(native_connection, "_BRIEF_NS", 2_000_000_000)  # the same on a busy machine
    expected = helpers.expected("s100", images[:1])
    for spare in (False, True):
        server._model.spare_core = spare
        peer = connect()
        assert peer.works(images[:1], expected) and not looked  # the first one follows nothing
        for _ in range(3):
            assert peer.works(images[:1], expected)
        peer.close()
        assert not looked or spare
    wait_until(lambda: len(looked) == 3)


def test_a_request_that_comes_a_while_after_the_last_answer_makes_nobody_look(
    server, connect, images, helpers, looked, monkeypatch
):
    monkeypatch.setattr(native_connection, "_BRIEF_NS", 0)
    server._model.spare_core = True
    peer, expected = connect(), helpers.expected("s100", images[:1])
    assert all(peer.works(images[:1], expected) for _ in range(4)) and not looked


def test_a_batch_in_a_region_is_answered_inline_or_in_the_region(peer, images, helpers, region):
    descriptor = region(8192)
    with mmap.mmap(descriptor, 8192) as memory:
        assert peer.share(descriptor, 8192)[0] == Kind.DONE
        memory[64 : 64 + images.nbytes] = images.tobytes()
        peer.send(wire.request(5, images.shape, region=1, input_offset=64))
        np.testing.assert_array_equal(peer.answer()[1], helpers.expected("s100", images))
        peer.send(wire.request(6, images.shape, region=1, input_offset=64, logits_offset=4096))
        kind, frame = peer.receive()
        assert kind == Kind.ANSWER and wire.read_answer(frame, len(frame)).flags == wire.LOGITS_IN_REGION
        found = np.frombuffer(memory[4096 : 4096 + 60], np.float32).reshape(5, 3)
        np.testing.assert_array_equal(found, helpers.expected("s100", images))


def test_one_request_can_pin_a_subnet_by_its_place(peer, images, helpers):
    for place, subnet in enumerate(helpers.LADDER, 1):
        peer.ask(images[:1], place, place=place)
        reply, logits = peer.answer()
        assert reply.subnet == subnet
        np.testing.assert_array_equal(logits, helpers.expected(subnet, images[:1]))


def test_a_deadline_reaches_the_agents_fast_choice(make_agent, make_native, connect, policy, images, helpers):
    policy.slack_plan = (
        SlackStep(slack_ms=0.0, point=helpers.point("s25")),
        SlackStep(slack_ms=1e6, point=helpers.point("s100")),
    )
    agent = make_agent()
    agent.hold("s25", 60, "loads it")
    agent.release()
    wait_until(lambda: sum(engine.resident for engine in agent.status().engines) == 4)
    agent.tick()
    peer = connect(make_native(agent))
    peer.ask(images[:1], deadline_ms=50.0)
    assert peer.answer()[0].subnet == "s25"
    peer.ask(images[:1], deadline_ms=2e6)
    assert peer.answer()[0].subnet == "s100"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (1, 1, 4, 5)}, "shape"),
        ({"shape": (0, 1, 4, 4)}, "N from 1 to 8"),
        ({"shape": (9, 1, 4, 4)}, "N from 1 to 8"),
        ({"shape": (2**32 - 1, 1, 4, 4)}, "N from 1 to 8"),
        ({"shape": (2, 1, 4, 4)}, "128 bytes without a region, and 64"),
        ({"region": 3}, "64 bytes follow"),
        ({"logits_offset": 0}, "without a region"),
        ({"place": 5}, "no version 5"),
        ({"deadline_ms": float("nan")}, "deadline"),
        ({"deadline_ms": float("inf")}, "deadline"),
        ({"deadline_ms": -1.0}, "deadline"),
        ({"min_accuracy": 1.5}, "min_accuracy"),
        ({"min_accuracy": float("nan")}, "min_accuracy"),
        ({"stream": b"\xff\xfe"}, "UTF-8"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_the_connection_goes_on(peer, images, helpers, change, words):
    shape = change.pop("shape", IMAGE)
    peer.send(wire.request(8, shape, **change), images[:1].tobytes())
    identifier, failure, sentence = peer.error()
    assert (identifier, failure) == (8, Failure.INPUT) and words in sentence
    assert peer.works(images[:1], helpers.expected("s100", images[:1]))


def test_values_that_are_not_finite_are_refused(peer, images, helpers):
    bad = images[:1].copy()
    bad[0, 0, 1, 1] = np.nan
    peer.ask(bad)
    assert peer.error()[1] == Failure.INPUT
    assert peer.works(images[:1], helpers.expected("s100", images[:1]))


@pytest.mark.parametrize(
    "frame",
    [
        b"x",
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        b"GEAR" + bytes([2, 1]) + bytes(200),
        b"GEAR" + bytes([1, 9]) + bytes(200),
        wire.request(1, IMAGE)[:100],
        wire.region(1, 1, 4096),
        wire.done(1),
        bytes(wire.FRAME_BYTES + 1),
    ],
    ids=["short", "http", "version", "kind", "head", "no descriptor", "ours", "oversize"],
)
def test_what_is_no_frame_ends_the_connection_with_a_sentence(peer, connect, images, helpers, frame):
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * wire.FRAME_BYTES)
    peer.send(frame)
    identifier, failure, sentence = peer.error()
    if frame == wire.region(1, 1, 4096):  # a frame, only without what should come with it
        assert (identifier, failure) == (1, Failure.INPUT) and "0 file descriptors" in sentence
    else:
        assert (identifier, failure) == (0, Failure.WIRE) and "Traceback" not in sentence
        assert peer.receive() == (0, b"")
    assert connect().works(images[:1], helpers.expected("s100", images[:1]))


@pytest.mark.parametrize(
    ("make", "size", "words"),
    [
        (lambda: memfd(4096, seals=0), 4096, "F_SEAL_SHRINK"),
        (lambda: memfd(4096, seals=fcntl.F_SEAL_GROW), 4096, "F_SEAL_SHRINK"),
        (lambda: memfd(4096, seals=fcntl.F_SEAL_SHRINK), 4096, "F_SEAL_GROW"),
        (lambda: memfd(4096, seals=0, flags=0), 4096, "F_SEAL_SHRINK"),
        (lambda: memfd(4096), 8192, "has 4096 bytes"),
        (lambda: memfd(4096), 4095, "has 4096 bytes"),
        (lambda: memfd(0), 0, "has 0 bytes"),
        (lambda: memfd(4096, seals=SEALS | fcntl.F_SEAL_WRITE), 4096, "writable"),
        (lambda: os.open("/dev/null", os.O_RDWR), 4096, "no memfd"),
        (lambda: os.open(__file__, os.O_RDONLY), 4096, "no memfd"),
        (lambda: os.dup(0), 4096, "no memfd"),
        (lambda: os.eventfd(0), 4096, "no memfd"),
    ],
    ids=[
        "unsealed",
        "shrinks",
        "grows",
        "unsealable",
        "small",
        "smaller",
        "empty",
        "readonly",
        "null",
        "file",
        "0",
        "event",
    ],
)
def test_a_descriptor_that_could_hurt_is_refused(peer, images, helpers, make, size, words):
    descriptor = make()
    try:
        kind, frame = peer.share(descriptor, size)
        assert kind == Kind.ERROR
        identifier, failure, sentence = wire.read_error(frame, len(frame))
        assert (identifier, failure) == (9, Failure.INPUT) and words in sentence
    finally:
        os.close(descriptor)
    assert peer.works(images[:1], helpers.expected("s100", images[:1]))


def test_a_client_cannot_take_the_memory_away_under_the_agents_feet(peer, images, helpers, region):
    descriptor = region(8192)
    assert peer.share(descriptor, 8192)[0] == Kind.DONE
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    # What the kernel lets a client do is to punch holes: they read as zeros.
    with mmap.mmap(descriptor, 8192) as memory:
        memory[:64] = images[:1].tobytes()
    punch_and_keep_size = 3
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.fallocate(descriptor, punch_and_keep_size, ctypes.c_long(0), ctypes.c_long(8192)) == 0
    peer.send(wire.request(5, IMAGE, region=1))
    np.testing.assert_array_equal(peer.answer()[1], helpers.expected("s100", np.zeros(IMAGE, np.float32)))


def test_what_a_client_writes_while_its_request_waits_changes_nothing(
    connect, agent, backend, images, helpers, region, server
):
    descriptor = region(4096)
    peer = connect()
    with mmap.mmap(descriptor, 4096) as memory:
        assert peer.share(descriptor, 4096)[0] == Kind.DONE
        memory[:64] = images[:1].tobytes()
        backend.blocking = threading.Event()
        other = connect()
        other.ask(images[1:2])
        assert backend.entered.wait(10)
        peer.send(wire.request(5, IMAGE, region=1))
        wait_until(lambda: agent.status().queue_depth == 1)
        memory[:64] = np.full(IMAGE, np.nan, np.float32).tobytes()
        backend.blocking.set()
        np.testing.assert_array_equal(peer.answer()[1], helpers.expected("s100", images[:1]))
    assert agent.status().counters.engine_failures == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"region": 2}, "no region 2"),
        ({"region": 1, "input_offset": 4096}, "64 bytes from 4096 in a region of 4096"),
        ({"region": 1, "input_offset": 4064}, "offset inside"),
        ({"region": 1, "input_offset": 4}, "64 divides"),
        ({"region": 1, "input_offset": 2**64 - 64}, "offset inside"),
        ({"region": 1, "logits_offset": 4096}, "offset inside"),
        ({"region": 1, "logits_offset": 2**63}, "offset inside"),
        ({"region": 1, "logits_offset": 8}, "64 divides"),
    ],
)
def test_offsets_outside_the_region_are_refused(peer, images, helpers, region, asked, words):
    assert peer.share(region(4096), 4096)[0] == Kind.DONE
    peer.send(wire.request(5, IMAGE, **asked))
    identifier, failure, sentence = peer.error()
    assert (identifier, failure) == (5, Failure.INPUT) and words in sentence
    assert peer.works(images[:1], helpers.expected("s100", images[:1]))


def test_regions_are_limited_in_number_and_bytes_and_can_be_let_go(make_agent, make_native, connect, region, images):
    server = make_native(make_agent(), regions=2, memory_bytes=20 * 4096)
    peer = connect(server)
    big = region(9 * 4096)
    assert peer.share(big, 9 * 4096, number=1)[0] == Kind.DONE
    assert server.memory_bytes == 9 * 4096
    _, frame = peer.share(region(4 * 4096), 4 * 4096, number=2)
    assert wire.read_error(frame, len(frame))[1] == Failure.BUSY  # one client may have half of the memory
    assert peer.share(region(4096), 4096, number=2)[0] == Kind.DONE
    _, frame = peer.share(region(4096), 4096, number=3)
    assert wire.read_error(frame, len(frame))[1:] == (
        Failure.BUSY,
        "2 regions are mapped, no more are taken; release one",
    )
    other, third = connect(server), connect(server)
    assert other.share(region(10 * 4096), 10 * 4096)[0] == Kind.DONE
    _, frame = third.share(region(4096), 4096)
    assert "all clients together" in wire.read_error(frame, len(frame))[2]
    _, frame = peer.share(big, 9 * 4096, number=1)
    assert "in use" in wire.read_error(frame, len(frame))[2]
    peer.send(wire.release(4, 1))
    assert peer.receive()[0] == Kind.DONE
    peer.send(wire.release(5, 1))
    assert peer.error()[:2] == (5, Failure.INPUT)
    wait_until(lambda: server.memory_bytes == 11 * 4096)
    other.close()
    wait_until(lambda: server.memory_bytes == 4096)
    peer.close()
    wait_until(lambda: server.memory_bytes == 0)


def test_descriptors_are_closed_whatever_comes_with_them(server, connect, region, images, helpers):
    before = open_descriptors()
    for _ in range(20):
        peer = connect()
        peer.send(wire.request(1, IMAGE), images[:1].tobytes(), descriptors=[region(4096), region(4096)])
        assert peer.error()[:2] == (0, Failure.WIRE)
        peer.close()
        peer = connect()
        peer.send(wire.region(1, 1, 4096), descriptors=[region(4096), region(4096)])
        assert "2 file descriptors" in peer.error()[2]
        peer.send(wire.region(1, 1, 4096), descriptors=[region(4096) for _ in range(10)])
        assert peer.error()[1] == Failure.INPUT
        assert peer.share(region(4096), 4096)[0] == Kind.DONE
        assert peer.works(images[:1], helpers.expected("s100", images[:1]))
        peer.close()
    wait_until(lambda: server.connections == 0)
    gc.collect()
    mine = 20 * 15  # this test's own, which the fixture closes later
    wait_until(lambda: open_descriptors() <= before + mine)


def test_pipelined_requests_are_all_answered_each_once_and_rightly(peer, images, helpers, region):
    assert peer.share(region(4096), 4096)[0] == Kind.DONE
    asked = 0
    for _ in range(20):
        for _ in range(16):
            asked += 1
            peer.ask(images[asked % 5 : asked % 5 + 1], asked, place=1 + asked % 4)
        found = {}
        for _ in range(16):
            reply, logits = peer.answer()
            found[reply.id] = logits
        assert sorted(found) == list(range(asked - 15, asked + 1))
        for identifier, logits in found.items():
            subnet, image = helpers.LADDER[identifier % 4], images[identifier % 5 : identifier % 5 + 1]
            np.testing.assert_array_equal(logits, helpers.expected(subnet, image))


def test_more_than_may_be_in_flight_is_refused_not_queued(make_agent, make_native, connect, backend, images):
    peer = connect(make_native(make_agent(), in_flight=3))
    backend.blocking = threading.Event()
    peer.ask(images[:1], 100)  # in the connection's own thread, which then reads nothing more
    assert backend.entered.wait(10)
    for identifier in range(8):
        peer.ask(images[:1], identifier)
    backend.blocking.set()
    kinds = [wire.kind_of(frame, len(frame)) for _, frame in (peer.receive() for _ in range(9))]
    assert kinds.count(Kind.ANSWER) == 4 and kinds.count(Kind.ERROR) == 5


def test_of_frames_of_one_stream_that_wait_together_the_newest_is_answered(peer, backend, images, helpers):
    backend.blocking = threading.Event()
    peer.ask(images[:1], 1)
    assert backend.entered.wait(10)
    for identifier in range(2, 6):
        peer.ask(images[identifier - 1 : identifier], identifier, stream=b"front")
    peer.ask(images[:1], 6, stream=b"rear")
    backend.blocking.set()
    outcome = {}
    for _ in range(6):
        kind, frame = peer.receive()
        if kind == Kind.ERROR:
            identifier, failure, _ = wire.read_error(frame, len(frame))
            outcome[identifier] = failure
        else:
            outcome[wire.read_answer(frame, len(frame)).id] = None
    assert outcome == {1: None, 2: 5, 3: 5, 4: 5, 5: None, 6: None} and Failure.SUPERSEDED == 5


def test_a_full_queue_is_told_as_busy(make_agent, make_native, connect, backend, images):
    server = make_native(make_agent(queue_limit=1))
    backend.blocking = threading.Event()
    peers = [connect(server) for _ in range(3)]
    peers[0].ask(images[:1])
    assert backend.entered.wait(10)
    peers[1].ask(images[:1])
    time.sleep(0.05)
    peers[2].ask(images[:1])
    outcome = [peers[2].error()]
    backend.blocking.set()
    assert outcome[0][1] == Failure.BUSY and "queue_limit" in outcome[0][2]
    assert peers[0].answer() and peers[1].answer()


def test_a_broken_engine_is_told_as_the_engines_fault(peer, backend, images):
    backend.broken = {"s25", "s50", "s75", "s100"}
    peer.ask(images[:1])
    identifier, failure, sentence = peer.error()
    assert (identifier, failure) == (1, Failure.ENGINE) and "broken" in sentence


def test_too_many_clients_are_refused_until_one_has_gone(make_agent, make_native, connect, images, helpers):
    server = make_native(make_agent(), connections=2)
    first, second = connect(server), connect(server)
    third = connect(server)
    assert third.kind == Kind.ERROR
    assert wire.read_error(third.frame, len(third.frame))[:2] == (0, Failure.REFUSED)
    assert third.receive() == (0, b"")
    first.close()
    wait_until(lambda: server.connections == 1)
    assert connect(server).works(images[:1], helpers.expected("s100", images[:1]))
    assert second.works(images[:1], helpers.expected("s100", images[:1]))


def test_a_client_that_does_not_read_is_dropped_and_others_are_answered(server, connect, images, helpers):
    deaf, other = connect(), connect()
    with contextlib.suppress(OSError):
        for identifier in range(100_000):
            deaf.ask(images[:1], identifier)
    wait_until(lambda: server.connections == 1)
    assert other.works(images[:1], helpers.expected("s100", images[:1]))


def test_a_killed_client_leaves_nothing_behind_and_its_waiting_requests_are_dropped(
    agent, server, connect, backend, images, helpers
):
    program = (
        "import mmap, os, fcntl, socket, sys, time\n"
        "from agent import wire\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); s.recv(65536)\n"
        "fd = os.memfd_create('x', os.MFD_ALLOW_SEALING); os.ftruncate(fd, 1 << 20)\n"
        f"fcntl.fcntl(fd, fcntl.F_ADD_SEALS, {SEALS})\n"
        "socket.send_fds(s, [wire.region(1, 1, 1 << 20)], [fd]); s.recv(65536)\n"
        "mmap.mmap(fd, 1 << 20)[:4] = b'\\0\\0\\x80?'\n"
        "for n in range(10): s.send(wire.request(n, (1, 1, 4, 4), region=1))\n"
        "print('sent', flush=True); time.sleep(60)\n"
    )
    backend.blocking = threading.Event()
    command = [sys.executable, "-c", program, str(server.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=helpers.root) as client:
        assert client.stdout.readline() == b"sent\n"
        assert backend.entered.wait(10)
        (connection,) = server._connections
        client.kill()
    wait_until(lambda: len(connection._futures) <= 1)  # those that wait are dropped, one is being computed
    backend.blocking.set()
    wait_until(lambda: server.connections == 0 and server.memory_bytes == 0)
    backend.blocking = None
    assert agent.status().counters.requests == 1
    assert connect().works(images[:1], helpers.expected("s100", images[:1]))


def test_stopping_answers_what_was_read_and_then_closes(make_agent, make_native, connect, backend, images, helpers):
    server = make_native(make_agent())
    peer, idle = connect(server), connect(server)
    backend.blocking = threading.Event()
    peer.ask(images[:1], 1)
    assert backend.entered.wait(10)
    stopper = threading.Thread(target=server.stop, args=(10,))
    stopper.start()
    assert idle.receive() == (0, b"")
    backend.blocking.set()
    np.testing.assert_array_equal(peer.answer()[1], helpers.expected("s100", images[:1]))
    assert peer.receive() == (0, b"")
    stopper.join(20)
    assert not server.path.exists() and server.connections == 0


def test_two_threads_never_get_each_others_answers(server, connect, images, helpers):
    wrong = []

    def work(rank):
        peer = connect()
        for turn in range(150):
            image = images[(rank + turn) % 5 :][:1]
            peer.ask(image, turn, place=1 + rank % 4)
            reply, logits = peer.answer()
            if reply.id != turn or not np.array_equal(logits, helpers.expected(helpers.LADDER[rank % 4], image)):
                wrong.append((rank, turn))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_the_socket_is_for_owner_and_group_and_replaces_one_left_behind(make_agent, make_native, tmp_path, connect):
    agent, path = make_agent(), tmp_path / "folder" / "native.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    server = make_native(agent, path=path)
    assert path.stat().st_mode & 0o777 == 0o660
    assert connect(server).kind == Kind.WELCOME
    with pytest.raises(InputError, match="another process listens"):
        native.listen(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a socket"):
        native.listen(tmp_path / "file")
    with pytest.raises(InputError, match="--native"):
        native.listen(tmp_path / ("x" * 200))


class Credentials:
    """A socket whose other end is whoever the test says."""

    def __init__(self, user, group, groups=None) -> None:
        self._credentials, self._groups = struct.pack("3i", 1, user, group), groups

    def getsockopt(self, level, option, size):
        if option == socket.SO_PEERCRED:
            return self._credentials
        if self._groups is None:
            raise OSError
        return struct.pack(f"{len(self._groups)}I", *self._groups)


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (Credentials(os.geteuid(), 12345), True),
        (Credentials(0, 12345), True),
        (Credentials(54321, 777), True),
        (Credentials(54321, 12345, [5, 777]), True),
        (Credentials(54321, 12345, [5, 778]), False),
        (Credentials(54321, 12345), False),
    ],
)
def test_the_own_user_root_and_the_sockets_group_may_connect(peer, allowed):
    assert may_connect(peer, 777) is allowed


def test_the_kernels_own_credentials_are_understood():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert may_connect(one, os.getgid())


def test_private_arrays_are_reused_and_paid_for_until_the_end():
    budget = Budget(1000)
    arrays = Arrays((1, 4, 4), budget)
    first, second = arrays.take(2), arrays.take(2)
    assert budget.taken_bytes == 256
    arrays.give(first)
    assert arrays.take(2) is first
    other = arrays.take(1)
    assert budget.taken_bytes == 320
    arrays.give(first)  # of a size not in use any more
    assert budget.taken_bytes == 192
    with pytest.raises(Busy, match="808 of 1000"):
        arrays.take(13)
    arrays.give(other)
    arrays.close()
    arrays.give(second)
    assert budget.taken_bytes == 0
