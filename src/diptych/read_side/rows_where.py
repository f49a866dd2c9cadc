"""Rows that an event finds by what they hold, and not by their key (`where=`): which columns, equal to what.

Whether an event concerns a row follows from that row alone: it does where the row that is there when it comes holds the
event's values. So each row is a fold of its own still, whatever the batches, slices and retries (rule 33).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from diptych.errors import ConfigurationError
from diptych.messages.message import field_types
from diptych.read_side.read_model import RowForm, column_kind
from diptych.read_side.read_store import ColumnKind
from diptych.read_side.row_refusal import value_refusal

__all__ = ["RowsWhere", "Values", "kind_refusal", "rows_where"]

Values: TypeAlias = tuple[Any, ...]
"""What columns hold, one for each of `RowsWhere.columns`."""


class _FoundBy(NamedTuple):
    """A column, and the field of the event, or of its part, that has to be equal to it."""

    column: str
    field: str
    of_part: bool


class RowsWhere:
    """By which columns the rows are found.

    Attributes:
        columns: their names.
    """

    def __init__(self, form: RowForm, found_by: Sequence[_FoundBy]) -> None:
        self.columns = tuple(each.column for each in found_by)
        self._form = form
        self._found_by = found_by

    def values(self, event: Any, part: Any) -> Values | None:
        """What the columns of the rows hold that an event concerns; None where no row can hold that."""
        values: list[Any] = []
        for column, field, of_part in self._found_by:
            value = self._form.column_value(column, getattr(part if of_part else event, field))
            if value_refusal(self._form.columns[column], value) is not None:
                return None
            values.append(value)
        return tuple(values)


def rows_where(function: str, form: RowForm, found_by: Mapping[str, str], event: type, part: type | None) -> RowsWhere:
    """How the rows of an event are found.

    Args:
        function: whose `where=` it is, for messages.
        form: of the read model.
        found_by: columns, each with the field of the part, else of the event, that has to be equal to it.
        event: the event's class.
        part: that of its parts, where they have fields.

    Raises:
        ConfigurationError: there are no such columns or fields, they are of different kinds, or no index finds them.
    """
    sources = [_source(function, form, event, part, column, field) for column, field in found_by.items()]
    if not any(form.columns[column].indexed or column == form.key_fields[0] for column in found_by):
        raise ConfigurationError(
            f"{function}: no index finds the rows of {form.name} by {', '.join(found_by)}, so that each event would "
            "look at all of them; mark one of these fields with Indexed[...]"
        )
    return RowsWhere(form, sources)


def _source(function: str, form: RowForm, event: type, part: type | None, column: str, field: str) -> _FoundBy:
    plain = [name for name, known in form.columns.items() if known.kind is not ColumnKind.DOCUMENT]
    if column not in plain:
        raise ConfigurationError(
            f"{function}: where= names {column!r}, which is no column of {form.name} to find rows by; there are "
            f"{', '.join(plain)}"
        )
    of_part = part is not None and field in field_types(part)
    source = part if part is not None and of_part else event
    if field not in field_types(source):
        raise ConfigurationError(
            f"{function}: {event.__name__} has no field {field!r} to find the rows of {form.name} by; say which one it "
            f"is: where={{{column!r}: ...}}"
        )
    reason = kind_refusal(form, column, source, field)
    if reason is not None:
        raise ConfigurationError(f"{function}: {reason}")
    return _FoundBy(column, field, of_part)


def kind_refusal(form: RowForm, column: str, source: type, field: str) -> str | None:
    """Why a field cannot tell what a column holds; None where it can."""
    wanted, kind = form.columns[column].kind, column_kind(field_types(source)[field])[0]
    if kind is wanted:
        return None
    return (
        f"{source.__name__}.{field} is no {wanted.value} as {form.name}.{column} is, so it cannot tell the row; give "
        "them one type"
    )
