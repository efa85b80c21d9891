"""A battery as an equivalent circuit: open-circuit voltage behind R0 and one R1-C1 pair.

* :class:`Battery`: frozen parameters and the pure step function.
* :class:`BatteryState`: charge, the voltage over R1-C1, and whether it has cut off.
* :func:`read_tables`: parameters from PyBaMM's example tables (a folder with ``*ocv.csv``, ``*r0.csv``, ``*r1.csv`` and
  ``*c1.csv``).

The circuit and its update are the first-order Thevenin model found in any text on battery management (Plett 2015,
chapter 2). The default numbers are this project's own for one generic lithium-ion cell pack, no maker's data. Not
modelled: ageing, self-discharge, and resistance that changes with charge or temperature.
"""

from __future__ import annotations

import bisect
import itertools
import math
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from subnets.errors import InputError

_MAX_TABLE_BYTES = 8 * 2**20
_DEFAULT_AH, _DEFAULT_R0_OHM, _DEFAULT_R1_OHM, _DEFAULT_C1_F = 5.4, 0.03, 0.015, 2500.0
_DEFAULT_CHARGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_DEFAULT_OCV_V = (3.0, 3.35, 3.45, 3.55, 3.60, 3.65, 3.71, 3.80, 3.90, 3.99, 4.08, 4.20)


class BatteryState(msgspec.Struct, frozen=True):
    """The battery at one instant."""

    charge: float  # state of charge, share 0..1
    relaxation_v: float = 0.0  # over R1-C1, positive after discharging
    off: bool = False  # cut off; it answers again once recharged to ``restart_charge``
    current_a: float = 0.0  # of the last step, positive while discharging


class Battery(msgspec.Struct, frozen=True, kw_only=True):
    """A battery's parameters.

    Raises:
        InputError: a number is impossible or the voltage curve does not rise with charge.
    """

    capacity_ah: float = _DEFAULT_AH
    charges: tuple[float, ...] = _DEFAULT_CHARGES
    ocv_v: tuple[float, ...] = _DEFAULT_OCV_V  # open-circuit voltage at ``charges``
    r0_ohm: float = _DEFAULT_R0_OHM
    r1_ohm: float = _DEFAULT_R1_OHM
    c1_f: float = _DEFAULT_C1_F
    cutoff_v: float = 3.0
    cutoff_charge: float = 0.0
    restart_charge: float = 0.05
    charger_w: float = 10.0  # what goes into it on mains
    initial_charge: float = 1.0

    def __post_init__(self) -> None:
        for name in ("capacity_ah", "r0_ohm", "r1_ohm", "c1_f"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"battery {name} is {value}; give a number above 0")
        if not 0 <= self.cutoff_charge < self.restart_charge <= 1 or not 0 < self.initial_charge <= 1:
            raise InputError(
                f"battery cutoff_charge {self.cutoff_charge}, restart_charge {self.restart_charge} and initial_charge "
                f"{self.initial_charge} must be shares from 0 to 1, the first below the second"
            )
        rises = all(a < b for a, b in itertools.pairwise(self.charges))
        if len(self.charges) != len(self.ocv_v) or len(self.charges) < 2 or not rises or min(self.ocv_v) <= 0:
            raise InputError("battery ocv_v needs as many voltages above 0 as charges, and charges in rising order")

    @staticmethod
    def of_energy(energy_j: float, like: Battery | None = None, initial_charge: float = 1.0) -> Battery:
        """A battery that holds this much energy: ``like`` (or the default) with cells in parallel, not in series."""
        like = like or Battery()
        if not (energy_j > 0 and math.isfinite(energy_j)):
            raise InputError(f"battery energy is {energy_j} J; give a number above 0")
        factor = energy_j / like.energy_j
        return msgspec.structs.replace(
            like,
            capacity_ah=like.capacity_ah * factor,
            r0_ohm=like.r0_ohm / factor,
            r1_ohm=like.r1_ohm / factor,
            c1_f=like.c1_f * factor,
            initial_charge=initial_charge,
        )

    @property
    def energy_j(self) -> float:
        """Energy between empty and full at open circuit: the integral of the voltage curve over charge."""
        return self.stored_j(1.0)

    def stored_j(self, charge: float) -> float:
        """Energy between empty and ``charge`` at open circuit."""
        grid = [0.0, *(c for c in self.charges if 0.0 < c < charge), charge]
        pieces = itertools.pairwise(grid)
        area_v = sum((high - low) * (self.voltage(low) + self.voltage(high)) / 2.0 for low, high in pieces)
        return 3600.0 * self.capacity_ah * area_v

    def start(self) -> BatteryState:
        """At rest, at its initial charge."""
        return BatteryState(self.initial_charge)

    def voltage(self, charge: float) -> float:
        """Open-circuit voltage at a state of charge; straight lines between the curve's points, flat outside."""
        charges, volts = self.charges, self.ocv_v
        at = bisect.bisect_right(charges, charge)
        if at == 0:
            return volts[0]
        if at == len(charges):
            return volts[-1]
        low, high = charges[at - 1], charges[at]
        return volts[at - 1] + (volts[at] - volts[at - 1]) * (charge - low) / (high - low)

    def step(self, state: BatteryState, power_w: float, dt_s: float) -> BatteryState:
        """The battery after ``dt_s`` of constant power at its terminals (negative charges it).

        The current solves P = (OCV - V1 - I R0) I. It cuts off when that has no solution, when the terminal voltage
        or the charge falls to its limit; while off it delivers nothing but still takes charge.
        """
        off, charge = state.off, state.charge
        if off and power_w > 0.0:
            power_w = 0.0
        source_v = self.voltage(charge) - state.relaxation_v
        root = source_v * source_v - 4.0 * self.r0_ohm * power_w
        if root < 0.0:
            off, current = True, 0.0
        else:
            current = (source_v - math.sqrt(root)) / (2.0 * self.r0_ohm)
            if power_w > 0.0 and source_v - current * self.r0_ohm < self.cutoff_v:
                off, current = True, 0.0
        moved = current * dt_s / (3600.0 * self.capacity_ah)
        if charge - moved > 1.0:
            moved = charge - 1.0
            current = moved * 3600.0 * self.capacity_ah / dt_s
        charge = max(0.0, charge - moved)
        decay = math.exp(-dt_s / (self.r1_ohm * self.c1_f))
        relaxation = state.relaxation_v * decay + current * self.r1_ohm * (1.0 - decay)
        if charge <= self.cutoff_charge:
            off = True
        elif off and charge >= self.restart_charge and power_w < 0.0:
            off = False
        return BatteryState(charge, relaxation, off, current)


