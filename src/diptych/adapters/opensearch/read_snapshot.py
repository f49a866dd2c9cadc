"""One moment of the read models in OpenSearch: the catalog as it was read once, and the rows that show by it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diptych.adapters.opensearch.catalog import Build, Catalog
from diptych.adapters.opensearch.columns import RowCodec
from diptych.adapters.opensearch.row_queries import (
    KEYS_MAX,
    Query,
    after,
    matching,
    of_keys,
    order_by,
    searched,
    showing,
)
from diptych.errors import ConfigurationError, InvalidMessage, StoreUnavailable
from diptych.read_side.read_store import (
    SQL_ROWS_MAX,
    BlockedKey,
    ColumnKind,
    Comparison,
    Filter,
    Generation,
    Key,
    Order,
    Row,
)

if TYPE_CHECKING:
    from diptych.adapters.opensearch.cluster import Cluster, Hit
    from diptych.adapters.opensearch.notes import Notes

__all__ = ["SNAPSHOT_S_MAX", "OpenSearchSnapshot"]

SNAPSHOT_S_MAX = 60.0
"""Seconds that a snapshot in OpenSearch can be read; rows that were replaced longer ago may be gone."""
HITS_MAX = 10_000
"""Rows of one answer; OpenSearch gives no more."""


class OpenSearchSnapshot:
    """See the port. Every answer is checked to be younger than what is removed."""

    def __init__(self, cluster: Cluster, notes: Notes, catalog: Catalog, age: Callable[[], float]) -> None:
        """`age` tells how many seconds ago the catalog was asked for."""
        self._cluster = cluster
        self._notes = notes
        self._catalog = catalog
        self._age = age

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of the live generation, or of the numbered one. See the port."""
        del expecting
        build = self._catalog.build(name, number)
        return () if build is None else tuple(build.generations)

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """All slices of the generation of some code that is kept. See the port."""
        kept = (build for build in self._catalog.builds if build.name == name and build.kept_until is not None)
        return next((build.generations for build in kept if build.slices[0].fingerprint == fingerprint), ())

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys of a generation, by position."""
        build = self._catalog.build(name, number)
        if build is None:
            return []
        found = [kept.key for kept in await self._notes.blocked(build)]
        self._check_age()
        return sorted(found, key=lambda blocked: (blocked.position, blocked.key))

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys; keys without a row are left out."""
        build, codec = self._build(name, number)
        wanted = {codec.key_id(key): key for key in map(tuple, keys) if codec.may_have_row(key)}
        ids, found = list(wanted), dict[Key, Row]()
        for at in range(0, len(ids), KEYS_MAX):
            for hit in await self._hits(build, {}, of_keys(ids[at : at + KEYS_MAX]), size=KEYS_MAX):
                found[wanted[hit.source["k"]]] = codec.row(hit.source["row"])
        return {key: found[key] for key in wanted.values() if key in found}

    async def find(
        self,
        name: str,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        after: Sequence[Any] | None = None,
        number: int | None = None,
    ) -> list[Row]:
        """Rows that every filter matches, in order. See the port."""
        build, codec = self._build(name, number)
        return [codec.row(hit.source["row"]) for hit in await self._found(build, codec, filters, order, limit, after)]

    async def _found(
        self,
        build: Build,
        codec: RowCodec,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        place: Sequence[Any] | None = None,
    ) -> list[Hit]:
        sort, conditions = order_by(codec, build, order), matching(codec, build, filters)
        behind: Sequence[Any] | None = None if place is None else after(codec, order, place)
        found: list[Hit] = []
        while len(found) < limit:
            size = min(limit - len(found), HITS_MAX)
            going_on = {} if behind is None else {"search_after": behind}
            page = await self._hits(build, {"sort": sort, **going_on}, *conditions, size=size)
            found += page
            if len(page) < size:
                break
            behind = page[-1].sort
        return found

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches."""
        build, codec = self._build(name, number)
        query = showing(build, self._catalog.last, *matching(codec, build, filters))
        counted = await self._cluster.count(build.index, query)
        self._check_age()
        return counted

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word; the rank is OpenSearch's."""
        build, codec = self._build(name, number)
        conditions, words = matching(codec, build, filters), searched(text)
        if limit > HITS_MAX:  # it cannot be asked for the next ones: scores are rounded
            raise InvalidMessage("a search", [("limit", f"OpenSearch gives {HITS_MAX:,} rows of a search at most")])
        if words is None:
            return []
        demanded, ranking = words
        by_key = order_by(codec, build, [Order(column) for column in codec.table.key])
        sort = [{"_score": "desc"}, *by_key]
        hits = await self._hits(build, {"sort": sort}, *conditions, *demanded, size=limit, ranking=ranking)
        return [codec.row(hit.source["row"]) for hit in hits]

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it, in that order. See the port."""
        build, codec = self._build(name, number)
        expires = codec.table.expires
        if expires is None:
            return []
        order = [Order(name) for name in dict.fromkeys((expires, *codec.table.key))]
        hits = await self._found(build, codec, [Filter(expires, Comparison.AT_MOST, moment)], order, limit)
        return [codec.key_of(codec.row(hit.source["row"])) for hit in hits]

    async def sql(
        self,
        statement: str,
        parameters: Sequence[Any],
        columns: Mapping[str, tuple[ColumnKind, bool]],
        moments: Mapping[str, dt.datetime] = MappingProxyType({}),
        *,
        limit: int = SQL_ROWS_MAX,
    ) -> list[dict[str, Any]]:
        """Refused: there is no SQL here."""
        del statement, parameters, columns, moments, limit
        raise ConfigurationError(
            "the read store opensearch: has no SQL that a query handler could ask: use find, count and search, "
            "or keep the read models in PostgreSQL or SQLite"
        )

    def _build(self, name: str, number: int | None) -> tuple[Build, RowCodec]:
        build = self._catalog.build(name, number)
        if build is None or build.table is None:
            which = "live generation" if number is None else f"generation {number}"
            raise StoreUnavailable(f"{name} has no {which} with a table here; is its first build still under way?")
        return build, RowCodec(build.table)

    async def _hits(
        self, build: Build, how: Mapping[str, Any], *conditions: Query, size: int, ranking: Sequence[Query] = ()
    ) -> list[Hit]:
        query = showing(build, self._catalog.last, *conditions)
        if ranking:
            query = {"bool": {"filter": [query], "should": ranking}}
        body = {"query": query, "_source": ["k", "row"], "size": size, **how}
        found = await self._cluster.search(build.index, body, ranked=bool(ranking))
        self._check_age()
        return found

    def _check_age(self) -> None:
        """Make sure that nothing it shows can have been removed yet."""
        if self._age() > SNAPSHOT_S_MAX:
            raise StoreUnavailable(
                f"a snapshot in OpenSearch can be read for {SNAPSHOT_S_MAX:g} seconds: ask anew, for less at once"
            )
