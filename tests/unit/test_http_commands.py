"""Commands over HTTP: receipts, outcomes that are heard again, and every way to fail."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from diptych import Application, Conflict, NotFresh
from diptych.entrypoints.http import http_app
from diptych.entrypoints.http.body import BODY_BYTES_MAX
from diptych.errors import Blocked, NewerHistory, OutcomeUnknown, Overloaded, StoreUnavailable
from tests.http_library import Outside, open_library

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def outside() -> Outside:
    return Outside()


@pytest.fixture
async def app(outside: Outside) -> AsyncIterator[Application]:
    async with open_library(outside) as opened:
        yield opened


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://library") as made:
        yield made


def problem(response: httpx2.Response, status: int, name: str) -> dict[str, Any]:
    """The members of the problem that a response has to be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"urn:diptych:problem:{name}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


async def test_a_command_gives_a_receipt(client: httpx2.AsyncClient) -> None:
    """The receipt is its id, position and token, no more; the token is a header as well."""
    response = await client.post("/commands/Lend", json={"book": "ulysses", "reader": "ada", "fee": "1.50"})
    assert response.status_code == 200
    receipt = response.json()
    assert list(receipt) == ["command_id", "position", "token"]
    assert receipt["position"] == 1
    assert response.headers["consistency-token"] == receipt["token"]
    assert response.headers["content-type"] == "application/json"


async def test_a_qualified_name_is_a_name(client: httpx2.AsyncClient) -> None:
    """A command is found by the name of its context and its own."""
    assert (await client.post("/commands/library.GiveBack", json={"book": "ulysses"})).status_code == 200


async def test_a_key_repeats_the_first_receipt(client: httpx2.AsyncClient) -> None:
    """The same command under the same key takes effect once, and gives the first receipt, plain or quoted."""
    lend = {"book": "ulysses", "reader": "ada"}
    first = await client.post("/commands/Lend", json=lend, headers={"Idempotency-Key": "k-1"})
    again = await client.post("/commands/Lend", json=lend, headers={"Idempotency-Key": '"k-1"'})
    assert first.json()["command_id"] == "k-1"
    assert (again.status_code, again.json()) == (200, first.json())


async def test_a_key_repeats_the_first_rejection(client: httpx2.AsyncClient) -> None:
    """A rejection under a key is heard again, even when the command would be taken by now."""
    await client.post("/commands/Lend", json={"book": "ulysses", "reader": "ada"})
    lend = {"book": "ulysses", "reader": "bob", "fee": "2.50"}
    first = await client.post("/commands/Lend", json=lend, headers={"Idempotency-Key": "k-2"})
    await client.post("/commands/GiveBack", json={"book": "ulysses"})
    again = await client.post("/commands/Lend", json=lend, headers={"Idempotency-Key": "k-2"})
    assert problem(first, 409, "rejected") == problem(again, 409, "rejected")
    assert first.json()["code"] == "lent-already"
    assert first.json()["facts"] == {"reader": "ada", "fee": "2.50"}


async def test_a_key_of_another_command_is_refused(client: httpx2.AsyncClient) -> None:
    """Another payload under a used key is a 422, and does nothing."""
    await client.post("/commands/GiveBack", json={"book": "ulysses"}, headers={"Idempotency-Key": "k"})
    response = await client.post("/commands/GiveBack", json={"book": "emma"}, headers={"Idempotency-Key": "k"})
    assert problem(response, 422, "command-id-reused")["command_id"] == "k"


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 129, '"', '"a', '""', '"a"b"', "a\tb"])
async def test_a_key_that_is_none_is_refused(client: httpx2.AsyncClient, key: str) -> None:
    """A key has 1 to 128 visible characters, and quotes come in pairs."""
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    response = await client.post("/commands/GiveBack", json={"book": "ulysses"}, headers=headers)
    assert problem(response, 400, "invalid-header")["header"] == "Idempotency-Key"


async def test_two_keys_are_none(client: httpx2.AsyncClient) -> None:
    """A request with two keys is refused, whichever was meant."""
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    response = await client.post("/commands/GiveBack", json={"book": "ulysses"}, headers=headers)
    problem(response, 400, "invalid-header")


async def test_every_field_error_is_listed(client: httpx2.AsyncClient) -> None:
    """Wrong, missing and unknown fields, nested ones too, are all told at once."""
    lend = {
        "book": 7,
        "fee": "much",
        "until": "tomorrow",
        "remarks": [{"page": 1}, {"page": 0, "texts": "x"}, {"text": None}, 5],
        "raeder": "ada",
    }
    errors = problem(await client.post("/commands/Lend", json=lend), 422, "invalid-message")["errors"]
    assert errors == [
        {"path": "$.book", "message": "Expected `str`, got `int`"},
        {"path": "$.reader", "message": "This field is required"},
        {"path": "$.fee", "message": "Invalid decimal string"},
        {"path": "$.until", "message": "Invalid RFC3339 encoded date"},
        {"path": "$.remarks[1].page", "message": "Expected `int` >= 1"},
        {"path": "$.remarks[1].texts", "message": "There is no such field; did you mean text?"},
        {"path": "$.remarks[2].page", "message": "This field is required"},
        {"path": "$.remarks[2].text", "message": "Expected `str`, got `null`"},
        {"path": "$.remarks[3]", "message": "Expected `object`, got `int`"},
        {"path": "$.raeder", "message": "There is no such field; did you mean reader?"},
    ]


