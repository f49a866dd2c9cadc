"""Bearer tokens that are JSON Web Tokens (RFC 7519, RFC 9068), verified with the public keys of their issuer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jwt

from diptych.clock import Clock, SystemClock
from diptych.entrypoints.http.authenticator import Unauthorized, bearer_token
from diptych.entrypoints.http.key_set import ALGORITHMS, KeySet
from diptych.errors import ConfigurationError, InvalidMessage
from diptych.security import Actor

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

__all__ = ["JsonWebTokens"]

LEEWAY_S = 30.0
"""Seconds by which the clocks of the issuer and of this machine may differ."""
LEEWAY_S_MAX = 300.0
"""The same, at most."""

_RESERVED = "process:"  # begins the names of processes, which nobody else is to be taken for
_NUMERIC_DATE_MAX_S = 1e12  # what is beyond year 33,000, or infinite, is no time
_INVALID: Literal["invalid_token"] = "invalid_token"
_OPTIONS: Any = {
    "require": ["exp", "iss", "aud", "sub"],
    # Times are checked here, by the injected clock.
    **dict.fromkeys(("verify_exp", "verify_nbf", "verify_iat"), False),
}


class JsonWebTokens:
    """An `Authenticator` for `Authorization: Bearer <token>`.

    A token holds if its signature is of a key of the key set and an algorithm of the list, its issuer is this one, its
    audience has this one in it, and it has not expired (`exp`) or is yet to begin (`nbf`). Its actor is named by `sub`,
    and has the scopes in `scope` (between spaces, or as a list) and `scp`.

    Args:
        keys: the issuer's key set: an https URL, or a file. See `KeySet`.
        issuer: the `iss` of its tokens, to the letter.
        audience: what is in the `aud` of tokens for this application.
        algorithms: those that tokens may be signed with; by default all that work with public keys.
        leeway_s: seconds by which clocks may differ, 0 to 300.
        clock: tells the time.

    Raises:
        ConfigurationError: one of that cannot be.
    """

    scheme: Mapping[str, str] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}

    def __init__(
        self,
        keys: str | KeySet,
        *,
        issuer: str,
        audience: str,
        algorithms: Sequence[str] = ALGORITHMS,
        leeway_s: float = LEEWAY_S,
        clock: Clock | None = None,
    ) -> None:
        for name, value in (("issuer", issuer), ("audience", audience)):
            if not value:
                raise ConfigurationError(f"{name} is empty: any token of any issuer would do")
        others = sorted(set(algorithms) - set(ALGORITHMS))
        if others or not algorithms:
            told = f"{', '.join(others)} cannot be verified with a public key" if others else "there are none"
            raise ConfigurationError(f"algorithms: {told}; there are {', '.join(ALGORITHMS)}")
        if not 0 <= leeway_s <= LEEWAY_S_MAX:
            raise ConfigurationError(f"leeway_s={leeway_s}: it is 0 to {LEEWAY_S_MAX:g} seconds")
        self._keys = keys if isinstance(keys, KeySet) else KeySet(keys, algorithms)
        self._issuer = issuer
        self._audience = audience
        self._algorithms = frozenset(algorithms)
        self._leeway_s = leeway_s
        self._clock = clock or SystemClock()

    async def load(self) -> None:
        """Fetch the keys before the first request; see `KeySet.load`."""
        await self._keys.load()

    async def authenticate(self, request: HTTPConnection, /) -> Actor:
        """Who the token was issued for.

        Raises:
            Unauthorized: there is none, or it does not hold.
            Unavailable: the keys cannot be had.
        """
        token = bearer_token(request)
        claims = await self._claims(token)
        if not self._is_of_now(claims):
            raise Unauthorized(_INVALID)
        return _actor(claims)

    async def _claims(self, token: str) -> Mapping[str, Any]:
        """What a token says whose signature, issuer and audience are right."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in self._algorithms or not isinstance(key_id, str | None):
                raise Unauthorized(_INVALID)
            key = await self._keys.find(key_id, algorithm)
            if key is None:
                raise Unauthorized(_INVALID)
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                options=_OPTIONS,
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthorized(_INVALID) from None

    def _is_of_now(self, claims: Mapping[str, Any]) -> bool:
        now_s = self._clock.now().timestamp()
        ends_s, begins_s = claims["exp"], claims.get("nbf", 0)
        if not (_is_time(ends_s) and _is_time(begins_s)):
            return False
        return bool(begins_s - self._leeway_s <= now_s < ends_s + self._leeway_s)


def _is_time(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < _NUMERIC_DATE_MAX_S


def _actor(claims: Mapping[str, Any]) -> Actor:
    name = claims["sub"]
    if not isinstance(name, str) or name.startswith(_RESERVED):
        raise Unauthorized(_INVALID)
    try:
        return Actor(name, _scopes(claims.get("scope")) | _scopes(claims.get("scp")))
    except InvalidMessage:
        raise Unauthorized(_INVALID) from None


def _scopes(claim: object) -> frozenset[str]:
    """Those in a claim: a list of them, or a text with spaces between them."""
    parts = claim.split(" ") if isinstance(claim, str) else [] if claim is None else claim
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Unauthorized(_INVALID)
    return frozenset(parts) - {""}
