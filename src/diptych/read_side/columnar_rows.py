"""Rows of one form, all of one moment, for whoever wants them as columns: Parquet, Arrow.

They are pushed: what reads them may have to begin again, on another snapshot, and what takes them forgets what it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from diptych.messages.codec import encode
from diptych.read_side.read_store import Column, Row

__all__ = ["ColumnarRows", "RowSink", "told"]


class RowSink(Protocol):
    """Takes rows."""

    async def begin(self, expected: int | None) -> None:
        """Rows come from the first one, about so many (None: nobody knows): forget what was taken until now."""
        ...

    async def take(self, rows: Sequence[Row]) -> None:
        """Take the next rows; may be none. A row has a value for each column, as a read store takes them."""
        ...


class ColumnarRows(Protocol):
    """Rows of one form, read when they are wanted, as often as they are."""

    @property
    def name(self) -> str:
        """What they are of, "school.Seats"."""
        ...

    @property
    def columns(self) -> Sequence[Column]:
        """Their columns, in order."""
        ...

    async def into(self, sink: RowSink) -> Mapping[str, str]:
        """Give a sink every row; then tell what they show, as metadata of a file or table."""
        ...


def told(kind: str, name: str, columns: Sequence[Column], facts: Mapping[str, object]) -> dict[str, str]:
    """Metadata of rows: what they are of, what each column holds, and what else there is to tell."""
    kinds = encode({column.name: column.kind.value for column in columns}).decode()
    others = {
        f"diptych.{fact}": value if isinstance(value, str) else encode(value).decode() for fact, value in facts.items()
    }
    return {f"diptych.{kind}": name, "diptych.columns": kinds, **others}
