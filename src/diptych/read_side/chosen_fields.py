"""Some fields of an answer instead of all: chosen by their names as JSON has them, checked against the query's type."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from diptych.errors import ConfigurationError, InvalidMessage
from diptych.messages.annotations import members
from diptych.messages.query import Query, answer_type
from diptych.read_side.reader import Page

__all__ = ["ChosenFields", "fields_of_answer"]

_LISTS = (list, tuple, set, frozenset)


class ChosenFields:
    """Chooses fields of the answers to a query: of each row, where they are lists or pages of rows.

        chosen = ChosenFields(BooksFrom, ["book", "title"])
        chosen.of(app.query(BooksFrom()))  # [{"book": "b1", "title": "The Trial"}, ...]

    Args:
        query: the class of the query.
        names: of the fields, as they are in JSON; at least one.

    Raises:
        InvalidMessage: a row of the answer has no such field, or the answer has no rows at all.
    """

    def __init__(self, query: type[Query[Any]], names: Sequence[str]) -> None:
        known = fields_of_answer(query)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            offered = f"there are {', '.join(known)}" if known else "its answer has none"
            problem = f"{unknown[0]!r} is no field of it" if unknown else "name at least one field"
            raise InvalidMessage(query.__name__, [("$.fields", f"{problem}; {offered}")])
        self._attributes = {name: attribute for name, attribute in known.items() if name in names}

    def of(self, answer: Any) -> Any:
        """The answer with those fields alone, in the order of the class: None, a dict, a list or a page of dicts."""
        if answer is None:
            return None
        if isinstance(answer, Page):
            page: Page[Any] = answer
            return Page([self.of(row) for row in page.items], page.next)
        if isinstance(answer, _LISTS):
            return [self.of(row) for row in answer]
        return {name: getattr(answer, attribute) for name, attribute in self._attributes.items()}


def fields_of_answer(query: type) -> Mapping[str, str]:
    """The fields of an answer that may be chosen, by their names in JSON; none where it is neither object nor list."""
    try:
        held = answer_type(query)
    except (ConfigurationError, SyntaxError, TypeError):
        return {}
    row = _row(held)
    return {} if row is None else {field.encode_name: field.name for field in msgspec.structs.fields(row)}


def _row(held: Any, *, inside: bool = False) -> type[msgspec.Struct] | None:
    """The class of the objects that an answer is made of, where it is one."""
    either = [member for member in members(held) if member is not type(None)]
    if len(either) != 1:
        return None
    (only,) = either
    origin = typing.get_origin(only)
    if origin is Page or origin in _LISTS:
        arguments = [each for each in typing.get_args(only) if each is not ...]
        return None if inside or len(arguments) != 1 else _row(arguments[0], inside=True)
    if not (isinstance(only, type) and issubclass(only, msgspec.Struct)) or only is Page:
        return None
    return None if only.__struct_config__.tag is not None or only.__struct_config__.array_like else only
