"""Queries: what is asked."""

from __future__ import annotations

import sys
import typing
from typing import Any, Generic, TypeVar

from diptych.errors import ConfigurationError
from diptych.messages.annotations import evaluate
from diptych.messages.message import Message, scope_of

__all__ = ["Query", "answer_type"]

R = TypeVar("R")


class Query(Message, Generic[R], forbid_unknown_fields=True):
    """What is asked, and the type of its answer: `class SeatsOf(Query[Seats | None]): course: CourseId`.

    `Query[M | None]` whose fields are the key of the read model M, and `Query[list[M]]` whose fields are columns
    of it, need no handler.
    """

    __diptych_requirable__ = True


def answer_type(query: type) -> Any:
    """The R in `class ...(Query[R])`.

    Raises:
        ConfigurationError: the class does not say what its answer is.
    """
    for cls in query.__mro__:
        for base in cls.__dict__.get("__orig_bases__", ()):
            if typing.get_origin(base) is Query and not isinstance(typing.get_args(base)[0], TypeVar):
                where = sys.modules[cls.__module__].__dict__
                return evaluate(typing.get_args(base)[0], where, scope_of(cls), query.__name__)
    raise ConfigurationError(f"{query.__name__}: say what it answers, as in class {query.__name__}(Query[int])")
