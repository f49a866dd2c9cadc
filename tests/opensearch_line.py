"""A line to OpenSearch that ends, or stands still, at a request of one's choice."""

from __future__ import annotations

import asyncio
import enum

import httpx2

__all__ = ["Fault", "Line"]


class Fault(enum.Enum):
    """What becomes of the request that it is about, and of all that come after."""

    LOST = "lost"  # it never arrives
    UNANSWERED = "unanswered"  # the server does it, and nobody hears of it
    LATE = "late"  # it arrives when `go_on` was called, as do the others


class Line(httpx2.AsyncBaseTransport):
    """The way to the server.

    Args:
        fault: what happens.
        after: requests that come through before.
    """

    def __init__(self, fault: Fault, after: int) -> None:
        self._way = httpx2.AsyncHTTPTransport(verify=False)
        self._fault = fault
        self._left = after
        self._open = asyncio.Event()
        self.met = False
        """The request was made that it is about."""
        self.reached = asyncio.Event()
        """The request was made that is late, and stands still."""

    def go_on(self) -> None:
        """Let through what is late."""
        self._open.set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request, or what becomes of it."""
        self._left -= 1
        if self._left >= 0:
            return await self._way.handle_async_request(request)
        self.met = True
        if self._fault is Fault.LATE:
            self.reached.set()
            await self._open.wait()
            return await self._way.handle_async_request(request)
        if self._fault is Fault.UNANSWERED and self._left == -1:
            reply = await self._way.handle_async_request(request)
            await reply.aread()
        raise httpx2.ReadError("the line is cut")

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._way.aclose()
