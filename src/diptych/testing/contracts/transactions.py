"""The contract of `diptych.event_store.transactions`: what every event store does that lends its transaction.

    @pytest.mark.anyio
    class TestMyTransactions(TransactionContract):
        @asynccontextmanager
        async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
            ...                                      # as for the event store's contract, with a table of numbers beside

        def add(self, connection, number): ...       # inserts into it; awaitable where the driver is
        def end(self, connection): ...               # COMMIT, by any way that the driver has
        async def numbers(self) -> list[int]: ...    # what others see in the table, in order

The tests are coroutines without parameters, for whichever plugin runs those. A failed guarantee is an AssertionError.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from diptych.errors import StoreClosed, TransactionMisused
from diptych.event_store.event_store import (
    COMMIT_EVENTS_MAX,
    Appended,
    AppendResult,
    Commit,
    Conflicting,
    Duplicate,
    EventStore,
    Refused,
)
from diptych.event_store.position import START
from diptych.event_store.transactions import Change, Transactional, Work
from diptych.testing.contracts.event_store_case import (
    EventStoreCase,
    SettableClock,
    append_one,
    commit,
    condition,
    event,
    expect,
    history_of,
    let_others_run,
    opened,
)

__all__ = ["TransactionContract"]

WAIT_S = 20.0
"""How long a test waits for what has to happen."""
CALLERS = 8
"""Transactions at a time."""
ROUNDS = 4
"""Transactions of each caller."""
Step: TypeAlias = Callable[[Any], Any]
"""One thing that work does with the connection; its result may be awaitable."""


class Broken(Exception):
    """What work raises in these tests."""


class TransactionContract(EventStoreCase):
    """Everything that a store guarantees that lends its transaction. Derive from it, and give it histories."""

    @abstractmethod
    def add(self, connection: Any, number: int) -> Any:
        """Insert a number into the table, on the connection that was lent."""

    @abstractmethod
    def end(self, connection: Any) -> Any:
        """Commit the transaction that was lent, which is not allowed."""

    @abstractmethod
    async def numbers(self) -> list[int]:
        """The numbers that are committed, in order, as others see them."""

    # ── together ─────────────────────────────────────────────────────────────

    async def test_g1_work_and_events_are_committed_together(self) -> None:
        """What the work has written, the events and the outcome are there once the call returns."""
        async with self.store() as store:
            first = expect(Appended, await self.transact(store, commit(event("A"), command_id="c-1"), 1))
            second = expect(Appended, await self.transact(store, commit(event("B"), event("C")), 2))
            assert (first.place.position, second.place.position) == (1, 3)
            assert [recorded.type for recorded in await history_of(store)] == ["A", "B", "C"]
            assert await self.numbers() == [1, 2]
            kept = await store.outcome("c-1")
            assert kept is not None
            assert kept.place == first.place

    async def test_g1_work_that_fails_leaves_nothing(self) -> None:
        """An exception of the work comes out as it is, what it wrote is taken back, and the next one finds all well."""
        async with self.store() as store:
            raised = await raised_by(Broken, self.transact(store, commit(event()), 1, raise_broken))
            assert isinstance(raised, Broken)
            assert await self.numbers() == []
            assert await history_of(store) == []
            expect(Appended, await self.transact(store, commit(event()), 2))
            assert await self.numbers() == [2]

    async def test_a_commit_without_events_is_committed_too(self) -> None:
        """Work may write and nothing happen: its place is the head."""
        async with self.store() as store:
            await append_one(store, event())
            appended = expect(Appended, await self.transact(store, commit(command_id="c-1"), 1))
            assert appended.place == await store.head()
            assert await self.numbers() == [1]
            assert await store.outcome("c-1") is not None

    # ── what stands against it ───────────────────────────────────────────────

    async def test_g3_a_conflict_takes_back_what_the_work_has_written(self) -> None:
        """Conditions are judged by the append, and what stands against them undoes everything."""
        async with self.store() as store:
            await append_one(store, event("A", "t:1"))
            stale = commit(event("B"), conditions=[condition(0, tags=["t:1"])], command_id="c-1")
            conflict = expect(Conflicting, await self.transact(store, stale, 1))
            assert conflict.position == 1
            assert await self.numbers() == []
            assert await store.outcome("c-1") is None
            fresh = commit(event("B"), conditions=[condition(1, tags=["t:1"])], command_id="c-1")
            assert expect(Appended, await self.transact(store, fresh, 2)).place.position == 2
            assert await self.numbers() == [2]

    async def test_g4_a_duplicate_takes_back_what_the_work_has_written(self) -> None:
        """It wins over all else: it is answered with the outcome that was kept, also where the condition is stale."""
        async with self.store() as store:
            first = expect(Appended, await self.transact(store, commit(event("A", "t:1"), command_id="c-1"), 1))
            again = commit(event("A", "t:1"), conditions=[condition(0, tags=["t:1"])], command_id="c-1")
            duplicate = expect(Duplicate, await self.transact(store, again, 2))
            assert duplicate.outcome.place == first.place
            assert await self.numbers() == [1]
            assert len(await history_of(store)) == 1

    async def test_what_can_never_be_stored_takes_back_what_the_work_has_written(self) -> None:
        """Too many events, or one whose id is taken."""
        async with self.store() as store:
            taken = event()
            await append_one(store, taken)
            many = commit(*(event() for _ in range(COMMIT_EVENTS_MAX + 1)))
            for refused in (many, commit(taken)):
                expect(Refused, await self.transact(store, refused, 1))
            assert await self.numbers() == []
            assert len(await history_of(store)) == 1

    async def test_what_is_taken_back_leaves_the_outcome(self) -> None:
        """Of a rejection, the outcome and what is recorded with it stay, and nothing of what the work has written."""
        async with self.store() as store:
            refused = commit(event("Refused"), command_id="c-1", rejection=b'{"code":"no"}')
            expect(Appended, await self.transact(store, refused, 1, take_back=True))
            assert await self.numbers() == []
            assert [recorded.type for recorded in await history_of(store)] == ["Refused"]
            kept = await store.outcome("c-1")
            assert kept is not None
            assert kept.rejection == b'{"code":"no"}'

    async def test_work_that_ends_the_transaction_is_found_out(self) -> None:
        """No event or outcome is stored, and the store goes on."""
        async with self.store() as store:
            ending = self.transact(store, commit(event(), command_id="c-1"), 1, self.end)
            await raised_by(TransactionMisused, ending)
            assert await history_of(store) == []
            assert await store.outcome("c-1") is None
            await append_one(store, event())
            expect(Appended, await self.transact(store, commit(event()), 2))
            assert 2 in await self.numbers()

    # ── beside others ────────────────────────────────────────────────────────

    async def test_g2_positions_have_no_gaps_beside_ordinary_appends(self) -> None:
        """Of many at a time, some of which fail, those that hold are 1, 2, 3 …, and so are their numbers there."""
        async with self.two_stores() as stores:

            async def call(caller: int) -> None:
                for turn in range(ROUNDS):
                    store, number = stores[turn % 2], caller * ROUNDS + turn
                    if number % 3:
                        expect(Appended, await self.transact(store, commit(event("Own")), number))
                    else:
                        await raised_by(Broken, self.transact(store, commit(event()), number, raise_broken))
                    await append_one(store, event("Plain"))

            await asyncio.gather(*(call(caller) for caller in range(CALLERS)))
            wanted = [number for number in range(CALLERS * ROUNDS) if number % 3]
            assert await self.numbers() == wanted
            types = [recorded.type for recorded in await history_of(stores[1])]
            assert (types.count("Own"), types.count("Plain")) == (len(wanted), CALLERS * ROUNDS)

    async def test_it_wakes_those_who_wait(self) -> None:
        """Waiters of this instance and of others are woken by what such a transaction appends."""
        async with self.two_stores() as (writing, other):
            stores = (writing, other)
            waiting = [asyncio.create_task(store.wait_for_events(START, WAIT_S)) for store in stores]
            await let_others_run()
            await self.transact(writing, commit(event()), 1)
            assert await asyncio.gather(*waiting) == [True, True]

    async def test_a_cancelled_caller_cancels_nothing(self) -> None:
        """Work that is under way comes to its end, and is committed with its events."""
        async with self.store() as store:
            gate = Gate()
            call = asyncio.create_task(self.transact(store, commit(event(), command_id="c-1"), 1, gate.pass_through))
            await gate.entered()
            call.cancel()
            await raised_by(asyncio.CancelledError, call)
            gate.open()
            assert await store.wait_for_events(START, WAIT_S)
            assert await self.numbers() == [1]
            assert await store.outcome("c-1") is not None

    async def test_closing_waits_for_what_is_under_way(self) -> None:
        """A store that is closed under work lets it end; closed, it lends nothing."""
        async with self.history(SettableClock()) as connect:
            store = connect()
            await store.open()
            gate = Gate()
            call = asyncio.create_task(self.transact(store, commit(event(), command_id="c-1"), 1, gate.pass_through))
            await gate.entered()
            closing = asyncio.create_task(store.close())
            await let_others_run()
            assert not closing.done()
            gate.open()
            await closing
            expect(Appended, await call)
            await raised_by(StoreClosed, self.transact(store, commit(event()), 2))
            async with opened(connect()) as again:
                assert await again.outcome("c-1") is not None
            assert await self.numbers() == [1]

    # ── how it is done ───────────────────────────────────────────────────────

    async def transact(
        self, store: EventStore, commit: Commit, number: int, *steps: Step, take_back: bool = False
    ) -> AppendResult:
        """Add a number and take further steps in a transaction, to which a commit is appended."""
        assert isinstance(store, Transactional), "the store lends no transaction"
        taken: list[Step] = [lambda connection: self.add(connection, number), *steps]
        change = Change(commit, take_back=take_back)
        return await store.transact(_work(taken, change, awaits=store.lending.awaits))


def _work(steps: list[Step], change: Change, *, awaits: bool) -> Work:
    def work(connection: Any) -> Change:
        for step in steps:
            step(connection)
        return change

    async def work_async(connection: Any) -> Change:
        for step in steps:
            answer = step(connection)
            if inspect.isawaitable(answer):
                await answer
        return change

    return work_async if awaits else work


class Gate:
    """Where work waits until a test lets it go on: on the event loop, or on a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._entered = asyncio.Event()
        self._open = asyncio.Event()
        self._open_to_threads = threading.Event()

    def pass_through(self, _: Any) -> Awaitable[None] | None:
        """Tell that it was entered, and wait until it is open."""
        self._loop.call_soon_threadsafe(self._entered.set)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            assert self._open_to_threads.wait(WAIT_S), "the gate was not opened"
            return None
        return asyncio.wait_for(self._wait(), WAIT_S)

    async def _wait(self) -> None:
        await self._open.wait()

    async def entered(self) -> None:
        """Wait until somebody is in it."""
        async with asyncio.timeout(WAIT_S):
            await self._entered.wait()

    def open(self) -> None:
        """Let everybody pass."""
        self._open.set()
        self._open_to_threads.set()


def raise_broken(_: Any) -> None:
    """The step that fails."""
    raise Broken("meant")


async def raised_by(kind: type[BaseException], call: Awaitable[object]) -> BaseException:
    """What the call raises, which has to be of that kind."""
    try:
        result = await call
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, got {result!r}")
