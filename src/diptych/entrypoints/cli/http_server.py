"""The way from the command line to HTTP."""

from __future__ import annotations

import asyncio
import logging
import signal
from importlib import import_module
from typing import TYPE_CHECKING

from diptych.errors import ConfigurationError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from diptych.application.application import Application
    from diptych.entrypoints.cli.settings import Settings

__all__ = ["authenticator", "listen", "serve"]

# Entry points do not import each other (import-linter holds it). Of them all, only the command line starts another
# one, and only here: by name, as anyone outside would.
_SERVER = "diptych.entrypoints.http.server"
_AUTHENTICATOR = "diptych.entrypoints.http.authenticator"
_TOKENS = "diptych.entrypoints.http.json_web_tokens"

_log = logging.getLogger("diptych.cli")


def listen(settings: Settings) -> tuple[socket.socket, str]:
    """A socket that listens where the settings say, and the URL.

    Raises:
        ConfigurationError: this address cannot be listened on, or is not for a server that knows nobody.
    """
    server = import_module(_SERVER)
    for_anyone = settings.role == "worker" or settings.without_authentication or settings.jwks is not None
    listening: socket.socket = server.listen(settings.host, settings.port, for_anyone=for_anyone)
    return listening, server.url_of(settings.host, listening)


async def authenticator(settings: Settings) -> object | None:
    """What finds out who sends a request; None where that is nobody's business.

    Raises:
        ConfigurationError: the settings do not fit each other, or what they need is not there.
    """
    given = {"jwks": settings.jwks, "issuer": settings.issuer, "audience": settings.audience}
    missing = [f"--{name}" for name, value in given.items() if not value]
    if settings.without_authentication:
        if len(missing) < len(given):
            raise ConfigurationError(
                "--without-authentication does without --jwks, --issuer and --audience: leave them"
            )
        everyone: object = import_module(_AUTHENTICATOR).TrustEveryone()
        return everyone
    if len(missing) == len(given):
        return None
    if missing:
        raise ConfigurationError(f"--jwks, --issuer and --audience belong together: {' and '.join(missing)} is missing")
    try:
        tokens = import_module(_TOKENS).JsonWebTokens(settings.jwks, issuer=settings.issuer, audience=settings.audience)
    except ModuleNotFoundError as error:
        if error.name not in ("jwt", "cryptography"):
            raise
        raise ConfigurationError("--jwks needs PyJWT: pip install 'diptych[jwt]'") from error
    await tokens.load()
    verifying: object = tokens
    return verifying


async def serve(
    application: Application,
    *,
    host: str,
    port: int,
    listening: socket.socket | None = None,
    messages: bool = True,
    asking: object | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve an open application, or its health alone, until this task is cancelled; say where, once it can be reached.

    Args:
        application: is open.
        host: the address to listen on.
        port: 0 takes a free one.
        listening: a socket that listens already, shared with other processes.
        messages: whether commands and queries are served.
        asking: the `authenticator` of the settings.
        on_ready: is called instead of saying where.

    Raises:
        ConfigurationError: this address cannot be listened on, or is not for a server that knows nobody.
    """
    if messages and asking is None:
        _warn_of_scopes(application)
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
        application,
        host=host,
        port=port,
        listening=listening,
        messages=messages,
        authenticator=asking,
        on_ready=ready,
    )


def _warn_of_scopes(application: Application) -> None:
    """Say of commands and queries that require scopes that nobody has any here."""
    named = {**application.commands.names, **application.queries.names}
    refused = [name for message, name in named.items() if application.required_scopes(message)]
    if refused:
        _log.warning(
            "commands and queries that require a scope are refused, since nobody is authenticated: %s; give --jwks, "
            "--issuer and --audience, or --without-authentication",
            ", ".join(sorted(refused)),
        )
