"""benchmarks/gpu.py: right numbers from known engines and a known meter, and one sentence without a GPU."""

import contextlib
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from backends.cuda import open_gpu
from sensors.meter import Energy, EnergyMeter, MeterSample
from subnets import UnavailableError

pytest.importorskip("torch")


@pytest.fixture
def gpu_benchmark(root, monkeypatch):
    folder = root / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("benchmark_of_gpus", folder / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("common", None)


class World:
    """Time passes only while an engine runs or something sleeps, at a power that depends on which."""

    def __init__(self):
        self.now, self.joules = 0.0, 0.0

    def spend(self, seconds, power_w):
        self.now += seconds
        self.joules += seconds * power_w


class KnownEngine:
    def __init__(self, world, seconds, power_w):
        self.world, self.seconds, self.power_w = world, seconds, power_w

    def infer(self, batch):
        self.world.spend(self.seconds + 0.003, self.power_w)

    def repeat(self, batch_size, times):
        self.world.spend(self.seconds * times, self.power_w)


class KnownMeter(EnergyMeter):
    source, device, update_period_s, where = "known", "GPU", 0.1, "here"

    def __init__(self, world):
        self.world = world

    def sample(self):
        return MeterSample(self.world.now, self.world.joules)

    def energy(self, before, after):
        joules = after.state - before.state
        return Energy(joules, joules, joules, after.time_s - before.time_s, self.source)


@pytest.fixture
def measured(gpu_benchmark):
    def run(meter=True):
        world = World()
        engines = {"s20": KnownEngine(world, 0.010, 200.0), "s100": KnownEngine(world, 0.040, 300.0)}
        windows = gpu_benchmark.measure(
            engines,
            4,
            (3, 2, 2),
            rounds=5,
            seconds=2.0,
            meter=KnownMeter(world) if meter else None,
            clock=lambda: world.now,
            sleep=lambda seconds: world.spend(seconds, 50.0),
        )
        entries = [SimpleNamespace(name=name, macs=macs, widths={"a": 1}) for name, macs in (("s20", 2), ("s100", 10))]
        bundle = SimpleNamespace(manifest=SimpleNamespace(subnets=entries))
        return gpu_benchmark.summary(bundle, windows, 4)

    return run


def test_latency_energy_and_spread_are_those_of_the_engines(measured):
    found = measured()
    small, full = found["subnets"]
    for row, milliseconds, watts in ((small, 10, 200), (full, 40, 300)):
        assert row["gpu_ms"]["value"] == pytest.approx(milliseconds)
        assert row["request_ms"]["value"] == pytest.approx(milliseconds + 3)
        assert row["power_w"]["value"] == pytest.approx(watts)
        assert row["energy_j_per_image"]["value"] == pytest.approx(watts * milliseconds / 1e3 / 4)
        assert row["net_energy_j_per_image"]["value"] == pytest.approx((watts - 50) * milliseconds / 1e3 / 4)
        assert row["images_per_s"] == pytest.approx(4000 / milliseconds)
    assert found["idle_power_w"]["value"] == pytest.approx(50)
    assert found["spread"] == pytest.approx(4)


def test_without_a_meter_energy_is_unknown_and_never_zero(measured):
    found = measured(meter=False)
    assert found["idle_power_w"] is None
    assert all(row["energy_j_per_image"] is None and row["power_w"] is None for row in found["subnets"])


def test_without_a_gpu_it_is_one_sentence_and_exit_code_2(root):
    with contextlib.suppress(UnavailableError):
        pytest.skip(f"there is a GPU here: {open_gpu().name}")
    command = [sys.executable, str(root / "benchmarks" / "gpu.py")]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert ran.stderr.startswith("no NVIDIA GPU here") and ran.stderr.count("\n") == 1
