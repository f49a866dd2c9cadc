"""Queries that need no handler: a row by its key; and lists and pages of rows, by conditions and in orders declared.

class BooksFrom(Query[Page[Book]]):
    country: str | None = None                                         # equal; None: not asked
    dearest: Annotated[int | None, Where(at_most, "price")] = None     # another condition on a column
    order_by: Literal["title", "-price"] = "title"                     # the orders that may be asked for
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    cursor: str | None = None                                          # where the page before this one ended
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from diptych.errors import ConfigurationError, InvalidMessage
from diptych.messages.annotations import members, unwrap
from diptych.messages.message import field_types
from diptych.messages.query import answer_type
from diptych.read_side.conditions import AllOf, Condition, one_of, starts_with
from diptych.read_side.projection import Projection
from diptych.read_side.query_context import QueryContext
from diptych.read_side.read_model import ReadModel, RowForm, column_kind
from diptych.read_side.read_store import Column, ColumnKind
from diptych.read_side.reader import FIND_ROWS_MAX, Page, Reader

__all__ = ["LISTED_ROWS_MAX", "Listing", "Where", "by_key", "remedy", "row_of"]

LISTED_ROWS_MAX = 5_000
"""Rows that a query without handler lists; where more match it is refused rather than cut short."""

_ARGUMENTS = ("limit", "cursor", "order_by")
"""What `Reader.page` takes by name for itself, and so does a query without handler."""
_SEQUENCES = (list, tuple, frozenset, set)


class Where(NamedTuple):
    """What a field of a query without handler asks of a column: `Annotated[int | None, Where(at_least, "price")]`.

    Attributes:
        condition: a function of `diptych.read_side.conditions`; with `one_of` the field is a `tuple[..., ...]`.
        column: its name; empty where the field is named like it.
    """

    condition: Callable[..., Condition]
    column: str = ""


class _Asked(NamedTuple):
    """What one field asks of one column."""

    field: str
    column: str
    condition: Callable[..., Condition] | None
    none_is_asked: bool


class Shown(NamedTuple):
    """What a query without handler answers with: a read model, as one row, a list or a page of rows."""

    model: type[ReadModel]
    form: typing.Literal["row", "list", "page"]


class Listing:
    """Answers a query with the rows of a read model that it asks for: a `Handle`.

    Args:
        query: the class of the query.
        form: of the read model.
        paged: whether the answer is a page, or a list.

    Attributes:
        form: of the read model.
        paged: whether the answer is a page.

    Raises:
        ConfigurationError: a field of the query asks for nothing that can be answered.
    """

    def __init__(self, query: type, form: RowForm, *, paged: bool) -> None:
        self.form = form
        self._name = f"{query.__module__}.{query.__qualname__}"
        self.paged = paged
        types = field_types(query)
        self._arguments = [name for name in _ARGUMENTS if name in types and (name != "cursor" or paged)]
        self._asked = [self._compiled(name, types[name]) for name in types if name not in self._arguments]
        for name in self._arguments:
            self._check_argument(name, types[name])
        if paged and "cursor" not in types:
            raise ConfigurationError(f"{self._name} answers with a page: give it a field `cursor: str | None = None`")

    async def __call__(self, query: Any, reader: Reader, _: QueryContext) -> Any:
        """The rows; a list says where it would have to be cut short.

        Raises:
            InvalidMessage: there are more than `LISTED_ROWS_MAX`, or the cursor is none of this query.
        """
        if self.paged:
            return await self.page(query, reader, getattr(query, "limit", 100), query.cursor)
        if "limit" in self._arguments:
            return (await self.page(query, reader, query.limit, None)).items
        page = await self.page(query, reader, LISTED_ROWS_MAX, None)
        if page.next is not None:
            problem = (
                f"more than {LISTED_ROWS_MAX} rows match; narrow it, ask for it as a stream, or declare it as a "
                f"Query[Page[{self.form.name}]]"
            )
            raise InvalidMessage(type(query).__name__, [("$", problem)])
        return page.items

    def limit_of(self, query: Any) -> int | None:
        """How many rows it asks for at most; None where it asks for all."""
        return query.limit if "limit" in self._arguments else None

    async def page(self, query: Any, reader: Reader, limit: int, cursor: str | None) -> Page[Any]:
        """The rows that it asks for behind a cursor."""
        order_by = getattr(query, "order_by", None) if "order_by" in self._arguments else None
        where: dict[str, Any] = self._where(query)
        return await reader.page(self.form.cls, order_by=order_by or "", limit=limit, cursor=cursor, **where)

    def _where(self, query: Any) -> dict[str, object]:
        found: dict[str, object] = {}
        for asked in self._asked:
            value = getattr(query, asked.field)
            if value is None and not asked.none_is_asked:
                continue
            wanted = _condition(asked, value)
            found[asked.column] = AllOf((found[asked.column], wanted)) if asked.column in found else wanted
        return found

    # ── compiling ────────────────────────────────────────────────────────────

    def _compiled(self, field: str, annotation: Any) -> _Asked:
        marks = [mark for mark in unwrap(annotation)[1] if isinstance(mark, Where)]
        if len(marks) > 1:
            raise self._wrong(field, "has several Where: a field asks for one thing")
        where = marks[0] if marks else None
        name = (where.column if where else "") or field
        column = self.form.columns.get(name)
        if column is None:
            raise self._wrong(
                field,
                f"is no column of {self.form.name} ({', '.join(self.form.columns)}): write a @query_handler, name its "
                'fields like columns, or say Annotated[..., Where(at_least, "column")]',
            )
        if (field in _ARGUMENTS and where is None) or name in _ARGUMENTS:
            raise self._named_like_an_argument(field)
        condition = None if where is None else where.condition
        self._check_kind(field, annotation, column, condition)
        return _Asked(field, name, condition, none_is_asked=where is None and column.nullable)

    def _check_kind(
        self, field: str, annotation: Any, column: Column, condition: Callable[..., Condition] | None
    ) -> None:
        if column.kind is ColumnKind.DOCUMENT:
            raise self._wrong(field, f"asks for {column.name}, which is kept as a document and cannot be filtered by")
        held = [member for member in members(annotation) if member is not type(None)]
        if condition is one_of:
            if len(held) != 1 or typing.get_origin(held[0]) not in _SEQUENCES:
                raise self._wrong(field, f"is Where(one_of): its type is tuple[..., ...], of what {column.name} holds")
            held = [typing.get_args(held[0])[0]]
        if condition is starts_with and column.kind is not ColumnKind.TEXT:
            raise self._wrong(field, f"is Where(starts_with), and {column.name} is no text")
        wanted = {ColumnKind.REAL, ColumnKind.INTEGER} if column.kind is ColumnKind.REAL else {column.kind}
        kinds = {column_kind(member)[0] for member in held}
        if not kinds <= wanted:
            raise self._wrong(field, f"is compared with the column {column.name}, which holds another type")

    def _check_argument(self, name: str, annotation: Any) -> None:
        if name in self.form.columns:
            raise self._named_like_an_argument(name)
        if name == "order_by":
            self._check_orders(annotation)
        elif name == "limit" and not _is_bounded(annotation):
            raise self._wrong(
                name, f"says how many rows: write Annotated[int, Meta(ge=1, le=100)], {FIND_ROWS_MAX} at most"
            )

    def _check_orders(self, annotation: Any) -> None:
        held = [member for member in members(annotation) if member is not type(None)]
        if len(held) != 1 or typing.get_origin(held[0]) is not typing.Literal:
            raise self._wrong("order_by", 'says which orders may be asked for: write Literal["title", "-price"]')
        for order in typing.get_args(held[0]):
            for part in str(order).split(","):
                column = self.form.columns.get(part.strip().removeprefix("-"))
                if column is None or column.kind is ColumnKind.DOCUMENT:
                    raise self._wrong("order_by", f"offers {order!r}, which is no order of {self.form.name}'s columns")

    def _named_like_an_argument(self, field: str) -> ConfigurationError:
        return self._wrong(
            field,
            "is named like an argument of Reader.page, which cannot filter by it: rename the column and the field, or "
            "write a @query_handler that asks with Reader.sql",
        )

    def _wrong(self, field: str, what: str) -> ConfigurationError:
        return ConfigurationError(f"{self._name} has no handler, and its field {field!r} {what}")


def _condition(asked: _Asked, value: Any) -> object:
    if asked.condition is None:
        return value
    return asked.condition(*value) if asked.condition is one_of else asked.condition(value)


def _is_bounded(annotation: Any) -> bool:
    bounds = [mark for mark in unwrap(annotation)[1] if isinstance(mark, msgspec.Meta)]
    least, most = (
        next((v for each in bounds if (v := getattr(each, name)) is not None), None) for name in ("ge", "le")
    )
    return least is not None and least >= 1 and most is not None and most <= FIND_ROWS_MAX


def by_key(query: type, projection: Projection) -> Callable[[Any, Reader, QueryContext], Any]:
    """What answers a query with one row.

    Raises:
        ConfigurationError: its fields are not the key.
    """
    form = projection.form
    fields = tuple(field_types(query))
    if set(fields) != set(form.key_fields):
        raise ConfigurationError(
            f"{query.__module__}.{query.__qualname__} has no handler, and its fields ({', '.join(fields)}) are not the "
            f"key of {form.name} ({', '.join(form.key_fields)}): write a @query_handler, or name its fields like the "
            "key"
        )

    async def handle(query: Any, reader: Reader, _: QueryContext) -> ReadModel | None:
        return await reader.get(form.cls, *(getattr(query, name) for name in form.key_fields))

    return handle


# ── what a query answers with ────────────────────────────────────────────────


def row_of(query: type, by_model: Mapping[type, Projection]) -> tuple[Projection, Shown] | None:
    """What a query without handler answers with, and what feeds it."""
    try:
        answer = answer_type(query)
    except (ConfigurationError, SyntaxError, TypeError):
        return None  # a query of someone else: asking it raises what is wrong with it
    found = _shown(answer)
    return (by_model[found.model], found) if found is not None and found.model in by_model else None


def _shown(answer: Any) -> Shown | None:
    """The read model in the answer types `M | None`, `list[M]` and `Page[M]`."""
    either = members(answer)
    origin = typing.get_origin(answer)
    if type(None) in either and len(either) == 2:
        form, held = "row", either
    elif origin is list or origin is Page:
        form, held = ("list" if origin is list else "page"), typing.get_args(answer)
    else:
        return None
    model = next((each for each in held if isinstance(each, type) and issubclass(each, ReadModel)), None)
    return None if model is None else Shown(model, typing.cast("Any", form))


def remedy(query: type, models: Mapping[type, object]) -> str:
    """What would make a query answered that is not."""
    try:
        answer = answer_type(query)
    except (ConfigurationError, SyntaxError, TypeError) as error:
        return str(error)
    found = _shown(answer)
    if found is None:
        return (
            f"write `@context.query_handler async def handler(query: {query.__name__}, read: Reader) -> "
            f"{inspect.formatannotation(answer)}`, in a module that its context lists"
        )
    if found.model not in models:
        return (
            f"no projection of this application feeds {found.model.__name__}: write one in a module that its context "
            "lists, or a @context.query_handler"
        )
    return "it was defined after the application was opened: define it in a module that its context lists"
