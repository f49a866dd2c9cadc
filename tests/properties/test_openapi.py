"""The OpenAPI document holds: what it promises is what a tool that makes up requests meets (schemathesis)."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from diptych import Application, BoundedContext, Command, Event, Identity, Key, Query, ReadModel
from diptych.entrypoints.http import Authenticator
from diptych.entrypoints.http.json_web_tokens import JsonWebTokens
from diptych.entrypoints.http.server import serve
from diptych.security import requires
from tests.http_library import Outside, open_library
from tests.tokens import AUDIENCE, ISSUER, Issuer

EXAMPLES = 10
"""Requests that are made up for each operation."""
STARTED_S = 30
"""Seconds in which the server has to be there."""
HOOKS = Path(__file__).with_name("idempotency_keys.py")
"""What schemathesis runs before each request."""


class _Server(threading.Thread):
    """An application, served on a free port from a thread of its own."""

    def __init__(self, make: Callable[[], Application], authenticator: Authenticator | None = None) -> None:
        super().__init__()
        self.url: Future[str] = Future()
        self._make = make
        self._authenticator = authenticator
        self._ending: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # noqa: BLE001  # the test raises it
            self.url.set_exception(error)

    async def _serve(self) -> None:
        end = asyncio.Event()
        self._ending.set_result((asyncio.get_running_loop(), end))
        async with self._make() as app:
            serving = asyncio.create_task(
                serve(app, host="127.0.0.1", port=0, authenticator=self._authenticator, on_ready=self.url.set_result)
            )
            await end.wait()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def stop(self) -> None:
        loop, end = self._ending.result(STARTED_S)
        loop.call_soon_threadsafe(end.set)
        self.join()


def _library() -> Application:
    outside = Outside()
    outside.let_go.set()
    return open_library(outside)


def _shop() -> Application:
    return Application(importlib.import_module("shop").shop, store="memory:")


def _ordering() -> Application:
    names = ("stock", "accounts", "ordering")
    contexts = [getattr(importlib.import_module(f"shop.{name}"), name) for name in names]
    return Application(*contexts, store="memory:")


@pytest.mark.parametrize("make", [_library, _shop, _ordering], ids=["library", "shop", "ordering"])
def test_made_up_requests_meet_nothing_undocumented(make: Callable[[], Application], tmp_path: Path) -> None:
    """Whatever schemathesis makes up, all its checks hold: no 5xx, no status undocumented, what is valid is taken."""
    # What is torn cannot be folded: an answer as of a time is a 503 then, as documented, and as any strict one is.
    check(make, tmp_path, None, *(("--exclude-path", "/commands/Tear") if make is _library else ()))


def _shelf() -> Application:
    """A command that requires a scope, and a query."""
    shelf = BoundedContext("shelf")

    class BookId(Identity): ...

    class Put(Command):
        book: BookId

    class Stood(Event):
        book: BookId

    class Standing(ReadModel):
        book: Key[BookId]

    class IsThere(Query[Standing | None]):
        book: BookId

    @shelf.command_handler
    @requires("books:put")
    def put(command: Put) -> Stood:
        return Stood(book=command.book)

    @shelf.projection
    def standing(event: Stood) -> Standing:
        return Standing(book=event.book)

    return Application(shelf, store="memory:")


def test_made_up_requests_are_authenticated_as_documented(tmp_path: Path) -> None:
    """With an authenticator: 401 without a token, and with one that was made up; else all is as without."""
    issuer = Issuer()
    (tmp_path / "keys.json").write_text(issuer.key_set())
    tokens = JsonWebTokens(str(tmp_path / "keys.json"), issuer=ISSUER, audience=AUDIENCE)
    check(_shelf, tmp_path, tokens, "--header", f"Authorization: Bearer {issuer.token(scope='books:put')}")


def check(
    make: Callable[[], Application], tmp_path: Path, authenticator: Authenticator | None = None, *arguments: str
) -> None:
    """Have schemathesis make requests up."""
    server = _Server(make, authenticator)
    server.start()
    try:
        url = f"{server.url.result(STARTED_S)}/openapi.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", "all", "--no-color"]
        options = ["--max-examples", str(EXAMPLES), "--generation-deterministic"]
        hooks = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
        done = subprocess.run(
            [*command, *options, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path, env=hooks
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
