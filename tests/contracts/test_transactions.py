"""Every event store of ours that lends its transaction keeps the contract, which itself is proven on broken ones."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest

from diptych.adapters import lent_sqlite
from diptych.adapters.memory import own_tables
from diptych.adapters.memory.event_store import connect as connect_memory
from diptych.adapters.postgres import transactions as postgres_transactions
from diptych.adapters.postgres.connection import Link
from diptych.adapters.postgres.event_store import connect as connect_postgres
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.adapters.sqlite.event_store import connect as connect_sqlite
from diptych.clock import Clock, SystemClock
from diptych.errors import (
    ConfigurationError,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
    TransactionMisused,
)
from diptych.event_store.event_store import Appended, AppendResult, Commit, EventStore
from diptych.event_store.transactions import Change, Transactional, Work
from diptych.testing.contracts.event_store_case import append_one, commit, event, expect, history_of, opened
from diptych.testing.contracts.transactions import Gate, TransactionContract
from tests.postgres_pooler import pooled
from tests.postgres_server import as_role, by_hand, new_granted_store, new_store, run

pytestmark = pytest.mark.anyio

who: ContextVar[str] = ContextVar("who", default="nobody")


class SqliteTransactions(TransactionContract):
    store_class: type[SqliteEventStore] = SqliteEventStore
    path = ""

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        with TemporaryDirectory() as folder:
            self.path = str(Path(folder, "events.db"))
            with closing(sqlite3.connect(self.path)) as connection:
                connection.execute("CREATE TABLE numbers (number INTEGER)")
            yield lambda: self.store_class(self.path, clock, beside_tables=True)

    def add(self, connection: Any, number: int) -> Any:
        connection.execute("INSERT INTO numbers VALUES (?)", (number,))

    def end(self, connection: Any) -> Any:
        connection.commit()

    async def numbers(self) -> list[int]:
        with closing(sqlite3.connect(self.path)) as connection:
            return [number for (number,) in connection.execute("SELECT number FROM numbers ORDER BY 1")]


class TestSqliteTransactions(SqliteTransactions):
    """In a file in which there was a table before."""


class MemoryTransactions(TransactionContract):
    path = "file:/numbers?vfs=memdb"

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        with closing(sqlite3.connect(self.path, uri=True)) as connection:
            connection.execute("CREATE TABLE numbers (number INTEGER)")
            store = connect_memory("memory:?own_tables=numbers", clock)
            yield lambda: store

    def add(self, connection: Any, number: int) -> Any:
        connection.execute("INSERT INTO numbers VALUES (?)", (number,))

    def end(self, connection: Any) -> Any:
        connection.commit()

    async def numbers(self) -> list[int]:
        with closing(sqlite3.connect(self.path, uri=True)) as connection:
            return [number for (number,) in connection.execute("SELECT number FROM numbers ORDER BY 1")]


class TestMemoryTransactions(MemoryTransactions):
    """In a database in memory, beside events that are in none."""


class PostgresTransactions(TransactionContract):
    url = ""

    @asynccontextmanager
    async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
        self.url = await self.new_url()
        make = "DROP TABLE IF EXISTS numbers; CREATE TABLE numbers (number integer); GRANT ALL ON numbers TO PUBLIC"
        await run(self.url, make)
        yield lambda: self.connected(clock)

    async def new_url(self) -> str:
        return await new_store()

    def connected(self, clock: Clock) -> EventStore:
        return connect_postgres(self.url, clock)

    def add(self, connection: Any, number: int) -> Any:
        return connection.execute("INSERT INTO numbers VALUES ($1)", number)

    def end(self, connection: Any) -> Any:
        return connection.execute("COMMIT")

    async def numbers(self) -> list[int]:
        async with by_hand(self.url) as link:
            return [row[0] for row in await link.fetch("SELECT number FROM numbers ORDER BY 1")]


@pytest.mark.xdist_group("numbers")
class TestPostgresTransactions(PostgresTransactions):
    """As the owner of the schema."""


class TestPostgresTransactionsBehindAPooler(PostgresTransactions):
    """With `pgbouncer=true` nothing is prepared for later, and nothing of the session is relied on."""

    async def new_url(self) -> str:
        return pooled(await new_store())


class TestPostgresTransactionsAsWriter(PostgresTransactions):
    """A user in the writer's role, to whom the table was granted."""

    async def new_url(self) -> str:
        return await new_granted_store()

    def connected(self, clock: Clock) -> EventStore:
        return connect_postgres(as_role(self.url, "writer"), clock)


