"""Who may do what: actors, the scopes that they have, and those that a command handler requires."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar

import msgspec

from diptych.errors import ConfigurationError, InvalidMessage

__all__ = ["NOBODY", "REQUIRABLE", "Actor", "actor_of", "check_reason", "required_scopes", "requires"]

ACTOR_NAME_CHARACTERS_MAX = 256
"""Characters of an actor's name."""
REASON_CHARACTERS_MAX = 500
"""Characters of the reason that comes with a command."""
SCOPE_CHARACTERS_MAX = 256
"""Characters of a scope that a handler requires."""

Handler = TypeVar("Handler", bound=Callable[..., Any])

_MARK = "__diptych_requires__"
REQUIRABLE = "__diptych_requirable__"
"""What classes have that `requires` may stand on."""
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCOPE = re.compile(rf"[!#-\[\]-~]{{1,{SCOPE_CHARACTERS_MAX}}}")  # a scope-token of RFC 6749, section 3.3


class Actor(msgspec.Struct, frozen=True):
    """Who wants something, as the entry point knows them: `Actor("ada", {"orders:write"})`.

    Attributes:
        name: one line of 1 to 256 characters, kept with every event; None where nobody knows.
        scopes: what they may do, in words that handlers require.
        trusted: whether they may do everything. For the application's own code: a process, an importer, a script.

    Raises:
        InvalidMessage: the name is none, or the scopes are no set of strings.
    """

    name: str | None = None
    scopes: AbstractSet[str] = frozenset()
    trusted: bool = False

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_line("actor", self.name, ACTOR_NAME_CHARACTERS_MAX)
        if not isinstance(self.scopes, AbstractSet) or not all(isinstance(scope, str) for scope in self.scopes):
            raise InvalidMessage("actor", [("$.scopes", "scopes are a set of strings")])
        if not isinstance(self.scopes, frozenset):
            msgspec.structs.force_setattr(self, "scopes", frozenset(self.scopes))


NOBODY = Actor()
"""Who is not known, and may do what no handler requires a scope for."""


def actor_of(given: Actor | str | None) -> Actor:
    """The actor that was given, or one of that name, who has no scopes.

    Raises:
        InvalidMessage: the name is none.
    """
    if given is None:
        return NOBODY
    return given if isinstance(given, Actor) else Actor(given)


def check_reason(reason: str) -> str:
    """The reason that was given with a command.

    Raises:
        InvalidMessage: it is not one line of 1 to 500 characters.
    """
    _check_line("reason", reason, REASON_CHARACTERS_MAX)
    return reason


def _check_line(what: str, text: object, characters_max: int) -> None:
    if not (isinstance(text, str) and 0 < len(text) <= characters_max and not _NOT_IN_A_LINE.search(text)):
        problem = f"it is one line of 1 to {characters_max} characters"
        raise InvalidMessage(what, [("$", problem)])


# ── what a handler requires ──────────────────────────────────────────────────


def requires(*scopes: str) -> Callable[[Handler], Handler]:
    """Have a handler only run for an actor who has all of these scopes; for others it is `Forbidden`.

        @shop.command_handler
        @requires("orders:write")
        def place_order(command: PlaceOrder, order: Order) -> OrderPlaced: ...

        @requires("orders:read")
        class OrdersOf(Query[list[Order]]): ...

    It is checked after the application's middlewares and before everything else: before the outcome that may be kept
    under a command's id is looked up, and before any model or row is read. Above or below `command_handler` is the
    same, and several of it add up. A query requires what its class does, its base classes, and its handler.

    Args:
        scopes: at least one, of visible ASCII characters without quotes, backslashes and spaces, as in OAuth.

    Raises:
        ConfigurationError: it names no scope, or something that is none, or stands on what is no function.
    """
    if not scopes:
        raise ConfigurationError('requires() names no scope: write @requires("orders:write")')
    for scope in scopes:
        if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
            raise ConfigurationError(
                f'{scope!r} is no scope: write @requires("orders:write"), 1 to {SCOPE_CHARACTERS_MAX} visible '
                "ASCII characters without quotes and backslashes each"
            )

    def mark(handler: Handler) -> Handler:
        function: object = handler
        if not inspect.isfunction(function) and not getattr(function, REQUIRABLE, False):
            raise ConfigurationError(
                f"@requires stands on {handler!r}: put it on the function that handles a command or query, or on the "
                "class of a query"
            )
        # On what a decorator has wrapped as well: that may be what was declared.
        for layer in _layers(handler):
            setattr(layer, _MARK, required_scopes(layer) | frozenset(scopes))
        return handler

    return mark


def required_scopes(handler: Callable[..., Any]) -> frozenset[str]:
    """The scopes that a function or class requires; none where `requires` does not stand on it."""
    found: frozenset[str] = frozenset()
    for layer in _layers(handler):
        # Of a class every base class is asked: the first that says something would hide the others.
        for holder in getattr(layer, "__mro__", (layer,)):
            found |= getattr(holder, _MARK, frozenset())
    return found


def _layers(function: Any) -> Iterator[Any]:
    """A function, and those that its decorators have wrapped."""
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)
