"""``gearshift run`` with faults that can be switched on while it runs: what ``soak.py`` starts.

::

    python benchmarks/soak_agent.py FAULTS.json run --config agent.toml

Everything is the product's but four things that are put in from outside, at the seams that the agent has: engines that
fail, hang or dawdle when told, sensors of a simulated device, a policy that fails when told, and a wall clock that can
be set. ``FAULTS.json`` says which of these is wrong now; it is looked at again whenever it changes. What takes the
product long to believe (:data:`SHORTENED`) takes it less here, so that it fits into a soak.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripts run from a checkout, installed or not

import msgspec

from subnets.errors import EngineError

SHORTENED = {"agent.drift.LONG_S": 150.0, "agent.frozen.FROZEN_S": 130.0}
CAPACITY_J = 360_000.0  # of the simulated battery
DRAWN_W = 6.0
DAWDLES = 8.0  # times as long: beyond the interval of a table that was calibrated on a busy machine
PLATEAU_S = 120  # of the drawn power: one whole minute, as frozen sensors are judged by, lies in it at any phase


class Faults(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is wrong now; nothing by default."""

    began_unix_s: float = 0.0  # when the battery was full
    engines: dict[str, str] = {}  # subnet -> "fails", "hangs" or "dawdles"
    sensor: str = ""  # of the thermometer: "fails", "absurd", "hangs", "frozen"
    temperature_c: float = 50.0
    policy: str = ""  # "fails" or "dawdles"
    wall_s: float = 0.0  # by how much the wall clock is set forward

    @staticmethod
    def read(path: Path) -> Faults:
        """What the file says."""
        return msgspec.json.decode(path.read_bytes(), type=Faults)


class Switch:
    """The faults as of now; cheap to ask.

    Args:
        path: of ``FAULTS.json``, which is replaced whole whenever it changes.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._seen, self._due_s = path, 0, 0.0
        self._faults = Faults()
        self._lock = threading.Lock()

    def now(self) -> Faults:
        """What is wrong."""
        if (now_s := time.monotonic()) >= self._due_s:
            with self._lock:
                self._due_s = now_s + 0.02
                if (seen := self._path.stat().st_mtime_ns) != self._seen:
                    self._faults, self._seen = Faults.read(self._path), seen
        return self._faults

    def wall(self) -> float:
        """The wall clock, as it was set."""
        return time.time() + self.now().wall_s


class _SetTime:
    """The module ``time`` with another wall clock."""

    def __init__(self, switch: Switch) -> None:
        self._switch = switch

    def time(self) -> float:
        return self._switch.wall()

    def time_ns(self) -> int:
        return time.time_ns() + round(self._switch.now().wall_s * 1e9)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def faulty_backends(switch: Switch) -> None:
    """Has every engine look whether it should fail before it answers."""
    from backends import registry

    create = registry.create

    def load(inner: Any, artifact: Any) -> Any:
        engine = inner(artifact)
        answer, subnet = engine.infer, artifact.request.subnet

        def infer(batch: Any) -> Any:
            wrong = switch.now().engines.get(subnet, "")
            if wrong == "fails":
                raise EngineError(f"{subnet} was told to fail")
            if wrong == "hangs" and batch.any():
                threading.Event().wait()
            began_s = time.perf_counter()
            logits = answer(batch)
            if wrong == "dawdles":
                until_s = began_s + DAWDLES * (time.perf_counter() - began_s)
                while time.perf_counter() < until_s:
                    pass
            return logits

        engine.infer = infer
        return engine

    def faulty(name: str) -> Any:
        backend = create(name)
        backend.__dict__["load"] = functools.partial(load, backend.load)
        return backend

    registry.__dict__["create"] = faulty


def faulty_sensors(switch: Switch) -> None:
    """Puts a simulated device in front of the machine's own sensors."""
    import sensors
    from sensors.base import Reading, Sensor, SensorSet, known

    class Thermometer(Sensor):
        name, names = "soak-thermometer", ("temperature_c",)

        def read(self) -> tuple[Reading, ...]:
            faults = switch.now()
            if faults.sensor == "fails":
                raise OSError("was told to fail")
            if faults.sensor == "hangs":
                time.sleep(3.0)
            if faults.sensor == "frozen":
                return (known("temperature_c", faults.temperature_c, self.name),)
            if faults.sensor == "absurd":
                return (Reading("temperature_c", math.nan, "°C", self.name),)
            return (known("temperature_c", faults.temperature_c + 0.01 * (time.monotonic_ns() % 97), self.name),)

    class Battery(Sensor):
        name, names = "soak-battery", ("battery_charge", "battery_energy_j", "battery_power_w", "on_mains", "power_w")

        def read(self) -> tuple[Reading, ...]:
            used_s = max(0.0, time.time() - switch.now().began_unix_s)
            charge = max(0.2, 1.0 - used_s * DRAWN_W / CAPACITY_J)
            busy = int(time.monotonic() // PLATEAU_S) % 2  # and idle by turns, so that a frozen thermometer shows
            power_w = DRAWN_W * (0.5 + busy) + 0.001 * (time.monotonic_ns() % 89)
            return (
                known("battery_charge", charge, self.name),
                known("battery_energy_j", charge * CAPACITY_J, self.name),
                known("battery_power_w", power_w, self.name),
                known("on_mains", False, self.name),
                known("power_w", power_w, self.name),
            )

    discover = sensors.discover

    def discovered(*given: Any, **settings: Any) -> SensorSet:
        return SensorSet([Thermometer(), Battery(), *discover(*given, **settings).sensors])

    sensors.__dict__["discover"] = discovered


def faulty_policies(switch: Switch) -> None:
    """Has every policy look whether it should fail before it decides."""
    from policies import registry

    create = registry.create

    def faulty(*given: Any, **settings: Any) -> Any:
        policy = create(*given, **settings)
        decide = policy.decide

        def decided(*seen: Any) -> Any:
            wrong = switch.now().policy
            if wrong == "fails":
                raise RuntimeError("was told to fail")
            if wrong == "dawdles":
                time.sleep(2.0)
            return decide(*seen)

        policy.__dict__["decide"] = decided
        return policy

    registry.__dict__["create"] = faulty


def settable_clock(switch: Switch) -> None:
    """Gives the agent, its journal and its state file a wall clock that can be set."""
    from agent import control, journal, service
    from agent.clocks import AgentClock
    from agent.core import Agent
    from agent.state import Keeper

    clock = functools.partial(AgentClock, wall=switch.wall)
    service.__dict__.update(
        Agent=functools.partial(Agent, wall=switch.wall), Keeper=functools.partial(Keeper, clock=clock)
    )
    for module in (control, journal):
        module.__dict__["time"] = _SetTime(switch)


def main() -> None:
    """Puts the faults in and runs the command line."""
    import importlib

    switch = Switch(Path(sys.argv[1]))
    for name, seconds in SHORTENED.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, seconds)
    faulty_backends(switch)
    faulty_sensors(switch)
    faulty_policies(switch)
    settable_clock(switch)
    sys.argv = ["gearshift", *sys.argv[2:]]
    import cli

    cli.main()


if __name__ == "__main__":
    main()
