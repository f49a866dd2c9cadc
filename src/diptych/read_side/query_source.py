"""Where queries are answered: the read store itself, or replicas of it that follow it at a distance.

A port of its own, and a narrow one: projections, leases and rebuilds work on the read store alone. It is the way of one
query and not a store, since where a query is asked next depends on what it met: something that is behind there, or a
server that is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec

from diptych.read_side.read_store import Generation, ReadSnapshot, ReadStore

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from diptych.errors import Blocked, StoreUnavailable

__all__ = ["Asking", "AskingReadStore", "QuerySource", "ReadStoreSource", "ReplicaPolicy", "ReplicaStatus"]

ReplicaPolicy: TypeAlias = Literal["wait", "primary"]
"""What becomes of a query that has to show more than a replica has replayed: it waits there, or the primary answers."""


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one replica is.

    Attributes:
        url: where it is, without its password.
        lag_bytes: of the primary's log that it has not replayed.
        lag_s: how old the last transaction is that it has replayed; 0 where it has replayed everything.
        left_out: why no query is asked there; empty while it answers.
    """

    url: str
    lag_bytes: int
    lag_s: float
    left_out: str = ""


class Asking(Protocol):
    """Where one query is asked, one attempt after the other. Not for concurrent use.

    It comes to an end: among replicas each is gone on to once without a wait, and one that fails is not asked again.
    """

    @property
    def replica(self) -> str:
        """What is asked now, for messages; empty where it is the read store itself."""
        ...

    def snapshot(self) -> AbstractAsyncContextManager[ReadSnapshot]:
        """A view of this moment, where it is asked now; see `ReadStore.snapshot`."""
        ...

    def lacks(self, name: str, live: Sequence[Generation]) -> bool:
        """Note that a read model was behind in the last snapshot, where these were the slices that were behind.

        Returns:
            Whether it is asked elsewhere now, without a wait.
        """
        ...

    async def wait(self, name: str, live: Sequence[Generation], timeout_s: float) -> None:
        """Wait until it may show more than that, or the time is over."""
        ...

    def refused(self, error: Blocked | StoreUnavailable) -> bool:
        """Note that the last snapshot, or what it showed, gave this error.

        Returns:
            Whether it is asked elsewhere now: a replica that is gone, or behind, has not the last word.
        """
        ...


class QuerySource(Protocol):
    """Says where queries are asked. What a snapshot shows is for the caller to judge: a replica may be behind."""

    async def open(self) -> None:
        """Connect, once the read store is open.

        Raises:
            ConfigurationError: what is to be asked is no copy of the read store.
        """
        ...

    async def close(self) -> None:
        """Let go. May be called twice, and without `open`."""
        ...

    def asking(self, *, strict: bool) -> Asking:
        """The way of one query; a strict one is never shown what is of another history."""
        ...

    async def replicas(self) -> list[ReplicaStatus]:
        """How each replica was a moment ago, in the order given, without a wait; empty where there are none."""
        ...


# ── the read store itself ────────────────────────────────────────────────────


class ReadStoreSource:
    """Every query is asked in the read store: where there are no replicas."""

    def __init__(self, read_store: ReadStore) -> None:
        self._read_store = read_store

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    def asking(self, *, strict: bool) -> AskingReadStore:
        """The way of one query."""
        del strict  # it is the store that everything else is compared with
        return AskingReadStore(self._read_store)

    async def replicas(self) -> list[ReplicaStatus]:
        """None."""
        return []


class AskingReadStore:
    """One query, asked in the read store until it shows what it has to."""

    __slots__ = ("_read_store", "_seen")

    def __init__(self, read_store: ReadStore) -> None:
        self._read_store = read_store
        self._seen = 0

    @property
    def replica(self) -> str:
        """Empty."""
        return ""

    def snapshot(self) -> AbstractAsyncContextManager[ReadSnapshot]:
        """A view of this moment, and what was known before it."""
        self._seen = self._read_store.changes
        return self._read_store.snapshot()

    def lacks(self, name: str, live: Sequence[Generation]) -> bool:
        """False."""
        del name, live  # there is nowhere else
        return False

    async def wait(self, name: str, live: Sequence[Generation], timeout_s: float) -> None:
        """Wait until the rows of any read model are written, which may be what was missing."""
        del name, live  # every write wakes
        await self._read_store.wait_for_change(self._seen, timeout_s)

    def refused(self, error: Blocked | StoreUnavailable) -> bool:
        """False."""
        del error  # there is nowhere else
        return False
