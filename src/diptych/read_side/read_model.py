"""Read models: what is shown. One class is one row; its table follows from its annotations."""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from typing_extensions import dataclass_transform

from diptych.errors import ConfigurationError
from diptych.messages.annotations import members, snake_case, unwrap
from diptych.messages.codec import encode
from diptych.messages.message import MessageMeta, field_types, required_fields
from diptych.read_side.read_store import Column, ColumnKind, Filter, Table
from diptych.read_side.row_filters import unexpired
from diptych.read_side.row_refusal import value_refusal

__all__ = [
    "KIND_TYPES",
    "Conversion",
    "ExpiresAt",
    "Indexed",
    "Key",
    "ReadModel",
    "RowForm",
    "Searchable",
    "column_kind",
    "conversion_of",
    "key_text",
]

T = TypeVar("T")


class _Mark(enum.Enum):
    KEY = "Key"
    INDEXED = "Indexed"
    SEARCHABLE = "Searchable"
    EXPIRES_AT = "ExpiresAt"


Key = Annotated[T, _Mark.KEY]
"""`course: Key[CourseId]`: the field is the row's key, or part of it, in the order of the fields."""
Indexed = Annotated[T, _Mark.INDEXED]
"""`units: Indexed[int]`: the field is quick to filter and order by."""
Searchable = Annotated[T, _Mark.SEARCHABLE]
"""`description: Searchable[str]`: the words of the field are found by `Reader.search`."""
ExpiresAt = Annotated[T, _Mark.EXPIRES_AT]
"""`until: ExpiresAt[datetime]`: from then on the row is no row any more; with `| None`, None never expires."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class ReadModel(msgspec.Struct, metaclass=MessageMeta, frozen=True, kw_only=True):
    """What is shown: one row of one table.

    Fields of str, Identity, int, float, bool, Decimal, datetime, date, timedelta, bytes, UUID, str and int enums and
    str literals, or one of them with None, are columns that can be filtered and ordered by, exactly. Any other type
    that JSON can say is kept as a document: shown, not filtered. At least one field is a `Key[...]`; one at most, of
    datetime, is an `ExpiresAt[...]`.
    """


class Conversion(NamedTuple):
    """How a field's value becomes a column's and back; None where they are the same."""

    kind: ColumnKind
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None


_PLAIN: dict[type, ColumnKind] = {
    str: ColumnKind.TEXT,
    int: ColumnKind.INTEGER,
    float: ColumnKind.REAL,
    bool: ColumnKind.BOOLEAN,
    Decimal: ColumnKind.DECIMAL,
    datetime: ColumnKind.DATETIME,
    date: ColumnKind.DATE,
    timedelta: ColumnKind.DURATION,
    bytes: ColumnKind.BYTES,
}
KIND_TYPES = {kind: plain for plain, kind in _PLAIN.items()}
"""What columns of each kind hold; a document is told by its read model."""


class RowForm:
    """A read model, compiled: its table, and the way between instances and rows.

    Making one raises `ConfigurationError` where the class has no key, or a mark on a field that cannot carry it.

    Attributes:
        cls: the class.
        table: its form in the read store.
        key_fields: the names of the key fields, in order.
        defaults_complete: whether a blank row can be made from a key alone.
        expiry: an instance to when it expires; None where rows do not.
    """

    def __init__(self, cls: type[Any], context: str) -> None:
        self.cls = cls
        types = field_types(cls)
        expires = _expires(cls, types)
        conversions = {name: conversion_of(annotation) for name, annotation in types.items()}
        columns = tuple(_column(cls, name, annotation, conversions[name].kind) for name, annotation in types.items())
        self.key_fields = tuple(name for name, annotation in types.items() if _Mark.KEY in unwrap(annotation)[1])
        self.expiry: Callable[[Any], datetime | None] | None = None if expires is None else attrgetter(expires)
        self.table = Table(f"{snake_case(context)}_{snake_case(cls.__name__)}", columns, self.key_fields, expires)
        _check_table(cls, self.table)
        self.defaults_complete = required_fields(cls) <= set(self.key_fields)
        self.columns = {column.name: column for column in columns}
        self._names = tuple(types)
        self._conversions = conversions
        self._values = _tuple_getter(self._names)
        self._keys = _tuple_getter(self.key_fields)
        self._keys_are_plain = all(conversions[name].write is None for name in self.key_fields)
        self._writes = [(i, write) for i, n in enumerate(types) if (write := conversions[n].write) is not None]
        self._reads = [(i, read) for i, n in enumerate(types) if (read := conversions[n].read) is not None]
        self._checks = [(i, _surely_storable(c)) for i, c in enumerate(columns) if c.name not in self.key_fields]

    @property
    def name(self) -> str:
        """The class name, for messages."""
        return self.cls.__name__

    def row(self, model: Any) -> tuple[Any, ...]:
        """The instance as a row."""
        values = self._values(model)
        if not self._writes:
            return values
        changed = list(values)
        for index, write in self._writes:
            if changed[index] is not None:
                changed[index] = write(changed[index])
        return tuple(changed)

    def model(self, row: tuple[Any, ...]) -> Any:
        """The row as an instance."""
        if self._reads:
            changed = list(row)
            for index, read in self._reads:
                if changed[index] is not None:
                    changed[index] = read(changed[index])
            row = tuple(changed)
        return self.cls(**dict(zip(self._names, row)))  # noqa: B905 — a store gives back what it was given

    def refusal(self, model: Any) -> str | None:
        """Why no store takes this instance with its key, naming the column; None where every store does.

        Documents are left to the write: encoding each step of a row that grows would cost its square.
        """
        values = self._values(model)
        for index, surely_storable in self._checks:
            if not surely_storable(values[index]):
                column = self.table.columns[index]
                reason = value_refusal(column, self.column_value(column.name, values[index]))
                if reason is not None:
                    return reason
        return None

    def has_expired(self, model: Any, moment: datetime) -> bool:
        """Whether this instance is no row any more at a moment."""
        expires_at = None if self.expiry is None else self.expiry(model)
        return expires_at is not None and expires_at <= moment

    def unexpired(self, moment: datetime | None) -> Sequence[Filter]:
        """The filter that leaves out what has expired at a moment; none where rows do not expire, or without one."""
        return unexpired(self.table, moment)

    def key_of(self, model: Any) -> tuple[Any, ...]:
        """The values of the key fields, of an instance or of whatever has fields of those names."""
        return self._keys(model)

    def column_key_of(self, model: Any) -> tuple[Any, ...]:
        """The key of an instance, as the columns hold it."""
        key = self._keys(model)
        return key if self._keys_are_plain else self.column_key(key)

    def blank(self, key: tuple[Any, ...]) -> Any:
        """The row that the first event of a key meets; only where `defaults_complete`."""
        return self.cls(**dict(zip(self.key_fields, key, strict=True)))

    def column_key(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """Key values as the columns hold them."""
        if self._keys_are_plain:
            return key
        return tuple(self.column_value(name, value) for name, value in zip(self.key_fields, key, strict=True))

    def given_key(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """Key values that somebody asks by, as the columns hold them.

        Raises:
            ConfigurationError: they are not as many as the key has fields.
        """
        if len(key) != len(self.key_fields):
            raise ConfigurationError(f"the key of {self.name} is ({', '.join(self.key_fields)}), not {key!r}")
        return self.column_key(key)

    def key_of_text(self, text: str) -> tuple[Any, ...]:
        """The key that `key_text` has told, as the columns hold it.

        Raises:
            ValueError: it is none of this read model.
        """
        said = msgspec.json.decode(text, type=list[Any])
        kinds = [KIND_TYPES[self.columns[name].kind] for name in self.key_fields]
        return tuple(msgspec.convert(value, kind) for value, kind in zip(said, kinds, strict=True))

    def key_from_columns(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """Key values from how the columns hold them."""
        reads = (self._conversions[name].read for name in self.key_fields)
        return tuple(value if read is None else read(value) for read, value in zip(reads, key, strict=True))

    def column_value(self, field: str, value: Any) -> Any:
        """A field's value as the column holds it."""
        write = self._conversions[field].write
        return value if write is None or value is None else write(value)


