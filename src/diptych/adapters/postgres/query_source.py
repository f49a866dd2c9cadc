"""Queries on streaming replicas: one after the other has its turn, the primary stands in where none is left.

asked on a replica → shows what is wanted → answered
     ▲                      │ no
     │                      ├─ policy "wait": on the next replica, each once; then when one of them has replayed more
     └──────────────────────┴─ policy "primary": on the primary, as without replicas

A replica that fails is left out and looked at, at once and then every `REPLICAS_LOOK_S`; what it was asked is asked
elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import msgspec

from diptych.adapters.postgres.connection import DRIVER_ERRORS, PostgresUrl, parse_url
from diptych.adapters.postgres.read_store import PostgresReadStore
from diptych.adapters.postgres.replica import OfAnother, PlaceAt, Replica
from diptych.clock import pause
from diptych.errors import ConfigurationError, DiptychError, StoreUnavailable
from diptych.read_side.query_source import AskingReadStore, ReplicaPolicy, ReplicaStatus
from diptych.read_side.read_store import Generation, ReadSnapshot

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from diptych.errors import Blocked

__all__ = ["AskingReplicas", "ReadReplicas", "connect"]

REPLICAS_LOOK_S = 5.0
"""How often replicas are looked at, those that are left out as well, while queries come or the status is asked for."""
PRIMARY_LOOK_S_MAX = 2.0
"""How long the primary may take to say how far it is; the replicas are looked at all the same."""
SEND_ON_S = 0.01
"""How long the primary is left alone, at least, before it is asked again to send on what was committed since."""
SEND_ON_WAIT_S = 1.0
"""How long a change is waited for that would have to be sent on, before it is looked whether anybody still waits."""
REPLICAS_MAX = 32
"""Replicas of one read store."""


def connect(
    read_store: PostgresReadStore, urls: Sequence[str], policy: ReplicaPolicy, place_at: PlaceAt
) -> ReadReplicas:
    """The replicas of a read store, each as `postgresql://user@host/database`; nothing is opened yet.

    Raises:
        ConfigurationError: a URL cannot be read, or names another schema; or there are too many.
    """
    if len(urls) > REPLICAS_MAX:
        raise ConfigurationError(f"{len(urls)} replicas are more than REPLICAS_MAX={REPLICAS_MAX}")
    places = [_replica_of(url, read_store.url) for url in urls]
    return ReadReplicas(read_store, [Replica(place, place_at) for place in places], policy)


def _replica_of(url: str, read_store: PostgresUrl) -> PostgresUrl:
    """A replica's URL, with the schema of the read store: a replica has it under the same name."""
    place = parse_url(url)
    named = "schema" in dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    if named and place.schema != read_store.schema:
        raise ConfigurationError(
            f"the replica {place.shown} names the schema {place.schema}, but the read models are in "
            f"{read_store.schema}: leave schema= out of a replica's URL"
        )
    return msgspec.structs.replace(place, schema=read_store.schema)


