"""Rows that no read store can keep, told by read model, key, field and the function that returned them.

The place in the code is left out: it is where a row is looked at, not where it was made.
"""

from __future__ import annotations

import reprlib
from typing import Any

from diptych.read_side.read_model import RowForm, key_text
from diptych.read_side.read_store import ColumnKind, Key, Row
from diptych.read_side.row_refusal import row_refusal

__all__ = ["RefusedRow", "check_documents", "check_row", "stored_row"]

_UNFIT = (TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
"""What the conversion of a field's value to what its column holds may raise, when the value is none of its type."""


class RefusedRow(ValueError):
    """What a projection's function returned cannot be kept; the text says all there is to say."""


def check_row(function: str, form: RowForm, key: Key, row: Any) -> None:
    """Look at every field but the documents, which are left to `stored_row`.

    Raises:
        RefusedRow: no store can keep it.
    """
    try:
        reason = form.refusal(row)
    except _UNFIT as error:
        reason = _unfit(form, row, error)
    if reason is not None:
        raise _refused(function, form, key, reason)


def check_documents(function: str, form: RowForm, row: Any) -> None:
    """Look at the documents, which `check_row` leaves out.

    Raises:
        RefusedRow: no store can keep one of them.
    """
    if all(column.kind is not ColumnKind.DOCUMENT for column in form.table.columns):
        return
    reason = row_refusal(form.table, stored_row(function, form, row))
    if reason is not None:
        raise _refused(function, form, form.column_key_of(row), reason)


def stored_row(functions: str, form: RowForm, row: Any) -> Row:
    """The row as the columns hold it.

    Raises:
        RefusedRow: a value cannot be written so.
    """
    try:
        return form.row(row)
    except _UNFIT as error:
        raise _refused(functions, form, form.column_key_of(row), _unfit(form, row, error)) from error


def _refused(function: str, form: RowForm, key: Key, reason: str) -> RefusedRow:
    return RefusedRow(
        f"{function} returned a row of {form.name} with the key {key_text(key)} that cannot be stored: {reason}"
    )


def _unfit(form: RowForm, row: Any, error: Exception) -> str:
    """The first field whose value cannot be converted, and why."""
    for name in form.columns:
        value = getattr(row, name)
        try:
            form.column_value(name, value)
        except _UNFIT as own:
            return f"column {name} cannot hold {reprlib.repr(value)}: {own}"
    return str(error)
