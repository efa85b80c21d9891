"""The sums that Triton's clients subtract from each other: each request once, in its version, in its batch size."""

import numpy as np
import pytest

from agent.statistics import ServingStatistics
from agent.values import Answer


def answer(images=1, queue_ms=0.0, infer_ms=2.0, subnet="s25"):
    return Answer(
        logits=np.zeros((images, 3), np.float32),
        subnet=subnet,
        point=f"{subnet}@fake",
        queue_ms=queue_ms,
        infer_ms=infer_ms,
        reason="",
        bound="none",
        accuracy=0.9,
        energy_j=None,
        energy_source="unmeasurable",
    )


@pytest.fixture
def statistics():
    return ServingStatistics("tiny", ("1", "2"))


def told(statistics, version):
    (only,) = statistics.report(version)["model_stats"]
    return only


def test_nothing_has_happened_at_first(statistics):
    for version in ("1", "2"):
        found = told(statistics, version)
        assert (found["name"], found["version"]) == ("tiny", version)
        assert (found["inference_count"], found["execution_count"], found["last_inference"]) == (0, 0, 0)
        assert all(sums == {"count": 0, "ns": 0} for sums in found["inference_stats"].values())
        assert found["batch_stats"] == []
    assert [each["version"] for each in statistics.report()["model_stats"]] == ["1", "2"]


def test_an_answer_counts_its_images_and_where_its_time_went(statistics):
    statistics.succeeded("2", answer(3, queue_ms=0.5, infer_ms=2.0), total_ns=9, input_ns=4, output_ns=5)
    statistics.succeeded("2", answer(3, queue_ms=1.5, infer_ms=4.0), total_ns=11, input_ns=6, output_ns=7)
    statistics.succeeded("2", answer(1), total_ns=1)
    found = told(statistics, "2")
    assert (found["inference_count"], found["execution_count"]) == (7, 3) and found["last_inference"] > 0
    stats = found["inference_stats"]
    assert stats["success"] == {"count": 3, "ns": 21}
    assert stats["queue"] == {"count": 3, "ns": 2_000_000}
    assert stats["compute_infer"] == {"count": 3, "ns": 8_000_000}
    assert (stats["compute_input"]["ns"], stats["compute_output"]["ns"]) == (10, 12)
    assert stats["fail"]["count"] == stats["cache_hit"]["count"] == 0
    one, three = found["batch_stats"]
    assert (one["batch_size"], three["batch_size"]) == (1, 3)
    assert three["compute_infer"] == {"count": 2, "ns": 6_000_000}
    assert three["compute_input"] == {"count": 2, "ns": 10} and three["compute_output"] == {"count": 2, "ns": 12}
    assert told(statistics, "1")["inference_count"] == 0


def test_a_failure_counts_where_it_was_asked_for_else_with_who_answered_last(statistics):
    statistics.failed("1", total_ns=5)
    statistics.succeeded("1", answer(), total_ns=1)
    statistics.failed(None, total_ns=7)
    statistics.succeeded("2", answer(), total_ns=1)
    statistics.failed(None, total_ns=9)
    assert told(statistics, "1")["inference_stats"]["fail"] == {"count": 2, "ns": 12}
    assert told(statistics, "2")["inference_stats"]["fail"] == {"count": 1, "ns": 9}
    assert told(statistics, "1")["inference_count"] == 1


def test_clients_cannot_make_the_list_of_batch_sizes_grow_without_end(statistics):
    for images in range(1, 201):
        statistics.succeeded("1", answer(images), total_ns=1)
    found = told(statistics, "1")
    assert found["execution_count"] == 200 and found["inference_count"] == sum(range(1, 201))
    assert len(found["batch_stats"]) == 64
    statistics.succeeded("1", answer(64), total_ns=1)
    assert told(statistics, "1")["batch_stats"][-1]["compute_infer"]["count"] == 2
