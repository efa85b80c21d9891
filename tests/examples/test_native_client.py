"""The example of a neighbour runs as it stands, against an agent with the engines that ship."""

import importlib.util
import re
import sys

import pytest

pytest.importorskip("openvino")

from agent import Agent
from agent.model import ServedModel
from agent.native import NativeServer
from backends.openvino import OpenVINOBackend
from calibration.table import Host, Protocol, Row, Table
from policies import registry
from policies.base import Goals
from subnets import Bundle


@pytest.fixture
def path(root, tmp_path):
    """The socket of an agent with the digits' largest subnet."""
    bundle = Bundle.open(root / "bundles" / "digits")
    latency = dict.fromkeys(("latency_p50_ms", "latency_p50_low_ms", "latency_p50_high_ms", "latency_p90_ms"), 1.0)
    latency |= dict.fromkeys(("latency_p99_ms", "latency_p99_low_ms", "latency_p99_high_ms"), 1.0)
    row = Row(
        subnet="s100",
        backend="openvino",
        device="CPU",
        precision="f32",
        batch_size=1,
        threads=1,
        macs=1,
        accuracy=0.9,
        accuracy_low=0.8,
        accuracy_high=1.0,
        accuracy_source="test",
        throughput_per_s=1000.0,
        rounds=1,
        samples=1,
        load_ms=1.0,
        memory_bytes=None,
        **latency,
    )
    table = Table(
        schema=1,
        bundle_name=bundle.name,
        bundle_key=bundle.key,
        host=Host(cpu="test", cores=1, memory_bytes=1, system="test", python="3", libraries={}),
        protocol=Protocol(
            rounds=1, seconds_per_cell=1.0, warmup=1, batch_sizes=(1,), threads=1, seed=0, created="", wall_s=1.0
        ),
        rows=(row,),
    )
    agent = Agent(
        bundle,
        table,
        backends={"openvino": OpenVINOBackend(tmp_path / "cache")},
        policy=registry.create("largest", Goals(), {}),
        goals=Goals(),
        sensors=None,
    )
    with agent:
        server = NativeServer(ServedModel(agent), tmp_path / "native.sock").start()
        yield server.path
        server.stop(5)


def test_the_example_gets_the_digits_right(root, path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("native_client", root / "examples" / "native_client.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(
        sys, "argv", ["native_client.py", "--path", str(path), "--bundle", str(root / "bundles" / "digits")]
    )
    example.main()
    told = re.search(r"s100: 200 answers, ([\d.]+) % right", capsys.readouterr().out)
    assert told is not None and float(told[1]) > 90  # its model card: 96 % of all 597
