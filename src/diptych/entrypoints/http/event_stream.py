"""Answers as Server-Sent Events: a live query for as long as its client stays, the limit allows, and the server runs.

id: <token>            sent back as Last-Event-ID by a client that connects anew: it goes on from there
data: <the answer as JSON, as GET gives it>
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from diptych.entrypoints.http.client_watch import client_gone
from diptych.entrypoints.http.problems import problem_of, problem_reply
from diptych.entrypoints.http.reply import Header
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from starlette.types import Receive, Send

    from diptych.read_side.query_bus import Answer

__all__ = ["EVENT_STREAM", "EventStream", "Streams"]

EVENT_STREAM = b"text/event-stream"
HEARTBEAT_S = 15.0
"""Seconds without an answer after which a comment is sent: what is silent for longer, proxies cut off."""
STREAM_S_MAX = 900.0
"""Seconds that a stream lasts. Its client connects anew and goes on from its last answer, if it is let in by then."""
RECONNECT_MS = 1_000
"""Milliseconds after which a client is told to connect anew."""

_HEARTBEAT = b":\n\n"
_HEADERS: list[Header] = [
    (b"content-type", EVENT_STREAM),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # else nginx keeps answers back until there are many
]


class Streams:
    """The streams of one server, which it ends before it waits for its requests to end."""

    def __init__(self) -> None:
        self._gone: set[asyncio.Task[None]] = set()
        self._ending = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._gone)

    def end(self) -> None:
        """End them all, and those that are begun from now on as soon as they have told their first answer."""
        self._ending = True
        for gone in self._gone:
            gone.cancel()

    def begin(self, receive: Receive) -> asyncio.Task[None]:
        """A task that is done when the client is gone, or the stream is to end."""
        gone = asyncio.get_running_loop().create_task(client_gone(receive))
        self._gone.add(gone)
        gone.add_done_callback(self._gone.discard)
        if self._ending:
            gone.cancel()
        return gone


class EventStream:
    """The response to a live query whose first answer is there, so that nothing of it was refused.

    Args:
        answers: the next ones.
        first: the first one.
        streams: those of the server.
        headers: further header fields of the response.
        told: an answer's value to what is told of it.
    """

    def __init__(
        self,
        answers: AsyncGenerator[Answer[Any]],
        first: Answer[Any],
        streams: Streams,
        headers: list[Header],
        told: Callable[[Any], object],
    ) -> None:
        self._answers = answers
        self._told = told
        self._first = _event(first, told)
        self._streams = streams
        self._headers = headers

    async def send(self, receive: Receive, send: Send, *, with_body: bool) -> None:
        """Send the answers until there are no more, or nobody is there to hear them."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *self._headers]})
            if with_body:
                await self._send_answers(receive, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._answers.aclose()

    async def _send_answers(self, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + STREAM_S_MAX
        gone = self._streams.begin(receive)
        following: asyncio.Task[bytes | None] | None = None
        try:
            await _send(send, b"retry: %d\n\n%b" % (RECONNECT_MS, self._first))
            while (remaining := ends_at - loop.time()) > 0:
                following = following or loop.create_task(self._next())
                await asyncio.wait(
                    (gone, following), timeout=min(HEARTBEAT_S, remaining), return_when=asyncio.FIRST_COMPLETED
                )
                if gone.done():
                    return
                if not following.done():
                    if remaining > HEARTBEAT_S:
                        await _send(send, _HEARTBEAT)
                    continue
                told, following = following.result(), None
                if told is None:
                    return
                await _send(send, told)
        finally:
            waited_for = [gone] if following is None else [gone, following]
            for task in waited_for:
                task.cancel()
            await asyncio.wait(waited_for)

    async def _next(self) -> bytes | None:
        """What is told next; None at the end. After a failure the end comes next: the generator is over."""
        try:
            answer = await anext(self._answers, None)
            return None if answer is None else _event(answer, self._told)
        except Exception as error:  # noqa: BLE001 — becomes a problem; logged where nobody foresaw it
            return b"event: error\ndata: %b\n\n" % problem_reply(problem_of(error)).body


def _event(answer: Answer[Any], told: Callable[[Any], object]) -> bytes:
    """An answer as an event, of a type that says so where it lacks some. JSON has no line breaks as it is made here."""
    kind = b"event: incomplete\n" if answer.incomplete else b""
    return b"%bid: %b\ndata: %b\n\n" % (kind, answer.token.encode(), encode(told(answer.value)))


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
