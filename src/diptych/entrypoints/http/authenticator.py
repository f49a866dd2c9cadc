"""Who sends a request: the port of authentication, and what it keeps out.

request ──▶ Authenticator ──▶ Actor ──▶ command or query
                 └──▶ Unauthorized: 401, with the challenge and no reason why but the codes of RFC 6750
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from starlette.requests import HTTPConnection

from diptych.entrypoints.http.event_stream import EventStream
from diptych.entrypoints.http.problems import UNAUTHORIZED, Problem, problem_of
from diptych.entrypoints.http.reply import Header, Reply
from diptych.entrypoints.http.row_lines import RowLines
from diptych.errors import Forbidden
from diptych.security import Actor

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["Authenticator", "Guard", "TrustEveryone", "Unauthorized", "admitted", "bearer_token"]

BEARER_TOKEN_CHARACTERS_MAX = 16_384
"""Characters of a bearer token."""
REALM = "diptych"
"""What callers are told that credentials are for."""

_ADMITTED = "diptych.actor"
_token = re.compile(rf"[A-Za-z0-9._~+/-]{{1,{BEARER_TOKEN_CHARACTERS_MAX}}}=*")  # a b64token of RFC 6750


class Unauthorized(Exception):
    """A request comes with no credentials, or with some that do not hold.

    Attributes:
        error: what its sender is told: nothing where there were no credentials, else `invalid_token`, whatever is wrong
            with them.
    """

    def __init__(self, error: Literal["", "invalid_token"] = "") -> None:
        self.error = error
        super().__init__(error or "no credentials")


class Authenticator(Protocol):
    """Finds out who sends a request. It is asked once for each command and query, before anything of it is read."""

    @property
    def scheme(self) -> Mapping[str, str]:
        """What clients have to send, as OpenAPI's Security Scheme Object: `{"type": "http", "scheme": "bearer"}`.

        Empty where that is nothing.
        """
        ...

    async def authenticate(self, request: HTTPConnection, /) -> Actor:
        """Who sends it, and what they may do.

        Raises:
            Unauthorized: there are no credentials, or they do not hold.
            Unavailable: it cannot be told now.
        """
        ...


class TrustEveryone:
    """Lets every request do everything, and knows nobody: for what only those reach who may."""

    scheme: Mapping[str, str] = {}

    async def authenticate(self, _request: HTTPConnection, /) -> Actor:
        """Somebody."""
        return Actor(trusted=True)


def bearer_token(request: HTTPConnection) -> str:
    """The bearer token in the `Authorization` header; what comes in a query string or a body is no credential.

    Raises:
        Unauthorized: there is none, or it cannot be one.
    """
    found = request.headers.getlist("authorization")
    scheme, _, token = found[0].partition(" ") if found else ("", "", "")
    if scheme.lower() != "bearer":
        raise Unauthorized
    token = token.strip(" ")
    if len(found) > 1 or not _token.fullmatch(token) or len(token) > BEARER_TOKEN_CHARACTERS_MAX:
        raise Unauthorized("invalid_token")
    return token


def admitted(scope: Scope) -> Actor | None:
    """Who a guard let in with this request; None where no guard stands."""
    found: Actor | None = scope.get(_ADMITTED)
    return found


class Guard:
    """Stands before commands and queries, and asks an authenticator."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        scheme = authenticator.scheme
        self._challenge = f'{scheme.get("scheme", scheme.get("type", "")).title()} realm="{REALM}"'
        self._is_bearer = scheme.get("scheme", "").lower() == "bearer"

    async def reply(
        self,
        scope: Scope,
        receive: Receive,
        proceed: Callable[[Scope, Receive], Awaitable[Reply | EventStream | RowLines]],
    ) -> Reply | EventStream | RowLines:
        """The reply to a request whose sender is known; else the problem is raised."""
        try:
            scope[_ADMITTED] = await self._authenticator.authenticate(HTTPConnection(scope))
        except Unauthorized as error:
            raise self._unauthorized(error) from None
        try:
            return await proceed(scope, receive)
        except Forbidden as error:
            problem = problem_of(error)
            if self._is_bearer:
                wanted = self._told(error="insufficient_scope", scope=" ".join(error.missing))
                problem.headers = (*problem.headers, wanted)
            raise problem from error

    def _unauthorized(self, error: Unauthorized) -> Problem:
        told = self._told(error=error.error) if error.error else self._told()
        return Problem(UNAUTHORIZED, "Send credentials that hold; WWW-Authenticate says which", headers=(told,))

    def _told(self, **parameters: str) -> Header:
        text = ", ".join((self._challenge, *(f'{name}="{value}"' for name, value in parameters.items())))
        return (b"www-authenticate", text.encode("latin-1"))
