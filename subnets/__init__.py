"""Subnets: from one trained network to several nested ones in one weight set, kept in a bundle.

* :mod:`subnets.spec`, :mod:`subnets.bundle`, :mod:`subnets.data`, :mod:`subnets.errors`: numpy alone, fit for a device.
* :mod:`subnets.architectures`, ``modules``, ``groups``, ``depgraph``, ``proof``, ``importance``, ``allocation``,
  ``supernet``, ``training``, ``joint``, ``sampling``: need torch; import them by name, never from here. Beside them
  stand ``noise``, ``progressive``, ``latency`` (scores and widths), ``teachers``, ``private``, ``sparsity``, ``team``
  and ``heap`` (training).
* :mod:`subnets.pretrained`: one subnet as a plain network; needs torch when it is called.

Knows nothing of engines, latency or policies. The names below are the ones other folders use.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Imported when they are asked for: subnets.errors alone needs neither numpy nor a file format.
if TYPE_CHECKING:
    from subnets.bundle import Accuracy, Bundle, InputSpec, SubnetEntry
    from subnets.errors import EngineError, GearshiftError, InputError, MismatchError, UnavailableError
    from subnets.pretrained import from_pretrained
    from subnets.spec import ChannelGroup, Ladder, SubnetSpec
else:

    def __getattr__(name: str) -> Any:
        if name in _PLACES:
            return getattr(importlib.import_module(_PLACES[name]), name)
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


_PLACES = {
    "Accuracy": "subnets.bundle",
    "Bundle": "subnets.bundle",
    "ChannelGroup": "subnets.spec",
    "EngineError": "subnets.errors",
    "GearshiftError": "subnets.errors",
    "InputError": "subnets.errors",
    "InputSpec": "subnets.bundle",
    "Ladder": "subnets.spec",
    "MismatchError": "subnets.errors",
    "SubnetEntry": "subnets.bundle",
    "SubnetSpec": "subnets.spec",
    "UnavailableError": "subnets.errors",
    "from_pretrained": "subnets.pretrained",
}

__all__ = [
    "Accuracy",
    "Bundle",
    "ChannelGroup",
    "EngineError",
    "GearshiftError",
    "InputError",
    "InputSpec",
    "Ladder",
    "MismatchError",
    "SubnetEntry",
    "SubnetSpec",
    "UnavailableError",
    "from_pretrained",
]
