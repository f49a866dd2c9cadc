"""The keys of an issuer: which are used, how long, how often they are fetched, and from where alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from diptych.entrypoints.http import key_set
from diptych.entrypoints.http.key_set import (
    ALGORITHMS,
    FETCH_PAUSE_S,
    KEY_SET_BYTES_MAX,
    KEYS_AGE_S_MAX,
    KEYS_FRESH_S,
    KEYS_MAX,
    KeySet,
)
from diptych.errors import ConfigurationError, Unavailable
from tests.tokens import Issuer

pytestmark = pytest.mark.anyio


class Watch:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.s = 1_000.0

    def __call__(self) -> float:
        return self.s


class Published:
    """What is at a URL: a status, a body and headers; it counts who asks."""

    def __init__(self, body: str) -> None:
        self.body = body
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[str] = []
        self.let_go = threading.Event()
        self.let_go.set()
        self.url = ""


@contextmanager
def publishing(body: str) -> Iterator[Published]:
    published = Published(body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            published.asked.append(self.path)
            published.let_go.wait()
            data = published.body.encode()
            self.send_response(published.status)
            for name, value in published.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        published.url = f"http://127.0.0.1:{server.server_port}/keys"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield published
        finally:
            published.let_go.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def published(issuer: Issuer) -> Iterator[Published]:
    with publishing(issuer.key_set()) as found:
        yield found


@pytest.fixture
def keys(published: Published, watch: Watch) -> KeySet:
    return KeySet(published.url, tell_s=watch)


async def settled(keys: KeySet) -> None:
    """Wait for the fetch that is under way, if there is one."""
    fetch = keys._fetch
    if fetch is not None:
        await fetch


# ── how often, and how long ──────────────────────────────────────────────────


async def test_keys_are_fetched_once(keys: KeySet, published: Published) -> None:
    """Not for each token, and not before the first."""
    assert published.asked == []
    for _ in range(3):
        assert await keys.find("k1", "RS256") is not None
    assert published.asked == ["/keys"]


async def test_a_new_key_is_fetched_when_it_is_met(
    keys: KeySet, published: Published, issuer: Issuer, watch: Watch
) -> None:
    """An issuer that rotates its keys need not tell anybody."""
    assert await keys.find("k1", "RS256") is not None
    issuer.add("k2")
    published.body = issuer.key_set()
    watch.s += FETCH_PAUSE_S
    assert await keys.find("k2", "RS256") is not None
    assert len(published.asked) == 2


async def test_made_up_keys_make_no_load(keys: KeySet, published: Published, watch: Watch) -> None:
    """However many unknown ids come, there is one fetch for each pause."""
    assert await keys.find("k1", "RS256") is not None
    for number in range(50):
        assert await keys.find(f"made-up-{number}", "RS256") is None
    assert len(published.asked) == 1
    watch.s += FETCH_PAUSE_S
    for number in range(50):
        assert await keys.find(f"made-up-{number}", "RS256") is None
    assert len(published.asked) == 2


async def test_keys_are_fetched_anew_while_the_old_ones_are_used(
    keys: KeySet, published: Published, watch: Watch
) -> None:
    """Nobody waits for that."""
    await keys.find("k1", "RS256")
    watch.s += KEYS_FRESH_S
    published.let_go.clear()
    assert await keys.find("k1", "RS256") is not None
    published.let_go.set()
    await settled(keys)
    assert len(published.asked) == 2


async def test_a_key_that_was_withdrawn_is_used_no_more(
    keys: KeySet, published: Published, issuer: Issuer, watch: Watch
) -> None:
    """From the next fetch on."""
    await keys.find("k1", "RS256")
    issuer.add("k2")
    del issuer.keys["k1"]
    published.body = issuer.key_set()
    watch.s += KEYS_FRESH_S
    assert await keys.find("k1", "RS256") is not None
    await settled(keys)
    watch.s += FETCH_PAUSE_S
    assert await keys.find("k1", "RS256") is None


async def test_keys_that_cannot_be_fetched_again_are_used_for_a_while(
    keys: KeySet, published: Published, watch: Watch
) -> None:
    """Then nobody is let in, which is "not now" and no reason to throw a token away."""
    await keys.find("k1", "RS256")
    published.status = 500
    watch.s += KEYS_AGE_S_MAX - 1
    assert await keys.find("k1", "RS256") is not None
    await settled(keys)
    watch.s += FETCH_PAUSE_S
    with pytest.raises(Unavailable):
        await keys.find("k1", "RS256")
    published.status = 200
    watch.s += FETCH_PAUSE_S
    assert await keys.find("k1", "RS256") is not None


async def test_an_unknown_key_is_not_known_to_be_wrong_while_keys_cannot_be_had(
    keys: KeySet, published: Published, watch: Watch
) -> None:
    """It may be new: its token is not refused for good."""
    await keys.find("k1", "RS256")
    published.status = 503
    watch.s += FETCH_PAUSE_S
    with pytest.raises(Unavailable):
        await keys.find("k2", "RS256")
    with pytest.raises(Unavailable):
        await keys.find("k2", "RS256")
    assert len(published.asked) == 2


async def test_without_keys_nobody_is_let_in(keys: KeySet, published: Published, watch: Watch) -> None:
    """And the issuer is asked once for each pause, however many come."""
    published.status = 404
    for _ in range(3):
        with pytest.raises(Unavailable):
            await keys.find("k1", "RS256")
    assert len(published.asked) == 1


# ── from where ───────────────────────────────────────────────────────────────


async def test_no_redirect_is_followed(keys: KeySet, published: Published, issuer: Issuer) -> None:
    """Keys come from the address that was given, or not at all."""
    with publishing(issuer.key_set()) as elsewhere:
        published.status, published.headers = 302, {"Location": elsewhere.url}
        with pytest.raises(Unavailable):
            await keys.find("k1", "RS256")
        assert elsewhere.asked == []


async def test_a_server_that_does_not_answer_is_waited_for_so_long(
    keys: KeySet, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever."""
    monkeypatch.setattr(key_set, "FETCH_S", 0.05)
    published.let_go.clear()
    with pytest.raises(Unavailable):
        await keys.find("k1", "RS256")
    assert published.asked == ["/keys"]


