"""What processes keep, moved from one store to another as it is: checkpoints, instances, and what waits to go out.

The history goes first (`event_store/copying.py`): a process whose checkpoint is beyond the copy's end is left for the
next run. While the source works, what is copied here may be of several moments; so whoever moves a history stops it
first, and copies once more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

from diptych.errors import StoreUnavailable
from diptych.event_store.digest import Moved
from diptych.event_store.position import Place
from diptych.process_managers.process_store import Instance, Outgoing, ProcessChange, ProcessStore, StoredProcess

__all__ = ["copy_processes", "differing_process"]

COPY_PAGE_MAX = 1_000
"""Instances, or commands and timeouts, that are copied in one transaction."""
COPIER = "diptych copy"
"""Who has the lease of what is copied; nobody works on a copy."""
COPY_LEASE_S = 60.0
"""Seconds for which it has it; renewed with each page."""

T = TypeVar("T", Instance, Outgoing)
_Read: TypeAlias = Callable[[str | None], Awaitable[Sequence[T]]]
"""Reads a page behind an id."""


async def copy_processes(source: ProcessStore, target: ProcessStore, at: Place, moved: Moved) -> int:
    """Make the target's processes those of the source, but for those that are beyond a place.

    It may be stopped at any time, and called again.

    Returns:
        How many processes there are.

    Raises:
        StoreUnavailable: somebody works on the target.
    """
    done, processes = 0, await source.processes()
    for stored in processes:
        if stored.checkpoint.position <= at.position:
            done = await _copy_instances(source, target, stored, done, moved)
            done = await _copy_outgoing(source, target, stored.name, done, moved)
    await target.release(COPIER)
    return len(processes)


async def _copy_instances(
    source: ProcessStore, target: ProcessStore, stored: StoredProcess, done: int, moved: Moved
) -> int:
    there = await target.create(stored.name, stored.checkpoint, stored.fingerprint)
    after = there.checkpoint
    async for page in _pages(_instances(source, stored.name)):
        epochs = await target.lease(COPIER, [stored.name], COPY_LEASE_S)
        if stored.name not in epochs or not await target.commit(
            ProcessChange(
                process=stored.name,
                epoch=epochs[stored.name],
                after=after,
                checkpoint=stored.checkpoint,
                fingerprint=stored.fingerprint,
                instances=page,
            )
        ):
            raise StoreUnavailable(f"somebody works on the process {stored.name} in the target: stop that first")
        after = stored.checkpoint
        done += len(page)
        moved(done, None)
    return done


async def _copy_outgoing(source: ProcessStore, target: ProcessStore, process: str, done: int, moved: Moved) -> int:
    async for page in _pages(_outgoing(target, process)):
        known = {item.id: item for item in await source.find(process, [item.id for item in page])}
        await target.drop(process, [item.id for item in page if known.get(item.id) != item])
    async for page in _pages(_outgoing(source, process)):
        if page:
            await target.add(process, page)
        done += len(page)
        moved(done, None)
    return done


async def differing_process(source: ProcessStore, target: ProcessStore, at: Place) -> str | None:
    """What differs first between what two stores keep of processes, in words; None where nothing does.

    Processes beyond a place are left out.
    """
    theirs = {found.name: found for found in await target.processes()}
    for ours in await source.processes():
        if ours.checkpoint.position > at.position:
            continue
        name, there = ours.name, theirs.get(ours.name)
        if there is None or (there.checkpoint, there.fingerprint) != (ours.checkpoint, ours.fingerprint):
            return f"the process {name} is at another place, or of other code"
        if not await _alike(_instances(source, name), _instances(target, name)):
            return f"instances of the process {name} differ"
        if not await _alike(_outgoing(source, name), _outgoing(target, name)):
            return f"what waits to go out of {name} differs"
    return None


async def _alike(ours: _Read[T], theirs: _Read[T]) -> bool:
    after: str | None = None
    while True:
        here, there = await ours(after), await theirs(after)
        if here != there or not here:
            return here == there
        after = here[-1].id


async def _pages(read: _Read[T]) -> AsyncIterator[Sequence[T]]:
    """At least one page; the last one is not full."""
    after, more = None, True
    while more:
        page = await read(after)
        yield page
        more = len(page) == COPY_PAGE_MAX
        after = page[-1].id if page else None


def _instances(store: ProcessStore, process: str) -> _Read[Instance]:
    return lambda after: store.page(process, after, COPY_PAGE_MAX, ended=True)


def _outgoing(store: ProcessStore, process: str) -> _Read[Outgoing]:
    return lambda after: store.waiting(process, after, COPY_PAGE_MAX)