async def test_unknown_fields_of_nested_values_are_refused(client: httpx2.AsyncClient) -> None:
    """Also where they are all that is wrong: nothing that was sent is left out silently."""
    lend = {"book": "b", "reader": "ada", "fee": "1", "until": "2026-01-31", "remarks": [{"page": 1, "texts": "x"}]}
    errors = problem(await client.post("/commands/Lend", json=lend), 422, "invalid-message")["errors"]
    assert errors == [{"path": "$.remarks[0].texts", "message": "There is no such field; did you mean text?"}]


async def test_nul_is_refused_where_it_is(client: httpx2.AsyncClient) -> None:
    """Text with NUL is named by its path."""
    lend = {"book": "a\0", "reader": "ada", "remarks": [{"page": 1, "text": "\0"}]}
    errors = problem(await client.post("/commands/Lend", json=lend), 422, "invalid-message")["errors"]
    assert [error["path"] for error in errors] == ["$.book", "$.remarks[0].text"]


async def test_an_integer_may_be_written_with_a_point(client: httpx2.AsyncClient) -> None:
    """3.0 is an integer, as in JSON Schema; 3.5 is none."""
    taken = await client.post("/commands/Call", content=b'{"number": 3.0}', headers=JSON)
    assert taken.status_code == 200
    refused = await client.post("/commands/Call", content=b'{"number": 3.5}', headers=JSON)
    assert problem(refused, 422, "invalid-message")["errors"][0]["path"] == "$.number"


@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b'{"book":\n "a",}', 2, 6),
        (b'{"book": "a"', 1, 13),
        (b"", 1, 1),
        (b'\xef\xbb\xbf{"book": "a"}', 1, 1),
        (b'{"book": NaN}', 1, 10),
        (b'{"book": "\xff"}', 1, 11),
        (b'{"book": "\\ud800"}', 1, 11),
        (b'{"b\xc3\xbc": "\x01"}', 1, 9),
        (b"[" * 100_000, 1, 1),
        (b'{"book":' * 100_000, 1, 1),
    ],
)
async def test_malformed_json_is_refused_with_its_place(
    client: httpx2.AsyncClient, body: bytes, line: int, column: int
) -> None:
    """What is no JSON is a 400 that tells line and column; nesting without end is none either."""
    response = await client.post("/commands/GiveBack", content=body, headers=JSON)
    told = problem(response, 400, "malformed-json")
    assert (told["line"], told["column"]) == (line, column)


@pytest.mark.parametrize("body", [b"null", b"[]", b'"a"', b"1", b'{"book": 1e400}', b'{"book": {}}'])
async def test_json_that_is_no_command_is_refused(client: httpx2.AsyncClient, body: bytes) -> None:
    """JSON of another shape is a 422."""
    problem(await client.post("/commands/GiveBack", content=body, headers=JSON), 422, "invalid-message")


async def test_errors_without_end_are_not_all_listed(client: httpx2.AsyncClient) -> None:
    """A body full of errors gets an answer of bounded size that says that there are more."""
    body = {"book": "a", "reader": "b", "remarks": [5] * 200_000}
    told = problem(await client.post("/commands/Lend", json=body), 422, "invalid-message")
    assert len(told["errors"]) == 1_000
    assert "first 1000" in told["detail"]


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "json"]
)
async def test_other_media_types_are_refused(client: httpx2.AsyncClient, content_type: str) -> None:
    """What does not say that it is JSON in UTF-8 is a 415 that says what is taken."""
    headers = {"Content-Type": content_type} if content_type else {}
    response = await client.post("/commands/GiveBack", content=b'{"book": "a"}', headers=headers)
    problem(response, 415, "unsupported-media-type")
    assert response.headers["accept"] == "application/json"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=UTF-8", "Application/JSON", "application/cloudevents+json"]
)
async def test_json_by_other_names_is_taken(client: httpx2.AsyncClient, content_type: str) -> None:
    """Parameters, case and +json do not matter."""
    response = await client.post("/commands/GiveBack", content=b'{"book": "a"}', headers={"Content-Type": content_type})
    assert response.status_code == 200


async def test_a_compressed_body_is_refused(client: httpx2.AsyncClient) -> None:
    """A content coding is a 415, not malformed JSON."""
    headers = {**JSON, "Content-Encoding": "gzip"}
    problem(
        await client.post("/commands/GiveBack", content=b"\x1f\x8b", headers=headers), 415, "unsupported-media-type"
    )


