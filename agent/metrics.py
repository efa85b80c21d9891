"""Metrics for Prometheus at ``/metrics``: collected when scraped, from the agent's status, counters and histograms.

Base units, few labels (subnet, backend, precision, bound, constraint, source); what is unknown has no sample, so that a
dashboard shows a gap and never a zero. ``?compat=triton`` gives the names of Triton's own metrics instead, for
dashboards and tools that were made for them. What each metric means stands in ``docs/operations.md``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.tallies import BOUNDS_MS, Tally
from agent.values import Counters, Status
from agent.view import View, Viewer
from calibration.table import Row

Kind = tuple[str, str, str]  # subnet, backend, precision
BUCKETS_MS = (*(float(f"{decade * step:g}") for decade in (0.1, 1, 10, 100, 1000) for step in (1, 2.5, 5)), 10_000.0)
"""The histograms' upper bounds: 1, 2.5 and 5 of every decade from 0.1 ms to 10 s."""

_COUNTERS = {
    "late": ("deadline_misses", "Requests answered after their deadline."),
    "refused": ("requests_refused", "Requests turned away at once: queue full, closing, or hopeless."),
    "expired": ("requests_expired", "Requests given up because their deadline had passed before their turn."),
    "superseded": ("requests_superseded", "Requests that a newer one of their stream replaced."),
    "failed": ("requests_failed", "Requests that no engine could answer."),
    "rescued": ("requests_rescued", "Requests answered by another engine than the one asked first."),
    "engine_failures": ("engine_failures", "Failures of engines."),
    "sensor_failures": ("sensor_failures", "Readings that failed, made no sense or were lost."),
    "policy_failures": ("policy_failures", "Decisions that failed or came too late; the safe choice stood in."),
    "engine_hangs": ("engine_hangs", "Inferences that did not come back in time."),
    "limits_reached": ("limits_reached", "Times that a hard limit (heat, power, charge) was reached."),
    "journal_stops": ("journal_stops", "Times that the journal could not be written."),
    "state_failures": ("state_failures", "Times that the state kept over restarts could not be read or written."),
    "clock_jumps": ("clock_jumps", "Jumps of the wall clock."),
    "rows_drifted": ("rows_drifted", "Operating points found to be off the table for long."),
}
"""Field of Counters -> name and help; fields not named here keep their name."""
_ELSEWHERE = ("requests", "images", "switches")  # told with labels instead

_CONDITIONS = {
    "battery_charge": ("battery_charge_ratio", "State of charge of the battery, 0 to 1."),
    "battery_energy_j": ("battery_energy_joules", "Energy left in the battery."),
    "battery_power_w": ("battery_power_watts", "Power drawn from the battery; negative while charging."),
    "on_mains": ("on_mains", "Whether the device is on mains: 1 or 0."),
    "temperature_c": ("temperature_celsius", "Temperature of the hottest relevant zone."),
    "throttled": ("throttled", "Whether the processor says that it has slowed itself down: 1 or 0."),
    "power_w": ("power_watts", "Power of the measured domain."),
    "cpu_load": ("cpu_load_ratio", "Load of all processor cores together, 0 to 1."),
    "pressure": ("cpu_pressure_ratio", "Share of the time in which some task waited for a processor, 0 to 1."),
    "arrival_rate_hz": ("arrival_rate_hertz", "Images arriving per second, smoothed over about five seconds."),
    "slowdown": ("slowdown_ratio", "Measured latency over the calibrated one, smoothed; 1 is as calibrated."),
    "miss_rate": ("deadline_miss_ratio", "Share of recent answers later than their deadline, 0 to 1."),
}
_GOALS = {
    "deadline_ms": ("goal_deadline_seconds", "Wished time from arrival to answer.", 1e-3),
    "min_accuracy": ("goal_min_accuracy_ratio", "Wished least accuracy, 0 to 1.", 1.0),
    "max_power_w": ("goal_max_power_watts", "Wished largest power.", 1.0),
    "temperature_limit_c": ("goal_temperature_limit_celsius", "Wished highest temperature.", 1.0),
    "reserve": ("goal_battery_reserve_ratio", "Charge of the battery to keep, 0 to 1.", 1.0),
}


