"""What the SQLite event store does when its file is locked, full, foreign, newer, copied, replaced, or fails."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from anyio.lowlevel import checkpoint

from diptych.adapters.connect import connect_event_store
from diptych.adapters.sqlite import connection as sqlite_connection
from diptych.adapters.sqlite.event_schema import EVENT_STORE_FORMAT
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.clock import SystemClock
from diptych.errors import (
    ConfigurationError,
    HistoryDiverged,
    NewerStore,
    OutcomeUnknown,
    Overloaded,
    StoreUnavailable,
)
from diptych.event_store.event_query import ALL_EVENTS
from diptych.event_store.event_store import (
    Appended,
    Conflicting,
    Duplicate,
    EventStore,
    KeptState,
    ModelState,
    StoredType,
)
from diptych.event_store.model_unions import NONE_KEPT, ModelUnion
from diptych.event_store.position import Position
from diptych.event_store.tagging import UNTOUCHED
from diptych.testing.contracts.event_store_case import append_one, commit, condition, event, expect, history_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteEventStore]:
    store = SqliteEventStore(str(path), SystemClock(), lock_wait_s=20.0)
    await store.open()
    yield store
    await store.close()


def by_hand(path: Path) -> sqlite3.Connection:
    """A connection that keeps no turn: somebody's shell."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


# ── locks ────────────────────────────────────────────────────────────────────


async def test_a_locked_file_is_unavailable_past_the_limit(path: Path) -> None:
    """A lock that outlasts the limit ends in StoreUnavailable with nothing done; the store works on once it is gone."""
    store = SqliteEventStore(str(path), SystemClock(), lock_wait_s=0.05)
    await store.open()
    shell = by_hand(path)
    shell.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="LOCK_WAIT_S"):
        await store.append([commit(event(), command_id="c-1")])
    assert await store.outcome("c-1") is None
    shell.execute("ROLLBACK")
    (result,) = await store.append([commit(event(), command_id="c-1")])
    assert expect(Appended, result).place.position == 1
    shell.close()
    await store.close()


async def test_a_locked_file_holds_up_neither_the_loop_nor_readers(path: Path, store: SqliteEventStore) -> None:
    """While an append waits for the lock, the loop runs and reads answer; callers then have their turn in order."""
    shell = by_hand(path)
    shell.execute("BEGIN IMMEDIATE")
    waiting: list[asyncio.Task[Any]] = []
    for _ in range(5):
        waiting.append(asyncio.create_task(store.append([commit(event())])))
        await checkpoint()
    assert await history_of(store) == []
    assert not any(task.done() for task in waiting)
    shell.execute("ROLLBACK")
    results = [result for task in waiting for result in await task]
    assert [expect(Appended, result).place.position for result in results] == [1, 2, 3, 4, 5]
    shell.close()


async def test_cancelling_a_caller_does_not_cancel_its_commit(path: Path, store: SqliteEventStore) -> None:
    """A commit whose caller has gone, under way or still queued, is made, wakes who waits, and is found by its id."""
    shell = by_hand(path)
    shell.execute("BEGIN IMMEDIATE")
    ids = ["c-1", "c-2", "c-3"]
    callers = [asyncio.create_task(store.append([commit(event(), command_id=command_id)])) for command_id in ids]
    await checkpoint()
    for caller in callers:
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    shell.execute("ROLLBACK")
    assert await store.wait_for_events(Position(2), 20.0)
    assert None not in [await store.outcome(command_id) for command_id in ids]
    shell.close()


async def test_whoever_waits_is_the_next_to_write(path: Path, store: SqliteEventStore) -> None:
    """A writer that waits holds the turnstile, so that others queue behind it, and leaves it once it writes."""
    fcntl = pytest.importorskip("fcntl")
    queue = path.with_name("events.db-queue")

    def turnstile_is_free() -> bool:
        with queue.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    with queue.open("ab") as ahead:
        fcntl.flock(ahead, fcntl.LOCK_EX)
        behind = asyncio.create_task(store.append([commit(event())]))
        await checkpoint()
        assert not behind.done()
        assert await history_of(store) == []
    assert expect(Appended, (await behind)[0]).place.position == 1

    shell = by_hand(path)
    shell.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.append([commit(event())]))
    while turnstile_is_free():
        await checkpoint()  # until the writer's thread has entered; the test's own limit ends a wait in vain
    shell.execute("ROLLBACK")
    assert expect(Appended, (await waiting)[0]).place.position == 2
    assert turnstile_is_free()
    shell.close()


