"""The way from the command line to HTTP."""

from __future__ import annotations

import asyncio
import logging
import signal
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.application.application import Application

__all__ = ["serve"]

# Entry points do not import each other (import-linter holds it). Of them all, only the command line starts another
# one, and only here: by name, as anyone outside would.
_SERVER = "diptych.entrypoints.http.server"

_log = logging.getLogger("diptych.cli")


async def serve(application: Application, *, host: str, port: int, messages: bool = True) -> None:
    """Serve an open application, or its health alone, until this task is cancelled; say where, once it takes connections.

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
        names = ", ".join(context.name for context in application.contexts)
        what = names if messages else f"the health of a worker for {names}"
        _log.info("serving %s at %s; Ctrl-C stops it", what, url, extra={"url": url})

    await import_module(_SERVER).serve(application, host=host, port=port, messages=messages, on_ready=ready)
