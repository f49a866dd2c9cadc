"""Snapshots of rows in Valkey, which has none: what has changed since is undone where it is read (G8).

The first read tells the server that a snapshot is open, and until it is over, or too old, each change keeps what was
there before. Every later read is one script, that gives what there is now and what has changed since this snapshot's
moment. Rows that have changed are taken as they were, all others as they are: that is how all was at that moment.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import msgspec

from diptych.adapters.valkey.catalog import slices_of
from diptych.adapters.valkey.framing import Taken
from diptych.adapters.valkey.index_scan import Scan, chosen, scans_for
from diptych.adapters.valkey.rows import WORDS, TableRows, table_rows
from diptych.errors import ConfigurationError, StoreUnavailable
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
    Table,
)
from diptych.read_side.row_filters import best_first, in_order, matcher, words_of

__all__ = ["PAGE_ROWS", "SCANNED_ROWS_MAX", "Answer", "Ask", "ValkeyReadSnapshot"]

SCANNED_ROWS_MAX = 20_000
"""Rows that one `find`, `count` or `search` looks at; what would have to look at more is refused: it needs an index."""
FIRST_PAGE_ROWS = 100
"""Rows that are read at first while an index is gone along."""
PAGE_ROWS = 500
"""Rows that are read at once after that, and by key."""

KEPT = b"kept"
"""Asks for the generation that is kept, whatever its number is."""
COUNTS_MAX = 10
"""Times that rows are counted anew since others changed meanwhile, before that is given up."""


class Answer(NamedTuple):
    """What a read gives.

    Attributes:
        change: the number of the last change there is.
        member: by which the server knows the snapshot, where it was told of it.
        live: the number of the live generation at the snapshot's moment.
        kept_one: that of the one that was kept then, and until when.
        number: that of the generation that was read.
        undone: of what has changed since, what was there: a hash, a field, its text, by turns.
        found: what was asked for; nothing where there is no generation.
    """

    change: bytes
    member: bytes | None
    live: bytes | None
    kept_one: bytes | None
    number: bytes | None
    undone: Sequence[bytes | None]
    found: Taken


class Ask(Protocol):
    """Asks the server for reads of one generation, all at once."""

    async def __call__(
        self, since: bytes | None, name: str, number: bytes | None, operations: Sequence[bytes]
    ) -> Answer:
        """`since` is a change up to which what has changed is known; without one, the snapshot begins.

        `number` is that of a generation, or `KEPT`; None is the live one.

        Raises:
            StoreUnavailable: what was there then is not known any more.
        """
        ...


class _Build:
    """What is known of one generation."""

    def __init__(self, name: str, answer: Answer) -> None:
        self.name = name
        self.number = answer.number
        self.seen = answer.change
        self.before: dict[bytes, bytes | None] = {}
        """Rows that have changed since the snapshot's moment, as they were."""
        self.known: dict[bytes, Row | None] = {}
        """Rows as the snapshot shows them."""
        self.slices: Sequence[Generation] = ()
        self.blocked: Sequence[BlockedKey] = ()

    def note(self, answer: Answer) -> dict[tuple[bytes, bytes], bytes | None]:
        """Learn which rows have changed, and tell which other fields have: of several changes the first counts."""
        fields: dict[tuple[bytes, bytes], bytes | None] = {}
        undone = answer.undone
        for place, field, was in zip(undone[::3], undone[1::3], undone[2::3], strict=True):
            assert place is not None
            assert field is not None
            if place == b"row":
                self.before.setdefault(field, was)
            else:
                fields.setdefault((place, field), was)
        self.seen = answer.change
        return fields