async def test_a_key_set_is_read_up_to_its_limit(keys: KeySet, published: Published) -> None:
    """A longer one is none."""
    published.body = published.body + " " * KEY_SET_BYTES_MAX
    with pytest.raises(Unavailable):
        await keys.find("k1", "RS256")


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://localhost{}"])
async def test_keys_may_be_in_a_file(issuer: Issuer, watch: Watch, tmp_path: Path, form: str) -> None:
    """It is read anew like a URL."""
    path = tmp_path / "keys.json"
    path.write_text(issuer.key_set())
    keys = KeySet(form.format(path), tell_s=watch)
    await keys.load()
    issuer.add("k2")
    path.write_text(issuer.key_set())
    watch.s += FETCH_PAUSE_S
    assert await keys.find("k2", "RS256") is not None


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"keys": []}', '{"keys": [1]}', '{"keys": [{}]}', "[" * 9_999])
async def test_a_file_without_keys_is_told_at_the_start(tmp_path: Path, text: str | None) -> None:
    """Missing, no key set, or one without a key that can be used."""
    path = tmp_path / "keys.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"keys\.json"):
        await KeySet(str(path)).load()


async def test_a_url_without_keys_may_have_some_later(keys: KeySet, published: Published, watch: Watch) -> None:
    """An issuer that is away does not keep a server from starting."""
    published.status = 500
    await keys.load()
    published.status = 200
    watch.s += FETCH_PAUSE_S
    assert await keys.find("k1", "RS256") is not None


# ── which ────────────────────────────────────────────────────────────────────


async def found(tmp_path: Path, *published: dict[str, Any], algorithms: tuple[str, ...] = ALGORITHMS) -> KeySet:
    """A key set of these keys, and of one for another algorithm, so that it is never empty."""
    issuer = Issuer()
    issuer.add("kept", "EdDSA")
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [*published, issuer.public("kept")]}))
    keys = KeySet(str(path), algorithms)
    await keys.load()
    return keys


@pytest.mark.parametrize(
    "wrong",
    [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "k1"},
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"alg": "RS512"},
        {"alg": "HS256"},
        {"d": "AQAB"},
        {"n": "AQAB"},
        {"kid": 1},
        {"n": 7},
    ],
    ids=range(9),
)
async def test_a_key_that_is_for_something_else_is_not_used(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Secrets, private and weak keys, those for encryption, for other algorithms, and what is no key."""
    issuer = Issuer()
    keys = await found(tmp_path, {**issuer.public("k1"), **wrong})
    assert await keys.find("k1", "RS256") is None
    assert await keys.find("k1", "HS256") is None
    assert await (await found(tmp_path, issuer.public("k1"))).find("k1", "RS256") is not None


async def test_a_short_rsa_key_is_not_used(tmp_path: Path) -> None:
    """Below 2,048 bits it can be broken."""
    issuer = Issuer()
    issuer.add("short", bits=1_024)
    keys = await found(tmp_path, issuer.public("short"))
    assert await keys.find("short", "RS256") is None


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_each_kind_of_key_verifies_its_algorithms(tmp_path: Path, algorithm: str) -> None:
    """And those alone, of the ones that are allowed."""
    issuer = Issuer()
    issuer.add("k", algorithm)
    keys = await found(tmp_path, issuer.public("k"))
    known = {name for name in ALGORITHMS if await keys.find("k", name) is not None}
    assert known == ({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"} if algorithm == "RS256" else {algorithm})
    narrow = await found(tmp_path, issuer.public("k"), algorithms=("EdDSA",))
    assert (await narrow.find("k", algorithm) is not None) == (algorithm == "EdDSA")


async def test_without_an_id_the_only_key_is_meant(tmp_path: Path) -> None:
    """Where there are two, nobody guesses."""
    issuer = Issuer()
    issuer.add("k2")
    assert await (await found(tmp_path, issuer.public("k1"))).find(None, "RS256") is not None
    both = await found(tmp_path, issuer.public("k1"), issuer.public("k2"))
    assert await both.find(None, "RS256") is None
    without_id = {name: value for name, value in issuer.public("k1").items() if name != "kid"}
    assert await (await found(tmp_path, without_id, issuer.public("k2"))).find(None, "RS256") is None


async def test_a_key_set_has_so_many_keys(tmp_path: Path) -> None:
    """More is a mistake, and none of them is used."""
    issuer = Issuer()
    with pytest.raises(ConfigurationError, match=f"{KEYS_MAX + 2} keys"):
        await found(tmp_path, *[issuer.public("k1", kid=str(number)) for number in range(KEYS_MAX + 1)])
