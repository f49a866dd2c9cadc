"""The server: uvicorn, run inside a loop that is there already, and stopped so that whoever was being served is served.

On a signal it takes no new connections, closes the idle ones, ends streams of events, and answers the requests under
way, for `STOP_S` at most.
"""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

import uvicorn

from diptych.application.application import Application
from diptych.entrypoints.http.authenticator import Authenticator
from diptych.entrypoints.http.event_stream import Streams
from diptych.entrypoints.http.routes import health_app, http_app
from diptych.errors import ConfigurationError

__all__ = ["event_loop", "listen", "serve", "url_of"]

STOP_S = 10
"""Seconds that requests under way have to end once the server is told to stop; then they are cancelled."""
IDLE_CONNECTION_S = 75
"""Seconds that a connection may be idle between two requests."""
CLIENT_TAKES_NOTHING_S_MAX = 60
"""Seconds for which a client may take nothing of what it is sent; then it is cut off. Linux alone sees to it."""
CONNECTIONS_MAX = 10_000
"""Connections at once; past it they get a 503."""
CONNECTIONS_WAITING_MAX = 2_048
"""Connections that the system keeps waiting to be taken."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def event_loop() -> asyncio.AbstractEventLoop:
    """A new event loop to serve on, as `loop_factory` of `asyncio.Runner`: uvloop's, where it is installed."""
    try:
        made: asyncio.AbstractEventLoop = import_module("uvloop").new_event_loop()
    except ImportError:
        return asyncio.new_event_loop()
    return made


async def serve(
    application: Application,
    *,
    host: str,
    port: int,
    listening: socket.socket | None = None,
    messages: bool = True,
    authenticator: Authenticator | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve an open application until SIGTERM or SIGINT, or until cancelled.

    The application is neither opened nor closed here. A second signal stops at once. Signals are only heard in the main
    thread; in another one, cancel the task.

    Args:
        application: is open, and stays so.
        host: the address to listen on.
        port: 0 takes a free one.
        listening: a socket that listens there already, shared with other processes.
        messages: whether commands and queries are served; else its health alone.
        authenticator: finds out who sends a command or query. Without one, they are served on loopback alone; say
            `TrustEveryone()` where only those reach the server who may do everything.
        on_ready: is told the URL, once connections are taken.

    Raises:
        ConfigurationError: this address cannot be listened on, or is not for a server that knows nobody.
    """
    for_anyone = not messages or authenticator is not None
    listening = listening or listen(host, port, for_anyone=for_anyone)
    app = http_app(application, authenticator=authenticator) if messages else health_app(application)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_MAX,
        backlog=CONNECTIONS_WAITING_MAX,
        timeout_keep_alive=IDLE_CONNECTION_S,
        timeout_graceful_shutdown=STOP_S,
    )
    try:
        if not for_anyone:
            _check_is_loopback(host, listening.getsockname()[0])
        streams: Streams | None = getattr(app.state, "streams", None)
        await _Server(config, url_of(host, listening), on_ready, streams).serve(sockets=[listening])
    finally:
        listening.close()


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, url: str, on_ready: Callable[[str], None] | None, streams: Streams | None
    ) -> None:
        super().__init__(config)
        self._url = url
        self._on_ready = on_ready
        self._streams = streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None:
            self._on_ready(self._url)

    async def main_loop(self) -> None:
        """Serve; cancelled, stop like on a signal."""
        try:
            await super().main_loop()
        except asyncio.CancelledError:
            await self.shutdown()
            raise

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._streams is not None:
            self._streams.end()  # they would not end by themselves
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # past the limit: they were told, by the cancelled task
            connection.transport.close()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop on a signal, and keep it: uvicorn raises it again afterwards, before the application can be closed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def listen(host: str, port: int, *, for_anyone: bool = False) -> socket.socket:
    """A listening socket, which connections queue at from now on: on loopback, unless it is for anyone.

    It names its protocol. Only on those that do does asyncio send without delay (TCP_NODELAY); on others each reply
    waits 40 ms for an acknowledgement that the client holds back.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        if not for_anyone:
            _check_is_loopback(host, address[0])
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _cut_off_who_takes_nothing(listening)
            listening.bind(address)
            listening.listen(CONNECTIONS_WAITING_MAX)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from error
    return listening


def _cut_off_who_takes_nothing(listening: socket.socket) -> None:
    """Have the system cut connections off that would else hold what they are sent for ever; they inherit it."""
    if sys.platform == "linux":
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLIENT_TAKES_NOTHING_S_MAX * 1_000)


def _check_is_loopback(host: str, address: object) -> None:
    if not ipaddress.ip_address(str(address)).is_loopback:
        raise ConfigurationError(
            f"{host} is reached from other machines, and nothing says who may send commands there: give --jwks, "
            "--issuer and --audience; or --without-authentication, where only those reach it who may do everything"
        )


def url_of(host: str, listening: socket.socket) -> str:
    """Where it is served."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}"