class ValkeyReadSnapshot:
    """One moment of the store. See the port.

    Args:
        ask: asks the server.
        tables: the table that each projection had last, so that a row is asked for together with all else.
    """

    def __init__(self, ask: Ask, tables: dict[str, Table]) -> None:
        self._ask = ask
        self._tables = tables
        self._change: bytes | None = None
        self._builds: dict[tuple[str, bytes | None], _Build | None] = {}

    # ── the port ─────────────────────────────────────────────────────────────

    async def slices(
        self, name: str, number: int | None = None, *, expecting: Sequence[Key] = ()
    ) -> Sequence[Generation]:
        """All slices of the live generation, or of the numbered one. See the port."""
        build = await self._build(name, _which(number), expecting)
        return () if build is None else tuple(build.slices)

    async def kept(self, name: str, fingerprint: str) -> Sequence[Generation]:
        """All slices of the generation of some code that is kept. See the port."""
        build = await self._build(name, KEPT)
        return () if build is None or build.slices[0].fingerprint != fingerprint else tuple(build.slices)

    async def blocked(self, name: str, number: int | None = None) -> list[BlockedKey]:
        """The blocked keys of a generation, by position."""
        build = await self._build(name, _which(number))
        return [] if build is None else list(build.blocked)

    async def get_many(self, name: str, keys: Sequence[Key], number: int | None = None) -> dict[Key, Row]:
        """The rows of these keys; keys without a row are left out."""
        build, table = await self._with_rows(name, number)
        given = {tuple(key): table.stored_key(key) for key in keys if table.may_have_row(key)}
        unknown = [key for key in given.values() if key not in build.known]
        for begin in range(0, len(unknown), PAGE_ROWS):
            page = unknown[begin : begin + PAGE_ROWS]
            answer = await self._read(build, [b"rows", b"%d" % len(page), *page])
            _learn_rows(build, table, answer.found, len(page))
        return {key: row for key, stored in given.items() if (row := build.known[stored]) is not None}

    async def find(
        self,
        name: str,
        filters: Sequence[Filter],
        order: Sequence[Order],
        limit: int,
        after: Sequence[Any] | None = None,
        number: int | None = None,
    ) -> list[Row]:
        """Rows that every filter matches, in order. See the port.

        Raises:
            ConfigurationError: it would have to look at more rows than `SCANNED_ROWS_MAX`.
        """
        build, table = await self._with_rows(name, number)
        matches = matcher(filters, table.table)
        scan = await self._scan_for(build, table, filters, order, after)
        found: list[Row] = []

        def enough(row: Row) -> bool:
            if not matches(row) or (after is not None and not in_order([row], table.table, order, after)):
                return False
            if len(found) >= limit and scan.is_behind(table, row, found[limit - 1]):
                return True
            found.append(row)
            return False

        await self._go_along(build, table, scan, enough, _speaks_of(filters, order))
        shown = filter(matches, _shown(build, table, found))
        return in_order(shown, table.table, order, after)[:limit]

    async def count(self, name: str, filters: Sequence[Filter], number: int | None = None) -> int:
        """How many rows every filter matches. See the port.

        Raises:
            ConfigurationError: it would have to look at more rows than `SCANNED_ROWS_MAX`.
        """
        build, table = await self._with_rows(name, number)
        matches = matcher(filters, table.table)
        covering = [scan for scan in scans_for(table, filters, (), None) if scan.covers]
        if covering:
            return await self._counted(build, table, covering[0], matches)
        scan = await self._scan_for(build, table, filters, (), None)
        found: list[Row] = []

        def collect(row: Row) -> bool:
            if matches(row):
                found.append(row)
            return False

        await self._go_along(build, table, scan, collect, _speaks_of(filters, ()))
        return sum(map(matches, _shown(build, table, found)))

    async def search(
        self, name: str, text: str, limit: int, filters: Sequence[Filter] = (), number: int | None = None
    ) -> list[Row]:
        """Rows in whose searchable columns every word of the text begins a word. See the port.

        Raises:
            ConfigurationError: more rows than `SCANNED_ROWS_MAX` have a word that begins like the longest one.
        """
        build, table = await self._with_rows(name, number)
        matches, words = matcher(filters, table.table), words_of(text)
        if not words or WORDS not in table.indexes:
            return []
        begin = max(words, key=len).encode()
        found: list[Row] = []

        def collect(row: Row) -> bool:
            found.append(row)
            return False

        along = Scan(WORDS, [(begin, begin + b"\xff")])
        await self._go_along(build, table, along, collect, f"a search of words like {begin.decode()!r}")
        return best_first(filter(matches, _shown(build, table, found)), table.table, words)[:limit]

    async def expired(self, name: str, moment: dt.datetime, limit: int, number: int | None = None) -> list[Key]:
        """The keys of rows that expire at a moment or before it, in that order. See the port."""
        build, table = await self._with_rows(name, number)
        if table.table.expires is None:
            return []
        due = Filter(table.table.expires, Comparison.AT_MOST, moment)
        order = [Order(column) for column in dict.fromkeys((table.table.expires, *table.table.key))]
        rows = await self.find(name, [due], order, limit, None, build.slices[0].number)
        return [table.key_of(row) for row in rows]

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
        raise ConfigurationError("read models in Valkey have no SQL: keep this one in sqlite: or postgresql:")

    # ── generations ──────────────────────────────────────────────────────────

    async def _with_rows(self, name: str, number: int | None) -> tuple[_Build, TableRows]:
        build = await self._build(name, _which(number))
        if build is None or build.slices[0].table is None:
            which = "live generation" if number is None else f"generation {number}"
            raise StoreUnavailable(f"{name} has no {which} with a table here; is its first build still under way?")
        return build, table_rows(build.slices[0].table)

    async def _build(self, name: str, which: bytes | None, expecting: Sequence[Key] = ()) -> _Build | None:
        """A generation, which is looked for once."""
        if (name, which) not in self._builds:
            build = self._builds[name, which] = await self._look_for(name, which, expecting)
            if build is not None:
                self._builds[name, build.number] = build
        return self._builds[name, which]

    async def _look_for(self, name: str, which: bytes | None, expecting: Sequence[Key]) -> _Build | None:
        """Read the state of a generation, and with it rows that are expected, if its table is the one that it was."""
        guess = self._tables.get(name) if expecting else None
        keys = _stored_keys(guess, expecting) if guess is not None else []
        operations = [b"state", b"rows", b"%d" % len(keys), *keys]
        answer = await self._ask(self._change, name, which, operations)
        self._change = self._change or answer.change
        if answer.number is None:
            return None
        build = _Build(name, answer)
        before = build.note(answer)
        state, blocked = answer.found.mapping(), answer.found.mapping()
        build.slices = slices_of(_as_it_was(state, b"build", before), answer.live, answer.kept_one)
        build.blocked = sorted(
            (msgspec.json.decode(text, type=BlockedKey) for text in _as_it_was(blocked, b"blocked", before).values()),
            key=lambda found: (found.position, found.key),
        )
        if not build.slices:
            return None
        table = build.slices[0].table
        if table is not None:
            self._tables[name] = table
            if table == guess:
                _learn_rows(build, table_rows(table), answer.found, len(keys))
        return build

    async def _read(self, build: _Build, operations: Sequence[bytes]) -> Answer:
        answer = await self._ask(build.seen, build.name, build.number, operations)
        build.note(answer)
        return answer

    # ── indexes ──────────────────────────────────────────────────────────────

    async def _scan_for(
        self,
        build: _Build,
        table: TableRows,
        filters: Sequence[Filter],
        order: Sequence[Order],
        after: Sequence[Any] | None,
    ) -> Scan:
        """The way that leads along the fewest rows; where there is only one, that."""
        scans = scans_for(table, filters, order, after)
        if len(scans) == 1:
            return scans[0]
        answer = await self._read(build, [part for scan in scans for part in _counting(scan)])
        return chosen(scans, [_sum(answer.found, scan) for scan in scans])

    async def _go_along(
        self, build: _Build, table: TableRows, scan: Scan, enough: Callable[[Row], bool], asked: str
    ) -> None:
        """Show every row on the way that has not changed since this moment, until it is enough."""
        seen, size = 0, FIRST_PAGE_ROWS
        for begin, end in reversed(scan.bounds) if scan.down else scan.bounds:
            low, high = begin, end
            while True:
                way = [b"down" if scan.down else b"up", scan.along, b"[" + low, b"(" + high]
                answer = await self._read(build, [*way, b"" if scan.along else b"keys", b"%d" % size])
                members = answer.found.number()
                last = b""
                for _ in range(members):
                    last, key, fields = answer.found.text(), answer.found.text(), answer.found.list()
                    if key not in build.before and enough(table.row(fields)):
                        return
                seen += members
                if members < size:
                    break
                if seen >= SCANNED_ROWS_MAX:
                    raise ConfigurationError(
                        f"{asked} of {build.name} would look at more than SCANNED_ROWS_MAX={SCANNED_ROWS_MAX} rows in "
                        "Valkey: mark the field that tells most rows apart Indexed[...], ask for fewer, or keep this "
                        "read model in sqlite: or postgresql:"
                    )
                low, high = (low, last) if scan.down else (last + b"\0", high)
                size = PAGE_ROWS

    async def _counted(self, build: _Build, table: TableRows, scan: Scan, matches: Callable[[Row], bool]) -> int:
        """How many there are on the way, but for what has changed since this moment, and what was there before."""
        for _ in range(COUNTS_MAX):
            changed = list(build.before)
            answer = await self._read(build, [*_counting(scan), b"rows", b"%d" % len(changed), *changed])
            if len(build.before) > len(changed):
                continue
            count = _sum(answer.found, scan)
            for _ in changed:
                answer.found.text()
                fields = answer.found.list()
                count -= bool(fields) and matches(table.row(fields))
            return count + sum(matches(table.row_of(was)) for was in build.before.values() if was is not None)
        raise StoreUnavailable(f"rows of {build.name} changed {COUNTS_MAX} times while they were counted; ask again")


