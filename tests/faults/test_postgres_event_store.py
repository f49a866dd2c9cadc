"""What the PostgreSQL event store does when others hold its lock, cut its connections, or set the server otherwise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from anyio.lowlevel import checkpoint

from diptych.adapters.postgres import connection, event_slices, event_store, event_watch
from diptych.adapters.postgres.connection import Connections, Link, parse_url
from diptych.adapters.postgres.event_store import PostgresEventStore, connect
from diptych.adapters.postgres.matching_events import STREAMS_MAX
from diptych.clock import SystemClock
from diptych.errors import (
    HistoryDiverged,
    OutcomeUnknown,
    Overloaded,
    StoreClosed,
    StoreUnavailable,
)
from diptych.event_store.event_query import ALL_EVENTS, EventQuery
from diptych.event_store.event_store import Appended, Conflicting, Duplicate
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_case import (
    append_one,
    commit,
    condition,
    event,
    expect,
    history_of,
    item,
    opened,
)
from tests.postgres_line import Line
from tests.postgres_server import by_hand, new_store, server_url, statements_of, with_parameter

pytestmark = pytest.mark.anyio

WAIT_S = 20.0
"""How long a test waits for what has to happen."""
LOCK = "SELECT * FROM history FOR UPDATE"
BLOCKED = "SELECT DISTINCT pid FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
"""Who waits for this connection. (Within a transaction, pg_stat_activity shows what it showed first.)"""


@pytest.fixture
async def url() -> str:
    return await new_store()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresEventStore]:
    async with opened(PostgresEventStore(parse_url(url), SystemClock(), lock_wait_s=WAIT_S)) as store:
        assert isinstance(store, PostgresEventStore)
        yield store


@pytest.fixture
async def shell(url: str) -> AsyncIterator[Link]:
    """A connection by hand that sees the store's schema."""
    async with by_hand(url) as link:
        await link.execute(f"SET search_path = {parse_url(url).schema}")
        yield link


async def until(shell: Link, statement: str, *arguments: object) -> None:
    """Ask until the answer is true; the test's own limit ends a wait in vain."""
    while not await shell.fetchval(statement, *arguments):
        await checkpoint()


async def until_blocked(shell: Link, count: int = 1) -> None:
    """Until so many others wait for a lock of this connection."""
    await until(shell, f"SELECT count(*) >= $1 FROM ({BLOCKED}) AS waiting", count)


# ── locks ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
async def test_nothing_overtakes_a_transaction_held_open(
    url: str, store: PostgresEventStore, shell: Link, ending: str
) -> None:
    """Between insert and commit of another writer nobody gets a position, no reader sees more; a rollback is no gap."""
    await append_one(store, event("First", "tag"))
    await shell.execute("BEGIN")
    await shell.execute(LOCK)
    await shell.execute(
        "INSERT INTO events SELECT 2, recorded_at, type, version, '\\x00112233445566778899aabbccddeeff', data, tags, "
        "metadata FROM events WHERE position = 1"
    )
    await shell.execute("INSERT INTO event_tags SELECT tag, 2, type FROM event_tags WHERE position = 1")
    await shell.execute("UPDATE history SET position = 2, event_id = '\\x00112233445566778899aabbccddeeff'")
    decided = commit(event("Decided"), conditions=[condition(1, tags={"tag"})])
    async with opened(connect(url, SystemClock())) as other:
        free = asyncio.create_task(store.append([commit(event("Free"))]))
        await until_blocked(shell)
        judged = asyncio.create_task(other.append([decided]))
        for _ in range(10):
            assert len(await history_of(store)) == 1
        assert not free.done()
        assert not judged.done()
        await shell.execute(ending)
        (first,), (second,) = await free, await judged
        if ending == "COMMIT":
            assert expect(Appended, first).place.position == 3
            assert expect(Conflicting, second).position == 2
            assert len(await history_of(store)) == 3
        else:
            taken = {expect(Appended, result).place.position for result in (first, second)}
            assert taken == {2, 3}
            assert len(await history_of(store)) == 3


