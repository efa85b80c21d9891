"""The web page and its events, over real sockets."""

import base64
import hashlib
import http.client
import json
import re
import socket
import time

import pytest

from agent.http_server import HttpServer
from agent.metrics import Metrics
from agent.model import ServedModel
from agent.ui import Ui, page
from agent.view import Viewer


@pytest.fixture
def served(make_agent):
    """A running agent with its page: (agent, ui, port)."""
    made = []

    def make(**options):
        agent = make_agent(start=False)
        viewer = Viewer(agent, "1.2.3")
        ui = Ui(viewer, period_s=0.05, **options)
        agent.start()
        server = HttpServer(
            ServedModel(agent, "1.2.3"), host="127.0.0.1", routes=[*ui.routes(), *Metrics(viewer).routes()]
        )
        made.append((ui, server.start()))
        return agent, ui, server

    yield make
    for ui, server in made:
        ui.close()
        server.stop(5)


def get(server, path, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request("GET", path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()
    finally:
        connection.close()


class Events:
    """A reader of /ui/events."""

    def __init__(self, server):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self.connection.request("GET", "/ui/events")
        self.reply = self.connection.getresponse()

    def next(self):
        line = self.reply.readline()
        assert line.startswith(b"data: "), line
        assert self.reply.readline() == b"\n"
        return json.loads(line[6:])

    def close(self):
        self.reply.close()
        self.connection.close()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_page_loads_nothing_from_elsewhere_and_its_policy_admits_only_its_own_script_and_style(served):
    _, _, server = served()
    status, headers, body = get(server, "/ui")
    assert status == 200 and headers["content-type"].startswith("text/html")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), body, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"
    text = body.decode()
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|\son\w+=|\sstyle=""", text)
    assert set(re.findall(r"https?://[^\"')\s]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_the_page_reads_no_text_as_markup():
    text = page()[0].decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


def test_events_follow_what_the_agent_does(served):
    agent, _, server = served()
    events = Events(server)
    assert events.reply.status == 200 and events.reply.getheader("content-type").startswith("text/event-stream")
    first = events.next()
    assert (first["status"]["subnet"], first["status"]["hold"], first["version"]) == ("s100", None, "1.2.3")
    agent.hold("s25", 60.0, "because <b>I</b> say so")
    held = next(view for _ in range(200) if (view := events.next())["status"]["hold"])
    assert held["status"]["hold"]["reason"] == "because <b>I</b> say so" and held["instance"] == first["instance"]
    events.close()


def test_the_view_once_and_the_table_are_json(served, table):
    agent, _, server = served()
    status, _, body = get(server, "/gearshift/view")
    view = json.loads(body)
    assert status == 200 and view["status"]["point"] == agent.status().point
    assert {"headrooms", "points", "latency", "history", "switches", "faults"} <= view.keys()
    rows = json.loads(get(server, "/gearshift/table")[2])["rows"]
    assert {row["subnet"] for row in rows} == {row.subnet for row in table.rows}


def test_streams_beyond_the_limit_are_refused_and_a_reader_who_goes_makes_room(served):
    _, _, server = served(max_streams=2)
    readers = [Events(server), Events(server)]
    for reader in readers:
        reader.next()
    status, _, body = get(server, "/ui/events")
    assert status == 503 and "2 live views are open already" in json.loads(body)["error"]
    assert get(server, "/gearshift/view")[0] == 200
    readers[0].close()
    until(lambda: not _refuses(server))
    readers[1].close()


def _refuses(server):
    """Whether /ui/events refuses; a reader that is let in goes at once."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"GET /ui/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return b" 503 " in raw.recv(64)


def test_closing_ends_the_streams_so_that_the_server_can_end(served):
    _, ui, server = served()
    events = Events(server)
    events.next()
    ui.close()
    rest = [events.reply.readline() for _ in range(40)]
    assert rest[-1] == b""  # the end, and not another twenty events
    events.close()
    assert get(server, "/ui/events")[0] == 503
    server.stop(30)  # waits for its connections
    assert not server.alive


def test_only_reading_is_offered(served):
    _, _, server = served()
    for path in ("/ui", "/ui/events", "/gearshift/view", "/gearshift/table", "/metrics"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("POST", path, body=b"{}", headers={"Content-Type": "application/json"})
        assert connection.getresponse().status == 405, path
        connection.close()
