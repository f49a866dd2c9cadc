"""Commands and queries over HTTP: an ASGI application made from an `Application`.

A command is `POST /commands/{Command}`, a query `GET` or `POST /queries/{Query}`; `/openapi.json` describes them all.
"""

from __future__ import annotations

from diptych.entrypoints.http.routes import health_app, http_app

__all__ = ["health_app", "http_app"]
