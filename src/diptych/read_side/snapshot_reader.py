"""The reader that query handlers are given: one snapshot, which it remembers what was touched of."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from diptych.errors import Blocked, ConfigurationError, InvalidMessage, Overloaded
from diptych.event_store.position import NOWHERE, START, Place, Token
from diptych.messages.codec import encode
from diptych.messages.message import field_types
from diptych.read_side.conditions import AllOf, Condition
from diptych.read_side.freshness import Behind, Checks
from diptych.read_side.pages_by_key import pages_by_key
from diptych.read_side.partitions import slice_of
from diptych.read_side.projection import Projection
from diptych.read_side.query_context import QueryContext, VisibleRows
from diptych.read_side.query_limits import RowCount
from diptych.read_side.read_model import KIND_TYPES, ReadModel, RowForm, column_kind, key_text
from diptych.read_side.read_store import (
    SQL_ROWS_MAX,
    BlockedKey,
    ColumnKind,
    Comparison,
    Filter,
    Generation,
    Key,
    Order,
    ReadSnapshot,
    Row,
)
from diptych.read_side.reader import FIND_ROWS_MAX, Page
from diptych.read_side.row_filters import matcher
from diptych.read_side.row_refusal import value_refusal

__all__ = ["SnapshotReader", "moment_shown"]

M = TypeVar("M", bound=ReadModel)
S = TypeVar("S", bound=msgspec.Struct)


class _Cursor(msgspec.Struct, array_like=True):
    """Where a page ended: of which question, in which history, after which values."""

    question: bytes
    history_id: bytes
    values: list[Any]


class _Met:
    """What the readers of one snapshot have met.

    Attributes:
        incomplete: whether something that was touched waits behind a blocked key.
        behind: that something that was touched is behind.
        now: the time as of which rows are shown that expire.
    """

    def __init__(self) -> None:
        self.incomplete = False
        self.behind: Behind | None = None
        self.now: datetime | None = None


class SnapshotReader:
    """Implements `Reader` over a snapshot of the read store, once it was `narrowed` to what may be seen."""

    def __init__(
        self,
        snapshot: ReadSnapshot,
        projections: Mapping[type, tuple[Projection, str]],
        checks: Checks,
        *,
        serving_old: bool = False,
    ) -> None:
        self._met = _Met()
        self.visible: VisibleRows | None = None
        self.counted: RowCount | None = None
        self._snapshot = snapshot
        self._projections = projections
        self._checks = checks
        self._serving_old = serving_old
        self._live: dict[str, Sequence[Generation]] = {}
        self._numbers: dict[str, int] = {}  # where others answer than the live ones
        self._touched: dict[str, dict[int, Generation]] = {}
        self._blocked: dict[str, list[BlockedKey]] = {}

    @property
    def incomplete(self) -> bool:
        """Whether something that was touched waits behind a blocked key."""
        return self._met.incomplete

    @property
    def behind(self) -> Behind | None:
        """That something that was touched is behind, also where the handler caught it."""
        return self._met.behind

    def narrowed(self, context: QueryContext, counted: RowCount | None = None) -> SnapshotReader:
        """The same reader, in which there are no rows but those that the context lets be seen. It reads; this does not.

        What either touches and meets, both do. Rows are counted anew, and by those around it, where nothing counts them
        already.
        """
        found = SnapshotReader.__new__(SnapshotReader)  # `copy` takes several times as long, and every query pays it
        counted = counted or RowCount(context.query, context.limits.rows, self.counted)
        vars(found).update(vars(self), visible=context.rows, counted=counted)
        return found

    def token(self, history_id: bytes) -> Token:
        """What the answer shows: the span of the checkpoints that were touched."""
        places = [slice.checkpoint for slices in self._touched.values() for slice in slices.values()]
        if not places:
            return Token(START, Place(history_id, START, NOWHERE))
        return Token(min(place.position for place in places), max(places, key=lambda place: place.position))

    async def shown(self) -> tuple[Token, ...]:
        """What was touched so far shows; nothing where nothing was."""
        first = next((slice for slices in self._touched.values() for slice in slices.values()), None)
        return () if first is None else (self.token(first.checkpoint.history_id),)

    async def check(self, missing: Behind) -> None:
        """Check that what was behind the last time shows what it has to, before a handler does any work.

        Raises:
            Behind: it does not.
        """
        live = await self._answering(missing.projection, missing.keys)
        were = {(slice.slice, slice.slices) for slice in missing.slices}
        mine = [slice for slice in live if (slice.slice, slice.slices) in were]
        await self._require(missing.projection, mine, missing.keys)

    # ── Reader ───────────────────────────────────────────────────────────────

    async def get(self, model: type[M], /, *key: object) -> M | None:
        """See `Reader.get`."""
        found = await self.get_many(model, [key])
        return next(iter(found.values()), None)

    async def get_many(self, model: type[M], keys: Sequence[object], /) -> dict[Any, M]:
        """See `Reader.get_many`."""
        form = self._projection(model).form
        columns = {form.given_key(key if isinstance(key, tuple) else (key,)): key for key in keys}
        self._counted.take(len(columns), f"get of {model.__name__}")
        texts = [key_text(key) for key in columns]
        projection = await self._touch(model, texts, list(columns))
        self._check_blocked(projection, texts)
        rows = await self._snapshot.get_many(projection.name, list(columns), self._numbers.get(projection.name))
        if visible := self._may_be_seen(form):
            matches = matcher(visible, form.table)
            rows = {key: row for key, row in rows.items() if matches(row)}
        found = {columns[key]: form.model(row) for key, row in rows.items()}
        if form.expiry is None:
            return found
        moment = self._moment(projection)
        return {key: row for key, row in found.items() if not form.has_expired(row, moment)}

    async def find(self, model: type[M], /, *, order_by: str = "", limit: int = 100, **where: object) -> list[M]:
        """See `Reader.find`."""
        projection = await self._touch(model)
        self._check_blocked(projection)
        form = projection.form
        filters = [*_filters(form, where), *self._shown(projection)]
        number = self._numbers.get(projection.name)
        order, asked = _order(form, order_by), f"find of {model.__name__}"
        most = self._counted.allowed(_limit(limit), asked)
        rows = await self._snapshot.find(projection.name, filters, order, most, None, number)
        self._counted.take(len(rows), asked)
        return [form.model(row) for row in rows]

    async def page(
        self, model: type[M], /, *, order_by: str = "", limit: int = 100, cursor: str | None = None, **where: object
    ) -> Page[M]:
        """See `Reader.page`."""
        projection = await self._touch(model)
        self._check_blocked(projection)
        form, filters = projection.form, _filters(projection.form, where)
        order = _order(form, order_by)
        question = _question(projection.name, filters, order)
        history_id = self._live[projection.name][0].checkpoint.history_id
        after = None if cursor is None else _after(form, cursor, question, history_id, order)
        shown = [*filters, *self._shown(projection)]  # no part of the question: the next page is asked later
        number, asked = self._numbers.get(projection.name), f"page of {model.__name__}"
        most = self._counted.allowed(_limit(limit) + 1, asked)
        rows = await self._snapshot.find(projection.name, shown, order, most, after, number)
        self._counted.take(len(rows[:limit]), asked)  # the one behind tells only that there is another page
        items = [form.model(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return Page(items)
        names = [column.name for column in form.table.columns]
        last = [_said(rows[limit - 1][names.index(by.column)]) for by in order]
        return Page(items, _text(_Cursor(question, history_id, last)))

    async def count(self, model: type[M], /, **where: object) -> int:
        """See `Reader.count`."""
        projection = await self._touch(model)
        self._check_blocked(projection)
        filters = [*_filters(projection.form, where), *self._shown(projection)]
        self._counted.take(1, f"count of {model.__name__}")
        return await self._snapshot.count(projection.name, filters, self._numbers.get(projection.name))

    async def search(self, model: type[M], text: str, /, *, limit: int = 100) -> list[M]:
        """See `Reader.search`."""
        projection = await self._touch(model)
        if not any(column.searchable for column in projection.form.table.columns):
            raise ConfigurationError(f"{model.__name__} has no Searchable[str] field to search in")
        self._check_blocked(projection)
        name, number, asked = projection.name, self._numbers.get(projection.name), f"search of {model.__name__}"
        most = self._counted.allowed(_limit(limit), asked)
        rows = await self._snapshot.search(name, text, most, self._shown(projection), number)
        self._counted.take(len(rows), asked)
        return [projection.form.model(row) for row in rows]

    async def sql(
        self, result: type[S], statement: str, /, *parameters: object, touches: Sequence[type[ReadModel]]
    ) -> list[S]:
        """See `Reader.sql`.

        Raises:
            ConfigurationError: not every row may be seen: a statement reads what it likes, whatever it says it touches.
            Overloaded: it gives more than `SQL_ROWS_MAX` rows.
        """
        if self.visible:
            hidden = ", ".join(model.__name__ for model in self.visible)
            raise ConfigurationError(
                f"SQL would show rows of {hidden} that whoever asks may not see: read with get, find, page, count or "
                "search; or let the middleware leave this query's context as it is, and have its handler filter by "
                "`QueryContext.actor` in the statement"
            )
        moments: dict[str, datetime] = {}
        for model in touches:
            projection = await self._touch(model)
            self._check_blocked(projection)
            if projection.name in self._numbers:  # SQL finds the live rows alone, by the read model's name
                self._met.behind = Behind(projection, self._live[projection.name], same_code=False)
                raise self._met.behind
            if projection.form.expiry is not None:
                moments[projection.name] = self._moment(projection)
        columns = {name: column_kind(annotation) for name, annotation in field_types(result).items()}
        most = self._counted.allowed(SQL_ROWS_MAX + 1, "SQL")
        rows = await self._snapshot.sql(statement, parameters, columns, moments, limit=most)
        self._counted.take(min(len(rows), SQL_ROWS_MAX), "SQL")
        if len(rows) > SQL_ROWS_MAX:
            raise Overloaded("SQL_ROWS_MAX", SQL_ROWS_MAX)
        return [result(**row) for row in rows]

    # ── beside `Reader` ──────────────────────────────────────────────────────

    async def count_stored(self, model: type[ReadModel]) -> int:
        """How many rows are stored, expired ones among them: about as many as `stored` gives."""
        projection = await self._touch(model)
        return await self._snapshot.count(projection.name, (), self._numbers.get(projection.name))

    async def stored(self, model: type[ReadModel], rows_max: int) -> AsyncGenerator[list[Row]]:
        """Every row as it is stored, by key, so many at once: for what takes them all."""
        projection = await self._touch(model)
        self._check_blocked(projection)
        build = self._live[projection.name][0]
        async for page in pages_by_key(self._snapshot, build, self._shown(projection), rows_max):
            yield page

    # ── which rows there are ─────────────────────────────────────────────────

    @property
    def _counted(self) -> RowCount:
        assert self.counted is not None, "a reader is narrowed before anything is read with it"
        return self.counted

    def _shown(self, projection: Projection) -> Sequence[Filter]:
        """What has to hold of every row, whatever is asked for: it has not expired, and may be seen."""
        visible, form = self._may_be_seen(projection.form), projection.form
        return visible if form.expiry is None else [*form.unexpired(self._moment(projection)), *visible]

    def _may_be_seen(self, form: RowForm) -> Sequence[Filter]:
        assert self.visible is not None, "a reader is narrowed before anything is read with it"
        return [found for name, value in self.visible.get(form.cls, ()) for found in _filters_of(form, name, value)]

    def _moment(self, projection: Projection) -> datetime:
        """As of when rows are shown: one moment for all that a handler reads."""
        if self._met.now is None:
            self._met.now = self._checks.now()
        return moment_shown(self._touched[projection.name].values(), self._met.now)

    # ── freshness ────────────────────────────────────────────────────────────

    def _projection(self, model: type[ReadModel]) -> Projection:
        found = self._projections.get(model)
        if found is None:
            raise ConfigurationError(f"no projection of this application feeds {model.__name__}")
        return found[0]

    async def _touch(
        self, model: type[ReadModel], keys: Sequence[str] | None = None, stored: Sequence[Key] = ()
    ) -> Projection:
        """Make sure that the rows of these keys show what they have to; without keys, all rows.

        `stored` are the same keys as they are stored, if there are any.
        """
        projection = self._projection(model)
        whole = await self._answering(projection, stored)
        live, touched = whole, self._touched.setdefault(projection.name, {})
        if keys is not None and len(live) > 1:
            live = [live[number] for number in {slice_of(key, len(live)) for key in keys}]
        missing = [slice for slice in live if slice.slice not in touched]
        await self._require(projection, missing, stored)
        for slice in missing:
            touched[slice.slice] = slice
            self._met.incomplete = self._met.incomplete or bool(slice.stopped)
        if projection.name not in self._blocked:
            number = self._numbers.get(projection.name)
            self._blocked[projection.name] = await self._snapshot.blocked(projection.name, number)
        touching = self._checks.requirement.touching
        if touching is not None:
            moment = None if projection.form.expiry is None else self._moment(projection)
            await touching.touches(self._snapshot, projection, whole, None if keys is None else stored, moment)
        return projection

    async def _answering(self, projection: Projection, keys: Sequence[Key]) -> Sequence[Generation]:
        """The slices that answer: of this process's code, or what may be shown in their place."""
        found = self._live.get(projection.name)
        if found is None:
            found = await self._snapshot.slices(projection.name, expecting=keys)
            if not self._is_of_this_code(projection, found):
                found = await self._instead(projection, found, keys)
            self._live[projection.name] = found
        return found

    def _is_of_this_code(self, projection: Projection, slices: Sequence[Generation]) -> bool:
        return bool(slices) and slices[0].fingerprint == self._projections[projection.form.cls][1]

    async def _instead(
        self, projection: Projection, live: Sequence[Generation], keys: Sequence[Key]
    ) -> Sequence[Generation]:
        """What answers where no rows of this code are live.

        Rows of this code that are kept, since those of other code were switched to. Or else, where it may be so, those
        of the other code, if they have the same columns. To these nothing is folded, for it would be neither's. A
        live query is woken by what is live alone.
        """
        asked, fingerprint = self._checks.requirement, self._projections[projection.form.cls][1]
        kept = await self._snapshot.kept(projection.name, fingerprint) if live and asked.touching is None else ()
        if kept:
            self._numbers[projection.name] = kept[0].number
            return kept
        if self._serving_old and live and live[0].table == projection.form.table and asked.overlay is None:
            return live
        self._met.behind = Behind(projection, live, same_code=False, keys=keys)
        raise self._met.behind

    async def _require(self, projection: Projection, slices: Sequence[Generation], keys: Sequence[Key]) -> None:
        met = {place: await self._checks.is_met(slice) for place, slice in _by_place(slices)}
        touching = self._checks.requirement.touching
        behind = [
            slice
            for slice in slices
            if not met[slice.checkpoint] or (touching is not None and not touching.is_shown(slice))
        ]
        if behind:
            same_code = self._is_of_this_code(projection, behind)
            self._met.behind = Behind(projection, behind, same_code=same_code, keys=keys)
            raise self._met.behind

    def _check_blocked(self, projection: Projection, keys: Sequence[str] | None = None) -> None:
        """Notice blocked keys among those touched; without keys, any may be."""
        blocked = [b for b in self._blocked[projection.name] if keys is None or b.key in keys]
        if not blocked:
            return
        if self._checks.requirement.strict:
            raise Blocked(projection.form.name, [found.key for found in blocked], blocked[0].error)
        self._met.incomplete = True


