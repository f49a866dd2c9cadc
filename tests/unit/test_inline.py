"""Inline read models: answers never lag, whoever projects; and nothing that is wrong with one stops a command."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from diptych import Application, BoundedContext, Transaction
from diptych.adapters.connect import read_store_beside
from diptych.errors import Blocked, ConfigurationError, NotFresh, TransactionMisused
from diptych.read_side import batch as batch_module
from diptych.read_side import inline as inline_module
from diptych.testing import ManualClock
from tests.inline_bank import (
    CHOKES,
    AccountId,
    Balance,
    BalanceOf,
    Late,
    LateOf,
    Paid,
    Pay,
    PayAll,
    Recent,
    bank,
)
from tests.postgres_server import in_thread, new_stores

pytestmark = pytest.mark.anyio

ADA, BOB = AccountId("ada"), AccountId("bob")


@pytest.fixture
def url(store_url: str) -> str:
    return store_url


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/events.db"


@pytest.fixture(params=["sqlite", "postgres"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:{tmp_path}/events.db" if request.param == "sqlite" else in_thread(new_stores())


@pytest.fixture(autouse=True)
def chokes() -> Iterator[set[int]]:
    yield CHOKES
    CHOKES.clear()


def application(url: str, **given: Any) -> Application:
    given = {"inline": [Balance], **given}
    return Application(given.pop("context", None) or bank(), store=url, **given)


def beside(url: str) -> dict[str, Any]:
    """How an application sees the same read models that folds none of them with an append."""
    return {"inline": (), "read_store": read_store_beside(url)}


async def balance(app: Application, account: AccountId = ADA) -> Balance | None:
    return await app.query(BalanceOf(account=account), freshness="latest", wait_s=0)


# ── never lag ────────────────────────────────────────────────────────────────


async def test_rows_are_there_with_the_receipt_and_nobody_projects(url: str) -> None:
    async with application(url, projecting=False) as app:
        receipt = await app.execute(Pay(account=ADA, cents=5))
        assert await app.query(BalanceOf(account=ADA), after=receipt, wait_s=0) == Balance(
            account=ADA, cents=5, payments=1
        )
        with pytest.raises(NotFresh):  # the others wait for a projector, as ever
            await app.query(LateOf(account=ADA), after=receipt, wait_s=0)


async def test_every_answer_shows_all_that_was_acknowledged_before(url: str) -> None:
    async with application(url, projecting=False) as app:

        async def pay(cents: int) -> None:
            receipt = await app.execute(Pay(account=ADA, cents=cents))
            found = await app.answer(BalanceOf(account=ADA), after=receipt, wait_s=0)
            assert found.value is not None
            assert found.value.payments == found.shows[0].high.position

        await asyncio.gather(*(pay(n) for n in range(1, 101)))
        assert await balance(app) == Balance(account=ADA, cents=5050, payments=100)


async def test_the_projector_folds_nothing_twice(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[str] = []
    steps = batch_module.fold_steps

    def counted(projection: Any, *given: Any) -> Any:
        folded.append(projection.name)
        return steps(projection, *given)

    async with application(url, inline=[Balance, Late, Recent]) as app:
        monkeypatch.setattr("diptych.read_side.projector.fold_steps", counted)
        for n in range(5):
            async with app.partition().projector.lock:  # it is not between its looks at rows and events
                await app.execute(Pay(account=ADA, cents=n))
            await app.projected()
        assert folded == []
        assert {found.lag_events for found in (await app.status()).projections} == {0}


async def test_a_live_query_hears_of_each_append(url: str) -> None:
    async with application(url, projecting=False) as app:
        answers = app.subscribe(BalanceOf(account=ADA))
        assert (await anext(answers)).value is None
        await app.execute(Pay(account=ADA, cents=5))
        found = (await anext(answers)).value
        assert found is not None
        assert found.cents == 5
        await answers.aclose()


async def test_what_has_expired_is_removed_with_appends(url: str) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with application(url, inline=[Recent], projecting=False, clock=clock) as app:
        await app.execute(Pay(account=ADA, cents=1))
        clock.advance(timedelta(days=1))
        await app.execute(Pay(account=BOB, cents=1))
        async with app.partition().read_store.snapshot() as snapshot:
            assert await snapshot.count("bank.Recent", ()) == 0


# ── what fails ───────────────────────────────────────────────────────────────


async def test_g9_a_fold_that_fails_parks_its_key_and_no_command(url: str, chokes: set[int]) -> None:
    chokes.add(13)
    async with application(url, projecting=False) as app:
        await app.execute(Pay(account=ADA, cents=5))
        await app.execute(Pay(account=ADA, cents=13))
        await app.execute(Pay(account=ADA, cents=7))
        await app.execute(Pay(account=BOB, cents=1))
        assert await balance(app, BOB) == Balance(account=BOB, cents=1, payments=1)
        with pytest.raises(Blocked):
            await balance(app)
        (parked,) = (await app.parked.list()).items
        assert parked.position == 2


async def test_a_parked_key_is_retried_while_appends_go_on(url: str, chokes: set[int]) -> None:
    chokes.add(13)
    async with application(url, projecting=False) as app:
        await app.execute(Pay(account=ADA, cents=13))
        (parked,) = (await app.parked.list()).items
        chokes.clear()
        paying = asyncio.create_task(_pay_on(app))
        await app.parked.retry(parked.id, actor="ada", reason="mended")
        paying.cancel()
        await asyncio.wait([paying])
        await app.execute(Pay(account=ADA, cents=1))
        head = (await app.status()).head
        assert await balance(app) == Balance(account=ADA, cents=13 + head - 1, payments=head)


async def _pay_on(app: Application) -> None:
    while True:
        await app.execute(Pay(account=ADA, cents=1))


async def test_a_projector_gets_past_what_an_append_left_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here whatever goes wrong in the append's fold beside the user's code."""
    async with application(url) as app:
        monkeypatch.setattr(inline_module, "plan_steps", lambda *_: 1 / 0)
        receipt = await app.execute(Pay(account=ADA, cents=5))
        monkeypatch.setattr(inline_module, "plan_steps", batch_module.plan_steps)
        assert await app.query(BalanceOf(account=ADA), after=receipt) is not None
        await app.execute(Pay(account=ADA, cents=1))
        assert await balance(app) == Balance(account=ADA, cents=6, payments=2)


