"""What can be read on this machine, from where, what it reads now, and what to do where it cannot.

* :class:`Diagnosis`, :func:`diagnose`: one line a reading, then one an energy meter, best first.
* :class:`Machine`, :func:`machine`: processor, cores, memory.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Literal

import msgspec

from sensors.base import Value
from sensors.discovery import candidates, discover
from sensors.load import cpu_times
from sensors.rapl import POWERCAP
from sensors.rapl import REMEDY as RAPL_REMEDY
from sensors.root import Root

_MACHINE = Path("/")
_WINDOW_S = 0.25  # long enough for loads and counters to move

_REMEDIES = (
    (re.compile(rf"{POWERCAP}.*permission denied"), RAPL_REMEDY),
    (re.compile(r"pynvml is not installed"), "pip install nvidia-ml-py"),
    (re.compile(r"proc/pressure.*not there"), "boot with psi=1 on a kernel with CONFIG_PSI"),
    (re.compile(r"permission denied"), "give the user that runs gearshift the right to read it"),
    (re.compile(r"not discharging"), "unplug the charger to measure by the battery's gauge"),
)


class Diagnosis(msgspec.Struct, frozen=True):
    """One reading or meter: readable or not, the value now, where from; why not, and what to do ('' = nothing)."""

    name: str
    kind: Literal["sensor", "meter"]
    ok: bool
    value: Value
    unit: str
    where: str
    why: str = ""
    remedy: str = ""


class Machine(msgspec.Struct, frozen=True):
    """Facts about the machine; None where it does not say."""

    cpu: str | None
    cores: int | None
    memory_bytes: int | None


def diagnose(root: Path = _MACHINE, *, window_s: float = _WINDOW_S) -> tuple[Diagnosis, ...]:
    """Reads everything twice, ``window_s`` apart, as load and counters need; a meter's value is watts in between."""
    sensors = discover(root)
    rungs = candidates(root)
    with contextlib.ExitStack() as running:
        windows = []
        for rung in rungs:
            if rung.meter is not None and not rung.why:
                meter = running.enter_context(rung.meter)
                windows.append((meter, meter.sample()))
        time.sleep(window_s)
        energies = {meter.source: meter.energy(before, meter.sample()) for meter, before in windows}
    found: list[Diagnosis] = []
    for reading in sensors.read().readings:
        ok = reading.value is not None
        remedy = "" if ok else _remedy(reading.why)
        found.append(
            Diagnosis(reading.name, "sensor", ok, reading.value, reading.unit, reading.source, reading.why, remedy)
        )
    for rung in rungs:
        energy = energies.get(rung.source)
        if energy is None:
            found.append(Diagnosis(rung.source, "meter", False, None, "W", rung.where, rung.why, _remedy(rung.why)))
        else:  # readable, though there may be nothing to tell in so short a window: then it says why
            found.append(Diagnosis(rung.source, "meter", True, energy.power_w, "W", rung.where, energy.why))
    return tuple(found)


def machine(root: Path = _MACHINE) -> Machine:
    """Processor, cores and memory."""
    files = Root(root)
    info = files.head("proc/cpuinfo").text or ""
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.{1,200})$", info, re.M)
    board = files.text("proc/device-tree/model").text
    memory = re.search(r"^MemTotal:\s*(\d{1,15}) kB", files.head("proc/meminfo").text or "", re.M)
    times, _ = cpu_times(files)
    return Machine(
        cpu=model[1].strip() if model else board,
        cores=times.cpus if times else None,
        memory_bytes=int(memory[1]) * 1024 if memory else None,
    )


def _remedy(why: str) -> str:
    return next((remedy for pattern, remedy in _REMEDIES if pattern.search(why)), "")
