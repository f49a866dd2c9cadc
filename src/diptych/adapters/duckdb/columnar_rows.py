"""All rows of a read model, or all events of one type, in typed columns: as a Parquet file, and as Arrow.

A column has the type that DuckDB keeps such values in (`columns`), and a decimal the one that SQL sees; a document is
JSON text, a duration a number of microseconds. They go through a DuckDB database in a file, so that any number of rows
is exported in bounded memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from diptych.adapters.duckdb.columns import ExportCodec, quoted
from diptych.adapters.duckdb.staging import BATCH_ROWS, Staging, staging_file
from diptych.errors import ConfigurationError

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

    from diptych.read_side.columnar_rows import ColumnarRows
    from diptych.read_side.read_store import Row

__all__ = ["Decimals", "RowTable", "export_rows", "row_table"]

Decimals: TypeAlias = Literal["decimal", "text"]
"""What decimals become: DECIMAL(38,12), and an error where one does not fit; or text, exactly as they are."""
Moved: TypeAlias = Callable[[int, int | None], object]
"""Is told how many rows there are so far, and about how many there will be; None: nobody knows."""

_TABLE = "rows"


class RowTable:
    """Rows in columns, as long as the block goes on: `row_table`. Not for concurrent use.

    It is an Arrow stream (`__arrow_c_stream__`): `polars.from_arrow(table)`, `pyarrow.table(table)`.

    Attributes:
        relation: the same for DuckDB, with `df()` for pandas.
        count: of rows.
        metadata: what they show, see `ColumnarRows.into`.
    """

    def __init__(self, relation: DuckDBPyRelation, count: int, metadata: Mapping[str, str]) -> None:
        self.relation = relation
        self.count = count
        self.metadata = metadata

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The rows as the Arrow PyCapsule interface hands them over, read a batch at a time."""
        stream: Any = self.relation
        return stream.__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> Any:
        """A `pyarrow.RecordBatchReader` of the rows, a batch at a time, with `metadata` in its schema.

        Raises:
            ConfigurationError: pyarrow is not installed.
        """
        try:
            arrow: Any = import_module("pyarrow")
        except ModuleNotFoundError as error:
            if error.name != "pyarrow":
                raise
            raise ConfigurationError("to_arrow() needs pyarrow: pip install 'diptych[arrow]'") from error
        reader = arrow.RecordBatchReader.from_stream(self)
        schema = reader.schema.with_metadata(dict(self.metadata))
        return arrow.RecordBatchReader.from_batches(
            schema, (batch.replace_schema_metadata(schema.metadata) for batch in reader)
        )


@asynccontextmanager
async def row_table(rows: ColumnarRows, *, decimals: Decimals = "decimal") -> AsyncGenerator[RowTable]:
    """Rows as a table, in a file of its own that goes with the block.

    `async with row_table(app.read_model_rows(Seats)) as table: frame = polars.from_arrow(table)`

    Args:
        rows: which; `app.read_model_rows(Seats)`, `app.event_rows(Enrolled)`.
        decimals: what decimals become.

    Raises:
        ConfigurationError: a decimal does not fit its column.
        StoreUnavailable: the disk is full.
        DiptychError: whatever `rows.into` raises.
    """
    folder = await asyncio.to_thread(TemporaryDirectory, prefix="diptych-rows-")
    try:
        with Staging(Path(folder.name, "rows.duckdb"), _TABLE) as staging:
            sink = _Sink(staging, rows, decimals, lambda *_: None)
            metadata = await rows.into(sink)
            yield RowTable(staging.relation(), sink.count, metadata)
    finally:
        await asyncio.to_thread(folder.cleanup)


async def export_rows(
    rows: ColumnarRows, target: Path, moved: Moved = lambda *_: None, *, decimals: Decimals = "decimal"
) -> tuple[int, Mapping[str, str]]:
    """Write rows to a Parquet file, whole or not at all: it takes the place of one of that name when it is done.

    Its metadata are those of the rows. What there is beside it meanwhile is as of `export_events`.

    Args:
        rows: which; `app.read_model_rows(Seats)`, `app.event_rows(Enrolled)`.
        target: the file.
        moved: is told after each batch.
        decimals: what decimals become.

    Returns:
        How many there were, and the metadata.

    Raises:
        ConfigurationError: a decimal does not fit its column.
        StoreUnavailable: the file cannot be written, or is being exported to by somebody else; with the reason.
        DiptychError: whatever `rows.into` raises.
    """
    with Staging(staging_file(target), _TABLE) as staging:
        sink = _Sink(staging, rows, decimals, moved)
        metadata = await rows.into(sink)
        await staging.write_parquet(target, metadata)
        return sink.count, metadata


class _Sink:
    """Takes rows into a staging table."""

    def __init__(self, staging: Staging, rows: ColumnarRows, decimals: Decimals, moved: Moved) -> None:
        self.count = 0
        self._staging = staging
        self._name = rows.name
        self._codec = ExportCodec(rows.columns, decimals_as_text=decimals == "text")
        self._moved = moved
        self._expected: int | None = None

    async def begin(self, expected: int | None) -> None:
        """Empty the table. See the port."""
        self.count, self._expected = 0, expected
        columns = (f"{quoted(column.name)} {held}" for column, held in self._codec.columns)
        await self._staging.create(", ".join(columns))
        self._moved(0, expected)

    async def take(self, rows: Sequence[Row]) -> None:
        """Add rows. See the port."""
        for begin in range(0, len(rows), BATCH_ROWS):
            batch = [self._codec.encode(self._name, row) for row in rows[begin : begin + BATCH_ROWS]]
            await self._staging.append(batch)
            self.count += len(batch)
            self._moved(self.count, self._expected)
