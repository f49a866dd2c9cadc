"""An issuer of tokens for tests: its keys, the key set that it publishes, and tokens of every kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from diptych.clock import SystemClock

__all__ = ["AUDIENCE", "ISSUER", "Issuer", "bearer"]

ISSUER, AUDIENCE = "https://issuer.example", "library"


@cache
def _rsa(name: str, bits: int = 2_048) -> rsa.RSAPrivateKey:
    """Made once for each name: that takes a while."""
    return rsa.generate_private_key(public_exponent=65_537, key_size=bits)


class Issuer:
    """Signs tokens with the keys that it has; the first one is of RS256, with the id "k1"."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[str, Any]] = {"k1": ("RS256", _rsa("k1"))}

    def add(self, key_id: str, algorithm: str = "RS256", *, bits: int = 2_048) -> None:
        """Have one more key."""
        private: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if algorithm == "ES256"
            else ed25519.Ed25519PrivateKey.generate()
            if algorithm == "EdDSA"
            else _rsa(key_id, bits)
        )
        self.keys[key_id] = (algorithm, private)

    def public(self, key_id: str, **more: Any) -> dict[str, Any]:
        """A key as it is published."""
        algorithm, private = self.keys[key_id]
        kind: Any = {"ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}.get(algorithm, RSAAlgorithm)
        return {**kind.to_jwk(private.public_key(), as_dict=True), "kid": key_id, "use": "sig", **more}

    def key_set(self) -> str:
        """All of them."""
        return json.dumps({"keys": [self.public(key_id, alg=self.keys[key_id][0]) for key_id in self.keys]})

    def token(
        self,
        *,
        key_id: str = "k1",
        now: datetime | None = None,
        header: Mapping[str, Any] | None = None,
        without: str = "",
        **claims: Any,
    ) -> str:
        """A token that holds, but for what is said otherwise."""
        algorithm, private = self.keys[key_id]
        begins = now or SystemClock().now()
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "exp": (begins + timedelta(hours=1)).timestamp(),
            "scope": "books:read",
            **claims,
        }
        said.pop(without, None)
        return jwt.encode(said, private, algorithm=algorithm, headers={"kid": key_id, **(header or {})})


def bearer(token: str) -> dict[str, str]:
    """The header that a token is sent in."""
    return {"Authorization": f"Bearer {token}"}
