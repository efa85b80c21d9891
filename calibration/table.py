"""The calibration table: what every operating point of one bundle was measured to do on one device.

* :class:`Row`: one operating point with quantiles, intervals and the source of every energy figure.
* :class:`Switch`: what the first answer after a switch costs.
* :class:`Host`, :class:`Protocol`: where and how it was measured.
* :class:`Table`: all of it; read, written and compared here.

Light on purpose: policies, the simulator and the resident agent read tables with msgspec alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from subnets.bundle import Strict, write_atomically
from subnets.errors import InputError, MismatchError

SCHEMA = 1
_MAX_TABLE_BYTES = 64 * 2**20

Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Row(Strict, frozen=True, kw_only=True):
    """One operating point: (subnet, backend, device, precision, batch size, threads), measured.

    Latencies are of one batch, in milliseconds, as seen by the caller of ``Engine.infer``; ``_low`` and ``_high`` bound
    the 95 % interval over rounds. ``power_w`` is the whole measured domain while this point runs back to back;
    ``energy_j`` is gross per image, ``net_energy_j`` above idle. Unmeasurable energy is None, never zero.
    """

    subnet: str
    backend: str
    device: str
    precision: str
    batch_size: Count
    threads: Count
    macs: int  # per image
    accuracy: Share
    accuracy_low: Share
    accuracy_high: Share
    accuracy_source: str  # "measured: <split>, n=400" or "bundle: <split>, n=10000"
    latency_p50_ms: Positive
    latency_p50_low_ms: Positive
    latency_p50_high_ms: Positive
    latency_p90_ms: Positive
    latency_p99_ms: Positive
    latency_p99_low_ms: Positive
    latency_p99_high_ms: Positive
    throughput_per_s: Positive  # images per second, back to back
    rounds: int
    samples: int
    load_ms: float
    memory_bytes: int | None = None
    cpu_s: float | None = None  # processor seconds per image
    power_w: Positive | None = None
    power_low_w: float | None = None
    power_high_w: float | None = None
    energy_j: Positive | None = None
    energy_low_j: float | None = None
    energy_high_j: float | None = None
    net_energy_j: float | None = None  # may be slightly negative within noise
    net_energy_low_j: float | None = None
    net_energy_high_j: float | None = None
    energy_source: str = "unmeasurable"  # e.g. "nvml-counter", "rapl-package", "modelled:spec-curve"

    @property
    def point(self) -> str:
        """The operating point's name, e.g. ``s50@openvino:bf16:b1``; unique within a table."""
        return f"{self.subnet}@{self.backend}:{self.precision}:b{self.batch_size}"


class Switch(Strict, frozen=True, kw_only=True):
    """First answer after changing from one operating point to another, over the steady one."""

    from_point: str
    to_point: str
    first_ms: float  # median latency of the first answer
    extra_ms: float  # first_ms - steady median; may be slightly negative within noise


