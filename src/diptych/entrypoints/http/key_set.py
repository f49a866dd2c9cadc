"""The public keys of an issuer of tokens (JWKS, RFC 7517), kept and fetched anew within limits.

    age   0 ──────── KEYS_FRESH_S ───────────────────── KEYS_AGE_S_MAX ──────▶
          used as it is    used, and fetched behind that       not used any more

A key that is not there is fetched for, too; but no fetch begins within FETCH_PAUSE_S of the last one, so that made-up
key ids make no load. Keys come from where the application says, never from where a token does (`jku`, `x5u`, `jwk`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

import msgspec
from jwt import PyJWK, PyJWTError

from diptych.errors import ConfigurationError, Unavailable

__all__ = ["ALGORITHMS", "KeySet", "KeysUnusable"]

KEYS_FRESH_S = 300.0
"""Seconds after which keys are fetched again while those that are there are used."""
KEYS_AGE_S_MAX = 3_600.0
"""Seconds for which keys are used that cannot be fetched again: so long a key that was withdrawn may still be good."""
FETCH_PAUSE_S = 10.0
"""Seconds between the beginnings of two fetches."""
FETCH_S = 5.0
"""Seconds that a fetch may take."""
FETCH_CHUNK_BYTES = 65_536
"""Bytes of a key set that are read at once."""
KEY_SET_BYTES_MAX = 1_048_576
"""Bytes of a key set."""
KEYS_MAX = 100
"""Keys of a key set."""
RSA_BITS_MIN = 2_048
"""Bits of an RSA key that is used."""

_KINDS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
ALGORITHMS = tuple(_KINDS)
"""Algorithms of signatures that can be verified with a public key. No other is, whatever a token says."""

_log = logging.getLogger("diptych.http")


class KeysUnusable(Exception):
    """What was fetched is no key set, or has no key that can be used."""


class KeySet:
    """The keys of one issuer.

    Args:
        where: an https URL (http on loopback alone), or the path of a file, `file:` before it or not.
        algorithms: those that tokens may be signed with.
        tell_s: tells seconds, from wherever on.

    Raises:
        ConfigurationError: `where` is another kind of URL.
    """

    def __init__(
        self, where: str, algorithms: Collection[str] = ALGORITHMS, tell_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.where = where
        self._read = _source(where)
        self._algorithms = frozenset(algorithms)
        self._tell_s = tell_s
        self._keys: Mapping[tuple[str | None, str], PyJWK] = {}
        self._fetched_s: float | None = None
        self._began_s: float | None = None
        self._failure = ""
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """The key of this id for this algorithm; without an id, the only one there is for it. None where there is none.

        Raises:
            Unavailable: the keys cannot be had, so that nobody knows.
        """
        age_s = self._age_s()
        if age_s >= KEYS_AGE_S_MAX:
            await self._fetched()
            self._check()
        elif age_s >= KEYS_FRESH_S:
            self._begin()
        found = self._keys.get((key_id, algorithm))
        if found is None and key_id is not None and algorithm in self._algorithms:
            await self._fetched()
            found = self._keys.get((key_id, algorithm))
            if found is None and self._failure:
                raise Unavailable("who sends this cannot be verified now; try again")
        return found

    async def load(self) -> None:
        """Fetch the keys before they are needed; what is wrong with them is told now, and tried again when they are.

        Raises:
            ConfigurationError: a file is not there, or holds no key that can be used.
        """
        await self._fetched()
        if self._failure and not _is_url(self.where):
            raise ConfigurationError(f"the keys at {self.where} cannot be had: {self._failure}")

    def _age_s(self) -> float:
        return KEYS_AGE_S_MAX if self._fetched_s is None else self._tell_s() - self._fetched_s

    def _check(self) -> None:
        if self._age_s() >= KEYS_AGE_S_MAX:
            raise Unavailable("who sends this cannot be verified now; try again")

    async def _fetched(self) -> None:
        """Wait for the fetch that is under way, or for a new one, unless the last one has just begun."""
        fetch = self._begin()
        if fetch is not None:
            await asyncio.shield(fetch)

    def _begin(self) -> asyncio.Task[None] | None:
        now_s = self._tell_s()
        if self._fetch is None and (self._began_s is None or now_s - self._began_s >= FETCH_PAUSE_S):
            self._began_s = now_s
            self._fetch = asyncio.get_running_loop().create_task(self._fetch_once(), name="diptych fetch keys")
        return self._fetch

    async def _fetch_once(self) -> None:
        try:
            data = await asyncio.to_thread(self._read)
            self._keys = _usable(data, self._algorithms)
            self._fetched_s, self._failure = self._tell_s(), ""
        except Exception as error:  # noqa: BLE001  # whatever it is, they cannot be had; `find` says so, where it matters
            self._failure = f"{type(error).__name__}: {error}"
            _log.warning("the keys at %s cannot be had: %s", self.where, self._failure)
        finally:
            self._fetch = None


# ── where they come from ─────────────────────────────────────────────────────


def _is_url(where: str) -> bool:
    return urlsplit(where).scheme in ("http", "https")


def _source(where: str) -> Callable[[], bytes]:
    url = urlsplit(where)
    if url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.hostname or "")):
        return lambda: _from_url(where)
    if len(url.scheme) == 1:  # the drive of a Windows path
        return lambda: _from_file(Path(where))
    if url.scheme in ("", "file") and url.netloc in ("", "localhost") and url.path:
        path = Path(unquote(url.path) if url.scheme else where)
        return lambda: _from_file(path)
    raise ConfigurationError(
        f"{where} is no place for keys: they are at an https URL or in a file; http is for this machine"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _opener() -> OpenerDirector:
    """Opens URLs, and follows no redirect: keys come from the address that was given, or not at all."""
    opener = OpenerDirector()
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(), HTTPErrorProcessor(), HTTPDefaultErrorHandler()):
        opener.add_handler(handler)
    return opener


def _from_url(url: str) -> bytes:
    """What is at a URL; at most `FETCH_S` and one read more after it was asked for."""
    ends_s = time.monotonic() + FETCH_S
    request = Request(url, headers={"Accept": "application/jwk-set+json, application/json"})  # noqa: S310 — checked
    data = b""
    with _opener().open(request, timeout=FETCH_S) as response:
        while chunk := response.read1(FETCH_CHUNK_BYTES):
            data += chunk
            _check_size(data)
            if time.monotonic() > ends_s:
                raise TimeoutError(f"it took more than {FETCH_S:g} s")
    return data


def _from_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(KEY_SET_BYTES_MAX + 1)
    _check_size(data)
    return data


def _check_size(data: bytes) -> None:
    if len(data) > KEY_SET_BYTES_MAX:
        raise KeysUnusable(f"it has more than {KEY_SET_BYTES_MAX} bytes")


# ── what is used of them ─────────────────────────────────────────────────────


class _Read(msgspec.Struct):
    keys: list[dict[str, Any]]


def _usable(data: bytes, algorithms: frozenset[str]) -> Mapping[tuple[str | None, str], PyJWK]:
    """The keys by id and algorithm; those that are alone for an algorithm by None as well.

    Raises:
        KeysUnusable: there are none.
    """
    try:
        read = msgspec.json.decode(data, type=_Read).keys
    except (msgspec.DecodeError, RecursionError) as error:
        raise KeysUnusable(f"it is no JSON Web Key Set: {error}") from None
    if len(read) > KEYS_MAX:
        raise KeysUnusable(f"it has {len(read)} keys, and {KEYS_MAX} at most are used")
    found: dict[tuple[str | None, str], PyJWK] = {}
    of_algorithm: dict[str, list[PyJWK]] = {}
    for each in read:
        for algorithm in algorithms:
            key = _key(each, algorithm)
            if key is not None:
                found.setdefault((key.key_id, algorithm), key)
                of_algorithm.setdefault(algorithm, []).append(key)
    if not found:
        raise KeysUnusable("it has no public key for signatures of " + ", ".join(sorted(algorithms)))
    for algorithm, keys in of_algorithm.items():
        found.pop((None, algorithm), None)
        if len(keys) == 1:
            found[None, algorithm] = keys[0]
    return found


def _key(read: dict[str, Any], algorithm: str) -> PyJWK | None:
    """A public key that verifies this algorithm; None for every other: secrets, weak ones, those for encryption."""
    kind, curve = _KINDS[algorithm]
    fits = read.get("kty") == kind and curve in (None, read.get("crv")) and read.get("alg", algorithm) == algorithm
    operations = read.get("key_ops", ["verify"])
    is_public = "d" not in read and isinstance(read.get("kid"), str | None)
    if not (fits and is_public and read.get("use", "sig") == "sig" and "verify" in operations):
        return None
    try:
        key = PyJWK(read, algorithm)
    except (PyJWTError, ValueError, TypeError):
        return None
    return None if kind == "RSA" and key.key.key_size < RSA_BITS_MIN else key
