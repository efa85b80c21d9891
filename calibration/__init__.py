"""Measures what each operating point of a bundle does on this machine, and keeps it in a table.

* :mod:`calibration.table`: the table: rows, switch costs, host, protocol; light, all that policies need.
* :mod:`calibration.measure`: the protocol, front to back: ``calibrate(bundle, backends) -> Table``; its parts are
  ``subjects``, ``rounds``, ``switching``, ``disturbance``, ``statistics`` and ``summary``.
* :mod:`calibration.accuracy`: accuracy through the engines. :mod:`calibration.host`: what identifies a machine.
* :mod:`calibration.compare`: two tables row by row.
* :mod:`calibration.report`, :mod:`calibration.svg`: the self-contained page, and the charts it is drawn with;
  :mod:`calibration.wording`: figures in words, never without interval and source.

Does not live here: choosing by a table (``policies``), compiling (``backends``), meters (``sensors``). Only the table
is imported with the package; the other modules are imported by their names.
"""

from calibration.table import Host, Protocol, Row, Switch, Table, frontier, read, write

__all__ = ["Host", "Protocol", "Row", "Switch", "Table", "frontier", "read", "write"]
