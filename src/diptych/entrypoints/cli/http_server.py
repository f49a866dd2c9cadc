"""The way from the command line to HTTP."""

from __future__ import annotations

import asyncio
import logging
import signal
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from diptych.application.application import Application

__all__ = ["listen", "serve"]

# Entry points do not import each other (import-linter holds it). Of them all, only the command line starts another
# one, and only here: by name, as anyone outside would.
_SERVER = "diptych.entrypoints.http.server"

_log = logging.getLogger("diptych.cli")


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens there, and the URL.

    Raises:
        ConfigurationError: this address cannot be listened on.
    """
    server = import_module(_SERVER)
    listening: socket.socket = server.listen(host, port)
    return listening, server.url_of(host, listening)


async def serve(
    application: Application,
    *,
    host: str,
    port: int,
    listening: socket.socket | None = None,
    messages: bool = True,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve an open application, or its health alone, until this task is cancelled; say where, once it can be reached.

    Args:
        application: is open.
        host: the address to listen on.
        port: 0 takes a free one.
        listening: a socket that listens already, shared with other processes.
        messages: whether commands and queries are served.
        on_ready: is called instead of saying where.

    Raises:
        ConfigurationError: this address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]

    def ready(url: str) -> None:
        # The server listens for signals too, as it has to where nobody else does. Here `run_async` does: it cancels
        # the server, which stops in the same way, limits how long all of it may take, and knows the exit code.
        for number, handler in handlers:
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        if on_ready is not None:
            return on_ready()
        names = ", ".join(context.name for context in application.contexts)
        what = names if messages else f"the health of a worker for {names}"
        return _log.info("serving %s at %s; Ctrl-C stops it", what, url, extra={"url": url})

    await import_module(_SERVER).serve(
        application, host=host, port=port, listening=listening, messages=messages, on_ready=ready
    )