def read_tables(folder: Path | str, *, cell_capacity_ah: float = 100.0, temperature_c: float = 25.0) -> Battery:
    """A battery from PyBaMM's equivalent-circuit example tables, one cell.

    The open-circuit curve is taken whole between charge 0 and 1; R0, R1 and C1 are averaged over charge at zero current
    and interpolated to ``temperature_c``. Scale the result with :meth:`Battery.of_energy`.

    Args:
        folder: holds one file each ending in ``ocv.csv``, ``r0.csv``, ``r1.csv`` and ``c1.csv``.
        cell_capacity_ah: the cell the tables describe; 100 Ah is that of PyBaMM's example parameters.
        temperature_c: the cell's temperature.

    Raises:
        InputError: a file is missing or damaged.
    """
    folder = Path(folder)
    curve = _columns(folder, "ocv", 2)
    curve = curve[np.argsort(curve[:, 0])]
    inside = (curve[:, 0] > 1e-9) & (curve[:, 0] < 1 - 1e-9)
    ends = np.interp([0.0, 1.0], curve[:, 0], curve[:, 1])
    circuit = {name: _at_rest(_columns(folder, name, 4), temperature_c) for name in ("r0", "r1", "c1")}
    return Battery(
        capacity_ah=cell_capacity_ah,
        charges=(0.0, *curve[inside, 0].tolist(), 1.0),
        ocv_v=(float(ends[0]), *curve[inside, 1].tolist(), float(ends[1])),
        r0_ohm=circuit["r0"],
        r1_ohm=circuit["r1"],
        c1_f=circuit["c1"],
        cutoff_v=min(3.0, float(ends[0])),
        charger_w=10.0 * cell_capacity_ah / _DEFAULT_AH,
    )


def _columns(folder: Path, name: str, width: int) -> NDArray[np.float64]:
    found = sorted(folder.glob(f"*{name}.csv"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: {len(found)} files end in '{name}.csv'; expected one table of the battery's {name}"
        )
    path = found[0]
    if path.stat().st_size > _MAX_TABLE_BYTES:
        raise InputError(f"{path}: larger than {_MAX_TABLE_BYTES} bytes; no battery table is")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()[1:], 2):
        if not line.strip():
            continue
        try:
            row = [float(cell) for cell in line.split(",")]
        except ValueError:
            row = []
        if len(row) != width or not all(map(math.isfinite, row)):
            raise InputError(f"{path}, line {number}: expected {width} numbers, got '{line[:60]}'; get the file again")
        rows.append(row)
    if len(rows) < 2:
        raise InputError(f"{path}: fewer than two rows; get the file again")
    return np.asarray(rows, np.float64)


def _at_rest(rows: NDArray[np.float64], temperature_c: float) -> float:
    """Mean over charge at the current nearest to zero, interpolated over temperature (columns 0, 1; value in 3)."""
    rows = rows[np.abs(rows[:, 1]) == np.abs(rows[:, 1]).min()]
    temperatures = np.unique(rows[:, 0])
    means = [rows[rows[:, 0] == temperature, 3].mean() for temperature in temperatures]
    return float(np.interp(temperature_c, temperatures, means))
