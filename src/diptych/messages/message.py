"""What all messages and models are made of: immutable, typed structs."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from typing_extensions import dataclass_transform

from diptych.messages.annotations import Scope, evaluate, mapped, scope_of_caller, type_arguments, unwrap

if TYPE_CHECKING or sys.version_info >= (3, 13):
    from typing import ParamSpec, Protocol

__all__ = [
    "Message",
    "MessageMeta",
    "Value",
    "field_types",
    "held_types",
    "options_of",
    "replace",
    "required_fields",
    "scope_of",
]

AWARE = msgspec.Meta(tz=True)


class Options(typing.NamedTuple):
    """What the class statement said of a message beside its fields."""

    name: str | None
    version: int
    scope: Scope
    formerly: tuple[str, ...] = ()
    state_stored: bool = False
    snapshot_every: int | None = None


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes every subclass frozen and keyword-only, and its datetimes aware, whatever scope it is written in."""

    __options__: Options

    def __new__(  # noqa: PYI034 — Self cannot be used in a metaclass
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        *,
        stored_as: str | None = None,
        version: int = 1,
        formerly: Sequence[str] = (),
        state_stored: bool = False,
        snapshot_every: int | None = None,
        **keywords: Any,
    ) -> MessageMeta:
        """Make the class.

        `stored_as` and `formerly` are for events, `state_stored` and `snapshot_every` for decision models, `version`
        for either.
        """
        scope = scope_of_caller()
        if isinstance(formerly, str):
            raise TypeError(f"{name}: formerly takes a list of names, formerly=[{formerly!r}]")
        _settle_annotations(namespace, scope)
        keywords = {"frozen": True, "kw_only": True, **keywords}
        cls = super().__new__(mcls, name, bases, namespace, **keywords)
        if (state_stored or snapshot_every is not None) and not hasattr(cls, "evolve"):
            raise TypeError(f"{name}: state_stored and snapshot_every are for decision models, which have an evolve")
        options = Options(stored_as, version, scope, tuple(formerly), state_stored, snapshot_every)
        type.__setattr__(cls, "__options__", options)
        return cls


def _settle_annotations(namespace: dict[str, Any], scope: Scope) -> None:
    """Evaluate what can be evaluated now (local classes can only now), and make each datetime an aware one."""
    annotations = namespace.get("__annotations__")
    if not annotations:
        return
    where = sys.modules[namespace["__module__"]].__dict__ if namespace["__module__"] in sys.modules else {}
    for name, annotation in annotations.items():
        try:
            annotations[name] = _aware(evaluate(annotation, where, {**scope, **namespace}, name))
        except Exception:  # noqa: BLE001, S112  # a name to come: msgspec resolves it at first use, or says what is wrong
            continue


def _aware(annotation: Any) -> Any:
    return mapped(annotation, lambda part: Annotated[datetime, AWARE] if part is datetime else part)


# gc=False: what JSON can say holds no cycles, and a process that remembers recent events spends a tenth of its time on
# looking for some.
# Here as well as on the metaclass: mypy asks the base classes first, and finds the transform of msgspec.Struct, which
# makes nothing frozen or keyword-only.
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, metaclass=MessageMeta, frozen=True, kw_only=True, gc=False):
    """A nested value: immutable, equal by its fields."""


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, metaclass=MessageMeta, frozen=True, kw_only=True, gc=False):
    """What commands, events and queries have in common: immutable, keyword-only, typed fields."""


def options_of(cls: type) -> Options:
    """What the class statement of a message or model said beside its fields."""
    found: Options = cls.__options__  # type: ignore[attr-defined]
    return found


def scope_of(cls: type) -> Scope:
    """The local names around the class statement, and the class under its own name."""
    return {**options_of(cls).scope, cls.__name__: cls}


def field_types(cls: Any) -> Mapping[str, Any]:
    """The fields of a message or model with their types, marks kept, in order of definition.

    Where the class has type parameters, as in `Box[CourseId]`, they are filled in.
    """
    arguments = type_arguments(cls)
    cls = typing.get_origin(cls) or cls
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        filled = arguments.get(base, {})
        where = sys.modules[base.__module__].__dict__ if base.__module__ in sys.modules else {}
        local = scope_of(base) if isinstance(base, MessageMeta) else {}
        for name, annotation in base.__dict__.get("__annotations__", {}).items():  # noqa: RUF063 — not yet evaluated
            found = evaluate(annotation, where, local, f"{cls.__name__}.{name}")
            hints[name] = mapped(found, lambda part: filled.get(part, part)) if filled else found  # noqa: B023
    fields: Sequence[str] = cls.__struct_fields__
    return {name: hints[name] for name in fields}


def held_types(cls: type) -> set[Any]:
    """Every type that a value of this class can hold, itself included: those of its fields, parts and values.

    Annotations that named what did not exist yet at the class statement are evaluated now.

    Raises:
        ConfigurationError: a name in them still does not exist.
    """
    found: set[Any] = set()
    waiting: list[Any] = [cls]
    while waiting:
        held, _ = unwrap(waiting.pop())
        if held in found:
            continue
        found.add(held)
        waiting += typing.get_args(held) if typing.get_origin(held) is not typing.Literal else ()
        origin = typing.get_origin(held) or held
        if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
            found.add(origin)
            waiting += _settle_late(held, origin).values()
    return found


def _settle_late(held: Any, cls: type) -> Mapping[str, Any]:
    """Make datetimes aware that could not be seen at the class statement; the fields with their types."""
    for base in cls.__mro__:
        if isinstance(base, MessageMeta):
            where = sys.modules[base.__module__].__dict__ if base.__module__ in sys.modules else {}
            annotations = base.__dict__.get("__annotations__", {})  # noqa: RUF063 — as `_settle_annotations` left them
            for name, annotation in annotations.items():
                found = evaluate(annotation, where, scope_of(base), f"{base.__name__}.{name}")
                if found is not annotation:
                    annotations[name] = _aware(found)
    return field_types(held)


def required_fields(cls: type) -> frozenset[str]:
    """The fields of a message or model that have no default.

    `msgspec.structs.fields` cannot be asked: it does not take structs with a variable number of type parameters.
    """
    fields: tuple[str, ...] = cls.__struct_fields__  # type: ignore[attr-defined]
    defaults: tuple[Any, ...] = cls.__struct_defaults__  # type: ignore[attr-defined]
    padded = (msgspec.NODEFAULT,) * (len(fields) - len(defaults)) + defaults
    return frozenset(name for name, default in zip(fields, padded, strict=True) if default is msgspec.NODEFAULT)


S = TypeVar("S", bound=msgspec.Struct)

# A `replace` that checkers can verify: from 3.13 on by `__replace__`, whose signature they derive from the fields.
if sys.version_info >= (3, 13):
    _P = ParamSpec("_P")
    _T_co = TypeVar("_T_co", covariant=True)

    class Replaceable(Protocol[_P, _T_co]):
        """What has `__replace__`, as every struct does."""

        def __replace__(self, *args: _P.args, **changes: _P.kwargs) -> _T_co: ...

    def replace(value: Replaceable[_P, _T_co], /, *args: _P.args, **changes: _P.kwargs) -> _T_co:
        """A copy of an immutable value with some fields changed.

        Raises:
            TypeError: a field named does not exist.
        """
        return value.__replace__(*args, **changes)
else:

    def replace(value: S, /, **changes: Any) -> S:
        """A copy of an immutable value with some fields changed.

        Raises:
            TypeError: a field named does not exist.
        """
        return msgspec.structs.replace(value, **changes)
