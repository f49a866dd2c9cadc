"""Whoever folds into OpenSearch may end, or stall, at any request: rows are those of the checkpoint, then and later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych.adapters.opensearch.read_store import OpenSearchReadStore, connect
from diptych.errors import StoreUnavailable
from diptych.read_side.read_store import Fenced, RowsAsked, SliceWrite, Written
from diptych.testing.contracts.read_store_cases import BY_COURSE, NAME, SEATS, create, place, rows_of
from tests.opensearch_line import Fault, Line
from tests.opensearch_server import new_read_store

pytestmark = pytest.mark.anyio

REQUESTS_MAX = 40
"""More than a worker needs for all events of an example in batches of two."""
WAIT_S_MAX = 20.0


class Changed(NamedTuple):
    """An event: so many more in a course; None: the course is gone."""

    course: str
    more: int | None


EVENTS = st.lists(st.builds(Changed, st.sampled_from("abc"), st.none() | st.integers(1, 3)), min_size=1, max_size=12)


def folded(events: Sequence[Changed], rows: dict[str, int] | None = None) -> dict[str, int | None]:
    """The rows after events, and None for those that went. Not idempotent: what is folded twice shows."""
    after: dict[str, int | None] = dict(rows or {})
    for course, more in events:
        after[course] = None if more is None else (after.get(course) or 0) + more
    return after


def shown_after(events: Sequence[Changed]) -> list[tuple[str, int]]:
    """What a snapshot is to show."""
    return sorted((course, taken) for course, taken in folded(events).items() if taken is not None)


async def fold_on(store: OpenSearchReadStore, events: Sequence[Changed], size: int, batches: int = 100) -> None:
    """Fold so many batches, as a projector does: where it is overtaken, it begins anew at what is stored."""
    (generation,) = await store.generations()
    for _ in range(batches):
        start = generation.checkpoint.position
        batch = events[start : start + size]
        if not batch:
            return
        (rows,) = await store.load([RowsAsked(generation, [(course,) for course in {each.course for each in batch}])])
        after = folded(batch, dict(rows.values()))
        upserts = [(course, taken) for course, taken in after.items() if taken is not None]
        deletes = [(course,) for course, taken in after.items() if taken is None]
        (result,) = await store.write([SliceWrite(generation, place(start + len(batch)), upserts, deletes)])
        if isinstance(result, Written):
            generation = result.generation
        else:
            assert result == Fenced()
            (generation,) = await store.generations()


@asynccontextmanager
async def opened(url: str, line: Line | None = None) -> AsyncGenerator[OpenSearchReadStore]:
    store = connect(url, line)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def is_shown(store: OpenSearchReadStore, events: Sequence[Changed]) -> int:
    """Make sure that rows are those of the checkpoint, by every way to ask; where it is."""
    async with store.snapshot() as snapshot:
        (generation,) = await snapshot.slices(NAME)
        position = generation.checkpoint.position
        wanted = shown_after(events[:position])
        assert await snapshot.find(NAME, (), BY_COURSE, 100) == wanted
        assert sorted((await snapshot.get_many(NAME, [(course,) for course in "abc"])).values()) == wanted
        assert await snapshot.count(NAME, ()) == len(wanted)
    return position


LIFE = [Changed("a", 1), Changed("b", 1), Changed("a", None), Changed("b", 2)]


@pytest.mark.parametrize("fault", Fault)
async def test_whoever_ends_or_stalls_at_any_request_leaves_the_rows_of_the_checkpoint(fault: Fault) -> None:
    """At each request that there is, in a life of rows that come, change and go."""
    after = 0
    while await _with_fault(LIFE, (2, 1), fault, after, after % 3):
        after += 1
    assert 20 < after < REQUESTS_MAX


@given(
    events=EVENTS,
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    fault=st.sampled_from(Fault),
    after=st.integers(0, REQUESTS_MAX),
    meanwhile=st.integers(0, 3),
)
@example([*[Changed("a", None)] * 5, Changed("c", 1), Changed("c", None)], (2, 1), Fault.LATE, 33, 1)
@settings(max_examples=25, deadline=None)
async def test_so_it_is_in_any_history_and_any_batches(
    events: list[Changed], sizes: tuple[int, int], fault: Fault, after: int, meanwhile: int
) -> None:
    """Also where a stalled worker meets the one that has taken over, on the same rows."""
    await _with_fault(events, sizes, fault, after, meanwhile)


async def _with_fault(
    events: Sequence[Changed], sizes: tuple[int, int], fault: Fault, after: int, meanwhile: int
) -> bool:
    """Another worker goes on in other batches; one that stalled goes on beside it, and its late requests do nothing.

    Returns:
        Whether the worker came as far as that request.
    """
    url, line = new_read_store(), Line(fault, after)
    async with opened(url) as other:
        await create(other, SEATS)
        first = asyncio.create_task(_fold_through(url, line, events, sizes[0]))
        reaching = asyncio.create_task(line.reached.wait())
        await asyncio.wait([first, reaching], return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S_MAX)
        reaching.cancel()
        reached = await is_shown(other, events)
        await fold_on(other, events, sizes[1], meanwhile)
        assert await is_shown(other, events) == min(reached + meanwhile * sizes[1], len(events))
        line.go_on()
        await asyncio.wait_for(asyncio.gather(first, fold_on(other, events, sizes[1])), WAIT_S_MAX)
        assert await is_shown(other, events) == len(events)
        assert await rows_of(other) == shown_after(events)
    return line.met


async def _fold_through(url: str, line: Line, events: Sequence[Changed], size: int) -> None:
    """Be the worker on that line."""
    try:
        async with opened(url, line) as store:
            await fold_on(store, events, size)
    except StoreUnavailable as error:
        assert "the line is cut" in str(error)  # noqa: PT017 - it is a worker's end, as expected
