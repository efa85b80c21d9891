"""The command as users run it: exit code and words; and small files to run it on."""

import contextlib
import io
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def gearshift(tmp_path, monkeypatch):
    """Runs ``gearshift ...`` through :func:`cli.main` in an empty folder: ``code``, ``out``, ``err``."""
    import cli

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gearshift", *map(str, arguments)])
        raw = io.BytesIO()
        out, err = io.TextIOWrapper(raw, encoding="utf-8", write_through=True), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
        return SimpleNamespace(code=ended.value.code, out=raw.getvalue().decode(), err=err.getvalue())

    return run


@pytest.fixture
def refused(gearshift):
    """Runs a command that must end with exit code 2 and one sentence; returns the sentence."""

    def run(*arguments):
        result = gearshift(*arguments)
        assert result.code == 2, (result.code, result.out, result.err)
        assert "Traceback" not in result.out + result.err
        said = [line for line in result.err.splitlines() if line.startswith("Error: ")]
        assert len(said) == 1 and result.err.rstrip().endswith(said[0]), result.err
        return said[0].removeprefix("Error: ")

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A tinynet checkpoint and a bundle sampled from it, made by the commands themselves."""
    import torch

    from subnets import architectures
    from subnets.allocation import Limits
    from subnets.bundle import Architecture
    from subnets.data import ArraySplit, Dataset, digits
    from subnets.sampling import SampleOptions, sample, save_network

    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    arguments = {"num_classes": 10, "in_channels": 1}
    network = architectures.build("tinynet", **arguments).eval()
    save_network(network, folder / "tinynet.safetensors")
    full = digits()
    few = {name: getattr(full, name) for name in ("train", "validation", "test")}
    few = {name: ArraySplit(split.images[:64], split.labels[:64]) for name, split in few.items()}
    dataset = Dataset(name="digits", classes=full.classes, mean=full.mean, std=full.std, pad=2, **few)
    options = SampleOptions(budgets=(0.3, 1.0), score="norm", limits=Limits(align=4))
    sample(network, Architecture(name="tinynet", arguments=arguments), dataset, options, folder / "toy")
    return folder


@pytest.fixture
def bundle(made, tmp_path):
    """A bundle's folder, a copy of one's own."""
    return shutil.copytree(made / "toy", tmp_path / "toy")


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of eight images each, and two to test."""
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{k}.png")
    return tmp_path / "images"


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-10's python layout with ten images a batch."""
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        content = {b"data": pixels, b"labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


@pytest.fixture
def table_file(bundle, tmp_path):
    """A hand-written calibration table of the toy bundle."""
    from calibration import Host, Protocol, Row, Table, write
    from subnets.bundle import Bundle

    opened = Bundle.open(bundle)
    rows = tuple(
        Row(
            subnet=entry.name,
            backend="openvino",
            device="CPU",
            precision="f32",
            batch_size=1,
            threads=1,
            macs=entry.macs,
            accuracy=accuracy,
            accuracy_low=accuracy - 0.01,
            accuracy_high=accuracy + 0.01,
            accuracy_source="measured: test, n=400",
            latency_p50_ms=ms,
            latency_p50_low_ms=0.98 * ms,
            latency_p50_high_ms=1.02 * ms,
            latency_p90_ms=1.1 * ms,
            latency_p99_ms=1.2 * ms,
            latency_p99_low_ms=1.1 * ms,
            latency_p99_high_ms=1.3 * ms,
            throughput_per_s=1000 / ms,
            rounds=8,
            samples=500,
            load_ms=5.0,
        )
        for entry, ms, accuracy in zip(opened.manifest.subnets, (2.0, 5.0), (0.8, 0.9), strict=True)
    )
    table = Table(
        schema=1,
        bundle_name=opened.name,
        bundle_key=opened.key,
        host=Host(cpu="A", cores=2, memory_bytes=10**9, system="Linux", python="3.11", libraries={}),
        protocol=Protocol(
            rounds=8,
            seconds_per_cell=0.5,
            warmup=5,
            batch_sizes=(1,),
            threads=1,
            seed=0,
            created="2026-01-01T00:00:00+00:00",
            wall_s=60.0,
        ),
        rows=rows,
    )
    write(table, tmp_path / "toy.table.json")
    return tmp_path / "toy.table.json"