# ── others append, too ───────────────────────────────────────────────────────


async def test_an_append_catches_up_with_those_of_other_code(kept: str) -> None:
    async with application(kept, projecting=False) as app, application(kept, **beside(kept), projecting=False) as other:
        await app.execute(Pay(account=ADA, cents=1))
        await other.execute(Pay(account=ADA, cents=2))
        await other.execute(Pay(account=BOB, cents=3))
        with pytest.raises(NotFresh):
            await balance(app)
        await app.execute(Pay(account=BOB, cents=4))
        assert await balance(app) == Balance(account=ADA, cents=3, payments=2)
        assert await balance(other, BOB) == Balance(account=BOB, cents=7, payments=2)


async def test_one_that_is_far_behind_is_left_to_the_projector(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_module, "CATCH_UP_EVENTS_MAX", 2)
    async with application(kept, projecting=False) as app:
        async with application(kept, **beside(kept), projecting=False) as other:
            await other.execute(PayAll(account=ADA, times=3))
        await app.execute(Pay(account=ADA, cents=1))
        with pytest.raises(NotFresh):
            await balance(app)
        async with application(kept, **beside(kept)) as other:
            await other.projected()
        await app.execute(PayAll(account=ADA, times=5))  # however many: they are its own
        assert await balance(app) == Balance(account=ADA, cents=9, payments=9)


async def numbers(app: Application) -> dict[int, bool]:
    """Of the generations that there are, with whether they answer."""
    generations = await app.partition().read_store.generations()
    return {each.number: each.live for each in generations if each.name == "bank.Balance"}


async def test_a_changed_fold_is_built_beside_and_then_moved_on_by_appends(kept: str) -> None:
    async with application(kept, projecting=False) as app:
        await app.execute(PayAll(account=ADA, times=20))
    async with application(kept, context=bank(version=2)) as app:
        await app.projected()
    async with application(kept, context=bank(version=2), projecting=False) as app:
        await app.execute(Pay(account=ADA, cents=1))
        assert await balance(app) == Balance(account=ADA, cents=21, payments=21)
        assert await numbers(app) == {1: False, 2: True}


async def test_what_a_switch_replaced_is_moved_on_by_the_appends_of_its_code(kept: str) -> None:
    """During a rolling deployment it answers there, and it must not lag, whoever projects or not."""
    async with application(kept, projecting=False) as old:
        await old.execute(PayAll(account=ADA, times=2))
        async with application(kept, context=bank(version=2)) as new:
            await new.projected()
            assert await numbers(new) == {1: False, 2: True}
            await new.execute(Pay(account=ADA, cents=1))
            for payments in (4, 5):
                await old.execute(Pay(account=ADA, cents=1))
                assert await balance(old) == Balance(account=ADA, cents=payments, payments=payments)
            await new.projected()
            assert await balance(new) == Balance(account=ADA, cents=5, payments=5)
            assert await numbers(old) == {1: False, 2: True}


