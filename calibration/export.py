"""A table's rows as a flat sheet, for spreadsheets and data frames: CSV, or Parquet by pyarrow.

One line an operating point; the names are those of :class:`calibration.table.Row`, with ``point``, bundle and host in
front and the duty-cycle fit flattened to ``duty_...``. What a row keeps per round stays in the JSON table. Unknown is
an empty cell (CSV) or null (Parquet).
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Sequence
from typing import Any

from calibration.table import Duty, Row, Table
from subnets.errors import UnavailableError

_NESTED = ("duty", "round_p50_ms", "quantiles_ms", "discarded")
_DUTY = tuple(name for name in Duty.__struct_fields__ if name not in ("rests_ms", "latency_ms"))
COLUMNS = (
    "point",
    "bundle_name",
    "bundle_key",
    "host_key",
    "created",
    *(name for name in Row.__struct_fields__ if name not in _NESTED),
    *(f"duty_{name}" for name in _DUTY),
)


def records(table: Table) -> list[dict[str, Any]]:
    """One flat record a row, by the names in :data:`COLUMNS`."""
    shared = {
        "bundle_name": table.bundle_name,
        "bundle_key": table.bundle_key,
        "host_key": table.host.key,
        "created": table.protocol.created,
    }
    return [
        {"point": row.point, **shared}
        | {name: getattr(row, name) for name in Row.__struct_fields__ if name not in _NESTED}
        | {f"duty_{name}": getattr(row.duty, name) if row.duty else None for name in _DUTY}
        for row in table.rows
    ]


def as_csv(tables: Sequence[Table]) -> bytes:
    """The rows of the tables, one after the other, with one line of names before them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        writer.writerows(records(table))
    return text.getvalue().encode()


def as_parquet(tables: Sequence[Table]) -> bytes:
    """The same as a Parquet file with typed columns.

    Raises:
        UnavailableError: pyarrow is not installed.
    """
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UnavailableError(
            "Parquet needs pyarrow; install it with: pip install 'gearshift[parquet]', or export as CSV"
        ) from None
    rows = [record for table in tables for record in records(table)]
    schema = pyarrow.schema([(name, _arrow_type(name, pyarrow)) for name in COLUMNS])
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), sink)
    return bytes(sink.getvalue())


def _arrow_type(name: str, pyarrow: Any) -> Any:
    """By the field's annotation, so that a column without any value keeps its type."""
    owner, field = (Duty, name.removeprefix("duty_")) if name.startswith("duty_") else (Row, name)
    annotation = str(owner.__annotations__.get(field, "str"))
    for written, type_ in (("bool", pyarrow.bool_()), ("int", pyarrow.int64()), ("Count", pyarrow.int64())):
        if annotation.startswith(written):
            return type_
    return pyarrow.string() if annotation.startswith("str") else pyarrow.float64()
