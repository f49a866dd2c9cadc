"""Annotations as types, wherever they were written.

Annotations may be strings (`from __future__ import annotations`), and the classes they name may be local to a
function. So each class and each decorated function remembers the scope it was written in, and its annotations
are evaluated there.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from diptych.errors import ConfigurationError

__all__ = [
    "Scope",
    "evaluate",
    "kebab_case",
    "mapped",
    "members",
    "parameter_types",
    "scope_of_caller",
    "snake_case",
    "subclasses",
    "type_arguments",
    "unwrap",
]

Scope = Mapping[str, Any]


def scope_of_caller(depth: int = 1) -> Scope:
    """The names local to the function that calls the caller; empty where that is a module's top level."""
    frame = sys._getframe(depth + 1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] — as typing finds its caller
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)


def evaluate(annotation: Any, where: Mapping[str, Any], scope: Scope, owner: str) -> Any:
    """The type that `annotation` means, read in module names `where` and local names `scope`.

    Raises:
        ConfigurationError: a name in it cannot be found; names imported only under TYPE_CHECKING are why, mostly. Or
            it is no expression that can be evaluated.
    """
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if not isinstance(annotation, str):
        return mapped(annotation, lambda part: evaluate(part, where, scope, owner) if _is_quoted(part) else part)
    try:
        found = eval(annotation, {**where, **scope})  # noqa: S307 — the user's own source, as typing.get_type_hints does
        return evaluate(found, where, scope, owner)
    except NameError as error:
        raise ConfigurationError(
            f"{owner}: the annotation {annotation!r} names {error.name}, which does not exist at run time. "
            f"If it is imported under `if TYPE_CHECKING:`, import it normally (ruff keeps it there with "
            f"lint.flake8-type-checking.runtime-evaluated-decorators and -base-classes, see the docs)"
        ) from error
    except (SyntaxError, TypeError, AttributeError, ValueError, ArithmeticError, LookupError) as error:
        raise ConfigurationError(f"{owner}: the annotation {annotation!r} cannot be evaluated: {error}") from error


def parameter_types(
    function: Callable[..., Any], scope: Scope, owner: str, only: Sequence[str] | None = None
) -> dict[str, Any]:
    """The annotations of a function by parameter name, `return` included, evaluated; without those not given."""
    target: Any = getattr(function, "__wrapped__", function)
    where = getattr(target, "__globals__", {})
    closure = _closure(target)
    annotations: Mapping[str, Any] = getattr(target, "__annotations__", {})
    return {
        name: evaluate(found, where, {**closure, **scope}, owner)
        for name, found in annotations.items()
        if only is None or name in only
    }


def mapped(annotation: Any, change: Callable[[Any], Any]) -> Any:
    """An annotation with each part that has no type arguments of its own changed; what `Annotated` adds is kept."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = mapped(annotation.__origin__, change)
        return annotation if inner is annotation.__origin__ else typing.Annotated[(inner, *annotation.__metadata__)]
    if origin is typing.Literal or not arguments:
        return change(annotation)
    changed = tuple(mapped(argument, change) for argument in arguments)
    if all(new is old for new, old in zip(changed, arguments, strict=True)):
        return annotation
    if isinstance(annotation, types.UnionType):
        return Union[changed]  # noqa: UP007 — made at run time
    return annotation.copy_with(changed) if hasattr(annotation, "copy_with") else origin[changed]


def type_arguments(cls: Any) -> dict[type, dict[Any, Any]]:
    """What the type parameters of a class and of its bases stand for; by class, then by parameter."""
    origin = typing.get_origin(cls) or cls
    own = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(cls), strict=False))
    found: dict[type, dict[Any, Any]] = {origin: own}
    for base in origin.__dict__.get("__orig_bases__", ()):
        if isinstance(typing.get_origin(base), type):
            found.update(type_arguments(mapped(base, lambda part: _argument(own, part))))
    return found


def _argument(own: Mapping[Any, Any], part: Any) -> Any:
    return own.get(part, part) if isinstance(part, typing.TypeVar) else part


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without `Annotated` and type aliases, and the marks it carried."""
    marks: tuple[Any, ...] = ()
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            marks += tuple(annotation.__metadata__)
            annotation = annotation.__origin__
        elif hasattr(annotation, "__value__"):  # a `type X = ...` alias (3.12)
            annotation = annotation.__value__
        else:
            return annotation, marks


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, aliases opened; one type is a union of itself."""
    bare, _ = unwrap(annotation)
    if typing.get_origin(bare) in (Union, types.UnionType):
        return tuple(member for part in typing.get_args(bare) for member in members(part))
    return (bare,)


def subclasses(cls: type) -> tuple[type, ...]:
    """A class and every class below it, each once, in the order of definition."""
    found: dict[type, None] = {cls: None}
    child: type
    for child in type.__subclasses__(cls):
        found.update(dict.fromkeys(subclasses(child)))
    return tuple(found)


def kebab_case(name: str) -> str:
    """`CourseId` as `course-id`; runs of capitals stay together (`HTTPCall` is `http-call`)."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def snake_case(name: str) -> str:
    """`CourseSeats` as `course_seats`."""
    return kebab_case(name).replace("-", "_")


def _is_quoted(part: Any) -> bool:
    return isinstance(part, str | typing.ForwardRef)


def _closure(function: Any) -> dict[str, Any]:
    code = getattr(function, "__code__", None)
    cells: Sequence[Any] = getattr(function, "__closure__", None) or ()
    names: Sequence[str] = code.co_freevars if code else ()
    found: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found