def _which(number: int | None) -> bytes | None:
    return None if number is None else b"%d" % number


def _stored_keys(table: Table, keys: Sequence[Key]) -> list[bytes]:
    rows = table_rows(table)
    return [rows.stored_key(key) for key in keys if len(key) == len(rows.key) and rows.may_have_row(key)]


def _learn_rows(build: _Build, table: TableRows, taken: Taken, count: int) -> None:
    """Take rows by key, and keep each as it was at the snapshot's moment."""
    for _ in range(count):
        key, fields = taken.text(), taken.list()
        if key in build.before:
            was = build.before[key]
            build.known[key] = None if was is None else table.row_of(was)
        else:
            build.known[key] = table.row(fields) if fields else None


def _shown(build: _Build, table: TableRows, found: Iterable[Row]) -> list[Row]:
    """Rows that were met, each once, with those that have changed as they were."""
    rows = {table.stored_key(table.key_of(row)): row for row in found}
    rows |= {key: table.row_of(was) for key, was in build.before.items() if was is not None}
    return list(rows.values())


def _as_it_was(
    now: Mapping[bytes, bytes], name: bytes, before: Mapping[tuple[bytes, bytes], bytes | None]
) -> dict[bytes, bytes]:
    """A hash, with what has changed of it since as it was."""
    mine = {field: was for (place, field), was in before.items() if place == name}
    return {field: text for field, text in {**now, **mine}.items() if text is not None}


def _counting(scan: Scan) -> list[bytes]:
    return [part for low, high in scan.bounds for part in (b"count", scan.along, b"[" + low, b"(" + high)]


def _sum(taken: Taken, scan: Scan) -> int:
    return sum(taken.number() for _ in scan.bounds)


def _speaks_of(filters: Sequence[Filter], order: Sequence[Order]) -> str:
    """What is asked, for messages."""
    by, ordered = [each.column for each in filters], [each.column for each in order]
    asked = f"a find or count by {', '.join(by)}" if by else "a find or count of all rows"
    return f"{asked}, ordered by {', '.join(ordered)}," if ordered else asked
