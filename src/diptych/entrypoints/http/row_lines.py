"""Rows as lines of JSON (NDJSON): a list of any length, as fast as its client takes it.

{"book":"b1", …}           a row, as GET gives it
{"$snapshot":{…}}          between rows: those that follow are of a newer moment, whose token this is
{"$end":{…}}               the last line, with how many rows there were: without it, something is missing
{"$error":{…}}             instead of that, the problem that kept the others away
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from diptych.entrypoints.http.problems import problem_of, problem_reply
from diptych.entrypoints.http.reply import Header
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from diptych.entrypoints.http.event_stream import Streams
    from diptych.read_side.row_streams import RowStream

__all__ = ["ROW_LINES", "RowLines"]

ROW_LINES = b"application/x-ndjson"
PIECE_BYTES = 65_536
"""Bytes of lines that are sent at once, or one line: no more wait for a client that is slow."""
_HEADERS: list[Header] = [
    (b"content-type", ROW_LINES),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # else nginx takes rows faster than the client does
]


class RowLines:
    """The response with the rows of a stream whose first page is there, so that nothing of it was refused.

    Args:
        rows: the stream.
        first: its first page.
        streams: those of the server.
        headers: further header fields of the response.
        told: a row to what is told of it.
    """

    def __init__(
        self,
        rows: RowStream[Any],
        first: list[Any],
        streams: Streams,
        headers: list[Header],
        told: Callable[[Any], object],
    ) -> None:
        self._rows = rows
        self._first = first
        self._streams = streams
        self._headers = headers
        self._told = told

    async def send(self, receive: Receive, send: Send, *, with_body: bool) -> None:
        """Send the rows until there are no more, or nobody is there to hear them."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *self._headers]})
            if with_body:
                await self._send_rows(receive, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self._rows.aclose()

    async def _send_rows(self, receive: Receive, send: Send) -> None:
        """Page after page; whoever goes away is noticed while a page is read as well as while it is sent."""
        gone = self._streams.begin(receive)
        sending = asyncio.get_running_loop().create_task(self._send_pages(send))
        try:
            await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (gone, sending):
                task.cancel()
            await asyncio.wait((gone, sending))

    async def _send_pages(self, send: Send) -> None:
        page: list[Any] | None = self._first
        count, moments = 0, self._rows.snapshots
        while page is not None:
            count += len(page)
            if self._rows.snapshots != moments:
                moments = self._rows.snapshots
                await _send(send, encode({"$snapshot": {"token": self._rows.token}}) + b"\n")
            for piece in self._pieces(page):
                await _send(send, piece)
            try:
                page = await self._rows.next_page()
            except Exception as error:  # noqa: BLE001 — becomes a problem; logged where nobody foresaw it
                await _send(send, b'{"$error":%b}\n' % problem_reply(problem_of(error)).body)
                return
        end = {"rows": count, "snapshots": moments, "incomplete": self._rows.incomplete}
        await _send(send, encode({"$end": end}) + b"\n")

    def _pieces(self, page: list[Any]) -> Iterator[bytes]:
        """The lines of a page, each piece made when it is to be sent."""
        lines = bytearray()
        for row in page:
            lines += encode(self._told(row)) + b"\n"
            if len(lines) >= PIECE_BYTES:
                yield bytes(lines)
                lines.clear()
        if lines:
            yield bytes(lines)


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
