"""The routes, and the ASGI application that they make up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, NoMatchFound

from diptych.application.application import Application
from diptych.entrypoints.http.authenticator import Authenticator, Guard
from diptych.entrypoints.http.body import ClientGone
from diptych.entrypoints.http.command_status import COMMANDS, StatusEndpoint
from diptych.entrypoints.http.endpoints import CommandEndpoint, Endpoint, Endpoints, QueryEndpoint
from diptych.entrypoints.http.event_stream import EventStream, Streams
from diptych.entrypoints.http.health import Ready, live
from diptych.entrypoints.http.openapi import Document
from diptych.entrypoints.http.problems import METHOD_NOT_ALLOWED, Problem, problem_of, problem_reply
from diptych.entrypoints.http.queries_together import QueriesTogetherEndpoint
from diptych.entrypoints.http.reply import Reply, send_reply
from diptych.entrypoints.http.row_lines import RowLines
from diptych.errors import StoreClosed

if TYPE_CHECKING:
    from starlette.datastructures import URLPath
    from starlette.requests import Request
    from starlette.types import ExceptionHandler, Receive, Scope, Send

__all__ = ["health_app", "http_app"]

QUERIES = "/queries/"


def http_app(application: Application, *, authenticator: Authenticator | None = None) -> Starlette:
    """Commands and queries over HTTP, as an ASGI application.

    Run it with any ASGI server, or mount it: `Mount("/api", http_app(application))` in Starlette, `app.mount("/api",
    http_app(application))` in FastAPI. An application that is open already is used as it is, and stays open. One that
    is not is opened and closed with the lifespan of the ASGI application; mounted ones have none of their own, so open
    it in the lifespan of what it is mounted in. Until then every request gets a 503.

    CORS and the like are middlewares: `http_app(application).add_middleware(...)`. Where there is no authenticator, the
    actor of commands is whom an AuthenticationMiddleware of Starlette's has found (`scope["user"]`, `scope["auth"]`).

    Args:
        application: answers.
        authenticator: finds out who sends a command or query, and keeps others out. Health and `/openapi.json` are for
            everyone. Without one everyone is let in, and nobody has scopes.
    """
    guard = None if authenticator is None else Guard(authenticator)
    commands = Endpoints(lambda: application.commands, partial(CommandEndpoint, application))
    streams = Streams()
    queries = Endpoints(lambda: application.queries, partial(QueryEndpoint, application, streams))

    def compile_endpoints() -> None:
        commands.compile()
        queries.compile()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        if _is_open(application):
            yield
        else:
            async with application:
                compile_endpoints()
                yield

    if _is_open(application):
        compile_endpoints()
    status = partial(StatusEndpoint, application)
    together = QueriesTogetherEndpoint(application, queries)
    messages = (
        _CommandRoute(COMMANDS, commands, guard, status),
        _MessageRoute(QUERIES, queries, guard),
        _TogetherRoute(QUERIES.removesuffix("/"), together, guard),
    )
    app = _HttpApp(
        messages,
        routes=[
            *messages,
            _Route("/openapi.json", Document(application, {} if authenticator is None else authenticator.scheme)),
            *_health(application),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_route, Exception: _no_route},
    )
    app.router.redirect_slashes = False
    app.state.streams = streams
    return app


def health_app(application: Application) -> Starlette:
    """The health of an open application over HTTP and nothing else, for a process that only projects."""
    app = Starlette(routes=_health(application), exception_handlers={HTTPException: _no_route, Exception: _no_route})
    app.router.redirect_slashes = False
    return app


def _health(application: Application) -> list[BaseRoute]:
    return [_Route("/health/live", live), _Route("/health/ready", Ready(application))]


def _path(scope: Scope) -> str:
    """The path below where this is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


def _is_open(application: Application) -> bool:
    try:
        application.commands  # noqa: B018  # raises where it is not open
    except StoreClosed:
        return False
    return True


class _ReplyingRoute(BaseRoute):
    """A route that sends the reply of an endpoint, or the problem that it raised."""

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, dict(path_params))

    def endpoint(self, scope: Scope) -> Endpoint:
        raise NotImplementedError

    async def reply(self, scope: Scope, receive: Receive) -> Reply | EventStream | RowLines:
        return await self.endpoint(scope)(scope, receive)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reply = await self.reply(scope, receive)
        except ClientGone:
            return
        except Exception as error:  # noqa: BLE001  # becomes a problem; logged where nobody foresaw it
            reply = problem_reply(problem_of(error))
        with_body = scope["method"] != "HEAD"
        if isinstance(reply, EventStream | RowLines):
            await reply.send(receive, send, with_body=with_body)
        else:
            await send_reply(send, reply, with_body=with_body)


