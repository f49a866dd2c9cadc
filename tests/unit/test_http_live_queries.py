"""Live queries over HTTP: Server-Sent Events, whose first answer is refused like any other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from diptych import Application
from diptych.entrypoints.http import event_stream, http_app
from diptych.entrypoints.http.authenticator import Unauthorized, bearer_token
from diptych.read_side import live_queries
from diptych.security import Actor
from tests.watched import Add, Break, CounterId, CounterOf, Faults, counters

pytestmark = pytest.mark.anyio
A = CounterId("a")
WAIT_S = 30
"""Seconds after which a test gives up."""
EVENTS = {"accept": "text/event-stream"}


class Event(NamedTuple):
    """One event of a stream."""

    type: str
    id: str
    data: Any


class Streamed:
    """One request to an ASGI application, whose response is read as it comes."""

    def __init__(self, app: Starlette, path: str, headers: Mapping[str, str], method: str, body: bytes) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.status = 0
        self.headers: dict[str, str] = {}
        self._body = [body]
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.serving = asyncio.get_running_loop().create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.sent.put(message)

    async def begins(self) -> None:
        start = await self._next()
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}

    async def _next(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            return await self.sent.get()

    async def chunk(self) -> str:
        """The next part of the body; empty at the end."""
        message = await self._next()
        assert message["type"] == "http.response.body"
        body: bytes = message["body"]
        assert bool(body) == message.get("more_body", False) or self.status != 200
        return body.decode()

    async def event(self) -> Event:
        """The next event, past what is none."""
        while True:
            fields = {"event": "message", "id": "", "data": "null"}
            text = await self.chunk()
            assert text.endswith("\n\n")
            lines = [line for line in text.splitlines() if line and not line.startswith((":", "retry:"))]
            if lines:
                fields |= dict(line.split(": ", 1) for line in lines)
                return Event(fields["event"], fields["id"], json.loads(fields["data"]))

    async def problem(self, status: int, name: str) -> dict[str, Any]:
        assert self.status == status
        body: dict[str, Any] = json.loads(await self.chunk())
        assert body["type"] == f"urn:diptych:problem:{name}"
        return body


@asynccontextmanager
async def streamed(
    served: Starlette,
    path: str = "/queries/CounterOf?counter=a",
    headers: Mapping[str, str] = EVENTS,
    method: str = "GET",
    body: bytes = b"",
) -> AsyncIterator[Streamed]:
    """A request whose client goes away in the end; nothing is left of it."""
    stream = Streamed(served, path, headers, method, body)
    try:
        await stream.begins()
        yield stream
    finally:
        stream.gone.set()
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait((stream.serving,))
    stream.serving.result()


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
async def app(store_url: str, faults: Faults) -> AsyncIterator[Application]:
    async with Application(counters(faults), store=store_url) as opened:
        yield opened


async def test_the_answers_are_events(app: Application) -> None:
    """Each with its token and the JSON that GET gives; by GET and by POST."""
    served, json_body = http_app(app), {"content-type": "application/json", **EVENTS}
    async with (
        streamed(served) as got,
        streamed(served, "/queries/CounterOf", json_body, "POST", b'{"counter": "a"}') as posted,
    ):
        for stream in (got, posted):
            assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            assert "content-length" not in stream.headers
            first = await stream.event()
            assert (first.type, first.data) == ("message", None)
        for count in (1, 2):
            await app.execute(Add(counter=A))
            event = await got.event()
            assert event.data == {"counter": "a", "count": count}
            assert event.id == (await app.answer(CounterOf(counter=A))).token
            assert await posted.event() == event


async def test_the_last_event_id_goes_on_from_there(app: Application) -> None:
    """It counts before a Consistency-Token, which stays what it was when a client connects anew."""
    served = http_app(app)
    first = await app.execute(Add(counter=A))
    async with streamed(served, headers={**EVENTS, "consistency-token": first.token}) as stream:
        assert (await stream.event()).data["count"] == 1
    last = await app.execute(Add(counter=A))
    headers = {**EVENTS, "consistency-token": first.token, "last-event-id": last.token}
    async with streamed(served, headers=headers) as stream:
        assert (await stream.event()).data["count"] == 2


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/json;q=0.9, text/event-stream", True),
        ("text/event-stream;q=0.5, */*;q=0.1", True),
        ("application/json, text/event-stream", False),
        ("application/json, text/event-stream;q=0.9", False),
        ("text/event-stream;q=0", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
    ],
)
async def test_who_prefers_events_gets_them(accept: str, is_stream: bool) -> None:
    """Where `Accept` names them with a greater weight than JSON; whoever takes anything gets one answer."""
    async with (
        Application(counters(), store="memory:") as app,
        streamed(http_app(app), headers={"accept": accept}) as stream,
    ):
        assert stream.status == 200
        assert (stream.headers["content-type"] == "text/event-stream") == is_stream


async def test_what_is_refused_is_a_problem_before_the_stream_begins(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of GET: nothing is subscribed to."""
    served = http_app(app)
    async with streamed(served, "/queries/CounterOf") as stream:
        await stream.problem(422, "invalid-message")
    async with streamed(served, "/queries/NoSuch") as stream:
        await stream.problem(404, "unknown-message")
    async with streamed(served, headers={**EVENTS, "last-event-id": "a;b"}) as stream:
        assert (await stream.problem(400, "invalid-header"))["header"] == "Last-Event-ID"
    for nothing in ("none", "gqFhAQ"):
        async with streamed(served, headers={**EVENTS, "last-event-id": nothing}) as stream:
            await stream.problem(409, "unknown-token")
    monkeypatch.setattr(live_queries, "SUBSCRIPTIONS_MAX", 0)
    async with streamed(served) as stream:
        assert (await stream.problem(503, "overloaded"))["limit_name"] == "SUBSCRIPTIONS_MAX"
        assert stream.headers["retry-after"] == "1"


