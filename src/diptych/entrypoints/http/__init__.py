"""Commands and queries over HTTP: an ASGI application made from an `Application`.

A command is `POST /commands/{Command}`, a query `GET` or `POST /queries/{Query}`; `/openapi.json` describes them all.
An `Authenticator` says who sends one; `json_web_tokens` has one for bearer tokens, with `diptych[jwt]`.
"""

from __future__ import annotations

from diptych.entrypoints.http.authenticator import Authenticator, TrustEveryone, Unauthorized, bearer_token
from diptych.entrypoints.http.routes import health_app, http_app

__all__ = ["Authenticator", "TrustEveryone", "Unauthorized", "bearer_token", "health_app", "http_app"]
