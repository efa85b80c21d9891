"""Small deterministic backends, tables and bundles, so that concurrency and faults can be tested without compiling."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from agent import Agent
from agent.control_client import UnixConnection
from backends.base import Artifact, Availability, Backend, CompileRequest, Engine
from calibration.table import Host, Protocol, Row, Table
from policies.base import Decision, Goals, Policy
from subnets.bundle import Architecture, Bundle, InputSpec, Manifest, SubnetEntry, save
from subnets.errors import EngineError, InputError
from subnets.spec import ChannelGroup, Member

LADDER = ("s25", "s50", "s75", "s100")
SHAPE = (1, 4, 4)
CLASSES = 3
LATENCY_MS = {"s25": 1.0, "s50": 2.0, "s75": 3.0, "s100": 4.0}
ACCURACY = {"s25": 0.80, "s50": 0.85, "s75": 0.90, "s100": 0.95}


def expected_logits(subnet: str, batch: np.ndarray) -> np.ndarray:
    """What the fake engine of a subnet answers: every subnet differs on every image."""
    rank = LADDER.index(subnet) + 1
    sums = batch.reshape(len(batch), -1).sum(axis=1, dtype=np.float64)
    return np.stack([sums * rank + k for k in range(CLASSES)], axis=1).astype(np.float32)


class FakeEngine(Engine):
    """Answers by formula; fails when told to; notices when two threads are in it at once."""

    def __init__(self, artifact: Artifact, backend: FakeBackend) -> None:
        self.artifact, self.backend = artifact, backend
        self.closed = False
        self._inside = threading.Lock()

    def infer(self, batch: np.ndarray) -> np.ndarray:
        subnet = self.artifact.request.subnet
        if not self._inside.acquire(blocking=False):
            self.backend.reentered += 1
            raise EngineError("two threads at once")
        try:
            if self.closed:
                self.backend.asked_closed += 1
                raise EngineError("closed")
            if len(batch) not in self.artifact.request.batch_sizes:
                raise InputError(f"batch of {len(batch)}")
            if not np.isfinite(batch).all():
                raise InputError("the batch holds values that are not finite")
            if batch.any():  # blank ones are the agent's own probes
                self.backend.sizes.append(len(batch))
            else:
                self.backend.blanks.append(subnet)
            if subnet in self.backend.broken:
                raise EngineError(f"{subnet} is broken")
            if subnet in self.backend.broken_once and batch.any():
                self.backend.broken_once.discard(subnet)
                raise RuntimeError(f"{subnet} failed once")
            if batch.max() > 1e30:
                raise EngineError("answered with non-finite values")
            if self.backend.blocking is not None and batch.any():
                self.backend.entered.set()
                self.backend.blocking.wait(10)
            return expected_logits(subnet, batch)
        finally:
            self._inside.release()

    @property
    def memory_bytes(self) -> int | None:
        return self.backend.memory.get(self.artifact.request.subnet)

    def close(self) -> None:
        if not self.closed:
            self.backend.closed.append(self.artifact.request.subnet)
        self.closed = True


class FakeBackend(Backend):
    """Builds fake engines at once, or only once ``loading`` is set."""

    name, device = "fake", "cpu"

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.broken_once: set[str] = set()
        self.unloadable: set[str] = set()
        self.memory: dict[str, int] = {}
        self.loaded: list[str] = []
        self.closed: list[str] = []
        self.sizes: list[int] = []
        self.blanks: list[str] = []
        self.reentered = self.asked_closed = 0
        self.blocking: threading.Event | None = None
        self.entered = threading.Event()
        self.loading = threading.Event()
        self.loading.set()

    def available(self) -> Availability:
        return Availability(True, "always")

    def precisions(self) -> tuple[str, ...]:
        return ("f32",)

    def build(self, bundle, request: CompileRequest) -> Artifact:
        return Artifact(
            path="no-such-folder",
            key=request.subnet,
            backend=self.name,
            device=self.device,
            request=request,
            input_shape=bundle.input.shape,
            classes=CLASSES,
        )

    def load(self, artifact: Artifact) -> Engine:
        assert self.loading.wait(10)
        if artifact.request.subnet in self.unloadable:
            raise EngineError(f"{artifact.request.subnet} cannot be loaded")
        self.loaded.append(artifact.request.subnet)
        return FakeEngine(artifact, self)


class Scripted(Policy):
    """Wants whatever its ``point`` says; raises when that is an exception."""

    name = "scripted"

    def __init__(self, point: str | Exception) -> None:
        self.point: str | Exception = point
        self.seen: list = []
        self.slack_plan = ()
        self.decided = 0

    def decide(self, conditions, table, current) -> Decision:
        self.seen.append((conditions, current))
        self.decided += 1
        if isinstance(self.point, Exception):
            raise self.point
        return Decision(point=self.point, reason=f"the script says {self.point}", slack_plan=self.slack_plan)

    def state(self) -> dict:
        return {"decided": self.decided}


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Readings:
    """Sensors that say what they are told, or raise."""

    def __init__(self, values: dict | None = None) -> None:
        self.told: dict | Exception = values or {}

    def read(self) -> Readings:
        if isinstance(self.told, Exception):
            raise self.told
        return self

    def values(self) -> dict:
        assert isinstance(self.told, dict)
        return self.told


def point(subnet: str, batch_size: int = 1) -> str:
    return f"{subnet}@fake:f32:b{batch_size}"


def make_table(bundle, batch_sizes=(1, 4), memory_bytes=None, ladder=LADDER, backend="fake", host=None) -> Table:
    rows = [
        Row(
            subnet=name,
            backend=backend,
            device="CPU",
            precision="f32",
            batch_size=size,
            threads=1,
            macs=100,
            accuracy=ACCURACY.get(name, 0.9),
            accuracy_low=ACCURACY.get(name, 0.9) - 0.01,
            accuracy_high=ACCURACY.get(name, 0.9) + 0.01,
            accuracy_source="bundle: test, n=400",
            latency_p50_ms=LATENCY_MS.get(name, 1.0) * (0.8 * size if size > 1 else 1),
            latency_p50_low_ms=LATENCY_MS.get(name, 1.0) * (0.8 * size if size > 1 else 1),
            latency_p50_high_ms=LATENCY_MS.get(name, 1.0) * (0.8 * size if size > 1 else 1),
            latency_p90_ms=LATENCY_MS.get(name, 1.0) * size,
            latency_p99_ms=LATENCY_MS.get(name, 1.0) * size,
            latency_p99_low_ms=LATENCY_MS.get(name, 1.0) * size,
            latency_p99_high_ms=LATENCY_MS.get(name, 1.0) * size,
            throughput_per_s=1000 / LATENCY_MS.get(name, 1.0),
            rounds=3,
            samples=30,
            load_ms=1.0,
            memory_bytes=memory_bytes,
        )
        for name in ladder
        for size in batch_sizes
    ]
    return Table(
        schema=1,
        bundle_name=bundle.name,
        bundle_key=bundle.key,
        host=host or Host(cpu="test", cores=1, memory_bytes=1, system="test", python="3", libraries={}),
        protocol=Protocol(
            rounds=3, seconds_per_cell=0.1, warmup=1, batch_sizes=batch_sizes, threads=1, seed=0, created="", wall_s=1.0
        ),
        rows=tuple(rows),
    )


class Http:
    """An HTTP server on a Unix socket and on a port, and a client that reads what it replies."""

    def __init__(self, agent: Agent, folder: Path, **changes) -> None:
        from agent.http_inference import Limits
        from agent.http_server import HttpServer
        from agent.model import ServedModel

        self.path = folder / "http.sock"
        limits = {name: changes.pop(name) for name in tuple(changes) if name in Limits.__struct_fields__}
        control = changes.pop("model_control", True)
        self.model = ServedModel(agent, "1.2.3", max_images=8, model_control=control)
        self.server = HttpServer(
            self.model, host="127.0.0.1", unix_path=self.path, limits=Limits(**limits), **changes
        ).start()

    def stop(self) -> None:
        self.server.stop(5)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20)
        connection.connect(str(self.path))
        return connection

    def ask(self, method, path, body=None, headers=None) -> Reply:
        connection = UnixConnection(self.path, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return Reply(reply.status, {n.lower(): v for n, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def get(self, path, headers=None) -> Reply:
        return self.ask("GET", path, None, headers)

    def post(self, path, body=b"", headers=None) -> Reply:
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        return self.ask("POST", path, body, headers)


class Reply(NamedTuple):
    """Status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        content = self.json()
        assert set(content) == {"error"}
        assert "Traceback" not in content["error"]
        return content["error"]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A bundle on disk with four nested subnets of a one-layer network."""
    widths = dict(zip(LADDER, (2, 4, 6, 8), strict=True))
    group = ChannelGroup(name="conv", width=8, members=(Member("conv.weight", 0), Member("fc.weight", 1)))
    manifest = Manifest(
        schema=1,
        name="tiny",
        architecture=Architecture(name="none"),
        input=InputSpec(channels=1, height=4, width=4, mean=(0.5,), std=(0.25,)),
        labels=("a", "b", "c"),
        groups=(group,),
        subnets=tuple(
            SubnetEntry(name=name, widths={"conv": width}, macs=width * 100, parameters=width * 10)
            for name, width in widths.items()
        ),
        weights_sha256="",
    )
    tensors = {"conv.weight": np.ones((8, 1, 3, 3), np.float32), "fc.weight": np.ones((CLASSES, 8), np.float32)}
    return save(tmp_path_factory.mktemp("bundle") / "tiny", manifest, tensors, "# tiny\n")


@pytest.fixture(scope="session")
def openvino_bundle(bundle, tmp_path_factory):
    """The same bundle with real OpenVINO exports of linear networks, made without torch."""
    ov = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    path = tmp_path_factory.mktemp("real") / "tiny"
    shutil.copytree(bundle.path, path)
    real = Bundle.open(path)
    folder = path / "exports" / "openvino"
    folder.mkdir(parents=True)
    for rank, name in enumerate(LADDER, 1):
        source = ops.parameter([-1, *SHAPE], np.float32, name="input")
        flat = ops.reshape(source, ops.constant(np.array([0, -1], np.int64)), special_zero=True)
        weights = np.outer(np.ones(16), np.arange(1, CLASSES + 1)).astype(np.float32) * rank
        model = ov.Model([ops.matmul(flat, ops.constant(weights), False, False)], [source], name)
        model.inputs[0].get_tensor().set_names({"input"})
        model.outputs[0].get_tensor().set_names({"logits"})
        ov.save_model(model, folder / f"{name}.xml")
        real = real.add_export(name, "openvino", [folder / f"{name}.xml", folder / f"{name}.bin"])
    return real


@pytest.fixture
def table(bundle):
    return make_table(bundle)


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def policy():
    return Scripted(point("s100"))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_agent(bundle, table, backend, policy):
    """Makes started agents and closes them; the control loop does not tick by itself unless asked to."""
    made: list[Agent] = []

    def make(**changes) -> Agent:
        start = changes.pop("start", True)
        arguments = {
            "backends": {"fake": backend},
            "policy": policy,
            "goals": Goals(),
            "sensors": None,
            "control_period_s": 3600.0,
            **changes,
        }
        agent = Agent(arguments.pop("bundle", bundle), arguments.pop("table", table), **arguments)
        made.append(agent)
        return agent.start() if start else agent

    yield make
    for agent in made:
        agent.close(drain_s=5)


@pytest.fixture
def make_grpc(tmp_path):
    """Makes started gRPC servers on Unix sockets and stops them."""
    from agent.grpc_calls import Calls
    from agent.grpc_server import GrpcLimits, GrpcServer
    from agent.model import ServedModel
    from agent.regions import Regions
    from agent.statistics import ServingStatistics

    made = []

    def make(agent, *, authorised=None, regions=None, model_control=True, **limits):
        model = ServedModel(agent, "1.2.3", max_images=8, model_control=model_control)
        statistics = ServingStatistics(model.name, model.versions)
        calls = Calls(model, statistics, regions or Regions(enabled=True))
        server = GrpcServer(calls, GrpcLimits(**limits), authorised=authorised)
        path = tmp_path / f"grpc{len(made)}.sock"
        server.listen_unix(path)
        server.start()
        server.calls, server.path, server.address = calls, path, f"unix:{path}"
        made.append(server)
        return server

    yield make
    for server in made:
        server.close(5)
        server.join()


@pytest.fixture
def make_native(tmp_path):
    """Makes started native servers and stops them."""
    from agent.model import ServedModel
    from agent.native import NativeServer
    from agent.native_requests import NativeLimits

    natives = []

    def make(agent, *, path=None, max_images=8, **limits):
        model = ServedModel(agent, "1.2.3", max_images=max_images)
        natives.append(NativeServer(model, path or tmp_path / f"native{len(natives)}.sock", NativeLimits(**limits)))
        return natives[-1].start()

    yield make
    for native in natives:
        native.stop(5)


@pytest.fixture
def make_http(tmp_path):
    """Makes started HTTP servers and stops them."""
    made = []

    def make(agent, **changes) -> Http:
        made.append(Http(agent, tmp_path, **changes))
        return made[-1]

    yield make
    for http in made:
        http.stop()


@pytest.fixture
def images():
    """Five different images, none blank."""
    return np.random.Generator(np.random.PCG64(7)).uniform(0.5, 1.5, (5, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="session")
def helpers():
    """The names above for tests, which cannot import this file."""

    class Helpers:
        expected = staticmethod(expected_logits)
        point = staticmethod(point)
        make_table = staticmethod(make_table)
        root = Path(__file__).parents[2]

    Helpers.Scripted, Helpers.Readings, Helpers.Clock, Helpers.FakeBackend = Scripted, Readings, Clock, FakeBackend
    Helpers.LADDER, Helpers.LATENCY_MS, Helpers.Http = LADDER, LATENCY_MS, Http
    return Helpers
