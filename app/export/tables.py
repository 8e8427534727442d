"""Writers of tables: each takes rows one by one and gives back bytes as they come."""

import codecs
import csv
import io
import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

import pyarrow as pa
from pyarrow import parquet

from app.data.fields import Field
from app.export.sink import Sink

Row = dict[str, Any]

_ROWS_PER_GROUP: Final = 500
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


class Writer(Protocol):
    """Turns rows into the bytes of a file."""

    def begin(self) -> bytes:
        """What stands before the first row."""
        ...

    def add(self, row: Row) -> bytes:
        """The bytes that a row makes ready, which may be none."""
        ...

    def end(self) -> bytes:
        """The rest."""
        ...


class JsonLines:
    """One JSON object per line."""

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def add(self, row: Row) -> bytes:
        """One line."""
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"

    def end(self) -> bytes:
        """Nothing."""
        return b""


class Json:
    """One JSON array."""

    def __init__(self) -> None:
        self._separator = b"[\n"

    def begin(self) -> bytes:
        """Nothing: the bracket comes with the first row, or at the end."""
        return b""

    def add(self, row: Row) -> bytes:
        """One element."""
        separator, self._separator = self._separator, b",\n"
        return separator + json.dumps(row, ensure_ascii=False).encode()

    def end(self) -> bytes:
        """The closing bracket."""
        return b"[]\n" if self._separator == b"[\n" else b"\n]\n"


class Csv:
    """RFC 4180 with a header line; no cell can be taken for a formula.

    Args:
        fields: by column name.
        bom: begin with a byte order mark, by which Excel knows UTF-8.
    """

    def __init__(self, fields: Mapping[str, Field], *, bom: bool = False) -> None:
        self._fields = fields
        self._bom = bom

    def begin(self) -> bytes:
        """The header."""
        return (codecs.BOM_UTF8 if self._bom else b"") + self._line(list(self._fields))

    def add(self, row: Row) -> bytes:
        """One record; lists are joined with a semicolon, null is an empty cell."""
        return self._line([_cell(row[name]) for name in self._fields])

    def end(self) -> bytes:
        """Nothing."""
        return b""

    def _line(self, cells: list[str]) -> bytes:
        text = io.StringIO()
        csv.writer(text).writerow(cells)
        return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = "; ".join(map(str, value))
    return escape_formula(str(value))  # numbers of ours are never negative


def escape_formula(text: str) -> str:
    """The text of a CSV cell that no spreadsheet takes for a formula: an apostrophe precedes what would be one."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


class Parquet:
    """A Parquet file, a row group at a time.

    Args:
        fields: by column name.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._schema = pa.schema([pa.field(name, _arrow_type(field)) for name, field in fields.items()])
        self._sink = Sink()
        self._writer = parquet.ParquetWriter(pa.PythonFile(self._sink, mode="w"), self._schema, compression="zstd")
        self._rows: list[Row] = []

    def begin(self) -> bytes:
        """The file's signature."""
        return self._sink.take()

    def add(self, row: Row) -> bytes:
        """A row group, when one is full."""
        self._rows.append(row)
        return self._flush() if len(self._rows) == _ROWS_PER_GROUP else b""

    def end(self) -> bytes:
        """The last row group and the footer."""
        if self._rows:
            self._flush_rows()
        self._writer.close()
        return self._sink.take()

    def _flush(self) -> bytes:
        self._flush_rows()
        return self._sink.take()

    def _flush_rows(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _arrow_type(field: Field) -> pa.DataType:
    if field.kind == "integer":
        return pa.int32()
    return pa.list_(pa.string()) if field.kind == "list" else pa.string()
