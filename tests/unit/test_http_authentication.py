"""Who sends a request: tokens that hold and tokens that do not, and what everyone is told of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection

from diptych import Application, BoundedContext, Command, ConfigurationError, Event, Identity, Query
from diptych.entrypoints.http import Authenticator, TrustEveryone, Unauthorized, http_app
from diptych.entrypoints.http.authenticator import BEARER_TOKEN_CHARACTERS_MAX
from diptych.entrypoints.http.json_web_tokens import LEEWAY_S, JsonWebTokens
from diptych.errors import Unavailable
from diptych.event_store.event_query import ALL_EVENTS
from diptych.security import REASON_CHARACTERS_MAX, Actor, requires
from diptych.testing import ManualClock
from tests.tokens import AUDIENCE, ISSUER, Issuer, bearer

pytestmark = pytest.mark.anyio
NOW = datetime(2026, 11, 20, tzinfo=UTC)
UNKNOWN = 'Bearer realm="diptych"'
INVALID = 'Bearer realm="diptych", error="invalid_token"'


class BookId(Identity): ...


class Lend(Command):
    book: BookId


class Lent(Event):
    book: BookId


class Ask(Query[str]): ...


library = BoundedContext("library")


@library.command_handler
@requires("books:lend")
def lend(command: Lend) -> Lent:
    return Lent(book=command.book)


class Look(Command):
    book: BookId


@library.command_handler
def look(command: Look) -> Lent:
    return Lent(book=command.book)


@library.query_handler
async def ask(query: Ask) -> str:
    return "yes"


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def tokens(issuer: Issuer, clock: ManualClock, tmp_path: Path) -> JsonWebTokens:
    (tmp_path / "keys.json").write_text(issuer.key_set())
    return JsonWebTokens(str(tmp_path / "keys.json"), issuer=ISSUER, audience=AUDIENCE, clock=clock)


@pytest.fixture
async def app() -> AsyncIterator[Application]:
    async with Application(library, store="memory:") as opened:
        yield opened


def client_of(app: Application, authenticator: Authenticator | None) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(http_app(app, authenticator=authenticator))
    return httpx2.AsyncClient(transport=transport, base_url="http://library")


@pytest.fixture
async def client(app: Application, tokens: JsonWebTokens) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(app, tokens) as made:
        yield made


async def sent(client: httpx2.AsyncClient, token: str, name: str = "Look") -> httpx2.Response:
    return await client.post(f"/commands/{name}", json={"book": "emma"}, headers=bearer(token))


def refused(response: httpx2.Response, challenge: str = INVALID) -> None:
    """It is a 401 that says no more than that."""
    assert response.status_code == 401, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"] == challenge
    assert response.json() == {
        "type": "urn:diptych:problem:unauthorized",
        "title": "Who sends this is not known",
        "status": 401,
        "detail": "Send credentials that hold; WWW-Authenticate says which",
    }


async def metadata(app: Application) -> list[dict[str, Any]]:
    return [json.loads(event.metadata) async for event in app.events(ALL_EVENTS)]


# ── who is let in ────────────────────────────────────────────────────────────


async def test_a_token_that_holds_names_the_actor(app: Application, client: httpx2.AsyncClient, issuer: Issuer) -> None:
    """Its subject is kept with the events, with the reason of the request."""
    token = issuer.token(now=NOW, scope="books:read books:lend")
    headers = {**bearer(token), "Reason": "asked%20by phone%3A %C3%BC%F0%9F%99%82"}
    response = await client.post("/commands/Lend", json={"book": "emma"}, headers=headers)
    assert response.status_code == 200, response.text
    (kept,) = await metadata(app)
    assert (kept["actor"], kept["reason"]) == ("ada", "asked by phone: ü🙂")


@pytest.mark.parametrize(
    ("claim", "value", "status"),
    [
        ("scope", "books:lend", 200),
        ("scope", "books:read  books:lend", 200),
        ("scope", ["books:lend"], 200),
        ("scp", "x books:lend", 200),
        ("scp", ["x", "books:lend"], 200),
        ("scope", "books:lend2", 403),
        ("scope", "BOOKS:LEND", 403),
        ("scope", "", 403),
        ("scp", [], 403),
        ("roles", ["books:lend"], 403),
        ("scope", {"books:lend": 1}, 401),
        ("scope", [["books:lend"]], 401),
        ("scp", 7, 401),
    ],
    ids=range(13),
)
async def test_scopes_are_those_of_the_token(
    client: httpx2.AsyncClient, issuer: Issuer, claim: str, value: object, status: int
) -> None:
    """In `scope` or `scp`, between spaces or as a list, to the letter; a claim of another form is no token of ours."""
    said: dict[str, Any] = {"scope": "", claim: value}
    token = issuer.token(now=NOW, **said)
    assert (await sent(client, token, "Lend")).status_code == status


async def test_a_missing_scope_is_told(client: httpx2.AsyncClient, issuer: Issuer, app: Application) -> None:
    """As a 403, in the problem and as RFC 6750 has it; and nothing is done."""
    response = await sent(client, issuer.token(now=NOW), "Lend")
    assert response.status_code == 403
    assert response.json()["type"] == "urn:diptych:problem:forbidden"
    assert response.json()["missing"] == ["books:lend"]
    challenge = 'Bearer realm="diptych", error="insufficient_scope", scope="books:lend"'
    assert response.headers["www-authenticate"] == challenge
    assert await metadata(app) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/commands/Look"),
        ("POST", "/commands/Lend?dry-run=true"),
        ("POST", "/commands/Missing"),
        ("GET", "/commands/Look"),
        ("GET", "/queries/Ask"),
        ("HEAD", "/queries/Ask"),
        ("POST", "/queries/Ask"),
        ("GET", "/queries/Missing"),
    ],
)
async def test_every_message_is_guarded(client: httpx2.AsyncClient, method: str, path: str) -> None:
    """Before anything else is looked at: whether there is such a message, the method, the body."""
    response = await client.request(method, path, content=b"no json")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == UNKNOWN
    if method != "HEAD":
        refused(response, UNKNOWN)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json"])
async def test_health_and_the_document_are_for_everyone(client: httpx2.AsyncClient, path: str) -> None:
    """With bad credentials, too."""
    assert (await client.get(path)).status_code == 200
    assert (await client.get(path, headers=bearer("x"))).status_code == 200


async def test_queries_need_a_token_and_no_scope(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    """Whoever is known may ask."""
    response = await client.get("/queries/Ask", headers=bearer(issuer.token(now=NOW, scope="")))
    assert (response.status_code, response.json()) == (200, "yes")


async def test_a_middleware_of_the_server_changes_nothing(
    app: Application, tokens: JsonWebTokens, issuer: Issuer
) -> None:
    """The long way through Starlette is guarded like the short one."""
    asgi = http_app(app, authenticator=tokens)
    asgi.add_middleware(AuthenticationMiddleware, backend=_Keys())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(asgi), base_url="http://library") as client:
        headers = {"X-API-Key": "root"}
        refused(await client.post("/commands/Lend", json={"book": "emma"}, headers=headers), UNKNOWN)
        headers |= bearer(issuer.token(now=NOW, scope="books:lend"))
        assert (await client.post("/commands/Lend", json={"book": "emma"}, headers=headers)).status_code == 200
    assert [kept["actor"] for kept in await metadata(app)] == ["ada"]


# ── tokens that do not hold ──────────────────────────────────────────────────


def part(said: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()


def unsigned(issuer: Issuer) -> str:
    claims = issuer.token(now=NOW).split(".")[1]
    return f"{part({'alg': 'none', 'typ': 'JWT', 'kid': 'k1'})}.{claims}."


def by_hmac(issuer: Issuer) -> str:
    """Signed with the public key, as if that were a secret: what a verifier that believes `alg` takes."""
    public = issuer.keys["k1"][1].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'k1'})}.{issuer.token(now=NOW).split('.')[1]}"
    digest = hmac.new(public, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def tampered(issuer: Issuer) -> str:
    header, _, signature = issuer.token(now=NOW).split(".")
    claims = issuer.token(now=NOW, scope="books:lend").split(".")[1]
    return f"{header}.{claims}.{signature}"


def of_another(issuer: Issuer) -> str:
    """Of a key that is not in the key set, under the id of one that is, with that key in the header."""
    other = Issuer()
    other.add("other")
    other.keys["k1"] = other.keys["other"]
    return other.token(now=NOW, header={"jwk": other.public("k1"), "jku": "https://evil.example/keys"})


WRONG: dict[str, Callable[[Issuer], str]] = {
    "no token": lambda _: "x",
    "no parts": lambda _: "a.b.c",
    "too long": lambda _: "a" * (BEARER_TOKEN_CHARACTERS_MAX + 1),
    "unsigned": unsigned,
    "signed with the public key": by_hmac,
    "tampered with": tampered,
    "of another key": of_another,
    "of an unknown key": lambda issuer: issuer.token(now=NOW, header={"kid": "k2"}),
    "of a key that is a number": lambda _: f"{part({'alg': 'RS256', 'kid': 1})}.{part({})}.x",
    "of an algorithm that is a list": lambda _: f"{part({'alg': ['RS256'], 'kid': 'k1'})}.{part({})}.x",
    "of another algorithm of that kind of key": lambda issuer: jwt.encode(
        {"iss": ISSUER}, issuer.keys["k1"][1], algorithm="PS256", headers={"kid": "k1"}
    ),
    "with what has to be understood": lambda issuer: issuer.token(now=NOW, header={"crit": ["b64"], "b64": True}),
    "nested deeply": lambda _: (
        base64.urlsafe_b64encode(b'{"alg":' + b"[" * 12_000).rstrip(b"=").decode() + f".{part({})}.x"
    ),
    "of another issuer": lambda issuer: issuer.token(now=NOW, iss="https://other.example"),
    "of an issuer that begins like it": lambda issuer: issuer.token(now=NOW, iss=f"{ISSUER}/"),
    "for another audience": lambda issuer: issuer.token(now=NOW, aud="shop"),
    "for others": lambda issuer: issuer.token(now=NOW, aud=["shop", "libraries"]),
    "without issuer": lambda issuer: issuer.token(now=NOW, without="iss"),
    "without audience": lambda issuer: issuer.token(now=NOW, without="aud"),
    "without end": lambda issuer: issuer.token(now=NOW, without="exp"),
    "without subject": lambda issuer: issuer.token(now=NOW, without="sub"),
    "of a subject without name": lambda issuer: issuer.token(now=NOW, sub=""),
    "of a subject of two lines": lambda issuer: issuer.token(now=NOW, sub="ada\nbob"),
    "of a subject that names a process": lambda issuer: issuer.token(now=NOW, sub="process:library.Lending"),
    "expired": lambda issuer: issuer.token(now=NOW, exp=NOW.timestamp() - LEEWAY_S),
    "that ends at no time": lambda issuer: issuer.token(now=NOW, exp="never"),
    "that ends with true": lambda issuer: issuer.token(now=NOW, exp=True),
    "that ends too late to be a time": lambda issuer: issuer.token(now=NOW, exp=10**400),
    "that never ends": lambda issuer: issuer.token(now=NOW, exp=float("inf")),
    "that ends nowhere": lambda issuer: issuer.token(now=NOW, exp=float("nan")),
    "that has not begun": lambda issuer: issuer.token(now=NOW, nbf=NOW.timestamp() + LEEWAY_S + 1),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_token_that_does_not_hold_is_refused(
    client: httpx2.AsyncClient, issuer: Issuer, app: Application, wrong: str
) -> None:
    """Whatever is wrong with it, the answer is the same."""
    refused(await sent(client, WRONG[wrong](issuer)))
    assert await metadata(app) == []


async def test_the_tokens_above_differ_from_one_that_holds(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    """So that none of them is refused for something else."""
    assert (await sent(client, issuer.token(now=NOW))).status_code == 200


async def test_clocks_may_differ_by_the_leeway(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    """In both directions, and no further: the second after is tested above."""
    begins, ends = NOW + timedelta(seconds=LEEWAY_S), NOW - timedelta(seconds=LEEWAY_S - 1)
    assert (await sent(client, issuer.token(now=NOW, nbf=begins.timestamp()))).status_code == 200
    assert (await sent(client, issuer.token(now=NOW, exp=ends.timestamp()))).status_code == 200


async def test_a_token_holds_until_it_ends(client: httpx2.AsyncClient, issuer: Issuer, clock: ManualClock) -> None:
    """By the clock at the time of the request."""
    token = issuer.token(now=NOW)
    assert (await sent(client, token)).status_code == 200
    clock.advance(3_600 + LEEWAY_S - 1)
    assert (await sent(client, token)).status_code == 200
    clock.advance(1)
    refused(await sent(client, token))


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ([], UNKNOWN),
        (["Basic YTpi"], UNKNOWN),
        (["Bearer"], INVALID),
        (["Bearer "], INVALID),
        (["Bearer a b"], INVALID),
        (["Bearer ü"], INVALID),
        (["Bearer TOKEN", "Bearer TOKEN"], INVALID),
        (["Bearer TOKEN, Bearer TOKEN"], INVALID),
        (["TOKEN"], UNKNOWN),
    ],
    ids=range(9),
)
async def test_credentials_of_another_form_are_none(
    client: httpx2.AsyncClient, issuer: Issuer, headers: list[str], challenge: str
) -> None:
    """Other schemes are as good as nothing; a bearer that is no token, or several, is not valid."""
    token = issuer.token(now=NOW)
    given = [(b"Authorization", text.replace("TOKEN", token).encode("latin-1")) for text in headers]
    refused(await client.post("/commands/Look", json={"book": "emma"}, headers=given), challenge)


async def test_the_scheme_is_written_as_one_likes(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    """RFC 9110: its letters' case says nothing."""
    headers = {"Authorization": f"bEARER  {issuer.token(now=NOW)}"}
    assert (await client.post("/commands/Look", json={"book": "emma"}, headers=headers)).status_code == 200