class Metrics:
    """The route, for one viewer."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._registry = CollectorRegistry()
        self._registry.register(_AgentCollector(viewer))
        ProcessCollector(registry=self._registry)

    def routes(self) -> list[Route]:
        """For the HTTP server."""
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        """The exposition in the format that the scraper accepts; 400 where ``compat`` is not ``triton``."""
        compat = request.query_params.get("compat")
        if compat not in (None, "triton"):
            told = {"error": f"compat is '{compat[:20]}'; give triton, or leave it out"}
            return Response(msgspec.json.encode(told), 400, media_type="application/json")
        if compat:
            return Response(self.triton(), media_type="text/plain; version=0.0.4; charset=utf-8")
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"Content-Type": content_type})

    def text(self) -> str:
        """The exposition in Prometheus's plain text format."""
        return generate_latest(self._registry).decode()

    def triton(self) -> str:
        """Triton's names. Durations are sums in microseconds; a version is a subnet by its place on the ladder."""
        agent, status = self._viewer.agent, self._viewer.agent.status()
        names = agent.bundle.ladder.names
        by_subnet: dict[str, list[Tally]] = {row.subnet: [] for row in agent.table.rows}
        for point, tally in agent.tallies.by_point().items():
            by_subnet[agent.table.row(point).subnet].append(tally)
        bundle = agent.bundle.name
        labels = {name: {"model": bundle, "version": str(names.index(name) + 1)} for name in by_subnet}

        def summed(field: str, factor: float = 1.0) -> Iterable[tuple[Mapping[str, str], float]]:
            for name, tallies in by_subnet.items():
                yield labels[name], sum(getattr(tally, field) for tally in tallies) * factor

        model = {"model": bundle}
        lines = list(_plain("nv_inference_request_success", "counter", "Requests answered.", summed("requests")))
        lines += _plain(
            "nv_inference_request_failure", "counter", "Requests failed.", [(model, status.counters.failed)]
        )
        lines += _plain("nv_inference_count", "counter", "Images answered.", summed("images"))
        lines += _plain("nv_inference_exec_count", "counter", "Requests executed.", summed("requests"))
        lines += _plain(
            "nv_inference_queue_duration_us", "counter", "Summed time in the queue.", summed("queue_ms", 1000)
        )
        lines += _plain(
            "nv_inference_compute_infer_duration_us", "counter", "Summed time in engines.", summed("infer_ms", 1000)
        )
        both = [
            (labels[name], 1000 * sum(tally.queue_ms + tally.infer_ms for tally in tallies))
            for name, tallies in by_subnet.items()
        ]
        lines += _plain("nv_inference_request_duration_us", "counter", "Summed time of requests.", both)
        waiting = [(model, float(status.queue_depth))]
        lines += _plain("nv_inference_pending_request_count", "gauge", "Requests that wait.", waiting)
        return "\n".join(lines) + "\n"


