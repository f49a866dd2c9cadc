"""Request bodies, bounded in size and time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from diptych.entrypoints.http.problems import BODY_TIMEOUT, BODY_TOO_LARGE, Problem

if TYPE_CHECKING:
    from starlette.types import Receive

__all__ = ["BODY_BYTES_MAX", "ClientGone", "read_body"]

BODY_BYTES_MAX = 1 << 20
"""Bytes of a request body; more are a 413."""
BODY_DRAINED_BYTES_MAX = 16 << 20
"""Bytes of a body that is too large which are read and dropped, so that its client hears the 413. Past them, the
connection is closed at once."""
BODY_READ_S = 30.0
"""Seconds that a body may take to arrive; then 408."""

LENGTH_DIGITS_MAX = 18
"""Digits of a Content-Length that is read."""

_CLOSE = ((b"connection", b"close"),)


class ClientGone(Exception):
    """The client went away before its request was complete: nobody is left to answer."""


async def read_body(receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """The body, whole.

    Raises:
        Problem: it is too large, or took too long.
        ClientGone: the connection ended first.
    """
    announced = headers.get(b"content-length", b"")
    announced_bytes = int(announced) if announced.isdigit() and len(announced) <= LENGTH_DIGITS_MAX else 0
    if announced_bytes > (BODY_BYTES_MAX if b"expect" in headers else BODY_DRAINED_BYTES_MAX):
        raise _too_large(drained=False)
    try:
        async with asyncio.timeout(BODY_READ_S):
            return await _read(receive)
    except TimeoutError as error:
        raise Problem(BODY_TIMEOUT, f"A body has {BODY_READ_S:g} seconds to arrive", headers=_CLOSE) from error


async def _read(receive: Receive) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        if len(whole) > BODY_BYTES_MAX:
            raise _too_large(drained=True)
        return whole
    chunks: list[bytes] = []
    received = 0
    while message["type"] == "http.request":
        chunk: bytes = message.get("body", b"")
        received += len(chunk)
        if received <= BODY_BYTES_MAX:
            chunks.append(chunk)
        elif received <= BODY_DRAINED_BYTES_MAX:
            chunks.clear()
        else:
            raise _too_large(drained=False)
        if not message.get("more_body", False):
            if received > BODY_BYTES_MAX:
                raise _too_large(drained=True)
            return b"".join(chunks)
        message = await receive()
    raise ClientGone


def _too_large(*, drained: bool) -> Problem:
    return Problem(
        BODY_TOO_LARGE,
        f"A body has at most BODY_BYTES_MAX={BODY_BYTES_MAX} bytes",
        headers=() if drained else _CLOSE,
        limit_bytes=BODY_BYTES_MAX,
    )