async def test_a_token_elsewhere_is_none(client: httpx2.AsyncClient, issuer: Issuer) -> None:
    """A query string ends up in logs."""
    refused(await client.get("/queries/Ask", params={"access_token": issuer.token(now=NOW)}), UNKNOWN)


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": ""},
        {"audience": ""},
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": ["RS256", "HS512"]},
        {"algorithms": []},
        {"leeway_s": -1},
        {"leeway_s": 301},
        {"keys": "http://issuer.example/keys"},
        {"keys": "ftp://issuer.example/keys"},
        {"keys": ""},
    ],
    ids=range(11),
)
def test_what_would_let_others_in_is_refused(wrong: dict[str, Any]) -> None:
    """No issuer or audience, algorithms without a public key, a long leeway, keys that come in the clear."""
    options = {"keys": "keys.json", "issuer": ISSUER, "audience": AUDIENCE, **wrong}
    with pytest.raises(ConfigurationError):
        JsonWebTokens(options.pop("keys"), **options)


# ── authenticators of one's own, and none ────────────────────────────────────


class ApiKeys:
    """What a user writes: another header, and the same port."""

    scheme = {"type": "apiKey", "in": "header", "name": "X-API-Key"}

    async def authenticate(self, request: HTTPConnection, /) -> Actor:
        key = request.headers.get("x-api-key")
        if key == "broken":
            raise Unavailable("the directory is away")
        if key != "secret":
            raise Unauthorized
        return Actor("robot", {"books:lend"})


