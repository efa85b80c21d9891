"""Cutting a batch of any size into the batch sizes an engine was compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Plan(NamedTuple):
    """How a batch is cut: engine batch sizes in order, and what the table says they take together."""

    chunks: tuple[int, ...]
    expected_ms: float


def plan_chunks(images: int, cost_ms: Mapping[int, float]) -> Plan:
    """The cheapest way to cover ``images`` with an engine's batch sizes; the last chunks may hold padding.

    Args:
        images: at least 1.
        cost_ms: latency of each batch size the engine was compiled for.
    """
    total_ms, first = [0.0], [0]  # for 0, 1, 2, ... images: cost of the best way, and one batch size it uses
    for n in range(1, images + 1):
        cost, size = min((total_ms[max(0, n - size)] + cost, -size) for size, cost in cost_ms.items())
        total_ms.append(cost)
        first.append(-size)
    chunks, left = [], images
    while left > 0:
        chunks.append(first[left])
        left -= chunks[-1]
    return Plan(tuple(sorted(chunks, reverse=True)), total_ms[images])
