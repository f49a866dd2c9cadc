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

from diptych import Application
from diptych.entrypoints.http.server import serve
from tests.http_library import Outside, open_library

EXAMPLES = 20
"""Requests that are made up for each operation."""
STARTED_S = 30
"""Seconds in which the server has to be there."""
HOOKS = Path(__file__).with_name("idempotency_keys.py")
"""What schemathesis runs before each request."""


class _Server(threading.Thread):
    """An application, served on a free port from a thread of its own."""

    def __init__(self, make: Callable[[], Application]) -> None:
        super().__init__()
        self.url: Future[str] = Future()
        self._make = make
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
            serving = asyncio.create_task(serve(app, host="127.0.0.1", port=0, on_ready=self.url.set_result))
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
    server = _Server(make)
    server.start()
    try:
        url = f"{server.url.result(STARTED_S)}/openapi.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", "all", "--no-color"]
        options = ["--max-examples", str(EXAMPLES), "--generation-deterministic"]
        hooks = {**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, cwd=tmp_path, env=hooks
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