async def test_a_lock_held_too_long_is_unavailable(url: str, shell: Link) -> None:
    """Past the limit an append is StoreUnavailable with nothing done; the store works on once the lock is gone."""
    impatient = PostgresEventStore(parse_url(url), SystemClock(), lock_wait_s=0.05)
    async with opened(impatient) as store:
        await shell.execute("BEGIN")
        await shell.execute(LOCK)
        with pytest.raises(StoreUnavailable, match="lock"):
            await store.append([commit(event(), command_id="c-1")])
        await shell.execute("ROLLBACK")
        assert await store.outcome("c-1") is None
        (result,) = await store.append([commit(event(), command_id="c-1")])
        assert expect(Appended, result).place.position == 1


async def test_cancelling_a_caller_does_not_cancel_its_commit(store: PostgresEventStore, shell: Link) -> None:
    """A commit whose caller has gone, under way or still queued, is made, wakes who waits, and is found by its id."""
    await shell.execute("BEGIN")
    await shell.execute(LOCK)
    ids = ["c-1", "c-2", "c-3"]
    callers = [asyncio.create_task(store.append([commit(event(), command_id=command_id)])) for command_id in ids]
    await until_blocked(shell)
    for caller in callers:
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    await shell.execute("ROLLBACK")
    assert await store.wait_for_events(Position(2), WAIT_S)
    assert None not in [await store.outcome(command_id) for command_id in ids]


async def test_closing_finishes_what_was_submitted(url: str, shell: Link) -> None:
    """An append that is under way when the store is closed is made, and its caller hears so."""
    store = connect(url, SystemClock())
    await store.open()
    await shell.execute("BEGIN")
    await shell.execute(LOCK)
    appending = asyncio.create_task(store.append([commit(event(), command_id="c-1")]))
    await until_blocked(shell)
    closing = asyncio.create_task(store.close())
    for _ in range(20):  # time enough for all else that closing does
        await until_blocked(shell)
    assert not closing.done()
    await shell.execute("ROLLBACK")
    await closing
    assert appending.done()
    assert expect(Appended, (await appending)[0]).place.position == 1


async def test_a_cancelled_read_harms_no_other(store: PostgresEventStore, shell: Link) -> None:
    """A reader that goes away gives its connection up; all others are answered."""
    await append_one(store, event())
    await shell.execute("BEGIN")
    await shell.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
    gone = [asyncio.create_task(history_of(store)) for _ in range(event_store.READ_CONNECTIONS_MAX + 2)]
    await until_blocked(shell, event_store.READ_CONNECTIONS_MAX)
    for reading in gone:
        reading.cancel()
    await asyncio.wait(gone)
    await shell.execute("ROLLBACK")
    assert [len(events) for events in await asyncio.gather(*(history_of(store) for _ in range(9)))] == [1] * 9


