"""Health, as orchestrators ask for it: live is the process, ready is the application."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from diptych.application.application import Application
from diptych.application.status import Health
from diptych.entrypoints.http.problems import NOT_READY, Problem
from diptych.entrypoints.http.reply import Header, Reply
from diptych.errors import DiptychError
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["Ready", "live"]

READY_WAIT_S = 5.0
"""Seconds that the store may take to say how it is; then it is not ready."""

_NO_STORE: Header = (b"cache-control", b"no-store")


async def live(_scope: Scope, _receive: Receive, /) -> Reply:
    """`GET /health/live`: the process answers."""
    return Reply(200, b'{"live":true}', [_NO_STORE])


class Ready:
    """`GET /health/ready`: the store is reachable, and the projections run and keep up."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, _scope: Scope, _receive: Receive, /) -> Reply:
        """200, or the problem that says why not."""
        health = await self._health()
        if not health.ready:
            raise Problem(NOT_READY, health.reason, headers=(_NO_STORE,))
        impaired = {"impaired": health.impaired} if health.impaired else {}
        return Reply(200, encode({"ready": True, **impaired}), [_NO_STORE])

    async def _health(self) -> Health:
        try:
            async with asyncio.timeout(READY_WAIT_S):
                return await self._application.health()
        except TimeoutError:
            return Health(ready=False, reason=f"the store did not answer within {READY_WAIT_S:g} seconds")
        except DiptychError as error:
            return Health(ready=False, reason=str(error))