async def test_rows_of_the_same_code_are_not_moved_on_while_they_are_kept(kept: str) -> None:
    async with application(kept) as app:
        await app.execute(Pay(account=ADA, cents=1))
        await app.rebuilds.rebuild("Balance")
        await app.execute(Pay(account=ADA, cents=1))
        generations = await app.partition().read_store.generations()
        reached = {each.number: each.checkpoint.position for each in generations if each.name == "bank.Balance"}
        assert reached == {1: 1, 2: 2}


async def test_a_rebuild_switches_while_appends_go_on(url: str) -> None:
    async with application(url) as app:
        await app.execute(Pay(account=ADA, cents=1))
        paying = asyncio.create_task(_pay_on(app))
        comparison = await app.rebuilds.compare("Balance")
        assert comparison.same
        assert await app.rebuilds.rebuild("Balance") is not None
        paying.cancel()
        await asyncio.wait([paying])
        await app.execute(Pay(account=ADA, cents=1))
        head = (await app.status()).head
        assert await balance(app) == Balance(account=ADA, cents=head, payments=head)
        assert await numbers(app) == {1: False, 3: True}


# ── own tables ───────────────────────────────────────────────────────────────


def teller(statement: str) -> BoundedContext:
    context = BoundedContext("bank", events=[Paid])

    @context.command_handler
    def pay(command: Pay, transaction: Transaction[sqlite3.Connection]) -> Paid:
        transaction.connection.execute(statement)
        return Paid(account=command.account, cents=command.cents)

    @context.projection
    def balance(row: Balance, event: Paid) -> Balance:
        return Balance(account=row.account, cents=row.cents + event.cents, payments=row.payments + 1)

    return context


@pytest.fixture
def beside_tables(tmp_path: Path) -> str:
    with closing(sqlite3.connect(tmp_path / "events.db")) as connection:
        connection.execute("CREATE TABLE mine (number INTEGER)")
    return f"sqlite:{tmp_path}/events.db?own_tables=true"


async def test_what_a_handler_with_own_tables_appends_is_folded_with_it(beside_tables: str) -> None:
    app = application(beside_tables, context=teller("INSERT INTO mine VALUES (1)"), projecting=False)
    async with app:
        await app.execute(Pay(account=ADA, cents=5))
        assert await balance(app) == Balance(account=ADA, cents=5, payments=1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE diptych_generations SET position = 7",
        "SELECT * FROM bank_balance",
        "DELETE FROM bank_balance__g1",
        "DROP TABLE bank_balance__g1",
        "INSERT INTO diptych_discards VALUES ('bank.Balance', 1, '[\"ada\"]', 'me', '', 0)",
    ],
)
async def test_g13_a_handler_reaches_no_read_models(beside_tables: str, statement: str) -> None:
    async with application(beside_tables, context=teller(statement), projecting=False) as app:
        with pytest.raises(TransactionMisused, match=r"which is Diptych's|of read models"):
            await app.execute(Pay(account=ADA, cents=5))
        assert await balance(app) is None


# ── what is refused ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"inline": ["bank.Nothing"]}, "inline names bank.Nothing, which no projection feeds; there are bank.Balance"),
        ({"context": bank(partitions=3)}, "bank.Balance is split into 3 slices"),
        ({"read_store": "memory:"}, "and the read store is no file of SQLite"),
        ({"read_store": "sqlite:elsewhere.db"}, "and the read store is sqlite:elsewhere.db"),
    ],
)
async def test_what_cannot_be_inline_is_refused_when_it_opens(file: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        await application(file, **given).open()


def test_one_name_is_no_sequence_of_them() -> None:
    with pytest.raises(ConfigurationError, match="inline is a sequence"):
        Application(bank(), inline="bank.Balance")


async def test_rows_in_the_file_of_the_events_are_there_again(file: str) -> None:
    async with application(file, inline=["bank.Balance"], projecting=False) as app:
        await app.execute(Pay(account=ADA, cents=5))
    async with application(file, **beside(file), projecting=False) as app:
        assert await balance(app) == Balance(account=ADA, cents=5, payments=1)
    assert not list(Path(file.removeprefix("sqlite:")).parent.glob("*.read.db"))
