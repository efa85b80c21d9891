"""Figures as people read them: three significant digits, the interval and the source beside every energy.

Shared by the report and the command line, so that no joule is ever printed bare.
"""

from __future__ import annotations

from collections.abc import Iterable

from calibration.table import Row, Table

_SOURCES = {
    "nvml-counter": "the accelerator's own energy counter (NVML)",
    "nvml-power-integrated": "the accelerator's power readings (NVML), integrated over time",
    "rapl-package": "the processor package's energy counter (RAPL)",
    "rapl-package+dram": "the energy counters of the processor package and its memory (RAPL)",
    "tegra-ina3221": "the board's power monitor (INA3221), integrated over time",
    "hwmon": "a power sensor of the board (hwmon), integrated over time",
    "battery-gauge": "the battery's own gauge",
    "modelled:spec-curve": (
        "a model, not a measurement: the measured processor time of the engines, put through the power curve of "
        "published servers (SPECpower, whole machine at the wall); the bounds are their 10th and 90th percentile"
    ),
    "unmeasurable": "nothing here that tells energy",
}

_WIDE = 0.15  # half an interval over its value, above which its two ends are told


def source_in_words(source: str) -> str:
    """Where energies of this source come from."""
    return _SOURCES.get(source, f"'{source}'")


def number(value: float) -> str:
    """Three significant digits; exponents only for what is tiny."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:#.3g}" if size >= 1e-3 or size == 0 else f"{value:.2e}"


def accuracy(row: Row) -> str:
    """``91.2 % (90.6 to 91.8)``."""
    return f"{100 * row.accuracy:.1f} % ({100 * row.accuracy_low:.1f} to {100 * row.accuracy_high:.1f})"


def latency(row: Row) -> str:
    """``2.06 ms ± 1.2 %``; where the interval is wide, and so far from symmetric, ``2.06 ms (1.60 to 2.65)``."""
    if row.half_width > _WIDE:
        return f"{number(row.latency_p50_ms)} ms{_range(row.latency_p50_low_ms, row.latency_p50_high_ms, 1)}"
    return f"{number(row.latency_p50_ms)} ms ± {100 * row.half_width:.1f} %"


def median(row: Row) -> str:
    """As :func:`latency` but closer, for a column of milliseconds: ``2.06 ±1.2%`` or ``2.06 (1.60 to 2.65)``."""
    return latency(row).replace(" ms", "", 1).replace("± ", "±").replace(" %", "%")


def energy(row: Row) -> str:
    """``8.1 mJ (3.5 to 14.2)`` per image, gross; ``unknown`` where nothing measures it."""
    if row.energy_j is None:
        return "unknown"
    unit, scale = ("mJ", 1e3) if row.energy_j < 1 else ("J", 1.0)
    return f"{number(scale * row.energy_j)} {unit}{_range(row.energy_low_j, row.energy_high_j, scale)}"


def net_energy(row: Row) -> str:
    """As :func:`energy`, above idle."""
    if row.net_energy_j is None:
        return "unknown"
    unit, scale = ("mJ", 1e3) if abs(row.net_energy_j) < 1 else ("J", 1.0)
    return f"{number(scale * row.net_energy_j)} {unit}{_range(row.net_energy_low_j, row.net_energy_high_j, scale)}"


def second_energy(row: Row) -> str:
    """``8.4 mJ by hwmon``, and whether it contradicts the first; empty where there is no second source."""
    if row.energy_check_j is None:
        return ""
    unit, scale = ("mJ", 1e3) if row.energy_check_j < 1 else ("J", 1.0)
    return f"{number(scale * row.energy_check_j)} {unit} by {row.energy_check_source}" + (
        ": contradicts" if row.energy_suspect else ""
    )


def power(row: Row) -> str:
    """``4.1 W (1.8 to 7.2)`` while it runs back to back."""
    return (
        "unknown" if row.power_w is None else f"{number(row.power_w)} W{_range(row.power_low_w, row.power_high_w, 1)}"
    )


def idle_power(table: Table) -> str:
    """``1.4 W (0.5 to 2.9), modelled:spec-curve``."""
    if table.idle_power_w is None:
        return "unknown"
    bounds = _range(table.idle_power_low_w, table.idle_power_high_w, 1)
    return f"{number(table.idle_power_w)} W{bounds}, {table.power_source}"


def memory(row: Row) -> str:
    """``12.4 MB``, or ``unknown``."""
    return "unknown" if row.memory_bytes is None else f"{number(row.memory_bytes / 1e6)} MB"


def sources(table: Table) -> tuple[str, ...]:
    """The energy sources of a table's rows, each once."""
    return tuple(dict.fromkeys(row.energy_source for row in table.rows))


def remarks(table: Table) -> list[str]:
    """What a reader must know before believing the figures: sentences, often none."""
    found = []
    protocol = table.protocol
    if protocol.pressure is not None and protocol.pressure > 0.2:
        found.append(
            f"Other work was running: in the median cell some task waited for a processor {protocol.pressure:.0%} of "
            "the time. Latencies and intervals include that."
        )
    if protocol.stopped in ("budget", "rounds"):
        asked = protocol.rel_precision
        loose = [row for row in table.rows if row.half_width > asked]
        if loose:
            found.append(
                f"{len(loose)} of {len(table.rows)} medians are known less well than the ± {percent(asked)} asked for; "
                f"a longer budget narrows them: {some(row.point for row in loose)}."
            )
    if protocol.widening > 1.1:
        found.append(
            "Neighbouring rounds resembled each other, so the machine drifted; all intervals are "
            f"{protocol.widening:.1f} times as wide as independent rounds would give."
        )
    disturbed = [row.point for row in table.rows if row.disturbed]
    if disturbed:
        found.append(f"Nothing undisturbed was left of {some(disturbed)}: disturbed cells stand for them.")
    suspect = [row for row in table.rows if row.energy_suspect]
    if suspect:
        pairs = dict.fromkeys((row.energy_source, row.energy_check_source or "another source") for row in suspect)
        found.append(
            f"Two energy sources contradict each other ({'; '.join(' against '.join(pair) for pair in pairs)}); the "
            f"intervals cover both: {some(row.point for row in suspect)}."
        )
    if protocol.tables > 1:
        found.append(f"Merged from {protocol.tables} tables: intervals hold for one machine of the kind.")
    if any(source.startswith("modelled") for source in sources(table)):
        found.append("Energies are modelled: compare operating points of this table, not machines.")
    if any("not measured at this precision" in row.accuracy_source for row in table.rows):
        found.append("Accuracies below f32 are those recorded at f32; give --data to measure them.")
    return found


def percent(share: float) -> str:
    """``3 %`` or ``2.5 %``."""
    return f"{100 * share:.3g} %"


def some(points: Iterable[str], most: int = 6) -> str:
    """Names in a row, the first few of many."""
    names = list(points)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _range(low: float | None, high: float | None, scale: float) -> str:
    return "" if low is None or high is None else f" ({number(scale * low)} to {number(scale * high)})"