def _plain(name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    """Prometheus's text format by hand: the client library would end a counter's name in ``_total``."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        told = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        yield f"{name}{{{told}}} {float(value):.12g}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class _AgentCollector(Collector):
    """Makes every metric anew at each scrape."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer
        self._started_unix_s = time.time()

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        view = self._viewer.view()
        status = view.status
        yield from self._identity(view)
        yield from self._requests(status)
        yield from self._engines(status)
        yield from _known(status)
        yield from _counters(status.counters)
        headroom = _gauge("headroom_ratio", "How far from each limit: 1 far, 0 at it, negative beyond.", ["constraint"])
        for one in view.headrooms:
            if one.headroom is not None:
                headroom.add_metric([one.name], one.headroom)
        yield headroom
        if (journal := status.journal) is not None:
            yield _counter("journal_records", "Records written to the journal.", journal.written)
            yield _counter("journal_dropped", "Records that the journal could not keep.", journal.dropped)
            yield _gauge(
                "journal_stopped", "Whether the journal has stopped writing: 1 or 0.", value=bool(journal.stopped)
            )

    def _identity(self, view: View) -> Iterator[Metric]:
        status = view.status
        build = _gauge("build_info", "What runs; always 1.", ["version", "bundle", "bundle_key", "policy"])
        build.add_metric([view.version, status.bundle, status.bundle_key, status.policy], 1)
        yield build
        yield _gauge("start_time_seconds", "When the agent started, Unix time.", value=self._started_unix_s)
        yield _gauge("ready", "Whether the agent answers requests: 1 or 0.", value=status.state == "running")
        yield _gauge("dry_run", "Whether decisions are told and not applied: 1 or 0.", value=status.dry_run)
        yield _gauge("queue_depth", "Requests that wait.", value=status.queue_depth)
        yield _gauge("hold_active", "Whether an operator holds a subnet: 1 or 0.", value=status.hold is not None)
        left_s = status.hold.remaining_s if status.hold is not None else 0.0
        yield _gauge("hold_remaining_seconds", "How much longer it is held.", value=left_s)
        if status.expected_accuracy is not None:
            yield _gauge("expected_accuracy_ratio", "Of the subnet in use, 0 to 1.", value=status.expected_accuracy)
        active = _gauge("subnet_active", "1 for the operating point that answers.", ["subnet", "backend", "precision"])
        used = (status.subnet, status.backend, status.precision)
        for kind in dict.fromkeys(map(_kind, self._viewer.agent.table.rows)):
            active.add_metric(list(kind), kind == used)
        yield active
        switches = CounterMetricFamily("gearshift_switches", "Switches, by what bound.", labels=["bound"])
        for bound, count in sorted(self._viewer.switches_by_bound.items()):
            switches.add_metric([bound], count)
        yield switches
        took = self._viewer.switch_ms / 1000
        yield SummaryMetricFamily(
            "gearshift_switch_duration_seconds",
            "From wanting another point to its answering, loading included.",
            count_value=sum(self._viewer.switches_by_bound.values()),
            sum_value=took,
        )

    def _requests(self, status: Status) -> Iterator[Metric]:
        labels = ["subnet", "backend", "precision"]
        requests = CounterMetricFamily("gearshift_requests", "Requests answered.", labels=labels)
        images = CounterMetricFamily("gearshift_images", "Images answered.", labels=labels)
        energy = CounterMetricFamily(
            "gearshift_energy_joules",
            "Energy of the images answered, as calibrated per image.",
            labels=[*labels, "source"],
        )
        total = HistogramMetricFamily("gearshift_request_duration_seconds", "From arrival to answer.", labels=labels)
        infer = HistogramMetricFamily("gearshift_inference_duration_seconds", "In the engine.", labels=labels)
        for kind, tallies in self._by_kind().items():
            values = list(kind)
            requests.add_metric(values, sum(tally.requests for _, tally in tallies))
            images.add_metric(values, sum(tally.images for _, tally in tallies))
            joules: dict[str, float] = {}
            for row, tally in tallies:
                if row.energy_j is not None:
                    joules[row.energy_source] = joules.get(row.energy_source, 0.0) + tally.images * row.energy_j
            for source, spent in joules.items():
                energy.add_metric([*values, source], spent)
            if any(tally.requests for _, tally in tallies):
                infer_s = sum(tally.infer_ms for _, tally in tallies) / 1000
                queue_s = sum(tally.queue_ms for _, tally in tallies) / 1000
                total.add_metric(values, _buckets([tally.total for _, tally in tallies]), queue_s + infer_s)
                infer.add_metric(values, _buckets([tally.infer for _, tally in tallies]), infer_s)
        yield from (requests, images, energy, total, infer)
        slowdown = _gauge("point_slowdown_ratio", "Measured latency over the calibrated one.", [*labels, "batch_size"])
        for point, ratio in status.slowdown.items():
            row = self._viewer.agent.table.row(point)
            slowdown.add_metric([row.subnet, row.backend, row.precision, str(row.batch_size)], ratio)
        yield slowdown

    def _by_kind(self) -> dict[Kind, list[tuple[Row, Tally]]]:
        """The tallies of every kind of engine, over batch sizes."""
        tallies = self._viewer.agent.tallies.by_point()
        found: dict[Kind, list[tuple[Row, Tally]]] = {}
        for row in self._viewer.agent.table.rows:
            found.setdefault(_kind(row), []).append((row, tallies.get(row.point) or Tally()))
        return found

    def _engines(self, status: Status) -> Iterator[Metric]:
        labels = ["subnet", "backend", "precision", "threads"]
        resident = _gauge("engine_resident", "Whether the engine is in memory: 1 or 0.", labels)
        memory = _gauge("engine_memory_bytes", "Memory of the engine.", labels)
        quarantine = _gauge("engine_quarantine_seconds", "How much longer the engine may not answer.", labels)
        for engine in status.engines:
            values = [engine.subnet, engine.backend, engine.precision, str(engine.threads)]
            resident.add_metric(values, engine.resident)
            quarantine.add_metric(values, engine.quarantined_s)
            if engine.memory_bytes is not None:
                memory.add_metric(values, engine.memory_bytes)
        yield from (resident, memory, quarantine)


def _known(status: Status) -> Iterator[Metric]:
    """Conditions and goals, as far as they are known."""
    for field, (name, text) in _CONDITIONS.items():
        value = getattr(status.conditions, field, None)
        if value is not None:
            yield _gauge(name, text, value=float(value))
    for field, (name, text, factor) in _GOALS.items():
        value = getattr(status.goals, field)
        if value is not None:
            yield _gauge(name, text, value=value * factor)


def _counters(counters: Counters) -> Iterator[Metric]:
    for field in msgspec.structs.fields(Counters):
        if field.name not in _ELSEWHERE:
            plain = f"{field.name.replace('_', ' ').capitalize()} since the start."
            name, text = _COUNTERS.get(field.name, (field.name, plain))
            yield _counter(name, text, getattr(counters, field.name))


def _kind(row: Row) -> Kind:
    return row.subnet, row.backend, row.precision


def _buckets(histograms: Sequence[Sequence[int]]) -> list[tuple[str, float]]:
    """The fine buckets, added up, as Prometheus's cumulative ones, in seconds."""
    counts = [sum(column) for column in zip(*histograms, strict=True)]
    found, seen, begin = [], 0, 0
    for bound in BUCKETS_MS:
        end = BOUNDS_MS.index(bound) + 1
        seen += sum(counts[begin:end])
        begin = end
        found.append((f"{bound / 1000:.6g}", float(seen)))
    return [*found, ("+Inf", float(seen + sum(counts[begin:])))]


def _gauge(name: str, text: str, labels: list[str] | None = None, value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gearshift_{name}", text, value=value, labels=labels)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"gearshift_{name}", text, value=value)