async def test_waiting_work_is_bounded(path: Path, store: SqliteEventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit on waiting callers the next one is Overloaded, with nothing done."""
    monkeypatch.setattr(sqlite_connection, "WAITING_WORK_MAX", 2)
    shell = by_hand(path)
    shell.execute("BEGIN IMMEDIATE")
    waiting = [asyncio.create_task(store.append([commit(event())])) for _ in range(2)]
    await checkpoint()
    with pytest.raises(Overloaded, match="WAITING_WORK_MAX"):
        await store.append([commit(event())])
    shell.execute("ROLLBACK")
    await asyncio.gather(*waiting)
    assert len(await history_of(store)) == 2
    shell.close()


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
async def test_nothing_overtakes_a_transaction_held_open(path: Path, store: SqliteEventStore, ending: str) -> None:
    """Between insert and commit of another writer nobody gets a position, and no reader sees what comes behind."""
    await store.append([commit(event("First", "tag"))])
    shell = by_hand(path)
    shell.execute("BEGIN IMMEDIATE")
    shell.execute(
        "INSERT INTO events SELECT 2, type, version, recorded_at, x'00112233445566778899aabbccddeeff', data, tags, "
        "metadata FROM events WHERE position = 1"
    )
    shell.execute("INSERT INTO event_tags SELECT tag, 2, type FROM event_tags WHERE position = 1")
    decided = commit(event("Decided"), conditions=[condition(1, tags={"tag"})])
    overtaking = [asyncio.create_task(store.append([each])) for each in (commit(event("Free")), decided)]
    for _ in range(10):
        await checkpoint()
        assert len(await history_of(store)) == 1
    assert not any(task.done() for task in overtaking)
    shell.execute(ending)
    (free,), (judged,) = [await task for task in overtaking]
    if ending == "COMMIT":
        assert expect(Appended, free).place.position == 3
        assert expect(Conflicting, judged).position == 2
        assert len(await history_of(store)) == 3
    else:
        assert expect(Appended, free).place.position == 2
        assert expect(Appended, judged).place.position == 3
    shell.close()


# ── disk ─────────────────────────────────────────────────────────────────────


async def test_a_full_disk_leaves_nothing_half_done(store: SqliteEventStore) -> None:
    """Without room an append is StoreUnavailable and leaves no trace; with room again, the same commits go through."""
    await store.append([commit(event("First"))])
    writing = store._writer._connection
    assert writing is not None
    (pages,) = writing.execute("PRAGMA page_count").fetchone()
    writing.execute(f"PRAGMA max_page_count = {pages + 10}")
    batch = [commit(event("Large", f"tag:{i}", data=b"1" * 10_000), command_id=f"c-{i}") for i in range(50)]
    with pytest.raises(StoreUnavailable, match="full"):
        await store.append(batch)
    assert [recorded.type for recorded in await history_of(store)] == ["First"]
    assert await store.outcome("c-0") is None
    writing.execute("PRAGMA max_page_count = 100000")
    results = await store.append(batch)
    assert [expect(Appended, result).place.position for result in results] == list(range(2, 52))


class FailingConnection(sqlite3.Connection):
    """Commits, or not, and then says that the disk failed."""

    commit_first = True
    fails = True

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement != "COMMIT" or not self.fails:
            return super().execute(statement, *parameters)
        self.fails = False
        if self.commit_first:
            super().execute(statement)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error


@pytest.mark.parametrize("commit_first", [True, False])
async def test_a_disk_that_fails_while_committing_leaves_the_outcome_unknown(
    path: Path, store: SqliteEventStore, commit_first: bool
) -> None:
    """The caller hears OutcomeUnknown, and by sending the same commit again what became of it: it is there once."""
    assert store._writer._connection is not None
    store._writer._connection.close()
    failing = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=FailingConnection)
    failing.commit_first = commit_first
    store._writer._connection = failing
    sent = commit(event("A", "a"), command_id="c-1")
    with pytest.raises(OutcomeUnknown) as raised:
        await store.append([sent])
    assert raised.value.command_id == "c-1"
    (result,) = await store.append([sent])
    expect(Duplicate if commit_first else Appended, result)
    (later,) = await store.append([commit(event("B"), conditions=[condition(1)])])
    assert expect(Appended, later).place.position == 2
    assert [recorded.type for recorded in await history_of(store)] == ["A", "B"]


# ── files ────────────────────────────────────────────────────────────────────


async def test_a_newer_file_is_left_alone(path: Path, store: SqliteEventStore) -> None:
    """A file with a newer schema version is neither read nor changed."""
    await store.close()
    shell = by_hand(path)
    shell.execute("PRAGMA user_version = 99")
    with pytest.raises(NewerStore) as raised:
        await store.open()
    assert (raised.value.found, raised.value.known) == (99, EVENT_STORE_FORMAT.version)
    assert shell.execute("PRAGMA user_version").fetchone() == (99,)
    shell.close()


@pytest.mark.parametrize("version", [1, 2])
async def test_an_older_file_is_upgraded(path: Path, store: SqliteEventStore, version: int) -> None:
    """It gets the tables that it lacks, of states and of horizons, and keeps what it has."""
    await append_one(store, event("A"))
    await store.close()
    shell = by_hand(path)
    as_version_2(shell)
    if version == 1:
        shell.execute("DROP TABLE model_states")
        shell.execute("PRAGMA user_version = 1")
    await store.open()
    (result,) = await store.append([commit(event("B"), states=[ModelState("shop.Product", "1", "a", b"{}")])])
    assert expect(Appended, result).place.position == 2
    assert await store.model_state("shop.Product", "1") == KeptState("a", b"{}", Position(2))
    assert await store.horizons() == {}
    assert shell.execute("PRAGMA user_version").fetchone() == (EVENT_STORE_FORMAT.version,)
    assert [recorded.type for recorded in await history_of(store)] == ["A", "B"]
    shell.close()


async def test_a_file_of_before_schemas_were_kept_is_upgraded(path: Path, store: SqliteEventStore) -> None:
    """What it has stays; what was not known of its types is still not known, and its events can be tagged anew."""
    await store.register_types([StoredType("A", 1, ("x",))])
    await append_one(store, event("A", "x:1"))
    await store.close()
    shell = by_hand(path)
    as_version_2(shell)
    await store.open()
    assert shell.execute("PRAGMA user_version").fetchone() == (EVENT_STORE_FORMAT.version,)
    assert await store.stored_types() == [StoredType("A", 1, ("x",), None)]
    assert await store.tagging() == UNTOUCHED
    await append_one(store, event("A", "x:2"))
    begun = await store.begin_retag([("A", 1)], UNTOUCHED)
    await store.write_tags(begun, [((await history_of(store))[0], ("y:1",))])
    await store.end_retag(begun, [StoredType("A", 1, ("y",))], [])
    assert await store.stored_types() == [StoredType("A", 1, ("y",), None)]
    assert [recorded.tags for recorded in await history_of(store)] == [("y:1",), ("x:2",)]
    shell.close()


def as_version_2(shell: sqlite3.Connection) -> None:
    """Make of a file what Diptych made before it kept schemas and horizons."""
    as_version_3(shell)
    for table, column in ("history", "tagging"), ("history", "unfinished"), ("event_versions", "facts"):
        shell.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    shell.execute("DROP TABLE horizons")
    shell.execute("PRAGMA user_version = 2")


def as_version_3(shell: sqlite3.Connection) -> None:
    """Make of a file what Diptych made before it kept which events models fold."""
    shell.execute("DROP TABLE model_unions")
    shell.execute("ALTER TABLE history DROP COLUMN models")
    shell.execute("PRAGMA user_version = 3")


async def test_a_file_of_before_models_were_kept_is_upgraded(path: Path, store: SqliteEventStore) -> None:
    """It keeps what it has; nothing is known of models until some are kept."""
    await append_one(store, event("A"))
    await store.close()
    shell = by_hand(path)
    as_version_3(shell)
    shell.close()
    await store.open()
    assert await store.stored_models() == NONE_KEPT
    order = ModelUnion("shop.Order", 1, ("A",))
    assert await store.keep_models([order], b"")
    found = await store.stored_models()
    assert (found.models, [recorded.type for recorded in await history_of(store)]) == ((order,), ["A"])


async def test_another_applications_file_is_left_alone(path: Path) -> None:
    """A SQLite file that is not ours is refused by name, with its tables, and gets none of ours."""
    shell = by_hand(path)
    shell.execute("CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(ConfigurationError, match=r"events\.db .* tables invoices"):
        await SqliteEventStore(str(path), SystemClock()).open()
    assert shell.execute("SELECT name FROM sqlite_schema").fetchall() == [("invoices",)]
    shell.close()


async def test_what_is_no_database_is_named(path: Path) -> None:
    """A text file is refused as what it is."""
    path.write_text("position,type\n" * 100)
    with pytest.raises(StoreUnavailable, match="no SQLite database"):
        await SqliteEventStore(str(path), SystemClock()).open()


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A path into a folder that is not there is refused with what to check."""
    with pytest.raises(StoreUnavailable, match="folder"):
        await SqliteEventStore(str(tmp_path / "missing" / "events.db"), SystemClock()).open()


@pytest.mark.parametrize("url", ["sqlite:", "sqlite::memory:", "memory:named"])
async def test_a_url_without_a_file_is_refused(url: str) -> None:
    """What cannot be a store of its kind is a ConfigurationError before anything is opened."""
    with pytest.raises(ConfigurationError):
        connect_event_store(url, SystemClock())


async def test_a_copy_that_went_its_own_way_is_told_by_its_places(path: Path, store: SqliteEventStore) -> None:
    """A copied file goes on under the same history id; a place of one is refused by what the other holds there."""
    await store.append([commit(event("Shared"))])
    await store.close()
    copied = path.with_name("copy.db")
    shutil.copy(path, copied)
    await store.open()
    copy = connect_event_store(f"sqlite:{copied}", SystemClock())
    await copy.open()
    assert copy.history_id == store.history_id
    shared = await store.head()
    for each in (store, copy):
        await each.append([commit(event("Own"))])
    mine = await store.head()
    assert shared == await copy.place_at(Position(1))
    theirs = await copy.place_at(mine.position)
    assert theirs is not None
    with pytest.raises(HistoryDiverged):
        mine.check(copy.history_id, theirs.event_id, "token")
    await copy.close()


@pytest.mark.parametrize("events_behind", [0, 2])
async def test_a_file_replaced_under_the_store_is_not_written_to(
    path: Path, store: SqliteEventStore, events_behind: int
) -> None:
    """A backup restored into the open file is noticed at the next append, however long its history is by then."""
    await store.append([commit(event("Shared"))])
    backup = by_hand(path.with_name("backup.db"))
    shell = by_hand(path)
    shell.backup(backup)
    await store.append([commit(event("Lost"))])
    await store.append([])
    backup.backup(shell)
    other: EventStore = SqliteEventStore(str(path), SystemClock())
    if events_behind:
        await other.open()
        await other.append([commit(event("Else")) for _ in range(events_behind)])
        await other.close()
    with pytest.raises(HistoryDiverged):
        await store.append([commit(event("Astray"))])
    types = [recorded.type for recorded in (await store.read(ALL_EVENTS, Position(0), 10)).events]
    assert types == ["Shared", *["Else"] * events_behind]
    backup.close()
    shell.close()


async def test_a_type_of_a_batch_that_was_taken_back_is_forgotten(store: SqliteEventStore) -> None:
    """Two versions of a new type, in a batch begun again since an outcome was kept: its events keep their name."""
    await store.append([commit(event("Known"), command_id="c-1")])
    both = [event("New", version=1), event("New", version=2)]
    duplicate, appended = await store.append([commit(event("Other"), command_id="c-1"), commit(*both)])
    expect(Duplicate, duplicate)
    expect(Appended, appended)
    await store.append([commit(event("Later"), event("New"))])
    assert [found.type for found in await history_of(store)] == ["Known", "New", "New", "Later", "New"]