class _HttpApp(Starlette):
    """Starlette's application, with a short way for commands and queries, which need nothing that it has on the long.

    That is a fifth of the time that a request takes here. With a middleware, everything goes through that first.
    """

    def __init__(
        self,
        messages: Sequence[_ReplyingRoute],
        *,
        routes: Sequence[BaseRoute],
        lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]],
        exception_handlers: Mapping[Any, ExceptionHandler],
    ) -> None:
        super().__init__(routes=routes, lifespan=lifespan, exception_handlers=exception_handlers)
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.user_middleware:
            for route in self._messages:
                if route.matches(scope)[0] is Match.FULL:
                    return await route.handle(scope, receive, send)
        return await super().__call__(scope, receive, send)


class _MessageRoute(_ReplyingRoute):
    """All commands, or all queries: one look-up, where a pattern each would be tried one after the other."""

    def __init__(
        self, prefix: str, endpoints: Endpoints[CommandEndpoint] | Endpoints[QueryEndpoint], guard: Guard | None
    ) -> None:
        self._prefix = prefix
        self._endpoints = endpoints
        self._guard = guard

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the path begins like this."""
        found = scope["type"] == "http" and _path(scope).startswith(self._prefix)
        return (Match.FULL if found else Match.NONE), {}

    async def reply(self, scope: Scope, receive: Receive) -> Reply | EventStream | RowLines:
        """The endpoint's reply to whom the guard lets in."""
        if self._guard is None:
            return await super().reply(scope, receive)
        return await self._guard.reply(scope, receive, super().reply)

    def endpoint(self, scope: Scope) -> Endpoint:
        """The endpoint of the message that the rest of the path names."""
        return self._endpoints.find(_path(scope)[len(self._prefix) :])


class _CommandRoute(_MessageRoute):
    """All commands, to be posted; and their status by id, to be got."""

    def __init__(
        self,
        prefix: str,
        endpoints: Endpoints[CommandEndpoint],
        guard: Guard | None,
        status: Callable[[str], StatusEndpoint],
    ) -> None:
        super().__init__(prefix, endpoints, guard)
        self._status = status

    def endpoint(self, scope: Scope) -> Endpoint:
        """The endpoint of the command that the rest of the path names; of the status of that id where it is got."""
        if scope["method"] in ("GET", "HEAD"):
            return self._status(_path(scope)[len(COMMANDS) :])
        return super().endpoint(scope)


class _TogetherRoute(_ReplyingRoute):
    """All queries at once, of whom the guard lets in."""

    def __init__(self, path: str, endpoint: QueriesTogetherEndpoint, guard: Guard | None) -> None:
        self._path = path
        self._endpoint = endpoint
        self._guard = guard

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this is the path."""
        found = scope["type"] == "http" and _path(scope) == self._path
        return (Match.FULL if found else Match.NONE), {}

    async def reply(self, scope: Scope, receive: Receive) -> Reply | EventStream | RowLines:
        """The endpoint's reply to whom the guard lets in."""
        return await (self._endpoint(scope, receive) if self._guard is None else self._guarded(scope, receive))

    async def _guarded(self, scope: Scope, receive: Receive) -> Reply | EventStream | RowLines:
        assert self._guard is not None
        return await self._guard.reply(scope, receive, self._endpoint)


class _Route(_ReplyingRoute):
    """One path, to be got."""

    def __init__(self, path: str, endpoint: Endpoint) -> None:
        self.path = path
        self._endpoint = endpoint

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this is the path."""
        found = scope["type"] == "http" and _path(scope) == self.path
        return (Match.FULL if found else Match.NONE), {}

    def endpoint(self, scope: Scope) -> Endpoint:
        """The endpoint, where it is got."""
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(METHOD_NOT_ALLOWED, "Use GET", headers=((b"allow", b"GET, HEAD"),))
        return self._endpoint


async def _no_route(_: Request, error: Exception) -> Response:
    """What routers, and middlewares and routes that users add, raise: a problem as well."""
    reply = problem_reply(problem_of(error))
    response = Response(reply.body, reply.status)
    response.raw_headers = [
        (b"content-type", reply.content_type),
        (b"content-length", b"%d" % len(reply.body)),
        *reply.headers,
    ]
    return response
