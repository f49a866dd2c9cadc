"""The process store in memory: dictionaries, for tests and first steps. See the port."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import nsmallest
from typing import NamedTuple

import msgspec

from diptych.adapters.memory.own_tables import own_tables_in
from diptych.errors import StoreClosed
from diptych.event_store.position import NOWHERE, START, Place
from diptych.process_managers.process_store import Instance, InstanceCount, Outgoing, ProcessChange, StoredProcess

__all__ = ["MemoryProcessStore", "connect"]


def connect(url: str) -> MemoryProcessStore:
    """A new, empty store beside events in memory.

    Raises:
        ConfigurationError: the URL names no events in memory.
    """
    own_tables_in(url)
    return MemoryProcessStore()


class _Lease(NamedTuple):
    worker: str
    until: float


class _Kept:
    """One process with all that is of it."""

    def __init__(self, stored: StoredProcess, outgoing: dict[str, Outgoing]) -> None:
        self.stored = stored
        self.lease: _Lease | None = None
        self.last_holder = ""
        self.instances: dict[str, Instance] = {}
        self.outgoing = outgoing

    def fence(self) -> None:
        self.stored = msgspec.structs.replace(self.stored, epoch=self.stored.epoch + 1)


class MemoryProcessStore:
    """Keeps processes while it lives."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._kept: dict[str, _Kept] = {}
        self._outgoing: defaultdict[str, dict[str, Outgoing]] = defaultdict(dict)
        self._open = False

    async def open(self) -> None:
        """Take calls from now on."""
        self._open = True

    async def close(self) -> None:
        """Take no more calls. What is kept stays, should it be opened again."""
        self._open = False

    async def create(self, process: str, checkpoint: Place, fingerprint: str) -> StoredProcess:
        """Make a process, or give the one that is there."""
        self._check_open()
        if process not in self._kept:
            stored = StoredProcess(process, checkpoint, fingerprint, 0)
            self._kept[process] = _Kept(stored, self._outgoing[process])
        return self._kept[process].stored

    async def processes(self) -> list[StoredProcess]:
        """Every process, by name."""
        self._check_open()
        return [self._kept[name].stored for name in sorted(self._kept)]

    # ── leases ───────────────────────────────────────────────────────────────

    async def lease(self, worker: str, processes: Collection[str], ttl_s: float) -> Mapping[str, int]:
        """Take what is free, and renew what is held."""
        self._check_open()
        now = self._monotonic()
        held: dict[str, int] = {}
        for name in processes:
            kept = self._kept.get(name)
            if kept is None or (kept.lease and kept.lease.worker != worker and kept.lease.until > now):
                continue
            if kept.last_holder not in ("", worker):
                kept.fence()
            kept.lease, kept.last_holder = _Lease(worker, now + ttl_s), worker
            held[name] = kept.stored.epoch
        return held

    async def release(self, worker: str, processes: Collection[str] | None = None) -> None:
        """Give up these at once; everything where none are named."""
        self._check_open()
        for name, kept in self._kept.items():
            if kept.last_holder == worker and (processes is None or name in processes):
                kept.lease, kept.last_holder = None, ""
                kept.fence()

    # ── change ───────────────────────────────────────────────────────────────

    async def commit(self, change: ProcessChange) -> bool:
        """Make a change true, if the process is where its writer thinks."""
        self._check_open()
        kept = self._kept.get(change.process)
        if kept is None or (kept.stored.epoch, kept.stored.checkpoint) != (change.epoch, change.after):
            return False
        kept.stored = StoredProcess(change.process, change.checkpoint, change.fingerprint, change.epoch)
        for item in list(kept.outgoing.values()):
            self._take_out(kept, change, item)
        for begun in change.begun:
            if begun in kept.outgoing:
                kept.outgoing[begun] = msgspec.structs.replace(kept.outgoing[begun], begun=True)
        for item in change.failed:
            if item.id in kept.outgoing:
                kept.outgoing[item.id] = item
        kept.instances |= {instance.id: instance for instance in change.instances}
        kept.outgoing |= {item.id: item for item in change.added}
        return True

    @staticmethod
    def _take_out(kept: _Kept, change: ProcessChange, item: Outgoing) -> None:
        dropped = item.kind == "timeout" and item.instance in change.dropped_timeouts
        discarded = item.dead and item.id in change.discarded
        if dropped or discarded or item.instance in change.emptied or item.id in change.removed:
            del kept.outgoing[item.id]
            return
        resent = [found for found in change.resent if found.id == item.id]
        if item.dead and (resent or item.instance in change.revived):
            del kept.outgoing[item.id]
            revived = _revived(item, change.revived_due_us)
            for found in resent:
                revived = msgspec.structs.replace(
                    revived,
                    id=found.as_id,
                    data=item.data if found.data is None else found.data,
                    metadata=item.metadata if found.metadata is None else found.metadata,
                )
            kept.outgoing[revived.id] = revived

    async def add(self, process: str, items: Sequence[Outgoing]) -> list[Outgoing]:
        """Put in what is to go out; what is there stays."""
        self._check_open()
        outgoing = self._outgoing[process]
        return [outgoing.setdefault(item.id, item) for item in items]

    async def drop(self, process: str, ids: Collection[str]) -> None:
        """Take out what is not to go out any more."""
        outgoing = self._of(process).outgoing
        for dropped in ids:
            outgoing.pop(dropped, None)

    async def revive(self, process: str, ids: Collection[str], due_us: int) -> None:
        """Have what is dead of these due again."""
        outgoing = self._of(process).outgoing
        for revived in ids:
            if revived in outgoing and outgoing[revived].dead:
                outgoing[revived] = _revived(outgoing[revived], due_us)

    # ── read ─────────────────────────────────────────────────────────────────

    async def find(self, process: str, ids: Collection[str]) -> list[Outgoing]:
        """What is there under these ids."""
        outgoing = self._of(process).outgoing
        return [outgoing[wanted] for wanted in dict.fromkeys(ids) if wanted in outgoing]

    async def waiting(self, process: str, after: str | None, limit: int) -> list[Outgoing]:
        """The first commands and timeouts behind an id."""
        items = self._of(process).outgoing.values()
        found = [item for item in items if after is None or item.id > after]
        return nsmallest(limit, found, key=lambda item: item.id)

    async def instances(self, process: str, ids: Collection[str]) -> list[Instance]:
        """Those of these instances that are there."""
        kept = self._of(process)
        return [kept.instances[wanted] for wanted in ids if wanted in kept.instances]

    async def page(
        self,
        process: str,
        after: str | None,
        limit: int,
        *,
        ended: bool = False,
        stuck: bool = False,
        blocked: bool = False,
    ) -> list[Instance]:
        """The first instances behind an id."""
        kept = self._of(process)
        dead = {item.instance for item in kept.outgoing.values() if item.dead}
        found = [
            instance
            for _, instance in sorted(kept.instances.items())
            if (after is None or instance.id > after)
            and (_is_stuck(instance, dead) if stuck or blocked else ended or not instance.ended)
            and (not blocked or instance.blocked)
        ]
        return found[:limit]

    async def dead(self, process: str, after: tuple[str, str] | None, limit: int) -> list[Outgoing]:
        """The first dead commands and timeouts behind one."""
        found = [item for item in self._of(process).outgoing.values() if item.dead]
        behind = [item for item in found if after is None or (item.instance, item.id) > after]
        return sorted(behind, key=lambda item: (item.instance, item.id))[:limit]

    async def count(self, process: str) -> InstanceCount:
        """How many instances there are."""
        kept = self._of(process)
        running = [instance for instance in kept.instances.values() if not instance.ended]
        dead = sum(item.dead for item in kept.outgoing.values())
        return InstanceCount(
            running=len(running),
            blocked=sum(bool(instance.blocked) for instance in running),
            waiting=len(kept.outgoing) - dead,
            dead=dead,
        )

    async def due(self, process: str, now_us: int, limit: int) -> list[Outgoing]:
        """What is to go out now."""
        items = list(self._of(process).outgoing.values())
        first: dict[str, Outgoing] = {}
        for item in sorted((found for found in items if found.kind == "command"), key=_order):
            held_by = first.get(item.instance)
            if held_by is None or (held_by.dead and held_by.position != item.position):
                first[item.instance] = item
        ready = [item for item in items if item.kind == "timeout" or first[item.instance] is item]
        found = [item for item in ready if item.due_us <= now_us and not item.dead]
        return nsmallest(limit, found, key=lambda item: (-item.priority, item.due_us, *_order(item)))

    async def next_due_us(self, process: str, after_us: int) -> int | None:
        """When the next thing is due."""
        items = self._of(process).outgoing.values()
        return min((item.due_us for item in items if item.due_us > after_us and not item.dead), default=None)

    async def outgoing(self, process: str, instance: str) -> list[Outgoing]:
        """All that waits or is dead of an instance."""
        found = [item for item in self._of(process).outgoing.values() if item.instance == instance]
        return sorted(found, key=lambda item: (item.position, item.kind, item.ordinal))

    def _of(self, process: str) -> _Kept:
        self._check_open()
        known = self._kept.get(process)
        if known is None:  # there may be something to go out of it all the same
            nowhere = StoredProcess(process, Place(NOWHERE, START, NOWHERE), "", 0)
            return _Kept(nowhere, self._outgoing.get(process, {}))
        return known

    def _check_open(self) -> None:
        if not self._open:
            raise StoreClosed("this process store is not open")


def _revived(item: Outgoing, due_us: int) -> Outgoing:
    return msgspec.structs.replace(item, dead=False, attempts=0, failure="", trace="", due_us=due_us, begun=False)


def _is_stuck(instance: Instance, dead: Collection[str]) -> bool:
    return bool(instance.blocked) or instance.id in dead


def _order(item: Outgoing) -> tuple[int, int]:
    return (item.position, item.ordinal)
