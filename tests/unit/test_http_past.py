"""Queries as of a past moment over HTTP: by a time (RFC 7089) and by a token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx2
import pytest

from diptych import Application
from diptych.entrypoints.http.request_headers import accepted_datetime
from diptych.event_store.position import START, Position
from diptych.read_side import past_fold
from diptych.testing import ManualClock
from tests.http_library import Outside, library
from tests.unit.test_http_queries import problem, served

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def app(clock: ManualClock) -> AsyncIterator[Application]:
    async with Application(library, store="memory:", clock=clock, services={Outside: Outside()}) as opened:
        yield opened


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with served(app) as made:
        yield made


async def lend(client: httpx2.AsyncClient, book: str, reader: str) -> str:
    """Lend a book, from whoever has it; the token of that."""
    await client.post("/commands/GiveBack", json={"book": book})
    response = await client.post("/commands/Lend", json={"book": book, "reader": reader})
    token: str = response.headers["consistency-token"]
    return token


def reader_of(response: httpx2.Response) -> object:
    assert response.status_code == 200, response.text
    book = response.json()
    return None if book is None else book["reader"]


async def test_a_time_is_accepted(client: httpx2.AsyncClient, clock: ManualClock) -> None:
    """`Accept-Datetime` gives what was there then, and says so; one that has not come yet gives what is there now."""
    begun = clock.now()
    for reader in ("ada", "bob", "cy"):
        clock.advance(timedelta(minutes=10))
        await lend(client, "emma", reader)
    expected = {0: None, 9: None, 10: "ada", 19: "ada", 20: "bob", 30: "cy"}
    for minutes, then in expected.items():
        asked = format_datetime(begun + timedelta(minutes=minutes), usegmt=True)
        got = await client.get("/queries/BookOf?book=emma", headers={"Accept-Datetime": asked})
        assert reader_of(got) == then
        assert (got.headers["memento-datetime"], got.headers["vary"]) == (asked, "accept-datetime, as-of")
    late = await client.get("/queries/BookOf?book=emma", headers={"Accept-Datetime": "Wed, 01 Jan 2098 00:00:00 GMT"})
    assert reader_of(late) == "cy"
    assert late.headers["memento-datetime"] == format_datetime(clock.now(), usegmt=True)


async def test_a_token_is_a_moment(client: httpx2.AsyncClient) -> None:
    """`As-Of` gives what was there then, with GET and POST; its tag is known again, and stands for then."""
    first = await lend(client, "emma", "ada")
    await lend(client, "emma", "bob")
    got = await client.get("/queries/BookOf?book=emma", headers={"As-Of": first})
    posted = await client.post("/queries/BookOf", json={"book": "emma"}, headers={"As-Of": first})
    assert reader_of(got) == reader_of(posted) == "ada"
    assert got.headers["consistency-token"] == first
    assert "memento-datetime" not in got.headers
    known = {"As-Of": first, "If-None-Match": got.headers["etag"]}
    assert (await client.get("/queries/BookOf?book=emma", headers=known)).status_code == 304
    stale = await client.post(
        "/commands/Lend", json={"book": "emma", "reader": "x"}, headers={"If-Match": got.headers["etag"]}
    )
    problem(stale, 412, "context-changed")
    plain = await client.get("/queries/BookOf?book=emma", headers={"Consistency-Token": first})
    assert "vary" not in plain.headers


@pytest.mark.parametrize("year", [1899, 1900, 1999, 2000, 2004, 2026])
def test_every_date_is_read(year: int) -> None:
    """Each day of the calendar, leap days where there are any."""
    first = datetime(year, 1, 1, 23, 59, 59, tzinfo=UTC)
    for date in (first + timedelta(days=day) for day in range(366)):
        assert accepted_datetime({b"accept-datetime": format_datetime(date, usegmt=True).encode()}) == date


@pytest.mark.parametrize(
    "asked",
    [
        "yesterday",
        "2026-01-01T00:00:00Z",
        "Mon, 30 Feb 2026 00:00:00 GMT",
        "Mon, 29 Feb 2026 00:00:00 GMT",
        "Mon, 29 Feb 1900 00:00:00 GMT",
        "",
        "0",
    ],
)
async def test_what_is_no_date_is_refused(client: httpx2.AsyncClient, asked: str) -> None:
    """With a 400 that names the field, and a date as it is to be written (RFC 7089, section 4.5.3)."""
    got = await client.get("/queries/BookOf?book=emma", headers={"Accept-Datetime": asked})
    found = problem(got, 400, "invalid-header")
    assert found["header"] == "Accept-Datetime"
    assert "Sun, 06 Nov 1994 08:49:37 GMT" in found["detail"]


async def test_one_moment_is_named(client: httpx2.AsyncClient) -> None:
    """Two of the fields that say which are a 400; a token that is none a 409, as elsewhere."""
    token = await lend(client, "emma", "ada")
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    for headers in (
        {"As-Of": token, "Consistency-Token": token},
        {"As-Of": token, "Accept-Datetime": date},
        {"Consistency-Token": token, "Accept-Datetime": date},
    ):
        problem(await client.get("/queries/BookOf?book=emma", headers=headers), 400, "invalid-header")
    problem(await client.get("/queries/BookOf?book=emma", headers={"As-Of": "none"}), 409, "unknown-token")
    problem(await client.get("/queries/BookOf?book=emma", headers={"As-Of": "no token!"}), 400, "invalid-header")


async def test_what_cannot_be_shown_is_told(
    app: Application, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history that is too long for it is a 409, with how far it came; one that was pruned since a 410."""
    await lend(client, "emma", "ada")
    token = await lend(client, "persuasion", "ada")
    monkeypatch.setattr(past_fold, "PAST_EVENTS_MAX", 2)
    found = problem(await client.get("/queries/Shelved", headers={"As-Of": token}), 409, "past-too-long")
    assert (found["limit_name"], found["limit"], found["wanted"]) == ("PAST_EVENTS_MAX", 2, 4)
    await app.partition().store.prune("library.Lent", START, Position(2), 10)
    got = await client.get("/queries/BookOf?book=emma", headers={"As-Of": token})
    assert "position 2" in problem(got, 410, "history-pruned")["detail"]
    assert reader_of(await client.get("/queries/BookOf?book=persuasion", headers={"As-Of": token})) == "ada"
