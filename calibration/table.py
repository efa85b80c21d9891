"""The calibration table: what every operating point of one bundle was measured to do on one device.

* :class:`Row`: one operating point with quantiles, intervals and the source of every energy figure.
* :class:`Switch`: what the first answer after a switch costs.
* :class:`Host`, :class:`Protocol`: where and how it was measured.
* :class:`Table`: all of it; read, written and compared here.

Light on purpose: policies, the simulator and the resident agent read tables with msgspec alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from subnets.bundle import Strict, write_atomically
from subnets.errors import InputError, MismatchError, UnavailableError

SCHEMA = 1
_MAX_TABLE_BYTES = 64 * 2**20

Positive = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)  # of Row.quantiles_ms


class Duty(Strict, frozen=True, kw_only=True):
    """How much slower and costlier an answer is after a rest, since clocks fall and caches cool.

    After a rest of g ms the median latency is ``latency_p50_ms + extra_ms * (1 - exp(-g / settle_ms))``, and the energy
    above idle rises by ``extra_net_energy_j`` in the same way. Fitted to medians after a few rests.
    """

    rests_ms: tuple[float, ...]
    latency_ms: tuple[float, ...]  # measured medians after these rests
    settle_ms: Positive
    extra_ms: NotNegative
    extra_low_ms: NotNegative  # 95 % interval over rounds, at this settle_ms
    extra_high_ms: NotNegative
    rounds: int
    samples: int
    extra_net_energy_j: NotNegative | None = None  # per image; None where no meter told

    def rested(self, rest_ms: float) -> float:
        """The share of ``extra_ms`` that a rest of so many ms brings, 0..1."""
        return -math.expm1(-rest_ms / self.settle_ms)

    def rested_by_chance(self, mean_rest_ms: float) -> float:
        """Its mean over rests that last exponentially long, as those before the arrivals of a Poisson process do."""
        return mean_rest_ms / (mean_rest_ms + self.settle_ms) if mean_rest_ms < math.inf else 1.0


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
    energy_check_j: Positive | None = None  # the same by a second source for the same device, where there is one
    energy_check_source: str = ""
    energy_suspect: bool = False  # the second source contradicts the first; the intervals cover both
    duty: Duty | None = None  # None: not measured
    round_p50_ms: tuple[Positive | None, ...] = ()  # per round; None where not measured or left out
    quantiles_ms: tuple[Positive, ...] = ()  # at QUANTILES, of all samples
    discarded: dict[str, int] = msgspec.field(default_factory=dict)  # reason -> cells of this point left out
    disturbed: bool = False  # nothing undisturbed was left, so the disturbed cells stand

    @property
    def point(self) -> str:
        """The operating point's name, e.g. ``s50@openvino:bf16:b1``; unique within a table."""
        return f"{self.subnet}@{self.backend}:{self.precision}:b{self.batch_size}"

    @property
    def half_width(self) -> float:
        """Half the interval of the median latency, as a share of it."""
        return (self.latency_p50_high_ms - self.latency_p50_low_ms) / 2 / self.latency_p50_ms

    def latency_ms_after(self, rest_ms: float) -> float:
        """The median latency in ms of one batch that begins so long after the one before ended."""
        return self.latency_p50_ms if self.duty is None else self._rested_ms(self.duty.rested(rest_ms))

    def latency_ms_by_chance(self, rate_hz: float) -> float:
        """The same for the first request after a rest, when ``rate_hz`` requests a second arrive at random."""
        if self.duty is None:
            return self.latency_p50_ms
        return self._rested_ms(self.duty.rested_by_chance(1e3 / rate_hz if rate_hz > 0 else math.inf))

    def latency_ms_at(self, rate_hz: float) -> float:
        """The median latency in ms of one batch when ``rate_hz`` batches a second arrive, evenly spaced.

        Between ``latency_p50_ms`` (back to back, and beyond what it can keep up with) and ``extra_ms`` more (rarely).
        """
        return self.latency_p50_ms if self.duty is None else self.latency_ms_after(self._rest_ms(rate_hz))

    def _rested_ms(self, rested: float) -> float:
        assert self.duty is not None
        return self.latency_p50_ms + self.duty.extra_ms * rested

    def net_energy_j_at(self, rate_hz: float) -> float | None:
        """Joules per image above idle at ``rate_hz`` batches a second; None where unknown."""
        if self.net_energy_j is None or self.duty is None or self.duty.extra_net_energy_j is None:
            return self.net_energy_j
        return self.net_energy_j + self.duty.extra_net_energy_j * self.duty.rested(self._rest_ms(rate_hz))

    def power_w_at(self, rate_hz: float) -> float | None:
        """Watts of the whole measured domain at ``rate_hz`` batches a second, at most those back to back."""
        net_j = self.net_energy_j_at(rate_hz)
        if self.energy_j is None or self.net_energy_j is None or self.power_w is None or net_j is None:
            return self.power_w
        images_per_s = min(rate_hz * self.batch_size, self.throughput_per_s)
        idle_w = self.power_w * max(0.0, 1 - self.net_energy_j / self.energy_j)
        return min(self.power_w, idle_w + images_per_s * net_j)

    def energy_j_at(self, rate_hz: float) -> float | None:
        """Joules per image, the idle time between included, at ``rate_hz`` batches a second; None where unknown."""
        power_w = self.power_w_at(rate_hz)
        if self.energy_j is None or self.net_energy_j is None or power_w is None:
            return self.energy_j
        if rate_hz * self.batch_size >= self.throughput_per_s:
            return self.energy_j
        return power_w / (rate_hz * self.batch_size) if rate_hz > 0 else math.inf

    def _rest_ms(self, rate_hz: float) -> float:
        """The rest g between answers, of which g + latency after g is the period.

        Newton's method from 0: the sum rises and is concave, so no step goes beyond the solution.
        """
        assert self.duty is not None
        if rate_hz <= 0:
            return math.inf
        period_ms, rest_ms = 1e3 / rate_hz, 0.0
        if period_ms <= self.latency_p50_ms:
            return 0.0
        extra_ms, settle_ms = self.duty.extra_ms, self.duty.settle_ms
        for _ in range(50):
            fading = math.exp(-rest_ms / settle_ms)
            missing = period_ms - rest_ms - self.latency_p50_ms - extra_ms * (1 - fading)
            rest_ms += missing / (1 + extra_ms / settle_ms * fading)
            if missing <= 1e-9 * period_ms:
                break
        return rest_ms