async def test_a_body_past_the_limit_is_refused_however_it_comes(client: httpx2.AsyncClient) -> None:
    """The limit holds with and without Content-Length; what is just within it is read."""
    book = b'{"book": "%b"}' % (b"x" * BODY_BYTES_MAX)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(book), 65_536):
            yield book[start : start + 65_536]

    for body in (book, chunks()):
        response = await client.post("/commands/GiveBack", content=body, headers=JSON)
        assert problem(response, 413, "body-too-large")["limit_bytes"] == BODY_BYTES_MAX
    within = b'{"number": 1%b}' % (b" " * (BODY_BYTES_MAX - 13))
    assert (await client.post("/commands/Call", content=within, headers=JSON)).status_code == 200


async def test_unknown_commands_and_paths_are_not_found(client: httpx2.AsyncClient) -> None:
    """An unknown name comes with close ones; any other path is a problem too."""
    told = problem(await client.post("/commands/Lent", json={}), 404, "unknown-message")
    assert told["close"][0] == "Lend"
    problem(await client.post("/commands/BookOf", json={}), 404, "unknown-message")
    for path in ("/", "/commands", "/commands/Lend/", "/health", "/openapi.json/"):
        response = await client.get(path)
        assert response.status_code == 404, path
        assert response.json()["type"].startswith("urn:diptych:problem:")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/commands/Lend", "POST"), ("/health/live", "GET, HEAD"), ("/openapi.json", "GET, HEAD")]
)
async def test_other_methods_are_not_allowed(client: httpx2.AsyncClient, path: str, allowed: str) -> None:
    """405 names the methods that there are."""
    response = await client.request("DELETE", path)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("failure", "name", "members", "retry_after"),
    [
        (Conflict("Call", 10, 7), "conflict", {"attempts": 10}, "1"),
        (Overloaded("queue_max", 5), "overloaded", {"limit_name": "queue_max", "limit": 5}, "1"),
        (StoreUnavailable("the disk is full"), "store-unavailable", {}, "1"),
        (OutcomeUnknown("k-9", "the connection was lost"), "outcome-unknown", {"command_id": "k-9"}, "1"),
        (NotFresh("Book", 9, 4), "not-fresh", {"read_model": "Book", "wanted": 9, "reached": 4}, "1"),
        (NewerHistory("library.Lent", 2, 7, "newer code has stored it"), "unavailable", {}, "1"),
        (Blocked("Book", ["[1]"], "torn"), "blocked", {"read_model": "Book", "keys": ["[1]"]}, "60"),
    ],
)
async def test_what_may_go_well_later_is_a_503(
    client: httpx2.AsyncClient,
    outside: Outside,
    failure: Exception,
    name: str,
    members: dict[str, object],
    retry_after: str,
) -> None:
    """Everything worth a retry says when to retry, and what is known."""
    outside.failure = failure
    response = await client.post("/commands/Call", json={})
    assert problem(response, 503, name).items() >= members.items()
    assert response.headers["retry-after"] == retry_after


async def test_the_unforeseen_tells_its_id_and_no_more(
    client: httpx2.AsyncClient, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 has an id that the log repeats with the cause; the cause itself stays inside."""
    outside.failure = RuntimeError("password is hunter2")
    with caplog.at_level(logging.ERROR, "diptych.http"):
        response = await client.post("/commands/Call", json={})
    told = problem(response, 500, "internal")
    assert "hunter2" not in response.text
    assert set(told) == {"type", "title", "status", "detail", "id"}
    (record,) = caplog.records
    assert told["id"] in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is outside.failure


async def test_what_cannot_be_stored_is_refused(client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """An identity too long for a tag is a 4xx, which no retry mends, and is logged for those who took it."""
    with caplog.at_level(logging.ERROR, "diptych.http"):
        response = await client.post("/commands/Lend", json={"book": "x" * 2_000, "reader": "ada"})
    told = problem(response, 422, "unstorable")
    assert told["id"] in caplog.records[0].getMessage()
    assert (await client.get("/queries/BookOf", params={"book": "x" * 2_000})).content == b"null"


async def test_a_trace_goes_along(app: Application, client: httpx2.AsyncClient) -> None:
    """A valid traceparent is kept with the events; an invalid one is ignored, not refused."""
    valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for given in (valid, "00-" + "0" * 32 + "-b7ad6b7169203331-01", valid.upper(), valid + "-x", "ff" + valid[2:], "x"):
        response = await client.post("/commands/GiveBack", json={"book": "a"}, headers={"traceparent": given})
        assert response.status_code == 200, given
    traces = [json.loads(event.metadata).get("traceparent") async for event in _events(app)]
    assert traces == [valid, None, None, None, None, None]


async def _events(app: Application) -> AsyncIterator[Any]:
    from diptych.event_store.event_query import ALL_EVENTS

    async for event in app.events(ALL_EVENTS):
        yield event


async def test_an_application_that_is_not_open_says_so() -> None:
    """Before it is opened and after it is closed every request is a 503, and nobody is told to look for a fault."""
    app = open_library()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://library") as client:
        for _ in range(2):
            for request in (client.post("/commands/Lend", json={}), client.get("/openapi.json")):
                problem(await request, 503, "closed")
            problem(await client.get("/health/ready"), 503, "not-ready")
            assert (await client.get("/health/live")).status_code == 200
            async with app:
                assert (await client.post("/commands/GiveBack", json={"book": "a"})).status_code == 200
