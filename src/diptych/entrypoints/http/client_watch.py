"""Notices that a client has gone while its answer is being made, so that nothing goes on for nobody."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

from diptych.entrypoints.http.body import ClientGone

if TYPE_CHECKING:
    from starlette.types import Receive

__all__ = ["WhileClientWaits", "client_gone"]

CLIENT_LOOK_S = 0.05
"""Seconds for which an answer is made before its client is looked at: most are quicker, and pay nothing for it."""


class WhileClientWaits:
    """Cancels what is awaited inside when the client goes away: `with WhileClientWaits(receive)`.

    The body has been read. A read that runs is stopped by its store, see `ReadSnapshot`.

    Raises:
        ClientGone: at the end, where that was so.
    """

    __slots__ = ("_cancelling", "_is_gone", "_receive", "_task", "_timer", "_watching")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        self._is_gone = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "requests are served by tasks"
        self._task, self._cancelling = task, task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(CLIENT_LOOK_S, self._watch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.remove_done_callback(self._end)
            self._watching.cancel()
        if self._is_gone and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise ClientGone from error

    def _watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(client_gone(self._receive))
        self._watching.add_done_callback(self._end)

    def _end(self, watching: asyncio.Task[None]) -> None:
        if not watching.cancelled() and watching.exception() is None:
            self._is_gone = True
            self._task.cancel()


async def client_gone(receive: Receive) -> None:
    """Wait until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
