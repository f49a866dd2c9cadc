"""Identities: distinct types to the checkers, plain strings at run time.

An event field typed with an identity tags the event, `course:python`; decisions are scoped by those tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from diptych.messages.annotations import kebab_case
from diptych.messages.unique_id import unique_id

if TYPE_CHECKING:
    from typing import Self

__all__ = ["UNTAGGED", "Identity", "Untagged", "former_tag_names", "tag_name"]

T = TypeVar("T")


class IdentityMeta(type):
    """A metaclass of its own, so that msgspec honours `__supertype__` (undocumented there: pinned by a test)."""


class Identity(str, metaclass=IdentityMeta):
    """The identity of an entity. Subclass it once per kind: `class CourseId(Identity): ...`.

    Type checkers keep the kinds apart; at run time `CourseId("python")` is the plain `str` "python", so that it
    costs nothing in codecs, keys and comparisons. `class UserName(Identity, tag="username")` names its tag; by
    default it is the class name without `Id`, in kebab case. `formerly=["user"]` names the tags that events got before.
    """

    __slots__ = ()
    __supertype__ = str
    __tag__: str
    __former_tags__: tuple[str, ...]

    def __init_subclass__(cls, *, tag: str | None = None, formerly: Sequence[str] = (), **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if isinstance(formerly, str):
            raise TypeError(f"{cls.__name__}: formerly takes a list of tags, formerly=[{formerly!r}]")
        name = tag or kebab_case(cls.__name__.removesuffix("Id") or cls.__name__)
        for each in (name, *formerly):
            if not each.replace("-", "").replace("_", "").isalnum():
                raise TypeError(f"{cls.__name__}: tag {each!r} may hold letters, digits, - and _ only")
        type.__setattr__(cls, "__tag__", name)
        type.__setattr__(cls, "__former_tags__", tuple(formerly))

    if TYPE_CHECKING:

        def __init__(self, value: str) -> None: ...  # str() itself would take anything

    else:

        def __new__(cls, value):
            """The value itself, a plain `str`."""
            if type(value) is not str:
                raise TypeError(f"{cls.__name__} takes a str, not {type(value).__name__}: {value!r}")
            return value

    @classmethod
    def new(cls) -> Self:
        """A fresh identity: a UUIDv7, so that later ones sort after earlier ones."""
        return cls(unique_id())


class _Untagged:
    def __repr__(self) -> str:
        return "UNTAGGED"


UNTAGGED = _Untagged()
"""The mark that `Untagged[...]` leaves on an annotation."""

Untagged = Annotated[T, UNTAGGED]
"""`Untagged[Sku]`: the field holds an identity and does not tag the event with it."""


def tag_name(identity: type) -> str:
    """The tag name of an identity class: "course" for `CourseId`."""
    return str(identity.__tag__)  # type: ignore[attr-defined]


def former_tag_names(identity: type) -> tuple[str, ...]:
    """The tag names that an identity class had before, in no order."""
    found: tuple[str, ...] = identity.__former_tags__  # type: ignore[attr-defined]
    return found
