"""The shop on PostgreSQL: two servers that decide, two workers that project, one of each killed in the middle.

Each is a user in the role that `diptych migrate --grants` prints for it, and may do no more than its part.

The invoices are from the UCI Machine Learning Repository, "Online Retail" (Chen, 2015), and lie outside the repository.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest

from diptych import Application
from diptych.adapters.connect import default_read_store
from shop import shop
from shop.demo import run_demo
from shop.invoice import Invoice, command_of
from shop.invoice_file import InvoiceFile
from tests.examples.test_shop_real_invoices import EXPECTED, INVOICES, check
from tests.postgres_server import as_role, new_granted_stores

CUSTOMERS_AT_ONCE = 32
"""Customers whose invoices are sent side by side; those of one customer go one after the other."""

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not INVOICES.exists(), reason=f"the real invoices are not there: {INVOICES}"),
]


@asynccontextmanager
async def serving(store: str, role: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process of `diptych run`, and where it answers."""
    events = as_role(store, "writer" if role == "api" else "projector")
    rows = as_role(default_read_store(store), "reader" if role == "api" else "projector")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "diptych", "run", "shop:shop", "--role", role, "--port", "0"),
        *("--store", events, "--read-store", rows),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if found := re.search(rb"http://[\w.:]+", line):
                yield process, found[0].decode()
                return
        raise AssertionError(f"the {role} ended before it served")
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


class Sender:
    """Sends invoices over HTTP, each under its number, to whoever answers, until it has its outcome."""

    def __init__(self, urls: Iterable[str], http: httpx2.AsyncClient) -> None:
        self.done = 0
        self.tokens: list[str] = []
        self._urls = itertools.cycle(urls)
        self._http = http

    async def send(self, invoices: Iterable[Invoice]) -> None:
        """Send the invoices of one customer."""
        for invoice in invoices:
            command = command_of(invoice)
            while True:
                try:
                    answer = await self._http.post(
                        f"{next(self._urls)}/commands/{type(command).__name__}",
                        content=msgspec.json.encode(command),
                        headers={"Content-Type": "application/json", "Idempotency-Key": invoice.number},
                    )
                except httpx2.TransportError:  # killed: whether it was done shows when it is sent again
                    await asyncio.sleep(0)  # noqa: TID251 — let the others go on
                    continue
                assert answer.status_code in {200, 409}, answer.text
                break
            self.done += 1
            if answer.status_code == 200:
                self.tokens.append(answer.json()["token"])


@pytest.mark.timeout(240)
async def test_the_figures_are_exact_though_a_server_and_a_worker_are_killed() -> None:
    """What was acknowledged is there once, and the worker that is left goes on where the other one stopped."""
    expected: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))
    store = await new_granted_stores()
    by_customer: dict[str, list[Invoice]] = {}
    for invoice in InvoiceFile(INVOICES):
        by_customer.setdefault(invoice.customer_id, []).append(invoice)
    customers = iter(by_customer.values())
    half = expected["invoices"] // 2

    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=60))
        doomed_api, first = await stack.enter_async_context(serving(store, "api"))  # first: its event types are new
        doomed_worker, _ = await stack.enter_async_context(serving(store, "worker"))
        await stack.enter_async_context(serving(store, "worker"))
        _, second = await stack.enter_async_context(serving(store, "api"))
        sender, doomed = Sender((first, second), http), [doomed_api, doomed_worker]

        async def client() -> None:
            for invoices in customers:
                await sender.send(invoices)
                while sender.done >= half and doomed:
                    doomed.pop().send_signal(signal.SIGKILL)

        await asyncio.gather(*(client() for _ in range(CUSTOMERS_AT_ONCE)))
        assert sender.done == expected["invoices"]
        await asyncio.gather(doomed_api.wait(), doomed_worker.wait())
        answer = await http.get(
            f"{second}/queries/ImportSummary", headers={"Consistency-Token": sender.tokens[-1], "Prefer": "wait=30"}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["orders"] == expected["orders"]

    async with Application(shop, store=store, projecting=False) as app:
        status = await app.status()
    assert status.head == expected["invoices"]
    check(await run_demo(store=store, input=INVOICES), expected)  # everything again, which changes nothing (G4)
    async with Application(shop, store=store, projecting=False) as app:
        assert (await app.status()).head == status.head
