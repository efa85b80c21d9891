"""Switching between real engines under load: nothing is lost, nothing is wrong, and answers say who gave them."""

import threading
from pathlib import Path

import numpy as np
import pytest

from agent import Agent
from backends.base import CompileRequest
from policies.base import Goals
from subnets.bundle import Bundle

SIZES = (1, 4)


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    from backends.openvino import OpenVINOBackend

    return OpenVINOBackend(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def real():
    return Bundle.open(Path(__file__).parents[2] / "bundles" / "resnet20-cifar10")


@pytest.fixture(scope="module")
def expected(real, backend):
    """Images, and the logits of each subnet for each of them, from engines of their own, one image at a time."""
    random = np.random.Generator(np.random.PCG64(3))
    images = random.standard_normal((12, *real.input.shape)).astype(np.float32)
    logits = {}
    for name in real.ladder.names:
        engine = backend.load(backend.build(real, CompileRequest(subnet=name, batch_sizes=SIZES)))
        logits[name] = np.concatenate([engine.infer(image[None]) for image in images])
        engine.close()
    return images, logits


def test_thousands_of_switches_of_real_engines_lose_and_mix_nothing(real, backend, expected, helpers):
    images, logits = expected
    names = real.ladder.names
    assert len(names) >= 3
    table = helpers.make_table(real, batch_sizes=SIZES, ladder=names, backend="openvino")
    policy = helpers.Scripted(f"{names[-1]}@openvino:f32:b4")
    agent = Agent(
        real,
        table,
        backends={"openvino": backend},
        policy=policy,
        goals=Goals(),
        sensors=None,
        control_period_s=3600.0,
        queue_limit=64,
    )
    with agent:
        for name in names:
            agent.infer(images[:1], subnet=name)
        stop, wrong, answered = threading.Event(), [], []
        floors = {row.subnet: row.accuracy for row in table.rows}

        def client(seed):
            random = np.random.Generator(np.random.PCG64(seed))
            while not stop.is_set():
                picked = random.integers(0, len(images), int(random.choice((1, 1, 1, 2, 5))))
                wish = {}
                kind = int(random.integers(6))
                if kind == 0:
                    wish = {"subnet": names[int(random.integers(len(names)))]}
                elif kind == 1:
                    wish = {"min_accuracy": floors[names[int(random.integers(len(names)))]]}
                ask = agent.infer if seed % 2 else lambda batch, **wish: agent.submit(batch, **wish).result(30)
                answer = ask(images[picked], **wish)
                answered.append(answer.point)
                if (
                    answer.subnet != wish.get("subnet", answer.subnet)
                    or answer.accuracy < wish.get("min_accuracy", 0.0)
                    or not np.allclose(answer.logits, logits[answer.subnet][picked], rtol=1e-3, atol=1e-4)
                ):
                    wrong.append((wish, picked, answer))

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        switches = 0
        while switches < 2000 or len(answered) < 500 or len({point.split("@")[0] for point in answered}) < len(names):
            policy.point = f"{names[switches % len(names)]}@openvino:f32:b{SIZES[switches // len(names) % 2]}"
            agent.tick()
            switches += 1
        stop.set()
        for thread in threads:
            thread.join(30)
        counters = agent.status().counters
    assert not wrong
    assert counters.requests == len(answered) + len(names)
    assert counters.failed == counters.engine_failures == counters.refused == counters.rescued == 0
    assert {point.rsplit(":", 1)[1] for point in answered} == {"b1", "b4"}
    gap = min(np.abs(logits[one] - logits[other]).max() for one in names for other in names if one < other)
    assert gap > 0.1  # far more than the tolerance: a mixed-up answer would be seen


def test_images_answered_together_are_answered_as_alone(real, backend, expected):
    images, logits = expected
    for name in real.ladder.names:
        engine = backend.load(backend.build(real, CompileRequest(subnet=name, batch_sizes=SIZES)))
        for start in range(0, len(images), 4):
            together = engine.infer(images[start : start + 4])
            np.testing.assert_allclose(together, logits[name][start : start + 4], rtol=1e-3, atol=1e-4)
        engine.close()