def _by_place(slices: Iterable[Generation]) -> Iterable[tuple[Place, Generation]]:
    """One slice of each place that any is at."""
    return {slice.checkpoint: slice for slice in slices}.items()


def moment_shown(slices: Iterable[Generation], now: datetime) -> datetime:
    """As of when the rows of a generation's slices are shown, by a clock that says `now`.

    Never before the last event that they show: what has expired for a fold, and may be removed, has for every query,
    also where this clock is behind the one that the event was recorded by.
    """
    return max([now, *(slice.recorded_at for slice in slices if slice.recorded_at is not None)])


def _filters(form: RowForm, where: Mapping[str, object]) -> list[Filter]:
    return [found for name, value in where.items() for found in _filters_of(form, name, value)]


def _filters_of(form: RowForm, name: str, value: object) -> list[Filter]:
    if isinstance(value, AllOf):
        return [found for one in value.conditions for found in _filters_of(form, name, one)]
    return [_filter(form, name, value)]


def _filter(form: RowForm, name: str, value: object) -> Filter:
    _filterable(form, name)
    if not isinstance(value, Condition):
        return Filter(name, Comparison.EQUAL, form.column_value(name, value))
    if value.comparison is Comparison.ONE_OF:
        return Filter(name, value.comparison, tuple(form.column_value(name, one) for one in value.value))
    return Filter(name, value.comparison, form.column_value(name, value.value))


