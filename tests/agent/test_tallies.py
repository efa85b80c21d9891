"""Counts and histograms of what was answered."""

import numpy as np
import pytest

from agent.tallies import BOUNDS_MS, Tallies, quantile_ms


def test_the_buckets_rise_and_pass_through_the_steps_that_prometheus_is_given():
    assert list(BOUNDS_MS) == sorted(set(BOUNDS_MS))
    for decade in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0):
        for step in (1, 2.5, 5):
            assert float(f"{step * decade:.6g}") in BOUNDS_MS
    ratios = np.array(BOUNDS_MS[1:]) / BOUNDS_MS[:-1]
    assert ratios.max() < 1.13


def test_an_answer_is_counted_at_its_point_with_its_images_and_times():
    tallies = Tallies()
    tallies.answered("a", 3, 1.0, 2.0)
    tallies.answered("a", 1, 0.0, 40.0)
    tallies.answered("b", 1, 0.5, 0.5)
    a = tallies.by_point()["a"]
    assert (a.requests, a.images, a.queue_ms, a.infer_ms) == (2, 4, 1.0, 42.0)
    assert sum(a.total) == sum(a.infer) == 2
    # 1 + 2 ms is more than 2.5 and at most 5; the engine's 2 ms more than 1 and at most 2.5.
    assert sum(a.total[BOUNDS_MS.index(2.5) + 1 : BOUNDS_MS.index(5.0) + 1]) == 1
    assert sum(a.infer[BOUNDS_MS.index(1.0) + 1 : BOUNDS_MS.index(2.5) + 1]) == 1
    assert sum(tallies.totals()) == 3


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_quantiles_are_within_two_percent_of_a_large_sorted_sample(share):
    sample = np.random.default_rng(3).lognormal(1.0, 0.7, 5000)
    tallies = Tallies()
    for latency_ms in sample:
        tallies.answered("a", 1, latency_ms / 3, latency_ms * 2 / 3)
    assert quantile_ms(tallies.totals(), share) == pytest.approx(np.quantile(sample, share), rel=0.02)


def test_without_answers_no_quantile_and_beyond_the_last_bucket_its_bound():
    tallies = Tallies()
    assert quantile_ms(tallies.totals(), 0.5) is None
    tallies.answered("a", 1, 0.0, 1e9)
    assert quantile_ms(tallies.totals(), 0.5) == BOUNDS_MS[-1]


def test_every_answer_of_an_agent_is_tallied_where_it_was_answered(make_agent, images, helpers):
    agent = make_agent()
    for _ in range(3):
        agent.infer(images[:2])
    agent.infer(images[:1], subnet="s25")
    found = agent.tallies.by_point()
    assert {name: (tally.requests, tally.images) for name, tally in found.items()} == {
        helpers.point("s100"): (3, 6),
        helpers.point("s25"): (1, 1),
    }