async def test_an_authenticator_is_a_small_protocol(app: Application) -> None:
    """From request to actor; it may also say that it cannot tell now, which is worth repeating."""
    async with client_of(app, ApiKeys()) as client:
        response = await client.post("/commands/Lend", json={"book": "emma"}, headers={"X-API-Key": "secret"})
        assert response.status_code == 200
        refused(await client.post("/commands/Lend", json={"book": "emma"}), 'Apikey realm="diptych"')
        away = await client.post("/commands/Lend", json={"book": "emma"}, headers={"X-API-Key": "broken"})
        assert (away.status_code, away.json()["type"]) == (503, "urn:diptych:problem:unavailable")
        assert away.headers["retry-after"]
        document = (await client.get("/openapi.json")).json()
        assert document["components"]["securitySchemes"] == {"authenticated": ApiKeys.scheme}
    assert [kept["actor"] for kept in await metadata(app)] == ["robot"]


async def test_without_an_authenticator_nobody_has_scopes(app: Application) -> None:
    """What requires none is for everyone, what does is for nobody: a 403 without a challenge."""
    async with client_of(app, None) as client:
        assert (await client.post("/commands/Look", json={"book": "emma"})).status_code == 200
        response = await client.post("/commands/Lend", json={"book": "emma"}, headers=bearer("x"))
        assert (response.status_code, response.json()["missing"]) == (403, ["books:lend"])
        assert "www-authenticate" not in response.headers
        document = (await client.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["components"]["responses"]
    assert "403" in document["paths"]["/commands/Lend"]["post"]["responses"]
    assert "403" not in document["paths"]["/commands/Look"]["post"]["responses"]


async def test_everyone_may_be_trusted_on_purpose(app: Application) -> None:
    """Then all may do everything, and nobody is named."""
    async with client_of(app, TrustEveryone()) as client:
        assert (await client.post("/commands/Lend", json={"book": "emma"})).status_code == 200
    assert "actor" not in (await metadata(app))[0]


class _Keys(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-api-key")
        return None if name is None else (AuthCredentials(["books:lend"]), SimpleUser(name))


async def test_starlettes_own_credentials_have_scopes_too(app: Application) -> None:
    """Where no authenticator is given, its middleware says who it is and what they may do."""
    asgi = http_app(app)
    asgi.add_middleware(AuthenticationMiddleware, backend=_Keys())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(asgi), base_url="http://library") as client:
        lending = await client.post("/commands/Lend", json={"book": "emma"}, headers={"X-API-Key": "ada"})
        assert lending.status_code == 200
        assert (await client.post("/commands/Lend", json={"book": "emma"})).status_code == 403
    assert [kept["actor"] for kept in await metadata(app)] == ["ada"]


async def test_the_document_says_who_may_do_what(client: httpx2.AsyncClient) -> None:
    """The scheme, the scopes of each command, and 401 and 403 where they may come."""
    document = (await client.get("/openapi.json")).json()
    scheme = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    assert document["components"]["securitySchemes"] == {"authenticated": scheme}
    lending, looking = (document["paths"][f"/commands/{name}"]["post"] for name in ("Lend", "Look"))
    assert lending["security"] == [{"authenticated": ["books:lend"]}]
    assert looking["security"] == [{"authenticated": []}]
    assert {"401", "403"} <= set(lending["responses"])
    assert "403" not in looking["responses"]
    for operation in document["paths"]["/queries/Ask"].values():
        assert operation["security"] == [{"authenticated": []}]
        assert "401" in operation["responses"]
    assert "security" not in document["paths"]["/health/live"]["get"]


# ── reasons ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "%",
        "%4",
        "%GG",
        "50%",
        "%0A",
        "a%0d%0aActor: root",
        "%00",
        "%7F",
        "%C2%85",
        "%E2%80%A8",
        "%ED%A0%80",
        "%C0%AF",
        "%FF",
        "%C3",
        "%F5%80%80%80",
        "ü",
        "a\tb",
        "x" * (REASON_CHARACTERS_MAX + 1),
        "%C3%BC" * (REASON_CHARACTERS_MAX + 1),
    ],
    ids=range(20),
)
async def test_a_reason_that_is_no_line_is_refused(client: httpx2.AsyncClient, issuer: Issuer, reason: str) -> None:
    """Control characters, encodings that are none, and too much of it are a 400."""
    headers = [
        (b"Authorization", bearer(issuer.token(now=NOW))["Authorization"].encode()),
        (b"Reason", reason.encode("latin-1")),
    ]
    response = await client.post("/commands/Look", json={"book": "emma"}, headers=headers)
    assert response.status_code == 400, response.text
    assert (response.json()["type"], response.json()["header"]) == ("urn:diptych:problem:invalid-header", "Reason")


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("x", "x"),
        ("by phone", "by phone"),
        ("100%25", "100%"),
        ("%C3%BC" * REASON_CHARACTERS_MAX, "ü" * REASON_CHARACTERS_MAX),
        ("%f0%9f%99%82", "🙂"),
        ("a+b", "a+b"),
        ("%E0%A4%B9%E2%82%AC%EF%BF%BD%F4%8F%BF%BF", "ह€\ufffd\U0010ffff"),
    ],
    ids=range(7),
)
async def test_a_reason_is_kept_as_it_was_meant(
    client: httpx2.AsyncClient, issuer: Issuer, app: Application, reason: str, kept: str
) -> None:
    """Plain, or percent-encoded in upper or lower case."""
    headers = {**bearer(issuer.token(now=NOW)), "Reason": reason}
    response = await client.post("/commands/Look", json={"book": "emma"}, headers=headers)
    assert response.status_code == 200, response.text
    assert [found["reason"] for found in await metadata(app)] == [kept]