# ── the contract itself ──────────────────────────────────────────────────────


class WorkInATransactionOfItsOwn(SqliteEventStore):
    """Commits what the work has written before the events are appended."""

    async def transact(self, work: Work, lane: str = "") -> AppendResult:
        change = await self._writer.run_apart(work)
        assert isinstance(change, Change)
        (result,) = await self.append([change.commit])
        return result


class TakesNothingBack(SqliteEventStore):
    """Keeps what the work has written, though it is to be taken back."""

    async def transact(self, work: Work, lane: str = "") -> AppendResult:
        def kept(connection: Any) -> Change:
            change = work(connection)
            assert isinstance(change, Change)
            return Change(change.commit)

        return await super().transact(kept, lane)


class IgnoresConditions(SqliteEventStore):
    """Judges nothing of what is appended in such a transaction."""

    async def transact(self, work: Work, lane: str = "") -> AppendResult:
        def unconditional(connection: Any) -> Change:
            change = work(connection)
            assert isinstance(change, Change)
            return Change(Commit(change.commit.events, (), change.commit.command_id), take_back=change.take_back)

        return await super().transact(unconditional, lane)


class TellsNobody(SqliteEventStore):
    """Wakes nobody who waits in this process."""

    def _wake(self, _: object) -> None: ...

    def _look_at_file(self, seen: int) -> None: ...


class LetsTheWorkCommit(SqliteEventStore):
    """Lets the work end the transaction, and appends in another."""

    async def transact(self, work: Work, lane: str = "") -> AppendResult:
        def open_handed(connection: Any) -> Change:
            connection.set_authorizer(None)
            change = work(connection)
            if not connection.in_transaction:
                connection.execute("BEGIN")
                connection.execute("SAVEPOINT diptych_own_tables")
            assert isinstance(change, Change)
            return change

        return await super().transact(open_handed, lane)


BROKEN = {
    WorkInATransactionOfItsOwn: "test_g3_a_conflict_takes_back_what_the_work_has_written",
    TakesNothingBack: "test_what_is_taken_back_leaves_the_outcome",
    IgnoresConditions: "test_g3_a_conflict_takes_back_what_the_work_has_written",
    TellsNobody: "test_it_wakes_those_who_wait",
    LetsTheWorkCommit: "test_work_that_ends_the_transaction_is_found_out",
}


