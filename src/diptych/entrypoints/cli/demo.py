"""`diptych demo`: the shop from end to end, on the embedded default."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import FAILED, CommandFailed
from diptych.entrypoints.cli.options import ADDRESS_UNSET, LOGS_UNSET, LogOptions, ServeOptions, at_least
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import run_async

if TYPE_CHECKING:
    from diptych.application.application import Application
    from shop.demo import DemoResult
    from shop.invoice import Invoices

__all__ = ["demo"]

ORDERS = 2_000
"""Orders of the made-up workload, unless the caller says otherwise."""
SEED = 1
"""Which made-up workload, unless the caller says otherwise."""
STORE_FILE = "shop.db"
"""The event store's file in the data directory; the read models' is beside it."""

_log = logging.getLogger("diptych.demo")


def demo(
    *,
    orders: Annotated[int, at_least(0), Parameter(metavar="N")] = ORDERS,
    seed: Annotated[int, Parameter(metavar="N")] = SEED,
    input: Annotated[Path | None, Parameter(metavar="FILE", negative="")] = None,  # noqa: A002
    data: Annotated[Path | None, Parameter(metavar="DIR", show_default=lambda _: "a folder that is removed")] = None,
    serve: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    http: ServeOptions = ADDRESS_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Run a shop end to end: invoices in, answers out.

    Afterwards every read model is compared with a fresh fold of the history; if one differs, the exit code is 1.
    Run again on the same --data it changes nothing: an invoice has the outcome that it had the first time.

    Args:
        orders: Orders of the made-up workload.
        seed: Another number makes up other orders.
        input: Import invoices from this file instead, CSV or CSV.gz with the columns of UCI Online Retail.
        data: Keep the stores here.
        serve: Go on and serve the shop over HTTP, until Ctrl-C.
        json: Print one JSON object instead of tables.
        http: where.
        log: how.
    """
    settings = settled(
        verbose=log.verbose,
        host=http.host,
        port=http.port,
        without_authentication=http.without_authentication,
        log_format=log.log_format,
    )
    wanted = _Wanted(input, orders, seed, data, serve, json)
    with _data_folder(data) as folder:
        result = run_async(lambda: _run(settings, folder, wanted))
    return 0 if result.verified else FAILED


class _Wanted(NamedTuple):
    """What to demonstrate: see `demo` for the fields."""

    input: Path | None
    orders: int
    seed: int
    data: Path | None
    serve: bool
    json: bool

    @property
    def source(self) -> str:
        """Where the invoices come from, in words."""
        return f"a made-up workload, seed {self.seed}" if self.input is None else str(self.input)


@contextmanager
def _data_folder(kept: Path | None) -> Generator[Path]:
    if kept is None:
        with TemporaryDirectory(prefix="diptych-demo-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"--data {kept} cannot be made: {error.strerror}") from error
    yield kept


async def _run(settings: Settings, folder: Path, wanted: _Wanted) -> DemoResult:
    from diptych.application.application import Application
    from diptych.entrypoints.cli.demo_report import show
    from diptych.entrypoints.cli.http_server import authenticator, serve
    from diptych.entrypoints.cli.shop_location import make_shop_importable
    from diptych.messages.codec import encode

    make_shop_importable()
    from shop.context import shop

    invoices = await _invoices(wanted)
    store = f"sqlite:{folder / STORE_FILE}"
    async with Application(shop, store=store) as application:
        _log.info("importing %s into %s", wanted.source, store)
        result = await _demonstrated(application, invoices)
        if wanted.json:
            screen.write(encode(result))
        else:
            show(result, source=wanted.source, kept=store if wanted.data else None)
        if wanted.serve:
            asking = await authenticator(settings)
            await serve(application, host=settings.host, port=settings.port, asking=asking)
    return result


async def _invoices(wanted: _Wanted) -> Invoices:
    from shop.demo import invoices_from
    from shop.invoice_file import InvoiceFileError

    try:
        return await invoices_from(wanted.input, orders=wanted.orders, seed=wanted.seed)
    except InvoiceFileError as error:
        raise CommandFailed(str(error)) from error


async def _demonstrated(application: Application, invoices: Invoices) -> DemoResult:
    from shop.demo import demonstrate

    with screen.progress("Importing") as bar:

        def moved(done: int, total: int | None) -> None:
            bar(done, total)
            if done == total:
                bar.describe("Checking")

        return await demonstrate(application, invoices, moved)
