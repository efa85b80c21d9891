"""What goes wrong, in one place; every other folder but ``sensors`` raises these.

::

    GearshiftError
     +-- InputError         the user's file, key or value is wrong: one sentence, exit code 2
     |    +-- MismatchError  two inputs are each fine but do not belong together (--force overrides)
     +-- UnavailableError   this machine or installation lacks something: one sentence, exit code 2
     +-- EngineError        a loaded engine failed or answered with non-finite values
     +-- Busy               the agent's queue is full, or it is closing: try again later
          +-- Superseded     a newer request of the same stream took its place while it waited
          +-- Expired        its deadline passed while it waited, and late answers are not wanted

A message names the file, key or value, says what was expected and what to do. ``sensors`` raises none of them: a
sensor that cannot be read is *unknown*, with a reason.
"""


class GearshiftError(Exception):
    """Base of every error this project raises on purpose."""


class InputError(GearshiftError, ValueError):
    """A file, key or value given by the user is wrong."""


class MismatchError(InputError):
    """Two inputs do not belong together: a table and a bundle, a table and a host."""


class UnavailableError(GearshiftError, RuntimeError):
    """Something this step needs is not installed or not present on this machine."""


class EngineError(GearshiftError, RuntimeError):
    """An engine could not be loaded, failed, or returned non-finite values."""


class Busy(GearshiftError, RuntimeError):
    """The agent cannot take this request now: its queue is full, or it is closing. Trying again later may help."""


class Superseded(Busy):
    """A newer request of the same stream has come while this one waited; only the newest is answered."""


class Expired(Busy):
    """The deadline passed before this request's turn came, and the agent is told not to answer late ones."""
