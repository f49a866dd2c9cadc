"""Whatever the history, wherever the copy is interrupted: it ends as the same history, and goes on as the original."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.adapters.postgres.event_store import connect as connect_postgres
from diptych.adapters.sqlite.event_store import SqliteEventStore
from diptych.event_store import copying, pages
from diptych.event_store.copying import compare, copy_history
from diptych.event_store.digest import Moved
from diptych.event_store.event_store import Appended, AppendResult, Commit, Duplicate, EventStore, StoredType
from diptych.event_store.recorded_event import NewEvent
from diptych.testing.contracts.event_store_case import SettableClock, condition, opened
from diptych.testing.contracts.event_store_copies import whole
from tests.postgres_server import new_store

KINDS = ("memory", "sqlite", "postgres")
DIRECTIONS = [(source, target) for source in KINDS for target in KINDS]
SEEDS = 6
"""Histories for each direction."""
BATCHES = 12
"""Batches of one history."""
RUNS_MAX = 200
"""More runs than a history here has batches."""
TAGS = ("a:1", "a:2", "b:ü", 'c:"\\', "d:1")
TYPES = ("X", "Y", "Größe")
KNOWN = [StoredType(type, 1, (type, "a")) for type in TYPES[:2]]
"""Of the others nobody ever says how they are tagged."""


class Interrupted(Exception):
    """Somebody pulls the plug."""


class Plug:
    """Shows progress to nobody, and interrupts at the n-th time that it is told of some."""

    def __init__(self, told_max: int | None) -> None:
        self._left = told_max

    @contextmanager
    def __call__(self, what: str) -> Generator[Moved]:
        yield self._moved

    def _moved(self, done: int, total: int | None) -> None:
        if self._left == 0:
            raise Interrupted
        if self._left is not None:
            self._left -= 1


async def made(kind: str, folder: str, clock: SettableClock, numbers: count[int]) -> EventStore:
    if kind == "postgres":
        return connect_postgres(await new_store(), clock)
    if kind == "sqlite":
        return SqliteEventStore(str(Path(folder, f"{next(numbers)}.db")), clock, synchronous="NORMAL")
    return MemoryEventStore(clock)


async def grow(store: EventStore, random: Random, clock: SettableClock) -> None:
    """Append batches of events and outcomes of every kind."""
    for _ in range(random.randrange(BATCHES)):
        clock.move(random.choice([0, 0.000_001, 1, -1]))
        await store.append([some_commit(random) for _ in range(random.randrange(1, 8))])


def some_commit(random: Random) -> Commit:
    events = tuple(
        NewEvent(
            random.randbytes(16),
            random.choice(TYPES),
            random.choice([1, 2]),
            random.choice([b"{}", b"", '{"ü":"🙂"}'.encode(), b"\xff"]),
            tuple(random.sample(TAGS, random.randrange(3))),
            random.choice([b"{}", b'{"actor":"x"}']),
        )
        for _ in range(random.choice([0, 1, 1, 1, 3]))
    )
    return Commit(
        events,
        (),
        random.choice([None, f"c-{random.randrange(60)}", f"É-{random.randrange(60)}"]),
        random.randbytes(4),
        random.choice([None, None, b'{"code":"no"}']),
    )


async def copied(source: EventStore, target: EventStore, random: Random) -> int:
    """Copy, interrupted at any time and begun again until it is done; how often it was."""
    for run in range(RUNS_MAX):
        try:
            await copy_history(source, target, Plug(random.randrange(6 + run)))
            return run
        except Interrupted:
            continue
    raise AssertionError("a copy that is interrupted never gets on")


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize(("source_kind", "target_kind"), DIRECTIONS)
def test_an_interrupted_copy_ends_as_the_same_history(
    source_kind: str, target_kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests are equal, and both stores give the same answers to whatever is appended to both afterwards."""
    random = Random(f"{source_kind} {target_kind} {seed}")
    monkeypatch.setattr(pages, "FIRST_PAGE_EVENTS", random.choice([1, 2, 5]))
    monkeypatch.setattr(pages, "PAGE_EVENTS_MAX", random.choice([2, 7]))
    monkeypatch.setattr(pages, "PAGE_OUTCOMES_MAX", random.choice([2, 7]))
    monkeypatch.setattr(copying, "BATCH_BYTES_MAX", random.choice([1, 8, 1_000]))

    async def run() -> None:
        clock, numbers = SettableClock(), count()
        with TemporaryDirectory() as folder:
            source = await made(source_kind, folder, clock, numbers)
            target = await made(target_kind, folder, clock, numbers)
            async with opened(source), opened(target):
                await follow(source, target, clock)

    async def follow(source: EventStore, target: EventStore, clock: SettableClock) -> None:
        await source.register_types(KNOWN)
        for _ in range(random.randrange(1, 3)):  # the source goes on between two runs
            await grow(source, random, clock)
            await copied(source, target, random)
        compared = await compare(source, target, await source.head(), Plug(None))
        assert compared.difference is None
        assert compared.source == compared.target
        assert await whole(target) == await whole(source)
        clock.move(1_000)
        for store in (source, target):  # as an application does when it opens
            await store.register_types(KNOWN)
        for _ in range(BATCHES):
            asked = [some_commit(random) for _ in range(4)]
            after = random.randrange((await source.head()).position + 1)
            stale = Commit(asked[0].events, (condition(after, {"X"}, {"a:1"}),))
            answers = [await store.append([*asked, stale]) for store in (source, target)]
            assert_alike(*answers)
        assert await whole(target) == await whole(source)

    asyncio.run(run())


def assert_alike(ours: Sequence[AppendResult], theirs: Sequence[AppendResult]) -> None:
    """The same kind of answer to each, and the same place where it is a first or second one."""
    assert list(map(type, theirs)) == list(map(type, ours))
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Appended | Duplicate):
            assert other == one


def test_interruptions_happen() -> None:
    """So that the test above is not passed by copies that are never interrupted, or have nothing to copy."""

    async def run() -> int:
        random, clock = Random(1), SettableClock()
        async with opened(MemoryEventStore(clock)) as source, opened(MemoryEventStore(clock)) as target:
            while (await source.head()).position < 10:
                await grow(source, random, clock)
            return await copied(source, target, Random(3))

    assert asyncio.run(run()) > 0
