"""What a policy sees of the plant: late, coarse, noisy, or not at all.

* :class:`SensorModel`: frozen parameters; the defaults are this project's own, in the range of common hardware.
* :class:`Truth`: what is really so at one instant.
* :class:`Sensors`: turns truths into :class:`policies.base.Conditions`, deterministic by seed.

The queue and the smoothed rates are the agent's own counting, so they are exact and fresh.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec
import numpy as np

from policies.base import Conditions
from subnets.errors import InputError


class SensorModel(msgspec.Struct, frozen=True, kw_only=True):
    """How sensors distort; a step of 0 leaves a value unrounded.

    Raises:
        InputError: a negative number, or ``unknown`` names something that is not a field of the conditions.
    """

    delay_s: float = 1.0  # of temperature, battery and power
    temperature_step_c: float = 1.0
    temperature_noise_c: float = 0.3  # standard deviation
    charge_step: float = 0.01  # batteries report whole percents
    power_noise: float = 0.02  # standard deviation, as a share of the value
    unknown: frozenset[str] = frozenset()  # fields of Conditions that this device cannot tell

    def __post_init__(self) -> None:
        for name in ("delay_s", "temperature_step_c", "temperature_noise_c", "charge_step", "power_noise"):
            if not getattr(self, name) >= 0:
                raise InputError(f"sensor {name} is {getattr(self, name)}; give a number of at least 0")
        wrong = self.unknown - set(Conditions.__struct_fields__) | self.unknown & {"time_s"}
        if wrong:
            known = ", ".join(name for name in Conditions.__struct_fields__ if name != "time_s")
            raise InputError(f"no sensor '{sorted(wrong)[0]}' to make unknown; there are {known}")


class Truth(NamedTuple):
    """The device at one instant, as it is; None = not modelled."""

    temperature_c: float | None
    throttled: bool | None
    charge: float | None
    battery_power_w: float | None
    on_mains: bool | None
    power_w: float | None


_NOTHING = Truth(None, None, None, None, None, None)


class Sensors:
    """One run's sensors; call :meth:`read` once per control tick.

    Args:
        model: how they distort.
        battery_energy_j: what a full battery holds, None where the device cannot tell.
        control_period_s: time between two calls.
        seed: of the noise.
    """

    _BLOCK = 4096

    def __init__(
        self, model: SensorModel, *, battery_energy_j: float | None, control_period_s: float, seed: int
    ) -> None:
        self._model, self._battery_energy_j = model, battery_energy_j
        self._past: deque[Truth] = deque(maxlen=1 + round(model.delay_s / control_period_s))
        self._random = np.random.Generator(np.random.PCG64([seed, 2]))
        self._noise: list[float] = []

    def read(
        self,
        time_s: float,
        truth: Truth,
        *,
        arrival_rate_hz: float | None,
        queue_depth: int,
        slowdown: float | None,
        miss_rate: float | None,
        lost: bool = False,
    ) -> Conditions:
        """The conditions a policy sees now; while the sensors are ``lost``, only the agent's own counting."""
        if len(self._noise) < 2:  # drawn in blocks: a single draw costs as much as a whole tick
            self._noise = self._random.standard_normal(self._BLOCK).tolist()
        heat_noise, power_noise = self._noise.pop(), self._noise.pop()
        self._past.append(truth)
        temperature, throttled, charge, battery_power, on_mains, power = _NOTHING if lost else self._past[0]
        model = self._model
        if temperature is not None:
            temperature = _rounded(temperature + model.temperature_noise_c * heat_noise, model.temperature_step_c)
        energy = None
        if charge is not None:
            charge = min(1.0, max(0.0, _rounded(charge, model.charge_step)))
            if self._battery_energy_j is not None:
                energy = charge * self._battery_energy_j
        if power is not None:
            power *= 1.0 + model.power_noise * power_noise
        conditions = Conditions(
            time_s=time_s,
            battery_charge=charge,
            battery_energy_j=energy,
            battery_power_w=battery_power,
            on_mains=on_mains,
            temperature_c=temperature,
            throttled=throttled,
            power_w=power,
            arrival_rate_hz=arrival_rate_hz,
            queue_depth=queue_depth,
            slowdown=slowdown,
            miss_rate=miss_rate,
        )
        if model.unknown:
            conditions = msgspec.structs.replace(conditions, **dict.fromkeys(model.unknown))
        return conditions


def _rounded(value: float, step: float) -> float:
    # Dividing by a whole number keeps 0.43 at 0.43; multiplying by 0.01 would not.
    return round(value / step) / (1.0 / step) if step else value