class ReadReplicas:
    """Asks queries on replicas. See the port."""

    def __init__(self, read_store: PostgresReadStore, replicas: Sequence[Replica], policy: ReplicaPolicy) -> None:
        self.read_store = read_store
        self.policy: ReplicaPolicy = policy
        self._replicas = tuple(replicas)
        self._turn = 0
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._is_open = False

    async def open(self) -> None:
        """Look at every replica; those that cannot be reached are left out for now.

        Raises:
            ConfigurationError: one is of another server or database.
            StoreUnavailable: the primary cannot be reached.
        """
        primary = await self.read_store.server_state()
        for replica in self._replicas:
            replica.open(primary)
        self._is_open = True
        found = await asyncio.gather(*(replica.look(primary) for replica in self._replicas))
        for why in found:
            if isinstance(why, OfAnother):
                raise ConfigurationError(str(why))
        self._look_at = asyncio.get_running_loop().time() + REPLICAS_LOOK_S

    async def close(self) -> None:
        """Let go of the connections."""
        self._is_open = False
        tasks = [task for task in (self._looking, self._sending) if task is not None]
        self._looking = self._sending = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for replica in self._replicas:
            await replica.close()

    def asking(self, *, strict: bool) -> AskingReplicas:
        """The way of one query, which begins at the replica whose turn it is."""
        self._look_when_due()
        usable = [replica for replica in self._replicas if not replica.left_out]
        if usable:
            self._turn += 1
            first = self._turn % len(usable)
            usable = usable[first:] + usable[:first]
        return AskingReplicas(self, usable, strict=strict)

    async def replicas(self) -> list[ReplicaStatus]:
        """How each replica was when it was looked at last: whoever asks waits for none that is silent."""
        self._look_when_due()
        return [replica.status for replica in self._replicas]

    # ── sending on ───────────────────────────────────────────────────────────

    def send_on(self) -> None:
        """While somebody waits for a replica, see to it that it gets what the primary commits without delay."""
        if self._is_open and self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_on())

    async def _send_on(self) -> None:
        try:
            while any(replica.watch.waiting for replica in self._replicas):
                seen = self.read_store.changes
                await self.read_store.send_on()
                await pause(SEND_ON_S)
                await self.read_store.wait_for_change(seen, SEND_ON_WAIT_S)
        except (DiptychError, *DRIVER_ERRORS):
            pass  # nothing comes of it but that the primary takes its own time; the next who waits tries again
        finally:
            self._sending = None

    # ── looking ──────────────────────────────────────────────────────────────

    def look_soon(self) -> None:
        """Look at all of them now, beside whatever goes on: one has failed."""
        self._look_at = 0.0
        self._look_when_due()

    def _look_when_due(self) -> None:
        """Nobody waits for a look, least of all for one at a server that is gone."""
        loop = asyncio.get_running_loop()
        if self._is_open and self._looking is None and loop.time() >= self._look_at:
            self._looking = loop.create_task(self._look_apart())

    async def _look_apart(self) -> None:
        try:
            await self._look()
        finally:
            self._looking = None

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(PRIMARY_LOOK_S_MAX):
                primary = await self.read_store.server_state()
        except (DiptychError, TimeoutError):  # queries go on without it
            primary = None
        await asyncio.gather(*(replica.look(primary) for replica in self._replicas))
        self._look_at = asyncio.get_running_loop().time() + REPLICAS_LOOK_S


class AskingReplicas:
    """One query. See the port."""

    def __init__(self, source: ReadReplicas, usable: list[Replica], *, strict: bool) -> None:
        self._source = source
        self._policy = source.policy
        self._strict = strict
        self._usable = usable
        self._here: Replica | None = usable[0] if usable else None
        self._behind: dict[Replica, tuple[str, Sequence[Generation]]] = {}
        self._primary = AskingReadStore(source.read_store)

    @property
    def replica(self) -> str:
        """The URL of the replica that is asked now, without its password; empty for the primary."""
        return "" if self._here is None else self._here.url.shown

    def snapshot(self) -> AbstractAsyncContextManager[ReadSnapshot]:
        """A view of this moment, where it is asked now."""
        return self._primary.snapshot() if self._here is None else self._here.snapshot(strict=self._strict)

    def lacks(self, name: str, live: Sequence[Generation]) -> bool:
        """Go on to a replica that was not asked yet; or to the primary, by policy, or where waiting is in vain."""
        if self._here is None:
            return False
        self._behind[self._here] = name, live
        fresh = [replica for replica in self._usable if replica not in self._behind and not replica.left_out]
        if self._policy == "primary" or any(slice.stopped for slice in live):
            self._here = None
        elif fresh:
            self._here = fresh[0]
        else:
            return False
        return True

    async def wait(self, name: str, live: Sequence[Generation], timeout_s: float) -> None:
        """Wait until one of the replicas that were behind has replayed more of what it lacked."""
        if self._here is None:
            await self._primary.wait(name, live, timeout_s)
            return
        self._behind = {replica: seen for replica, seen in self._behind.items() if not replica.left_out}
        if self._here.left_out:
            self._leave()
            return
        loop = asyncio.get_running_loop()
        waits = {
            loop.create_task(replica.watch.wait(*seen, timeout_s)): replica for replica, seen in self._behind.items()
        }
        self._source.send_on()
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
            await asyncio.wait(waits)
        for each in done:
            each.result()
        self._here = waits[next(iter(done))]
        if self._here.left_out:
            self._leave()

    def refused(self, error: Blocked | StoreUnavailable) -> bool:
        """Go on elsewhere: with the next replica where this one is gone, else with the primary, which knows."""
        if self._here is None:
            return False
        if isinstance(error, StoreUnavailable) and self._here.fails(error):
            self._source.look_soon()
            self._leave()
        else:
            self._here = None
        return True

    def _leave(self) -> None:
        """Ask no more where it was asked last."""
        assert self._here is not None
        self._usable = [replica for replica in self._usable if replica is not self._here and not replica.left_out]
        self._behind.pop(self._here, None)
        fresh = [replica for replica in self._usable if replica not in self._behind]
        self._here = fresh[0] if fresh else None