async def test_waiting_calls_are_bounded(
    store: PostgresEventStore, shell: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the limit on waiting callers the next one is Overloaded, with nothing done."""
    monkeypatch.setattr(connection, "WAITING_CALLS_MAX", 1)
    await shell.execute("BEGIN")
    await shell.execute(LOCK)
    waiting = [asyncio.create_task(store.append([commit(event())])) for _ in range(2)]
    await until_blocked(shell)
    with pytest.raises(Overloaded, match="WAITING_CALLS_MAX"):
        await store.append([commit(event())])
    await shell.execute("ROLLBACK")
    await asyncio.gather(*waiting)
    assert len(await history_of(store)) == 2


async def test_a_turn_that_was_handed_on_is_nobody_elses(url: str) -> None:
    """Who asks for a connection just when it is given back does not overtake who waits: no other one is made."""
    made = 0

    async def verify(link: Link) -> None:
        nonlocal made
        made += 1

    pool = Connections(parse_url(url), 1, read_only=False, verify=verify)
    pool.open()

    async def use_twice() -> None:
        await pool.rows("SELECT 1")
        await pool.rows("SELECT 1")

    await asyncio.gather(use_twice(), use_twice())
    await pool.close()
    assert made == 1


async def test_a_turn_whose_taker_has_gone_goes_to_the_next(url: str) -> None:
    """Cancelled in the very moment in which the turn comes, or refused because of a close: none is lost."""

    async def verify(link: Link) -> None: ...

    pool = Connections(parse_url(url), 1, read_only=False, verify=verify)
    pool.open()
    held = pool.connection()
    await held.__aenter__()
    gone = asyncio.create_task(pool.rows("SELECT 1"))
    next_one = asyncio.create_task(pool.rows("SELECT 2"))
    while len(pool._waiting) < 2:
        await checkpoint()
    await held.__aexit__(None, None, None)
    gone.cancel()
    assert [tuple(row) for row in await asyncio.wait_for(next_one, WAIT_S)] == [(2,)]
    assert pool._used == 0

    await (held := pool.connection()).__aenter__()
    refused = asyncio.create_task(pool.rows("SELECT 3"))
    while not pool._waiting:
        await checkpoint()
    await held.__aexit__(None, None, None)
    await pool.close()
    with pytest.raises(StoreClosed):
        await refused
    assert pool._used == 0


async def test_no_free_connection_is_unavailable_in_the_end(
    store: PostgresEventStore, shell: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a connection longer than the limit hears so, and takes nobody's turn."""
    await shell.execute("BEGIN")
    await shell.execute(LOCK)
    first = asyncio.create_task(store.append([commit(event())]))
    await until_blocked(shell)
    monkeypatch.setattr(connection, "CONNECTION_WAIT_S_MAX", 0.01)
    with pytest.raises(StoreUnavailable, match="CONNECTION_WAIT_S_MAX"):
        await store.append([commit(event("Late"))])
    await shell.execute("ROLLBACK")
    expect(Appended, (await first)[0])
    assert expect(Appended, (await store.append([commit(event("Next"))]))[0]).place.position == 2


# ── many processes ───────────────────────────────────────────────────────────

PROCESSES, STORES, ROUNDS = 4, 4, 12
RACER = """
import asyncio, sys
from diptych.adapters.postgres.event_store import connect
from diptych.clock import SystemClock
from diptych.event_store.event_store import Appended
from diptych.testing.contracts.event_store_case import commit, condition, event

async def race(store):
    won = 0
    for number in range(rounds):
        tag = f"round:{number}"
        decided = commit(event("Taken", tag), conditions=[condition(0, {"Taken"}, {tag})])
        filler = commit(event("Filler"))
        results = await store.append([filler, decided])
        won += isinstance(results[1], Appended)
    return won

async def main():
    opened = [connect(url, SystemClock()) for _ in range(stores)]
    for store in opened:
        await store.open()
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(await asyncio.gather(*map(race, opened))), flush=True)
    for store in opened:
        await store.close()

url, stores, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
asyncio.run(main())
"""


async def test_of_racing_processes_exactly_one_wins_each_round(url: str, store: PostgresEventStore) -> None:
    """Sixteen stores in four processes want the same boundary, round by round: one commits, the rest are told."""
    command = [sys.executable, "-c", RACER, url, str(STORES), str(ROUNDS)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [int(racer.communicate(timeout=WAIT_S)[0]) for racer in racers]
    events = await history_of(store)
    taken = [recorded.tags for recorded in events if recorded.type == "Taken"]
    assert sorted(taken) == sorted((f"round:{number}",) for number in range(ROUNDS))
    assert sum(won) == ROUNDS
    assert len(events) == PROCESSES * STORES * ROUNDS + ROUNDS


# ── lost connections ─────────────────────────────────────────────────────────

CUT_BLOCKED = f"SELECT pg_terminate_backend(pid) FROM ({BLOCKED}) AS waiting"
CUT_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


async def test_a_connection_cut_while_appending_leaves_the_outcome_unknown(
    store: PostgresEventStore, shell: Link
) -> None:
    """The caller hears OutcomeUnknown; the same commits again, on a new connection, are made."""
    await shell.execute("BEGIN")
    await shell.execute(LOCK)
    sent = commit(event("A", "a"), conditions=[condition(0, tags={"a"})], command_id="c-1")
    appending = asyncio.create_task(store.append([sent]))
    await until_blocked(shell)
    await shell.execute(CUT_BLOCKED)
    with pytest.raises(OutcomeUnknown) as raised:
        await appending
    assert raised.value.command_id == "c-1"
    await shell.execute("ROLLBACK")
    (result,) = await store.append([sent])
    assert expect(Appended, result).place.position == 1
    assert len(await history_of(store)) == 1


async def test_an_answer_lost_after_the_commit_leaves_the_outcome_unknown(
    url: str, shell: Link, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The commit is durable, its answer is lost: OutcomeUnknown; sent again it is a duplicate, and is there once."""
    line = Line(url, tmp_path_factory.mktemp("l"))
    async with opened(connect(await line.open(), SystemClock())) as store:
        await append_one(store, event("First"))
        line.swallows = True
        sent = commit(event("A", "a"), conditions=[condition(0, tags={"a"})], command_id="c-1")
        appending = asyncio.create_task(store.append([sent]))
        await until(shell, "SELECT position = 2 FROM history")
        line.cut()
        line.swallows = False
        with pytest.raises(OutcomeUnknown, match="c-1"):
            await appending
        (result,) = await store.append([sent])
        assert expect(Duplicate, result).outcome.place.position == 2
        assert len(await history_of(store)) == 2
    await line.close()


async def test_what_is_kept_back_since_the_server_says_goodbye_is_known_not_to_be_done(
    url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The goodbye has come, the end of the line has not: nothing is sent any more, and the next call goes through."""
    line = Line(url, tmp_path_factory.mktemp("l"))
    async with opened(connect(await line.open(), SystemClock())) as store:
        await append_one(store, event("First"))
        await line.say_goodbye()
        with pytest.raises(StoreUnavailable, match="nothing was done"):
            await store.append([commit(event("A"))])
        await append_one(store, event("A"))
        assert len(await history_of(store)) == 2
    await line.close()


async def test_a_server_that_cut_every_connection_is_used_again(shell: Link, store: PostgresEventStore) -> None:
    """After a restart the next read and the next append go through, on new connections."""
    await append_one(store, event("A"))
    await asyncio.gather(*(history_of(store) for _ in range(4)))
    assert len(store._reading._idle) == 4
    await shell.execute(CUT_ALL)
    assert len(await history_of(store)) == 1
    for _ in range(2):  # the first may find out only now that its connection is gone
        try:
            (result,) = await store.append([commit(event("B"), command_id="c-1")])
        except OutcomeUnknown:
            continue
        assert isinstance(result, Appended | Duplicate)
    assert len(await history_of(store)) == 2


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """Opening says what is wrong: no server, no database; and the store can be opened later."""
    nowhere = connect(f"postgresql://postgres:secret@/postgres?host={tmp_path}", SystemClock())
    with pytest.raises(StoreUnavailable, match="can be reached") as raised:
        await nowhere.open()
    assert "secret" not in str(raised.value)
    missing = urlunsplit(urlsplit(server_url())._replace(path="/missing"))
    with pytest.raises(StoreUnavailable, match="no such database"):
        await connect(missing, SystemClock()).open()


async def test_a_history_that_was_replaced_is_not_followed(url: str, store: PostgresEventStore, shell: Link) -> None:
    """Where the last known event is gone, or is another one, the next append says so, once, and does nothing.

    With another history id, which no failover brings, it says so until it is opened again.
    """
    await append_one(store, event("A"), event("B", "b"))
    await shell.execute("DELETE FROM events WHERE position = 2")
    await shell.execute("UPDATE history SET position = 1, event_id = (SELECT event_id FROM events WHERE position = 1)")
    with pytest.raises(HistoryDiverged, match="ends before position 2"):
        await store.append([commit(event("C"))])
    async with opened(connect(url, SystemClock())) as other:
        await append_one(other, event("Other"))
    assert store.forks == 1
    await append_one(store, event("C"))
    assert [recorded.type for recorded in await history_of(store)] == ["A", "Other", "C"]
    await shell.execute("UPDATE events SET event_id = '\\x00112233445566778899aabbccddeeff' WHERE position = 3")
    await shell.execute("UPDATE history SET event_id = '\\x00112233445566778899aabbccddeeff'")
    with pytest.raises(HistoryDiverged, match="another event is at position 3"):
        await store.append([commit(event("D"))])
    await shell.execute("UPDATE history SET history_id = '\\x00112233445566778899aabbccddeeff'")
    for _ in range(2):
        with pytest.raises(HistoryDiverged, match="another history id"):
            await store.append([commit(event("D"))])
    assert store.forks == 2
    await store.close()
    await store.open()
    assert store.history_id.hex() == "00112233445566778899aabbccddeeff"
    assert len(await history_of(store)) == 3


@pytest.mark.parametrize("waits", [False, True])
async def test_a_new_connection_finds_a_history_that_was_replaced(
    url: str, store: PostgresEventStore, shell: Link, waits: bool
) -> None:
    """What was only read is known too: whoever waits or reads is told, and who keeps something of it sees `forks`."""
    async with opened(connect(url, SystemClock())) as other:
        await append_one(other, event("A"), event("B"))
    assert len(await history_of(store)) == 2
    waiting = asyncio.create_task(store.wait_for_events(Position(2), WAIT_S)) if waits else None
    if waiting is not None:
        await asyncio.wait([waiting], timeout=0)
    await shell.execute("UPDATE events SET event_id = '\\x00112233445566778899aabbccddeeff' WHERE position = 2")
    await shell.execute("UPDATE history SET event_id = '\\x00112233445566778899aabbccddeeff'")
    await shell.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database() AND application_name = 'diptych'"
    )
    if waiting is not None:
        assert not await waiting
    else:
        with pytest.raises(HistoryDiverged, match="what was read"):
            await history_of(store)
    assert store.forks == 1
    assert [recorded.type for recorded in await history_of(store)] == ["A", "B"]
    assert (await store.head()).event_id.hex() == "00112233445566778899aabbccddeeff"


# ── waking up ────────────────────────────────────────────────────────────────


@pytest.fixture
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_watch, "POLL_S", 1_000.0)
    monkeypatch.setattr(event_watch, "POLL_DEAF_S", 1_000.0)


async def listening(store: PostgresEventStore) -> None:
    while not store._watch._wake_ups.is_listening:
        await checkpoint()


@pytest.mark.usefixtures("never_polls")
async def test_a_notification_wakes_without_polling(url: str, store: PostgresEventStore) -> None:
    """An append of another instance is noticed by its notification, however rarely the store polls."""
    async with opened(connect(url, SystemClock())) as other:
        waiting = asyncio.create_task(store.wait_for_events(Position(0), WAIT_S))
        await listening(store)
        assert not waiting.done()
        await append_one(other, event())
        assert await waiting


async def test_a_lost_notification_delays_only_to_the_next_poll(
    url: str, store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where commits are not told, who waits still finds them; and polls no longer once nobody waits."""
    monkeypatch.setattr(event_watch, "POLL_S", 0.01)
    async with opened(connect(url, SystemClock())) as other:
        assert isinstance(other, PostgresEventStore)
        other._channel = "somewhere_else"
        waiting = asyncio.create_task(store.wait_for_events(Position(0), WAIT_S))
        await listening(store)
        await append_one(other, event())
        assert await waiting
        while store._watch._poll is not None:
            await checkpoint()


async def test_a_listener_that_is_cut_listens_again(url: str, store: PostgresEventStore, shell: Link) -> None:
    """While it is down who waits polls, and hears; the listener is back by itself while somebody waits."""
    async with opened(connect(url, SystemClock())) as other:
        waiting = asyncio.create_task(store.wait_for_events(Position(0), WAIT_S))
        await listening(store)
        cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE $1"
        assert await shell.fetchval(cut, f"LISTEN%{parse_url(url).schema}_events%") == 1
        while store._watch._wake_ups.is_listening:
            await checkpoint()
        await listening(store)
        assert not waiting.done()
        await append_one(other, event())
        assert await waiting


@pytest.mark.usefixtures("never_polls")
async def test_a_look_that_began_before_the_wake_is_not_shared(
    url: str, store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who begins to wait while an older look at the head is under way does not take its answer for the newest."""
    fetch, looked, release = store._fetch, asyncio.Event(), asyncio.Event()

    async def held_up(statement: str, *arguments: object) -> list[asyncpg.Record]:
        rows = await fetch(statement, *arguments)
        if not looked.is_set():
            looked.set()
            await release.wait()
        return rows

    async with opened(connect(url, SystemClock())) as other:
        monkeypatch.setattr(store, "_fetch", held_up)
        early = asyncio.create_task(store.wait_for_events(Position(0), WAIT_S))
        await looked.wait()
        await listening(store)
        wakes = store._watch._wakes
        await append_one(other, event())
        while store._watch._wakes == wakes:
            await checkpoint()
        late = asyncio.create_task(store.wait_for_events(Position(0), WAIT_S))
        await checkpoint()
        release.set()
        assert all(await asyncio.wait_for(asyncio.gather(early, late), WAIT_S / 4))


@pytest.mark.usefixtures("never_polls")
async def test_who_has_just_read_the_head_waits_without_a_look_at_it(
    url: str, store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While notifications come, and none has come since the read began; what was heard meanwhile is looked at."""
    fetch, late = store._fetch, list[asyncio.Task[bool]]()

    def fetch_by(fetch: Callable[..., Awaitable[list[asyncpg.Record]]]) -> None:
        for part in (store, store._slices):
            monkeypatch.setattr(part, "_fetch", fetch)

    async def heard() -> None:
        wakes = store._watch.wakes
        await append_one(other, event())
        while store._watch.wakes == wakes:
            await checkpoint()

    async def read_and_wait() -> None:
        assert (await store.read(ALL_EVENTS, Position(1), 10)).through == 1
        late.append(asyncio.create_task(store.wait_for_events(Position(1), WAIT_S)))
        while not store._watch._watch:
            await checkpoint()

    async def fetch_and_hear(statement: str, *arguments: object) -> list[asyncpg.Record]:
        fetch_by(fetch)
        rows = await fetch(statement, *arguments)
        await heard()
        return rows

    async with opened(connect(url, SystemClock())) as other:
        early = asyncio.create_task(store.wait_for_events(Position(0), WAIT_S))
        await listening(store)
        await append_one(other, event())
        assert await early
        async with store._reading.connection() as link:
            fetch_by(link.fetch)
            assert len(await statements_of(link, read_and_wait)) == 1
            fetch_by(fetch)
        await heard()
        assert await asyncio.wait_for(late[0], WAIT_S / 4)
        fetch_by(fetch_and_hear)
        assert (await store.read(ALL_EVENTS, Position(2), 10)).through == 2
        assert await asyncio.wait_for(store.wait_for_events(Position(2), WAIT_S), WAIT_S / 4)


async def test_a_poll_during_a_slow_look_does_not_end_the_polling(
    url: str, shell: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits alone, and looks at the head for longer than the time between polls, is woken all the same."""
    monkeypatch.setattr(event_watch, "POLL_DEAF_S", 0.0)
    deaf = connect(with_parameter(url, "pgbouncer", "true"), SystemClock())
    async with opened(deaf), opened(connect(url, SystemClock())) as other:
        await shell.execute("BEGIN; LOCK TABLE history IN ACCESS EXCLUSIVE MODE")
        waiting = asyncio.create_task(deaf.wait_for_events(Position(0), WAIT_S))
        await until_blocked(shell)
        await until(shell, "SELECT count(*) > 0 FROM pg_catalog.pg_class")  # round trips, in which polls fall due
        await shell.execute("COMMIT")
        for _ in range(3):
            await other.head()
        await append_one(other, event())
        assert await asyncio.wait_for(waiting, WAIT_S / 4)


# ── reads in several statements ──────────────────────────────────────────────


@pytest.mark.parametrize("names", [1, STREAMS_MAX * 2 + 1])
async def test_a_read_in_several_statements_shows_one_moment(
    url: str, store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch, names: int
) -> None:
    """What is appended between the statements of a long read, or of one of many items, is not in it."""
    count = event_slices.READ_SLICE_EVENTS + 50
    await store.append([commit(*(event(f"T{number % names}") for number in range(500))) for _ in range(count // 500)])
    await append_one(store, *(event("T0") for _ in range(count % 500)))
    query = EventQuery(tuple(item({f"T{number}"}) for number in range(names)))
    fetch = store._fetch

    async with opened(connect(url, SystemClock())) as other:

        async def followed_by_an_append(statement: str, *arguments: object) -> list[asyncpg.Record]:
            rows = await fetch(statement, *arguments)
            await append_one(other, event(f"T{names - 1}"))
            return rows

        monkeypatch.setattr(store, "_fetch", followed_by_an_append)
        forward = await store.read(query, Position(0), 2 * count)
        assert [recorded.position for recorded in forward.events] == list(range(1, count + 1))
        assert (forward.through, forward.more) == (count, False)
        head = (await other.head()).position
        backward = await store.read_backward(query, 2 * head)
        assert [recorded.position for recorded in backward.events] == list(range(head, 0, -1))
        assert (backward.through, backward.more) == (head, False)
