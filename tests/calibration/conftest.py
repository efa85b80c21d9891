"""A clock that only moves when something is done, and a backend, engines and a meter that live on it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from backends.base import Artifact, Availability, Backend, Engine
from calibration.rounds import Clocks
from calibration.table import Host, Protocol, Row, Switch, Table
from sensors import Energy, EnergyMeter, MeterSample
from subnets.bundle import Accuracy, Architecture, Bundle, InputSpec, Manifest, SubnetEntry, save
from subnets.spec import ChannelGroup, Member

IDLE_W, BUSY_W = 2.0, 5.0  # the fake machine's power
STEADY_MS = {"s25": 1.0, "s50": 2.0, "s100": 4.0}
COLD_MS = {"s25": 0.3, "s50": 0.5, "s100": 0.9}  # on top, for the first answer after another subnet
LOAD_MS = {"s25": 10.0, "s50": 12.0, "s100": 16.0}


class FakeTime:
    """Seconds of wall time and of work; ``jitter`` is the relative spread of latencies."""

    def __init__(self, jitter=0.0, drift=0.0, seed=0, extra_ms=0.0, settle_ms=10.0):
        self.now_s = self.busy_s = self.answered_s = 0.0
        self.extra_ms, self.settle_ms = extra_ms, settle_ms  # an answer after a rest takes up to so much longer
        self.jitter, self.drift = jitter, drift
        self.random = np.random.default_rng(seed)
        self.last = None
        self.log = []
        self.on_infer = lambda subnet: None

    def sleep(self, seconds):
        self.log.append(("sleep", seconds))
        self.now_s += seconds

    def work(self, ms):
        self.now_s += ms / 1e3
        self.busy_s += ms / 1e3

    def clocks(self):
        return Clocks(lambda: self.now_s, lambda: self.busy_s, self.sleep)


class FakeEngine(Engine):
    def __init__(self, artifact, time):
        self.artifact, self.time, self.closed = artifact, time, 0

    def infer(self, batch):
        assert batch.shape[0] in self.artifact.request.batch_sizes and batch.dtype == np.float32
        subnet, time = self.artifact.request.subnet, self.time
        ms = STEADY_MS[subnet] * len(batch)
        if self.artifact.request.precision == "bf16":
            ms /= 2
        if time.last is not self:
            ms += COLD_MS[subnet]
        rest_ms = 1e3 * (time.now_s - time.answered_s)
        ms += time.extra_ms * (1 - math.exp(-rest_ms / time.settle_ms))
        ms *= 1 + time.drift * time.now_s + time.jitter * time.random.standard_normal()
        time.last = self
        time.log.append((subnet, self.artifact.request.precision, len(batch)))
        time.on_infer(subnet)
        time.work(ms)
        time.answered_s = time.now_s
        logits = np.zeros((len(batch), self.artifact.classes), np.float32)
        # "Recognises" the class written into the first pixel, except above what the subnet can.
        classes = np.rint(batch[:, 0, 0, 0]).astype(int)
        able = {"s25": 7, "s50": 8, "s100": 9}[subnet]
        logits[np.arange(len(batch)), np.where(classes < able, classes, 0)] = 1
        return logits

    @property
    def memory_bytes(self):
        return 1_000_000

    def close(self):
        self.closed += 1


class FakeBackend(Backend):
    device = "CPU"

    def __init__(self, time, name="fake", ok=True, precisions=("f32", "bf16")):
        self.time, self.name, self.ok, self.offered = time, name, ok, precisions
        self.engines = []

    def available(self):
        return Availability(self.ok, "yes" if self.ok else "no such processor")

    def precisions(self):
        return self.offered

    def build(self, bundle, request):
        return Artifact(
            path="/nowhere",
            key="0",
            backend=self.name,
            device=self.device,
            request=request,
            input_shape=bundle.input.shape,
            classes=len(bundle.labels),
        )

    def load(self, artifact):
        self.time.work(LOAD_MS[artifact.request.subnet])
        self.engines.append(FakeEngine(artifact, self.time))
        return self.engines[-1]


class FakeMeter(EnergyMeter):
    """Exact joules: idle power always, more while an engine works; ``gain`` is how wrong its bounds may be."""

    device, where, update_period_s = "CPU", "here", 0.001

    def __init__(self, time, source="rapl-package", gain=0.0):
        self.time, self.source, self.gain, self.entered = time, source, gain, 0

    def __enter__(self):
        self.entered += 1
        return self

    def sample(self):
        joules = IDLE_W * self.time.now_s + (BUSY_W - IDLE_W) * self.time.busy_s
        return MeterSample(self.time.now_s, joules)

    def energy(self, before, after):
        joules = after.state - before.state
        low, high = joules * (1 - self.gain), joules * (1 + self.gain)
        return Energy(joules, low, high, after.time_s - before.time_s, self.source)


@pytest.fixture
def fakes():
    """The classes and constants above, for tests that build their own."""
    return SimpleNamespace(
        Time=FakeTime,
        Backend=FakeBackend,
        Engine=FakeEngine,
        Meter=FakeMeter,
        idle_w=IDLE_W,
        busy_w=BUSY_W,
        steady_ms=STEADY_MS,
        cold_ms=COLD_MS,
        load_ms=LOAD_MS,
    )


def _bundle(path, provenance, accuracy):
    widths = {"s25": 1, "s50": 2, "s100": 4}
    manifest = Manifest(
        schema=1,
        name="toy",
        architecture=Architecture(name="toy"),
        input=InputSpec(channels=1, height=16, width=16, mean=(0.0,), std=(1 / 255,)),
        labels=tuple("0123456789"),
        groups=(ChannelGroup(name="fc", width=4, members=(Member("fc.weight", 0),)),),
        subnets=tuple(
            SubnetEntry(name=name, widths={"fc": width}, macs=100 * width, parameters=256 * width, accuracy=accuracy)
            for name, width in widths.items()
        ),
        weights_sha256="",
        provenance=provenance,
    )
    tensors = {"fc.weight": np.zeros((4, 256), np.float32), "head.weight": np.zeros((10, 4), np.float32)}
    save(path, manifest, tensors, "# toy\n")
    return Bundle.open(path)


@pytest.fixture
def bundle(tmp_path):
    """Three subnets that record an accuracy of 90 % (n=1000)."""
    return _bundle(tmp_path / "toy", {}, Accuracy(value=0.9, low=0.88, high=0.92, n=1000, split="test"))


@pytest.fixture
def bare_bundle(tmp_path):
    """The same without any accuracy."""
    return _bundle(tmp_path / "bare", {}, None)


@pytest.fixture
def digits_bundle(tmp_path):
    """The same, said to have been trained on the digits."""
    return _bundle(tmp_path / "digits", {"dataset": "digits"}, None)


@pytest.fixture
def make_row():
    def make(**changes):
        values = {
            "subnet": "s25",
            "backend": "openvino",
            "device": "CPU",
            "precision": "f32",
            "batch_size": 1,
            "threads": 2,
            "macs": 1000,
            "accuracy": 0.9,
            "accuracy_low": 0.88,
            "accuracy_high": 0.92,
            "accuracy_source": "measured: test, n=400",
            "latency_p50_ms": 2.0,
            "latency_p50_low_ms": 1.9,
            "latency_p50_high_ms": 2.1,
            "latency_p90_ms": 2.5,
            "latency_p99_ms": 3.0,
            "latency_p99_low_ms": 2.7,
            "latency_p99_high_ms": 3.4,
            "throughput_per_s": 480.0,
            "rounds": 8,
            "samples": 2000,
            "load_ms": 20.0,
        }
        return Row(**{**values, **changes})

    return make


@pytest.fixture
def make_table(make_row):
    def make(rows=None, **changes):
        rows = (make_row(), make_row(subnet="s100", latency_p50_ms=2.05)) if rows is None else tuple(rows)
        values = {
            "schema": 1,
            "bundle_name": "toy",
            "bundle_key": "0123456789abcdef",
            "host": Host(
                cpu="A", cores=2, memory_bytes=10**9, system="Linux", python="3.11", libraries={"openvino": "1"}
            ),
            "protocol": Protocol(
                rounds=8,
                seconds_per_cell=0.5,
                warmup=5,
                batch_sizes=(1,),
                threads=2,
                seed=0,
                created="2026-01-01T00:00:00+00:00",
                wall_s=60.0,
            ),
            "rows": rows,
            "switches": (
                tuple(
                    Switch(from_point=a.point, to_point=b.point, first_ms=3.0, extra_ms=0.5)
                    for a in rows
                    for b in rows
                    if a is not b
                )
            ),
        }
        return Table(**{**values, **changes})

    return make