def _surely_storable(column: Column) -> Callable[[Any], bool]:
    """A quick check that says yes to nearly every value; where it says no, the value is looked at more closely."""
    if column.kind is ColumnKind.TEXT:
        return lambda value: type(value) is str and value.isascii() and "\0" not in value
    if column.kind is ColumnKind.INTEGER:
        return lambda value: type(value) is int and -(2**63) <= value < 2**63
    if column.kind is ColumnKind.DOCUMENT:
        return lambda value: value is not None
    return lambda value: False


def key_text(key: tuple[Any, ...]) -> str:
    """A key as a JSON array: how blocked keys are named."""
    return encode(key).decode()


def column_kind(annotation: Any) -> tuple[ColumnKind, bool]:
    """The column kind that values of a type are kept in, and whether they may be None."""
    return conversion_of(annotation).kind, type(None) in members(annotation)


def conversion_of(annotation: Any) -> Conversion:
    """How values of a type become those of a column, and back."""
    held = [member for member in members(annotation) if member is not type(None)]
    if len(held) == 1:
        (only,) = held
        if isinstance(only, type):
            for known in only.__mro__[:-1]:
                if issubclass(only, enum.Enum):
                    break
                if known in _PLAIN:
                    return Conversion(_PLAIN[known])
            if issubclass(only, UUID):
                return Conversion(ColumnKind.TEXT, str, UUID)
            if issubclass(only, str | int) and issubclass(only, enum.Enum):
                kind = ColumnKind.TEXT if issubclass(only, str) else ColumnKind.INTEGER
                return Conversion(kind, attrgetter("value"), only)
        if typing.get_origin(only) is typing.Literal and all(isinstance(v, str) for v in typing.get_args(only)):
            return Conversion(ColumnKind.TEXT)
    decoder = msgspec.json.Decoder(annotation)
    return Conversion(ColumnKind.DOCUMENT, lambda value: encode(value).decode(), decoder.decode)