async def test_an_incomplete_answer_says_so(app: Application) -> None:
    """By the type of its event; when it is mended, by that of the next one."""
    async with streamed(http_app(app)) as stream:
        assert (await stream.event()).type == "message"
        await app.execute(Break(counter=A))
        event = await stream.event()
        assert (event.type, event.data) == ("incomplete", None)
        assert event.id


async def test_an_idle_stream_has_a_pulse(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments, which no client hears, until there is an answer."""
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.01)
    async with streamed(http_app(app)) as stream:
        assert (await stream.chunk()).startswith("retry: ")
        assert [await stream.chunk() for _ in range(2)] == [":\n\n"] * 2
        await app.execute(Add(counter=A))
        assert (await stream.event()).data["count"] == 1


async def test_a_stream_has_an_end(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client connects anew, and is authenticated anew."""
    monkeypatch.setattr(event_stream, "STREAM_S_MAX", 0.05)
    async with streamed(http_app(app)) as stream:
        assert (await stream.event()).data is None
        assert await stream.chunk() == ""


async def test_closing_the_application_ends_its_streams(store_url: str) -> None:
    """With a body that is complete."""
    async with Application(counters(), store=store_url) as app:
        served = http_app(app)
        stream = Streamed(served, "/queries/CounterOf?counter=a", EVENTS, "GET", b"")
        await stream.begins()
        assert (await stream.event()).data is None
    assert await stream.chunk() == ""
    async with asyncio.timeout(WAIT_S):
        await stream.serving


async def test_a_client_that_goes_away_leaves_nothing_behind(app: Application) -> None:
    """Also where nothing happens: neither subscription, nor watch, nor task."""
    before = asyncio.all_tasks()
    async with streamed(http_app(app)) as stream:
        assert (await stream.event()).data is None
        assert len(app._live) == 1
    assert len(app._live) == 0
    left = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not any("diptych" in name or "stream" in name for name in left), left


async def test_a_failure_in_between_is_an_event_and_the_last(
    app: Application, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem, as it would be the answer to GET; what nobody foresaw tells an id and nothing else."""
    async with streamed(http_app(app), "/queries/Picky") as stream:
        assert (await stream.event()).data == 0
        await app.execute(Add(counter=A))
        event = await stream.event()
        assert event.type == "error"
        assert event.data["type"] == "urn:diptych:problem:internal"
        assert "id" in event.data
        assert await stream.chunk() == ""


async def test_head_has_the_fields_of_the_stream(app: Application) -> None:
    """And no body, and no subscription."""
    async with streamed(http_app(app), method="HEAD") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert await stream.chunk() == ""
        async with asyncio.timeout(WAIT_S):
            await stream.serving
        assert len(app._live) == 0


class Known:
    """Lets in who has the one token."""

    scheme: Mapping[str, str] = {"type": "http", "scheme": "bearer"}

    async def authenticate(self, request: HTTPConnection, /) -> Actor:
        if bearer_token(request) != "right":
            raise Unauthorized("invalid_token")
        return Actor("ann")


async def test_the_authenticator_stands_before_streams(app: Application) -> None:
    """As before any other query."""
    served = http_app(app, authenticator=Known())
    async with streamed(served) as stream:
        await stream.problem(401, "unauthorized")
        assert stream.headers["www-authenticate"].startswith("Bearer")
    async with streamed(served, headers={**EVENTS, "authorization": "Bearer right"}) as stream:
        assert (await stream.event()).data is None