class Host(Strict, frozen=True, kw_only=True):
    """What identifies the machine: a table measured elsewhere is refused."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str  # kernel and machine type
    python: str
    libraries: dict[str, str]  # backend library versions
    accelerator: str = ""

    def differences(self, other: Host) -> list[str]:
        """Sentences on what differs enough to void measurements (processor, cores, accelerator, libraries)."""
        found = []
        for name in ("cpu", "cores", "accelerator"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                found.append(f"{name} is '{theirs}', the table's is '{mine}'")
        for library in sorted(self.libraries.keys() & other.libraries.keys()):
            if self.libraries[library] != other.libraries[library]:
                found.append(f"{library} is {other.libraries[library]}, the table's is {self.libraries[library]}")
        return found


class Protocol(Strict, frozen=True, kw_only=True):
    """How it was measured."""

    rounds: int
    seconds_per_cell: float
    warmup: int
    batch_sizes: tuple[int, ...]
    threads: int
    seed: int
    created: str  # ISO 8601, UTC
    wall_s: float
    discarded_cells: dict[str, int] = msgspec.field(default_factory=dict)  # reason -> count
    rel_precision: float = 0.03  # asked for: half the interval over the median latency
    budget_s: float = 0.0
    stopped: str = ""  # by "precision", "budget" or "rounds"
    pressure: float | None = None  # median share of time in which some task waited for a processor


class Table(Strict, frozen=True, kw_only=True):
    """The rows, the switch costs, the idle power and where all of it comes from."""

    schema: int
    bundle_name: str
    bundle_key: str
    host: Host
    protocol: Protocol
    rows: tuple[Row, ...]
    switches: tuple[Switch, ...] = ()
    idle_power_w: float | None = None
    idle_power_low_w: float | None = None
    idle_power_high_w: float | None = None
    power_source: str = "unmeasurable"

    def row(self, point: str) -> Row:
        """The row of an operating point.

        Raises:
            InputError: the table has no such point.
        """
        for row in self.rows:
            if row.point == point:
                return row
        raise InputError(f"operating point '{point}' is not in the table of {self.bundle_name}")

    def select(
        self, *, backend: str | None = None, precision: str | None = None, batch_size: int | None = None
    ) -> tuple[Row, ...]:
        """Rows that match, fastest first."""
        rows = [
            row
            for row in self.rows
            if (backend is None or row.backend == backend)
            and (precision is None or row.precision == precision)
            and (batch_size is None or row.batch_size == batch_size)
        ]
        return tuple(sorted(rows, key=lambda row: row.latency_p50_ms))

    def switch_ms(self, from_point: str, to_point: str) -> float:
        """What switching costs beyond a steady answer, in ms; 0 where it was not measured or is within noise."""
        for switch in self.switches:
            if (switch.from_point, switch.to_point) == (from_point, to_point):
                return max(0.0, switch.extra_ms)
        return 0.0

    def check(self, *, bundle_key: str | None = None, bundle_name: str = "", host: Host | None = None) -> None:
        """Refuses a table of another bundle or another machine.

        Raises:
            MismatchError: one sentence that says what differs.
        """
        if bundle_key is not None and bundle_key != self.bundle_key:
            raise MismatchError(
                f"the table is of bundle '{self.bundle_name}' ({self.bundle_key}), not of '{bundle_name}' "
                f"({bundle_key}); calibrate this bundle, or --force to use the table all the same"
            )
        if host is not None and (differences := self.host.differences(host)):
            raise MismatchError(
                f"the table was measured on another machine: {'; '.join(differences)}; "
                "calibrate here, or --force to use the table all the same"
            )


def frontier(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The operating points worth choosing: none other is both as fast and as accurate. Fastest first.

    Use rows of one batch size; ties in accuracy keep the faster point.
    """
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.latency_p50_ms, -row.accuracy)):
        if not best or row.accuracy > best[-1].accuracy:
            best.append(row)
    return tuple(best)


def read(path: Path | str) -> Table:
    """Reads a table.

    Raises:
        InputError: the file is missing, damaged, or not a table of this schema.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table; make one with 'gearshift calibrate BUNDLE'")
    if path.stat().st_size > _MAX_TABLE_BYTES:
        raise InputError(f"{path}: larger than {_MAX_TABLE_BYTES} bytes, no table is; calibrate again")
    try:
        raw = msgspec.json.decode(path.read_bytes())
        found = raw.get("schema") if isinstance(raw, dict) else None
        if found != SCHEMA:
            raise InputError(f"{path}: not a table of schema {SCHEMA} (schema is {found}); calibrate again")
        table = msgspec.convert(raw, Table)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); calibrate again") from None
    if not table.rows:
        raise InputError(f"{path}: the table has no rows; calibrate again")
    points = {row.point for row in table.rows}
    if len(points) != len(table.rows):
        raise InputError(f"{path}: an operating point appears twice; calibrate again")
    for row in table.rows:
        for name, low, value, high in _intervals(row):
            if not low <= value <= high < math.inf:
                raise InputError(f"{path}: {name} of {row.point} is not within its interval; calibrate again")
    for switch in table.switches:
        if not {switch.from_point, switch.to_point} <= points:
            raise InputError(
                f"{path}: a switch names {switch.from_point} and {switch.to_point}, not both rows; calibrate again"
            )
    return table


def _intervals(row: Row) -> Iterable[tuple[str, float, float, float]]:
    """(name, low, value, high) of everything in a row that has an interval."""
    yield "accuracy", row.accuracy_low, row.accuracy, row.accuracy_high
    yield "latency_p50_ms", row.latency_p50_low_ms, row.latency_p50_ms, row.latency_p50_high_ms
    yield "latency_p99_ms", row.latency_p99_low_ms, row.latency_p99_ms, row.latency_p99_high_ms
    for name, low, value, high in (
        ("power_w", row.power_low_w, row.power_w, row.power_high_w),
        ("energy_j", row.energy_low_j, row.energy_j, row.energy_high_j),
    ):
        if low is not None and value is not None and high is not None:
            yield name, low, value, high


def write(table: Table, path: Path) -> None:
    """Writes a table whole or not at all."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