def _column(cls: type[Any], name: str, annotation: Any, kind: ColumnKind) -> Column:
    marks = unwrap(annotation)[1]
    nullable = type(None) in members(annotation)
    if kind is ColumnKind.DOCUMENT and any(isinstance(mark, _Mark) for mark in marks):
        raise ConfigurationError(
            f"{cls.__name__}.{name} is kept as a document, which can be neither key, indexed nor searchable: give it "
            "a plain type (str, int, Decimal, datetime …)"
        )
    if _Mark.SEARCHABLE in marks and kind is not ColumnKind.TEXT:
        raise ConfigurationError(f"{cls.__name__}.{name} is Searchable: its type must be str")
    if _Mark.KEY in marks and nullable:
        raise ConfigurationError(f"{cls.__name__}.{name} is a Key and cannot be None")
    return Column(
        name=name,
        kind=kind,
        nullable=nullable,
        indexed=_Mark.INDEXED in marks,
        searchable=_Mark.SEARCHABLE in marks,
    )


def _expires(cls: type[Any], types: Mapping[str, Any]) -> str | None:
    """The field that says when a row expires."""
    marked = [name for name, annotation in types.items() if _Mark.EXPIRES_AT in _marks_anywhere(annotation)]
    if len(marked) > 1:
        raise ConfigurationError(
            f"{cls.__name__} has more than one ExpiresAt field ({', '.join(marked)}): keep one, and let the projection "
            "set it to the earliest"
        )
    for name in marked:
        annotation = types[name]
        outermost = _Mark.EXPIRES_AT in unwrap(annotation)[1]
        if not outermost or {member for member in members(annotation) if member is not type(None)} != {datetime}:
            raise ConfigurationError(
                f"{cls.__name__}.{name} says when the row expires: write ExpiresAt[datetime], or "
                "ExpiresAt[datetime | None] where None never expires"
            )
        return name
    return None


def _marks_anywhere(annotation: Any) -> tuple[Any, ...]:
    """The marks of a type and of the members of its union: one that was put there would do nothing, silently."""
    bare, marks = unwrap(annotation)
    for part in typing.get_args(bare):
        marks += unwrap(part)[1]
    return marks


def _check_table(cls: type[Any], table: Table) -> None:
    if not table.key:
        raise ConfigurationError(f"{cls.__name__} has no key: mark the field that tells its rows apart with Key[...]")
    for column in table.columns:
        if "__" in column.name or column.name.startswith("_"):
            raise ConfigurationError(f"{cls.__name__}.{column.name}: column names hold no double or leading underscore")


def _tuple_getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) == 1:
        get = attrgetter(names[0])
        return lambda value: (get(value),)
    getter: Callable[[Any], tuple[Any, ...]] = attrgetter(*names)
    return getter