def _filterable(form: RowForm, name: str) -> None:
    column = form.columns.get(name)
    if column is None:
        raise ConfigurationError(f"{form.name} has no column {name!r}; there are {', '.join(form.columns)}")
    if column.kind is ColumnKind.DOCUMENT:
        raise ConfigurationError(f"{form.name}.{name} is kept as a document, which can be neither filtered nor ordered")


def _order(form: RowForm, order_by: str) -> list[Order]:
    order = [
        Order(name.removeprefix("-").strip(), name.startswith("-"))
        for part in order_by.split(",")
        if (name := part.strip())
    ]
    for by in order:
        _filterable(form, by.column)
    named = {by.column for by in order}
    return order + [Order(name) for name in form.key_fields if name not in named]


def _limit(limit: int) -> int:
    if not 1 <= limit <= FIND_ROWS_MAX:
        raise InvalidMessage("limit", [("$", f"a limit is 1 to {FIND_ROWS_MAX}, not {limit}")])
    return limit


# ── cursors ──────────────────────────────────────────────────────────────────


def _question(name: str, filters: Sequence[Filter], order: Sequence[Order]) -> bytes:
    asked = encode((name, [(f.column, f.comparison.value, repr(f.value)) for f in filters], order))
    return hashlib.blake2b(asked, digest_size=8).digest()


def _text(cursor: _Cursor) -> str:
    return base64.urlsafe_b64encode(encode(cursor)).rstrip(b"=").decode()


def _after(form: RowForm, text: str, question: bytes, history_id: bytes, order: Sequence[Order]) -> list[Any]:
    try:
        raw = text.encode("ascii")
        cursor = msgspec.json.decode(base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)), type=_Cursor)
        if cursor.question == question and cursor.history_id == history_id:
            columns = [form.columns[by.column] for by in order]
            values = [_value(value, column.kind) for value, column in zip(cursor.values, columns, strict=True)]
            if not any(map(value_refusal, columns, values)):
                return values
    except (UnicodeError, binascii.Error, msgspec.MsgspecError, ValueError, RecursionError):
        pass
    raise InvalidMessage("cursor", [("$.cursor", "this is no cursor of this query; begin without one")])


def _said(value: Any) -> Any:
    """A column's value as a cursor says it: JSON has no infinity, and would write null."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _value(value: Any, kind: ColumnKind) -> Any:
    if kind is ColumnKind.REAL and value in ("inf", "-inf"):
        return float(value)
    return None if value is None else msgspec.convert(value, KIND_TYPES[kind])
