"""Measures what each operating point of a bundle does on this machine, and keeps it in a table.

* :mod:`calibration.table`: the table: rows, switch costs, host, protocol; light, all that policies need.
* :mod:`calibration.measure`: the protocol, front to back: ``calibrate(bundle, backends) -> Table``; its parts are
  ``subjects``, ``run``, ``rounds``, ``duty``, ``switching``, ``disturbance``, ``statistics`` and ``summary``;
  ``ledger`` keeps what is finished.
* :mod:`calibration.accuracy`: accuracy through the engines. :mod:`calibration.host`: what identifies a machine.
* :mod:`calibration.compare`: two tables row by row. :mod:`calibration.verify`: a table against the machine.
* :mod:`calibration.paired`: two points of one table. :mod:`calibration.merge`: the tables of a fleet.
  :mod:`calibration.export`: rows as CSV or Parquet.
* :mod:`calibration.report`, :mod:`calibration.svg`: the self-contained page, and the charts it is drawn with;
  :mod:`calibration.wording`: figures in words, never without interval and source.

Does not live here: choosing by a table (``policies``), compiling (``backends``), meters (``sensors``). Only the table
is imported with the package; the other modules are imported by their names.
"""

from calibration.table import Duty, Host, Protocol, Row, Switch, Table, frontier, read, write

__all__ = ["Duty", "Host", "Protocol", "Row", "Switch", "Table", "frontier", "read", "write"]
