"""Subnets: from one trained network to several nested ones in one weight set, kept in a bundle.

* :mod:`subnets.spec`, :mod:`subnets.bundle`, :mod:`subnets.data`, :mod:`subnets.errors`: numpy alone, fit for a device.
* :mod:`subnets.architectures`, ``modules``, ``groups``, ``depgraph``, ``proof``, ``importance``, ``allocation``,
  ``supernet``, ``training``, ``joint``, ``sampling``: need torch; import them by name, never from here. Beside them
  stand ``noise``, ``progressive``, ``latency`` (scores and widths), ``teachers``, ``private``, ``sparsity``, ``team``
  and ``heap`` (training).
* :mod:`subnets.pretrained`: one subnet as a plain network; needs torch when it is called.

Knows nothing of engines, latency or policies. The names below are the ones other folders use.
"""

from subnets.bundle import Accuracy, Bundle, InputSpec, SubnetEntry
from subnets.errors import EngineError, GearshiftError, InputError, MismatchError, UnavailableError
from subnets.pretrained import from_pretrained
from subnets.spec import ChannelGroup, Ladder, SubnetSpec

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