@pytest.mark.parametrize(("broken", "test"), BROKEN.items(), ids=[broken.__name__ for broken in BROKEN])
async def test_the_contract_finds_a_broken_store(
    broken: type[SqliteEventStore], test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever guarantee a store breaks, a test of the contract fails, and passes with one that keeps it."""
    monkeypatch.setattr("diptych.testing.contracts.transactions.WAIT_S", 0.2)
    case = SqliteTransactions()
    await getattr(case, test)()
    case.store_class = broken
    with pytest.raises(AssertionError):
        await getattr(case, test)()


# ── who is held up ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("made", [MemoryTransactions, PostgresTransactions], ids=["memory", "postgres"])
async def test_others_append_while_the_work_is_under_way(made: type[TransactionContract]) -> None:
    """A slow handler holds up nobody: others append meanwhile, and its own positions come behind theirs."""
    case = made()
    async with case.store() as store:
        gate = Gate()
        call = asyncio.create_task(case.transact(store, commit(event("Own")), 1, gate.pass_through))
        await gate.entered()
        await append_one(store, event("Meanwhile"))
        gate.open()
        assert expect(Appended, await call).place.position == 2
        assert [recorded.type for recorded in await history_of(store)] == ["Meanwhile", "Own"]


# ── what SQLite refuses ──────────────────────────────────────────────────────


def executing(statement: str) -> Callable[[Any], Any]:
    return lambda connection: connection.execute(statement)


def change_isolation_level(connection: Any) -> None:
    connection.isolation_level = ""


def try_to_commit_and_go_on(connection: Any) -> None:
    with pytest.raises(sqlite3.DatabaseError):
        connection.commit()


ENDLESS = "SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)"
REFUSED_ANYWHERE: dict[str, Callable[[Any], Any]] = {
    "rollback": lambda connection: connection.rollback(),
    "close": lambda connection: connection.close(),
    "script": lambda connection: connection.executescript("SELECT 1"),
    "isolation level": change_isolation_level,
    "begin": executing("BEGIN"),
    "pragma": executing("PRAGMA synchronous = OFF"),
    "attach": executing("ATTACH ':memory:' AS other"),
    "savepoint": executing("ROLLBACK TO diptych_own_tables"),
}
REFUSED: dict[str, Callable[[Any], Any]] = REFUSED_ANYWHERE | {
    "events": executing("DELETE FROM events"),
    "outcomes": executing("INSERT INTO Outcomes VALUES ('c', x'', 1, 0, NULL)"),
    "drop": executing("DROP TABLE tags"),
    "alter": executing("ALTER TABLE history ADD COLUMN more TEXT"),
    "trigger": executing("CREATE TRIGGER t AFTER INSERT ON events BEGIN SELECT 1; END"),
    "index": executing("CREATE INDEX i ON events (version)"),
}
LENDING_SQLITE = {"memory": MemoryTransactions, "sqlite": SqliteTransactions}
either = pytest.mark.parametrize("made", LENDING_SQLITE.values(), ids=LENDING_SQLITE)


@pytest.mark.parametrize(
    ("made", "step"),
    [(SqliteTransactions, step) for step in REFUSED.values()]
    + [(MemoryTransactions, step) for step in REFUSED_ANYWHERE.values()],
    ids=[*(f"sqlite {name}" for name in REFUSED), *(f"memory {name}" for name in REFUSED_ANYWHERE)],
)
async def test_sqlite_refuses_what_is_not_the_handlers(
    made: type[TransactionContract], step: Callable[[Any], Any]
) -> None:
    """By whatever way it comes in; nothing is done, and the writer goes on as before."""
    case = made()
    async with case.store() as store:
        await append_one(store, event())
        with pytest.raises(TransactionMisused):
            await case.transact(store, commit(event()), 1, step)
        assert await case.numbers() == []
        expect(Appended, await case.transact(store, commit(event()), 2))
        await append_one(store, event())
        assert len(await history_of(store)) == 3


@either
async def test_sqlite_lets_a_handler_go_on_that_was_refused_something(made: type[TransactionContract]) -> None:
    """The refusal alone changes nothing."""
    case = made()
    async with case.store() as store:
        expect(Appended, await case.transact(store, commit(event()), 1, try_to_commit_and_go_on))
        assert await case.numbers() == [1]


@either
async def test_sqlite_lets_handlers_have_savepoints_tables_and_foreign_keys(made: type[TransactionContract]) -> None:
    """What stays in the transaction is theirs; foreign keys are enforced."""
    case = made()
    async with case.store() as store:
        for statement in (
            "SAVEPOINT mine", "DELETE FROM numbers", "ROLLBACK TO mine", "RELEASE mine",
        ):  # fmt: skip
            expect(Appended, await case.transact(store, commit(), 1, executing("SAVEPOINT mine"), executing(statement)))
        make = executing("CREATE TABLE parts (number INTEGER REFERENCES whole (number))")
        whole = executing("CREATE TABLE whole (number INTEGER PRIMARY KEY)")
        expect(Appended, await case.transact(store, commit(), 2, whole, make, executing("PRAGMA table_info(parts)")))
        with pytest.raises(sqlite3.IntegrityError):
            await case.transact(store, commit(event()), 3, executing("INSERT INTO parts VALUES (7)"))


@either
async def test_sqlite_finds_out_what_it_has_rolled_back_itself(made: type[TransactionContract]) -> None:
    """A conflict clause may end the transaction: a handler that goes on is told, and no event is stored."""
    case = made()

    def roll_back_and_go_on(connection: Any) -> None:
        connection.execute("CREATE TABLE one (number INTEGER PRIMARY KEY)")
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT OR ROLLBACK INTO one VALUES (1), (1)")

    async with case.store() as store:
        for take_back in (False, True):
            with pytest.raises(TransactionMisused, match="ROLLBACK"):
                await case.transact(store, commit(event()), 1, roll_back_and_go_on, take_back=take_back)
        assert await history_of(store) == []
        assert await case.numbers() == []
        expect(Appended, await case.transact(store, commit(event()), 2))


@either
async def test_sqlite_goes_on_after_a_commit_that_a_foreign_key_forbids(made: type[TransactionContract]) -> None:
    """What was judged and written meanwhile is forgotten with it."""
    case = made()
    async with case.store() as store:
        whole = executing("CREATE TABLE whole (number INTEGER PRIMARY KEY)")
        parts = executing("CREATE TABLE parts (n INTEGER REFERENCES whole (number) DEFERRABLE INITIALLY DEFERRED)")
        await case.transact(store, commit(), 1, whole, parts)
        with pytest.raises(sqlite3.IntegrityError):
            await case.transact(store, commit(event("A", "t:1")), 2, executing("INSERT INTO parts VALUES (7)"))
        await append_one(store, event("B", "t:1"))
        expect(Appended, await case.transact(store, commit(event("A", "t:1", "t:2")), 3))
        assert [recorded.type for recorded in await history_of(store)] == ["B", "A"]
        assert await case.numbers() == [1, 3]


@either
async def test_sqlite_works_in_the_callers_context(made: type[TransactionContract]) -> None:
    """Context variables are seen on the writer's thread."""
    case = made()
    seen: list[str] = []
    async with case.store() as store:
        who.set("caller")
        await case.transact(store, commit(), 1, lambda _: seen.append(who.get()))
    assert seen == ["caller"]


@either
async def test_sqlite_sets_back_what_a_handler_has_set(made: type[TransactionContract]) -> None:
    """Rows and texts come to others as before."""
    case = made()
    async with case.store() as store:

        def set_factories(connection: Any) -> None:
            connection.row_factory = sqlite3.Row
            connection.text_factory = bytes

        await case.transact(store, commit(event("A", "t:1"), command_id="c-1"), 1, set_factories)
        await append_one(store, event("B", "t:1"))
        assert [recorded.tags for recorded in await history_of(store)] == [("t:1",), ("t:1",)]


@either
@pytest.mark.skipif(sys.version_info < (3, 12), reason="connections have it since Python 3.12")
@pytest.mark.parametrize("autocommit", [False, True])
async def test_sqlite_sets_back_autocommit(made: type[TransactionContract], *, autocommit: bool) -> None:
    """Whoever sets it is told, and nothing is done; `rollback` of the next one is refused, not ignored."""
    case = made()
    async with case.store() as store:
        for step in (lambda lent: setattr(lent, "autocommit", autocommit), lambda lent: lent.rollback()):
            with pytest.raises(TransactionMisused):
                await case.transact(store, commit(event()), 1, step)
        expect(Appended, await case.transact(store, commit(event()), 2))
        assert await case.numbers() == [2]


@either
async def test_sqlite_interrupts_a_handler_that_takes_too_long(
    made: type[TransactionContract], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a statement, or once it returns; nothing is done, and others go on."""
    monkeypatch.setattr(lent_sqlite, "TRANSACTION_S_MAX", 0)
    case = made()
    async with case.store() as store:
        for steps in ([executing(ENDLESS)], []):
            with pytest.raises(Overloaded, match="TRANSACTION_S_MAX=0"):
                await case.transact(store, commit(event()), 1, *steps)
        await append_one(store, event())
        assert await case.numbers() == []


async def test_sqlite_needs_to_be_told_that_a_file_has_other_tables(tmp_path: Path) -> None:
    """A file that is something else is refused, unless the URL says otherwise; never where a name is taken."""
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
    with pytest.raises(ConfigurationError, match="orders"):
        await connect_sqlite(f"sqlite:{path}", SystemClock()).open()
    for url in (f"sqlite:{path}?own_tables=true", f"sqlite:{path}"):
        async with opened(connect_sqlite(url, SystemClock())) as store:
            await append_one(store, event())
    taken = tmp_path / "taken.db"
    with closing(sqlite3.connect(taken)) as connection:
        connection.execute("CREATE TABLE Events (id INTEGER)")
    with pytest.raises(ConfigurationError, match="names that the event store needs for its own: events"):
        await connect_sqlite(f"sqlite:{taken}?own_tables=true", SystemClock()).open()


# ── PostgreSQL ───────────────────────────────────────────────────────────────


async def test_g2_postgres_cuts_off_who_hangs_between_append_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction is rolled back by the server, and others get its positions."""
    monkeypatch.setattr(postgres_transactions, "APPEND_PAUSE_S_MAX", 0.1)
    hanging, appended = asyncio.Event(), asyncio.Event()
    commit_it = postgres_transactions._LentTransaction._commit

    async def hang(transaction: Any, commit: Commit) -> None:
        appended.set()
        await hanging.wait()
        await commit_it(transaction, commit)

    case = PostgresTransactions()
    async with case.two_stores() as (store, other):
        with monkeypatch.context() as patched:
            patched.setattr(postgres_transactions._LentTransaction, "_commit", hang)
            call = asyncio.create_task(case.transact(store, commit(event("Lost")), 1))
            await appended.wait()
            try:
                assert (await append_one(other, event("Next"))).place.position == 1
            finally:
                hanging.set()
            with pytest.raises(OutcomeUnknown):
                await call
        assert await case.numbers() == []
        assert [recorded.type for recorded in await history_of(other)] == ["Next"]
        expect(Appended, await case.transact(store, commit(event()), 2))


async def test_postgres_says_what_was_done_where_the_connection_is_lost_behind_the_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It cannot be used again, and that is all."""
    commit_it = postgres_transactions._LentTransaction._commit

    async def commit_and_lose(transaction: Any, commit: Commit) -> None:
        await commit_it(transaction, commit)
        transaction._link.terminate()

    monkeypatch.setattr(postgres_transactions._LentTransaction, "_commit", commit_and_lose)
    case = PostgresTransactions()
    async with case.store() as store:
        for number in (1, 2):
            expect(Appended, await case.transact(store, commit(event()), number))
        assert await case.numbers() == [1, 2]


async def test_postgres_tells_of_a_deadlock() -> None:
    """Of two that wait for each other one goes on; the other may be done again."""
    case = PostgresTransactions()
    async with case.store() as store:
        await run(case.url, "INSERT INTO numbers VALUES (-1), (-2)")
        gates = Gate(), Gate()

        def lock(number: int) -> Callable[[Any], Any]:
            return executing(f"UPDATE numbers SET number = number WHERE number = {number}")

        calls = [
            asyncio.create_task(case.transact(store, commit(event()), 1, lock(-1), gates[0].pass_through, lock(-2))),
            asyncio.create_task(case.transact(store, commit(event()), 2, lock(-2), gates[1].pass_through, lock(-1))),
        ]
        for gate in gates:
            await gate.entered()
        for gate in gates:
            gate.open()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Appended", "TransactionAborted"]
        assert len(await history_of(store)) == 1


async def test_postgres_ends_a_handler_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done, and its connection is used again."""
    monkeypatch.setattr(postgres_transactions, "TRANSACTION_S_MAX", 0.1)
    case = PostgresTransactions()
    async with case.store() as store:
        for step in (executing("SELECT pg_sleep(60)"), Gate().pass_through):
            with pytest.raises(Overloaded, match="TRANSACTION_S_MAX"):
                await case.transact(store, commit(event()), 1, step)
        expect(Appended, await case.transact(store, commit(event()), 2))
        assert await case.numbers() == [2]


async def test_postgres_says_nothing_was_done_where_the_connection_is_lost_before_the_commit() -> None:
    """Cut off by the server, or closed by the handler."""
    case = PostgresTransactions()
    async with case.store() as store:
        cut = "SELECT pg_terminate_backend(pg_backend_pid())"
        for step in (executing(cut), lambda connection: connection.close()):
            with pytest.raises(StoreUnavailable, match="nothing was done"):
                await case.transact(store, commit(event()), 1, step)
        expect(Appended, await case.transact(store, commit(event()), 2))
        assert await case.numbers() == [2]


async def test_postgres_tells_of_a_statement_that_failed_and_was_ignored() -> None:
    """The whole transaction has failed with it, unless it was in a savepoint."""

    async def ignore(connection: Link) -> None:
        with pytest.raises(asyncpg.DivisionByZeroError, match="division by zero"):
            await connection.execute("SELECT 1 / 0")

    async def ignore_in_a_savepoint(connection: Link) -> None:
        with pytest.raises(asyncpg.DivisionByZeroError, match="division by zero"):
            async with connection.transaction():
                await connection.execute("SELECT 1 / 0")

    case = PostgresTransactions()
    async with case.store() as store:
        with pytest.raises(TransactionMisused, match="savepoint"):
            await case.transact(store, commit(event()), 1, ignore)
        expect(Appended, await case.transact(store, commit(event()), 2, ignore_in_a_savepoint))
        expect(Appended, await case.transact(store, commit(event()), 3, ignore, take_back=True))
        assert await case.numbers() == [2]


async def test_postgres_checks_what_was_deferred_before_the_append() -> None:
    """A constraint that does not hold is the handler's error; the section was not entered."""
    case = PostgresTransactions()
    async with case.store() as store:
        await run(case.url, "ALTER TABLE numbers ADD CONSTRAINT one UNIQUE (number) DEFERRABLE INITIALLY DEFERRED")
        again = executing("INSERT INTO numbers VALUES (1)")
        with pytest.raises(asyncpg.UniqueViolationError):
            await case.transact(store, commit(event()), 1, again)
        assert await history_of(store) == []


async def test_postgres_sets_back_what_a_handler_has_set() -> None:
    """The next one finds the connection as it was made."""
    case = PostgresTransactions()
    seen: list[Any] = []

    async def look(connection: Link) -> None:
        seen.append(await connection.fetchval("SHOW search_path"))

    async with case.store() as store:
        await case.transact(store, commit(), 1, look, executing("SET search_path = pg_catalog"))
        await case.transact(store, commit(), 2, look)
        assert seen[0] == seen[1]


# ── in memory ────────────────────────────────────────────────────────────────


async def test_memory_lends_nothing_that_is_not_named() -> None:
    """Then there are no tables of its users."""
    assert not isinstance(connect_memory("memory:", SystemClock()), Transactional)
    assert isinstance(connect_memory("memory:?own_tables=bank", SystemClock()), Transactional)
    for url in ("memory:bank", "memory:?own_tables=", "memory:?own_tables=a/b", "memory:?own_tables=a&b=c"):
        with pytest.raises(ConfigurationError, match="own_tables=<name>"):
            connect_memory(url, SystemClock())


async def test_memory_tells_of_somebody_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stays in the middle of a transaction locks the tables: nothing is done, and it can be done later."""
    monkeypatch.setattr(own_tables, "TABLES_WAIT_S", 0)
    case = MemoryTransactions()
    async with case.store() as store:
        with closing(sqlite3.connect(case.path, uri=True, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="TABLES_WAIT_S"):
                await case.transact(store, commit(event()), 1)
            other.execute("ROLLBACK")
        expect(Appended, await case.transact(store, commit(event()), 2))
        assert await case.numbers() == [2]


def test_memory_lets_work_end_whose_loop_ends() -> None:
    """Nobody is there any more to hear of it; the tables are not locked, and they and the events are as one."""
    case = MemoryTransactions()
    store = connect_memory("memory:?own_tables=numbers", SystemClock())

    async def abandon() -> None:
        await store.open()
        gate = Gate()
        call = asyncio.create_task(case.transact(store, commit(event()), 1, gate.pass_through))
        await gate.entered()
        call.add_done_callback(lambda _: gate.open())  # the loop ends: all that runs on it is cancelled

    async def look() -> None:
        assert len(await history_of(store)) == 1
        expect(Appended, await case.transact(store, commit(event()), 2))
        assert await case.numbers() == [1, 2]
        await store.close()

    with closing(sqlite3.connect(case.path, uri=True)) as connection:
        connection.execute("CREATE TABLE numbers (number INTEGER)")
        asyncio.run(abandon())
        asyncio.run(look())


async def test_memory_refuses_a_sqlite_that_shares_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables would be others than those that were made."""
    monkeypatch.setattr(own_tables, "SHARING_SQLITE_MIN", (99, 0, 0))
    with pytest.raises(StoreUnavailable, match=r"own tables in memory need 99\.0\.0"):
        await connect_memory("memory:?own_tables=numbers", SystemClock()).open()
