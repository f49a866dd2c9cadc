"""How OpenSearch keeps the values of read models: exact and in order, for any value (rule 32)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.adapters.opensearch.columns import RowCodec, term
from diptych.read_side.read_store import ColumnKind
from diptych.read_side.row_filters import as_read, rank
from diptych.read_side.row_refusal import row_refusal
from tests.properties.test_columns import EVERY_KIND, ROWS, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

ORDERED = [kind for kind in VALUES if kind is not ColumnKind.DOCUMENT]


@pytest.mark.parametrize("kind", ORDERED, ids=lambda kind: kind.value)
@settings(max_examples=40)
@given(data=st.data())
def test_terms_sort_as_the_values_do(kind: ColumnKind, data: st.DataObject) -> None:
    """Byte by byte, None first; equal values have one term."""
    values: Sequence[Any] = data.draw(st.lists(st.none() | VALUES[kind], min_size=2, max_size=12))
    by_term = sorted(values, key=lambda value: term(kind, value).encode())
    assert [rank(value) for value in by_term] == sorted(rank(value) for value in values)
    for one in values:
        for other in values:
            assert (term(kind, one) == term(kind, other)) == (one == other)


@settings(max_examples=40)
@given(ROWS)
def test_rows_read_back_equal(rows: Sequence[tuple[Any, ...]]) -> None:
    """Value for value, in type and in every digit; what no store takes is refused."""
    codec = RowCodec(EVERY_KIND)
    for n, values in enumerate(rows):
        row = (n, *values)
        assert codec.refusal(row) == row_refusal(EVERY_KIND, row)
        if codec.refusal(row) is None:
            read = codec.row(codec.document(row)["row"])
            assert read == as_read(EVERY_KIND, row)
            assert list(map(_exactly, read)) == list(map(_exactly, as_read(EVERY_KIND, row)))


def _exactly(value: Any) -> tuple[type, str]:
    """What tells values that are equal apart."""
    return type(value), str(value)
