"""One replica of a read store: a standby of its server, which shows what the primary had committed a while ago.

It is asked as long as it is what it was given for: a standby, of the same server and database, on the same history.
That is looked at when it joins, on every new connection, and every now and then; a strict query has the checkpoint
checked that it relies on, so that a copy that went its own way answers none (docs/decisions/0026).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from diptych.adapters.postgres.connection import DRIVER_ERRORS, Connections, Link, PostgresUrl, failure, state_of
from diptych.adapters.postgres.read_catalog import Catalog, generation_of
from diptych.adapters.postgres.read_schema import READ_STORE_MIGRATIONS
from diptych.adapters.postgres.read_snapshot import PostgresReadSnapshot, Snapshots, SnapshotTurn
from diptych.adapters.postgres.read_tables import Builds
from diptych.adapters.postgres.replay_watch import ReplayWatch
from diptych.errors import ConfigurationError, DiptychError, HistoryError, StoreUnavailable
from diptych.event_store.position import Place, Position
from diptych.read_side.query_source import ReplicaStatus
from diptych.read_side.read_store import Generation, Key

__all__ = ["SERVER_STATE", "OfAnother", "PlaceAt", "Replica", "ServerState"]

LOOK_S_MAX = 2.0
"""How long a look at a replica may take before it is left out."""
LOOK_CONNECTIONS_MAX = 1
"""Connections to one replica that look how it is."""

SERVER_STATE = (
    "SELECT s.system_identifier, d.oid::bigint, pg_is_in_recovery(), "
    "(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::bigint, "
    "coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 0)::double precision "
    "FROM pg_control_system() AS s, pg_database AS d WHERE d.datname = current_database()"
)
"""Selects a `ServerState`."""

PlaceAt = Callable[[Position], Awaitable[Place | None]]
"""The place of the history at a position; None past the head."""

_log = logging.getLogger("diptych.postgres")


class ServerState(NamedTuple):
    """Which server and database this is, and how far it is.

    Attributes:
        system: the identifier that a server shares with its standbys alone.
        database: the number of the database in it.
        is_standby: whether it replays another one's log.
        log_position: bytes of the log that are written, or on a standby replayed.
        replayed_s: seconds since the last transaction that was replayed was committed; 0 where none was.
    """

    system: int
    database: int
    is_standby: bool
    log_position: int
    replayed_s: float


class NotAsked(StoreUnavailable):
    """This replica is not to be asked; says why."""


class OfAnother(NotAsked):
    """It is a copy of something else."""


class Replica:
    """One replica, which is asked while nothing speaks against it.

    Attributes:
        url: where it is.
        left_out: why it is not asked; empty while it is.
        watch: waits for what it replays.
    """

    def __init__(self, url: PostgresUrl, place_at: PlaceAt) -> None:
        """Remember where it is; nothing is opened yet."""
        self.url = url
        self.left_out = "it was not looked at yet"
        self.watch = ReplayWatch(self._live)
        self._place_at = place_at
        self._catalog = Catalog(url.quoted_schema, url.schema)
        self._snapshots = _ReplicaSnapshots(url, self._catalog, Builds(url.quoted_schema), self._admit)
        self._looking = Connections(url, LOOK_CONNECTIONS_MAX, read_only=True, verify=_as_it_is)
        self._primary: ServerState | None = None
        self._lag_bytes, self._lag_s = 0, 0.0
        self._is_told = False

    def open(self, primary: ServerState) -> None:
        """Take queries once it was looked at; it has to be a standby of this primary."""
        self._primary = primary
        self._looking.open()
        self._snapshots.open()

    async def close(self) -> None:
        """Let go of the connections."""
        await self.watch.close()
        await self._snapshots.close()
        await self._looking.close()

    @property
    def status(self) -> ReplicaStatus:
        """How it was when it was looked at last."""
        return ReplicaStatus(url=self.url.shown, lag_bytes=self._lag_bytes, lag_s=self._lag_s, left_out=self.left_out)

    # ── queries ──────────────────────────────────────────────────────────────

    def snapshot(self, *, strict: bool) -> SnapshotTurn:
        """A view of what it shows now."""
        return _ReplicaTurn(self._snapshots, self._check if strict else None)

    def fails(self, error: StoreUnavailable) -> bool:
        """Whether an error of a snapshot speaks against all of it; it is left out then, until it was looked at.

        It may have cancelled a query, or cut a connection, only since that was in the way of the replay.
        """
        cause = error.__cause__
        was_cancelled = cause is not None and state_of(cause).startswith("40")
        if isinstance(error, NotAsked) or (isinstance(cause, DRIVER_ERRORS) and not was_cancelled):
            self._leave_out(str(error))
        return bool(self.left_out)

    def _leave_out(self, reason: str) -> None:
        self.left_out = reason
        self.watch.wake()

    async def _live(self, names: Collection[str]) -> Mapping[str, Sequence[Generation]]:
        async with self.snapshot(strict=False) as snapshot:
            return {name: await snapshot.slices(name) for name in names}

    # ── looking at it ────────────────────────────────────────────────────────

    async def look(self, primary: ServerState | None) -> NotAsked | None:
        """Look how it is, and whether it can be asked.

        Args:
            primary: how the primary was a moment before; None where that cannot be known.

        Returns:
            Why it cannot; None where it can.
        """
        try:
            state = await self._looked()
        except NotAsked as why:
            if not self._is_told:
                _log.warning("queries are not asked on the replica %s: %s", self.url.shown, why)
            self._is_told = True
            self._leave_out(str(why))
            return why
        if primary is not None:
            self._lag_bytes = max(0, primary.log_position - state.log_position)
            self._lag_s = max(0.0, state.replayed_s) if self._lag_bytes else 0.0
        if self._is_told:
            _log.info("queries are asked on the replica %s again", self.url.shown)
        self._is_told = False
        self.left_out = ""
        return None

    async def _looked(self) -> ServerState:
        """How it is.

        Raises:
            NotAsked: it is not to be asked.
        """
        try:
            async with asyncio.timeout(LOOK_S_MAX), self._looking.connection() as link:
                state = await self._admit(link)
                rows = await link.fetch(self._catalog.select_generations())
        except NotAsked:
            raise
        except DiptychError as error:
            raise NotAsked(str(error)) from error
        except DRIVER_ERRORS as error:
            raise NotAsked(str(failure(self.url, error) or error)) from error
        places = [generation_of(row).checkpoint for row in rows]
        newest = max(places, key=lambda place: place.position, default=None)
        if newest is not None and await self._is_of_history(newest) is False:
            raise self._of_another_history(newest)
        return state

    async def _admit(self, link: Link) -> ServerState:
        """How the server at the other end is, if it is the replica that it was given for.

        Raises:
            NotAsked: it is not, or not yet.
        """
        state = ServerState(*(await link.fetchrow(SERVER_STATE) or ()))
        assert self._primary is not None
        if (state.system, state.database) != (self._primary.system, self._primary.database):
            raise OfAnother(
                f"{self.url.shown} is no replica of the read store: it is another server, or another database"
            )
        if not state.is_standby:
            raise NotAsked(f"{self.url.shown} is no replica: it replays nobody's log. Was it promoted?")
        try:
            await READ_STORE_MIGRATIONS.check(link, self.url)
        except (ConfigurationError, HistoryError) as error:
            raise NotAsked(f"{self.url.shown} has not replayed the tables that this Diptych needs") from error
        return state

    async def _check(self, place: Place) -> None:
        """Make sure that the checkpoint of a read model is of the history.

        Raises:
            NotAsked: it is of another one.
            StoreUnavailable: that cannot be known now.
        """
        is_of_history = await self._is_of_history(place)
        if is_of_history is None:
            raise StoreUnavailable(f"{self.url.shown}: whether it follows this history cannot be known now")
        if not is_of_history:
            raise self._of_another_history(place)

    async def _is_of_history(self, place: Place) -> bool | None:
        """Whether the history has this place; None where it cannot be asked, which says nothing about the replica."""
        if not place.position:
            return True
        try:
            return await self._place_at(place.position) == place
        except DiptychError:
            return None

    def _of_another_history(self, place: Place) -> NotAsked:
        return NotAsked(f"{self.url.shown} follows another history: at position {place.position} it has another event")


# ── snapshots ────────────────────────────────────────────────────────────────


class _ReplicaSnapshots(Snapshots):
    """Connections that are each looked at before they are used."""

    def __init__(
        self, url: PostgresUrl, catalog: Catalog, builds: Builds, admit: Callable[[Link], Awaitable[ServerState]]
    ) -> None:
        super().__init__(url, catalog, builds)
        self._admit = admit

    async def _verify(self, link: Link) -> None:
        await self._admit(link)
        await super()._verify(link)


class _ReplicaTurn(SnapshotTurn):
    """One snapshot's lifetime, with what checks the checkpoints that are relied on."""

    __slots__ = ("_check",)

    def __init__(self, pool: Snapshots, check: Callable[[Place], Awaitable[None]] | None) -> None:
        super().__init__(pool)
        self._check = check

    async def __aenter__(self) -> PostgresReadSnapshot:
        """Take a connection."""
        if self._check is None:
            return await super().__aenter__()
        link, self._lent = await self._pool.take()
        self._snapshot = _CheckedSnapshot(link, self._pool, self._check)
        return self._snapshot


class _CheckedSnapshot(PostgresReadSnapshot):
    """A snapshot that shows no checkpoint of another history."""

    def __init__(self, link: Link, pool: Snapshots, check: Callable[[Place], Awaitable[None]]) -> None:
        super().__init__(link, pool)
        self._check = check

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of a generation; their checkpoints are of the history."""
        found = await super().slices(name, number, expecting=expecting)
        for place in {slice.checkpoint for slice in found}:
            await self._check(place)
        return found


async def _as_it_is(link: Link) -> None:
    """A connection that is looked at when it is used, and not before."""
    del link