class Switch(Strict, frozen=True, kw_only=True):
    """First answer after changing from one operating point to another, over the steady one."""

    from_point: str
    to_point: str
    first_ms: float  # median latency of the first answer
    extra_ms: float  # first_ms - steady median; may be slightly negative within noise
    second_ms: float | None = None  # of the second, and of the tenth
    tenth_ms: float | None = None


class Host(Strict, frozen=True, kw_only=True):
    """What identifies the machine: a table measured elsewhere is refused."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str  # kernel and machine type
    python: str
    libraries: dict[str, str]  # backend library versions
    accelerator: str = ""

    @property
    def key(self) -> str:
        """12 hex digits over everything :meth:`differences` compares: machines of one kind share it."""
        content = [self.cpu, self.cores, self.accelerator, sorted(self.libraries.items())]
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:12]

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
    widening: float = 1.0  # of the intervals, because rounds resembled the ones next to them
    temperatures_c: dict[str, float] = msgspec.field(default_factory=dict)  # at the first round, by thermometer
    temperature_band_c: float = 0.0
    temperature_waited_s: float = 0.0
    rests_ms: tuple[float, ...] = ()  # of the duty-cycle fit; empty: the budget was too short for one
    sessions: int = 1  # more than 1: interrupted and resumed
    tables: int = 1  # more than 1: merged from so many
    remeasured: dict[str, str] = msgspec.field(default_factory=dict)  # point -> when an agent measured it again


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
    if row.duty is not None:
        yield "duty.extra_ms", row.duty.extra_low_ms, row.duty.extra_ms, row.duty.extra_high_ms
    for name, low, value, high in (
        ("power_w", row.power_low_w, row.power_w, row.power_high_w),
        ("energy_j", row.energy_low_j, row.energy_j, row.energy_high_j),
    ):
        if low is not None and value is not None and high is not None:
            yield name, low, value, high


def write(table: Table, path: Path) -> None:
    """Writes a table whole or not at all.

    Raises:
        InputError: it cannot be written there.
        UnavailableError: the disk is full.
    """
    with disk_errors(path):
        write_atomically(path, msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what the file system refuses while ``path`` is written into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UnavailableError(
                f"{path}: no room to write it ({error.strerror}); free some, or write to another disk"
            ) from None
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); write to another place") from None
