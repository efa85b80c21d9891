"""Simulation: replays traces and journals against policies, with queue, heat, battery and imperfect sensors.

* :mod:`simulation.trace`, :mod:`simulation.readers`, :mod:`simulation.generate`: when requests come, and in which
  environment.
* :mod:`simulation.journal`: the agent's own record as a trace, and the check that decisions repeat.
* :mod:`simulation.plant`, :mod:`simulation.battery`, :mod:`simulation.sensors`: the device, and what can be seen of it.
* :mod:`simulation.replay` (with ``server``, ``kernel`` and ``compiled``): the event loop; its hot part as machine code.
* :mod:`simulation.outcome`, :mod:`simulation.report`: what came of it.
* :mod:`simulation.oracle` (with ``fluid``, ``planning`` and ``scripts``): what a clairvoyant could have reached.
* :mod:`simulation.scenarios`, :mod:`simulation.synthetic`: traces with device and goals, scaled to a table; a made-up
  table.
* :mod:`simulation.arena`, :mod:`simulation.standings`, :mod:`simulation.regret`, :mod:`simulation.tune`: policies
  against each other and against the clairvoyant.

The names below are the ones other folders use. Nothing here reads a clock, a sensor or an engine: everything comes
from the table, the trace and a seed, and policies are the very objects that the agent runs.
"""

from simulation.battery import Battery
from simulation.outcome import Outcome
from simulation.plant import Plant, Thermal, Throttle
from simulation.replay import simulate
from simulation.sensors import SensorModel
from simulation.trace import Trace, load, overlay

__all__ = ["Battery", "Outcome", "Plant", "SensorModel", "Thermal", "Throttle", "Trace", "load", "overlay", "simulate"]
