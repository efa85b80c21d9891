"""What Triton's clients ask for after a measurement: how many requests each version answered and where the time went.

All times are nanoseconds since the start, summed. Fed by every network front door, from several threads. Knows nothing
of protocols; the report is the JSON of ``/v2/models/{model}/stats`` and, name by name, gRPC's ``ModelStatistics``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from agent.values import Answer

_PARTS = ("compute_input", "compute_infer", "compute_output")
_STATES = ("success", "fail", "queue", *_PARTS, "cache_hit", "cache_miss")
_MAX_BATCH_SIZES = 64  # told apart per version; larger kinds of batch are many, and a client must not make a list grow


class _Version:
    """One version's sums."""

    def __init__(self) -> None:
        self.last_ms = self.images = self.executions = 0
        self.count = dict.fromkeys(_STATES, 0)
        self.ns = dict.fromkeys(_STATES, 0)
        self.batches: dict[int, list[int]] = {}  # batch size -> [executions, input ns, infer ns, output ns]


class ServingStatistics:
    """Sums per version.

    Args:
        model: its name.
        versions: those that can answer.
    """

    def __init__(self, model: str, versions: Sequence[str]) -> None:
        self._model = model
        self._versions = {version: _Version() for version in versions}
        self._last = versions[-1]
        self._mutex = threading.Lock()

    def succeeded(self, version: str, answer: Answer, *, total_ns: int, input_ns: int = 0, output_ns: int = 0) -> None:
        """Counts an answered request.

        Args:
            version: which answered.
            answer: its logits tell the batch size, its times the queue and the inference.
            total_ns: from the whole request's arrival to the finished reply.
            input_ns: spent on reading the request.
            output_ns: spent on writing the reply.
        """
        images = len(answer.logits)
        queue_ns, infer_ns = int(answer.queue_ms * 1e6), int(answer.infer_ms * 1e6)
        now_ms = time.time_ns() // 1_000_000
        with self._mutex:
            self._last = version
            sums = self._versions[version]
            sums.last_ms = now_ms
            sums.images += images
            sums.executions += 1
            count, ns = sums.count, sums.ns
            for state, spent in (
                ("success", total_ns),
                ("queue", queue_ns),
                ("compute_input", input_ns),
                ("compute_infer", infer_ns),
                ("compute_output", output_ns),
            ):
                count[state] += 1
                ns[state] += spent
            batch = sums.batches.get(images)
            if batch is None:
                if len(sums.batches) >= _MAX_BATCH_SIZES:
                    return
                batch = sums.batches[images] = [0, 0, 0, 0]
            batch[0] += 1
            batch[1] += input_ns
            batch[2] += infer_ns
            batch[3] += output_ns

    def failed(self, version: str | None, *, total_ns: int) -> None:
        """Counts a request that was understood but not answered; without a version, with the one that answered last."""
        with self._mutex:
            sums = self._versions[version or self._last]
            sums.count["fail"] += 1
            sums.ns["fail"] += total_ns

    def report(self, version: str | None = None) -> dict[str, Any]:
        """Statistics of one version, or of all."""
        with self._mutex:
            wanted = [version] if version else list(self._versions)
            return {"model_stats": [self._told(name, self._versions[name]) for name in wanted]}

    def _told(self, version: str, sums: _Version) -> dict[str, Any]:
        return {
            "name": self._model,
            "version": version,
            "last_inference": sums.last_ms,
            "inference_count": sums.images,
            "execution_count": sums.executions,
            "inference_stats": {state: {"count": sums.count[state], "ns": sums.ns[state]} for state in _STATES},
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": size,
                    **{part: {"count": batch[0], "ns": batch[1 + i]} for i, part in enumerate(_PARTS)},
                }
                for size, batch in sorted(sums.batches.items())
            ],
            "memory_usage": [],
        }
