"""The agent: answers requests with the operating point that policy, hold and guard agree on, and says why.

* :mod:`agent.core`: :class:`Agent`, the front door for embedding. :mod:`agent.values`: what it hands out.
* :mod:`agent.answering`, ``waiting``, ``choosing``, ``forming``, ``dispatch``, ``running``, ``rescue``, ``accounts``:
  the way of a request; :mod:`agent.pool`, ``resident``, ``loader``, ``chunks``: the engines.
* :mod:`agent.control`, ``figures``, ``deciding``, ``sensing``, ``frozen``: who answers. :mod:`agent.overview`,
  ``explained``: views of it.
* :mod:`agent.guard`, ``limits``, ``hung``, ``watching``, ``errand``: what fails stops nothing and is told.
* :mod:`agent.drift`, ``recalibration``: whether the table still holds.
* :mod:`agent.journal`, ``rolling``, ``run_record``: the record of it all. :mod:`agent.state`, ``clocks``,
  ``continuity``: what a restart goes on with.
* :mod:`agent.front_doors`, ``model``, ``statistics``, ``regions``, ``access``: what all ways in have in common.
* :mod:`agent.http_server`, ``http_*``, ``protocol``, ``server``: Open Inference Protocol v2 and control over HTTP.
* :mod:`agent.grpc_front`, ``grpc_*``: the same protocol over gRPC.
* :mod:`agent.native`, ``native_connection``, ``native_requests``, ``memfd``, ``wire``: the native path, for neighbours.
* :mod:`agent.client`, ``client_session``, ``client_link``, ``client_memory``: its other side, for programs that ask;
  ``control_client``: for the commands.
* :mod:`agent.config`, ``quantities``, ``lifecycle``, ``service``: configuration and life as a daemon.

Knows nothing of training, calibrating or simulating, and needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Imported when they are asked for: a program that only talks to an agent (agent.client) should not load one.
if TYPE_CHECKING:
    from agent.core import Agent
    from agent.journal import Journal
    from agent.values import Answer, Event, Explanation, Hold, Status
    from subnets.errors import Busy
else:

    def __getattr__(name: str) -> Any:
        if name in _PLACES:
            return getattr(importlib.import_module(_PLACES[name]), name)
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


_PLACES = {
    "Agent": "agent.core",
    "Answer": "agent.values",
    "Busy": "subnets.errors",
    "Event": "agent.values",
    "Explanation": "agent.values",
    "Hold": "agent.values",
    "Journal": "agent.journal",
    "Status": "agent.values",
}

__all__ = ["Agent", "Answer", "Busy", "Event", "Explanation", "Hold", "Journal", "Status"]
