"""The part of the read stores' contract that is about rows: their values, keys, filters, order, pages and words."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from diptych.errors import InvalidMessage
from diptych.read_side.read_store import (
    Column,
    ColumnKind,
    Comparison,
    Failed,
    Filter,
    Order,
    ReadStore,
    Row,
    RowsAsked,
    SliceWrite,
    Table,
    Written,
)
from diptych.testing.contracts.read_store_cases import (
    ARTICLES,
    BY_COURSE,
    LINES,
    NAME,
    REFUSED,
    SEATS,
    SORTED,
    build,
    create,
    one_column,
    place,
    rows_of,
    stored_generation,
    write,
)

__all__ = ["RowsContract"]

_AS_PYTHON: Mapping[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.EQUAL: lambda value, bound: value == bound,
    Comparison.AT_LEAST: lambda value, bound: value >= bound,
    Comparison.AT_MOST: lambda value, bound: value <= bound,
    Comparison.MORE_THAN: lambda value, bound: value > bound,
    Comparison.LESS_THAN: lambda value, bound: value < bound,
}


@pytest.mark.anyio
class RowsContract:
    """What is written and how it is found again. Its tests take an empty, open `store`."""

    # ── values ───────────────────────────────────────────────────────────────

    async def test_every_kind_reads_back_equal(self, store: ReadStore) -> None:
        """What is written is read back equal, by key and by find, None included."""
        for kind, values in {**SORTED, ColumnKind.DOCUMENT: ('{"a": [1, "é"]}', "null")}.items():
            rows = list(enumerate([*values, None]))
            await build(store, one_column(kind, nullable=True), rows, kind.value)
            async with store.snapshot() as snapshot:
                got = await snapshot.get_many(kind.value, [(number,) for number, _ in rows])
                found = await snapshot.find(kind.value, (), (Order("id"),), 1_000)
            assert found == rows
            assert got == {(number,): (number, value) for number, value in rows}
            assert [type(value) for _, value in found] == [type(value) for _, value in rows]

    async def test_rows_to_fold_from_are_loaded_for_many_at_once(self, store: ReadStore) -> None:
        """For each that was asked, those of its keys that are there, as they are now: of one generation or of many."""
        asked: list[RowsAsked] = []
        stored: list[dict[tuple[int], Row]] = []
        for kind, values in SORTED.items():
            rows = list(enumerate([*values, None]))
            built = await build(store, one_column(kind, nullable=True), rows, kind.value)
            keys = [[(1,)], [(0,), (len(rows),), (2,)], [(len(rows),)], [(2**63,)]]
            asked += [RowsAsked(built, each) for each in keys]
            stored += [{(n,): rows[n] for (n,) in each if n < len(rows)} for each in keys]
        assert await store.load(asked) == stored
        assert await store.load(asked[:1]) == stored[:1]
        texts = {str(row[1]) for found in await store.load(asked) for row in found.values()}
        assert texts >= {str(values[0]) for values in SORTED.values()}
        changed = await write(store, asked[0].generation, upserts=[(1, "changed")])
        assert await store.load([asked[0]]) == [{(1,): (1, "changed")}]
        await write(store, changed, deletes=[(1,)])
        assert await store.load([asked[0], asked[1]]) == [{}, stored[1]]

    async def test_rows_are_found_by_key_whatever_their_columns_are_called(self, store: ReadStore) -> None:
        """Words of SQL, upper case, blanks and quotes are names like others, in the key as well."""
        names = ("select", 'Quo"ted', "is there", "slice", "exists", "r", "Order", "it's", "NULL", "?column?")
        kinds = (ColumnKind.INTEGER, ColumnKind.TEXT, *[ColumnKind.DECIMAL] * 2, *[ColumnKind.TEXT] * 6)
        columns = tuple(Column(*of, nullable=n > 1) for n, of in enumerate(zip(names, kinds, strict=True)))
        table = Table("Order by", columns, key=('Quo"ted', "select"))
        row = (1, "a", Decimal("4E+1"), None, *("bcdefg"))
        built = await build(store, table, [row, (2, "a", *[None] * 8)])
        for key, found in ((("a", 1), {("a", 1): row}), (("b", 1), {}), (("a", 1), {("a", 1): row})):
            async with store.snapshot() as snapshot:
                assert await snapshot.slices(NAME, expecting=[key]) == (built,)
                assert await snapshot.get_many(NAME, [key]) == found
                assert len(await snapshot.get_many(NAME, [("a", 1), ("a", 2)])) == 2
            assert await store.load([RowsAsked(built, [key]), RowsAsked(built, [("a", 1)])]) == [found, {("a", 1): row}]

    async def test_decimals_keep_their_exponent_and_datetimes_come_in_utc(self, store: ReadStore) -> None:
        """40.0 is not made 40 nor 40.00; an instant given in another time zone reads back in UTC."""
        texts = ["40", "40.0", "40.00", "4E+1", "0.000", "0E+3", "-1.50"]
        await build(store, one_column(ColumnKind.DECIMAL), [(n, Decimal(text)) for n, text in enumerate(texts)])
        assert [str(value) for _, value in await rows_of(store, order=(Order("id"),))] == texts
        instants = SORTED[ColumnKind.DATETIME]
        await build(store, one_column(ColumnKind.DATETIME), list(enumerate(instants)), "at")
        zones = [value.utcoffset() for _, value in await rows_of(store, order=(Order("id"),), name="at")]
        assert zones == [dt.timedelta(0)] * len(instants)

    async def test_every_kind_orders_as_python_does(self, store: ReadStore) -> None:
        """`find` orders each kind as `sorted` does, None first, and last when descending."""
        for kind, values in SORTED.items():
            shuffled = [None, *values[1::2], *values[::2]]
            await build(store, one_column(kind, nullable=True), list(enumerate(shuffled)), kind.value)
            up = await rows_of(store, order=(Order("value"), Order("id")), name=kind.value)
            down = await rows_of(store, order=(Order("value", descending=True), Order("id")), name=kind.value)
            assert [value for _, value in up] == [None, *sorted(values)]
            assert [value for _, value in down] == [*sorted(values, reverse=True), None]

    async def test_equal_decimals_tie_whatever_their_exponent(self, store: ReadStore) -> None:
        """40.0 and 40.00 are one value to filters, to order and as a key."""
        rows = [(3, Decimal("40.0")), (1, Decimal("40.00")), (2, Decimal("4E+1")), (0, Decimal(41))]
        await build(store, one_column(ColumnKind.DECIMAL), rows)
        found = await rows_of(store, order=(Order("value"), Order("id")))
        assert [number for number, _ in found] == [1, 2, 3, 0]
        assert len(await rows_of(store, Filter("value", Comparison.EQUAL, Decimal(40)), order=(Order("id"),))) == 3
        keyed = Table("prices", (Column("price", ColumnKind.DECIMAL),), key=("price",))
        await write(store, await build(store, keyed, [(Decimal("1.0"),)], "prices"), upserts=[(Decimal("1.00"),)])
        assert [str(price) for (price,) in await rows_of(store, order=(Order("price"),), name="prices")] == ["1.00"]

    async def test_refused_values_fail_their_write_with_a_reason(self, store: ReadStore) -> None:
        """What no column can hold fails the whole write, says which column, and changes nothing."""
        for kind, values in REFUSED.items():
            good: Any = SORTED.get(kind, ("{}",))[0]
            generation = await build(store, one_column(kind), [(1, good)], kind.value)
            for value in values:
                upserts = [(2, good), (3, value)]
                (result,) = await store.write([SliceWrite(generation, place(2), upserts=upserts)])
                assert isinstance(result, Failed), (kind, value, result)
                assert "column value" in result.reason
                assert await rows_of(store, order=(Order("id"),), name=kind.value) == [(1, good)]
                assert await stored_generation(store, kind.value) == generation

    async def test_other_refusals_have_a_reason_too(self, store: ReadStore) -> None:
        """A row of the wrong length, None in a key, and rows for a subscriber fail."""
        nullable_key = Table("odd", (Column("a", ColumnKind.TEXT, nullable=True),), key=("a",))
        subscriber = await create(store, None, "mail")
        for generation, row in (
            (await create(store, SEATS), ("python",)),
            (await create(store, nullable_key, "odd"), (None,)),
            (subscriber, ("python", 1)),
        ):
            (result,) = await store.write([SliceWrite(generation, place(1), upserts=[row])])
            assert isinstance(result, Failed), (row, result)
            assert generation.name in result.reason

    async def test_a_failed_slice_does_not_hurt_its_sibling(self, store: ReadStore) -> None:
        """Of three writes in one call the second fails and the others hold."""
        builds = [await create(store, msgspec.structs.replace(SEATS, name=f"t{n}"), f"t{n}") for n in range(3)]
        taken = [1, 2**63, 3]
        writes = [SliceWrite(g, place(1), upserts=[("a", 0), ("b", n)]) for g, n in zip(builds, taken, strict=True)]
        first, second, third = await store.write(writes)
        assert [type(result) for result in (first, second, third)] == [Written, Failed, Written]
        assert await rows_of(store, name="t0") == [("a", 0), ("b", 1)]
        assert await rows_of(store, name="t1") == []
        assert await rows_of(store, name="t2") == [("a", 0), ("b", 3)]
        assert [g.checkpoint.position for g in await store.generations()] == [1, 0, 1]

    # ── rows and keys ────────────────────────────────────────────────────────

    async def test_upserts_replace_and_deletes_remove(self, store: ReadStore) -> None:
        """A row with a stored key replaces the whole row; deleting what is not there is no error."""
        generation = await build(store, SEATS, [("a", 1), ("b", 2), ("c", 3)])
        generation = await write(store, generation, upserts=[("b", 20), ("d", 4)], deletes=[("a",), ("z",)])
        assert await rows_of(store) == [("b", 20), ("c", 3), ("d", 4)]
        await write(store, generation, deletes=[("b",), ("c",), ("d",)])
        assert await rows_of(store) == []

    async def test_keys_of_several_columns(self, store: ReadStore) -> None:
        """Rows are told apart by the whole key, whatever the order of the columns."""
        day, next_day = dt.date(2026, 1, 1), dt.date(2026, 1, 2)
        rows: list[Row] = [
            (Decimal(1), 1, day, "a"),
            (Decimal(2), 2, day, "a"),
            (None, 1, next_day, "a"),
            (Decimal(4), 1, day, "b"),
        ]
        generation = await build(store, LINES, rows)
        keys = [("a", 1, next_day), ("b", 1, day), ("b", 2, day)]
        async with store.snapshot() as snapshot:
            assert await snapshot.get_many(NAME, keys) == {keys[0]: rows[2], keys[1]: rows[3]}
            assert await snapshot.get_many(NAME, keys[:1]) == {keys[0]: rows[2]}
        await write(store, generation, upserts=[(Decimal(9), 1, day, "a")], deletes=[("a", 2, day)])
        order = (Order("order"), Order("line"), Order("day"))
        assert await rows_of(store, order=order) == [(Decimal(9), 1, day, "a"), rows[2], rows[3]]

    async def test_keys_of_every_kind(self, store: ReadStore) -> None:
        """A key may be of any kind that has an order; many rows are found at once, replaced and deleted by it."""
        for kind, values in SORTED.items():
            table = Table(f"by_{kind.value}", (Column("id", kind), Column("n", ColumnKind.INTEGER)), key=("id",))
            generation = await build(store, table, [(value, 1) for value in values], kind.value)
            generation = await write(store, generation, upserts=[(value, 2) for value in values])
            async with store.snapshot() as snapshot:
                got = await snapshot.get_many(kind.value, [(value,) for value in values])
            assert got == {(value,): (value, 2) for value in values}
            await write(store, generation, deletes=[(value,) for value in values[1:]])
            assert await rows_of(store, order=(Order("id"),), name=kind.value) == [(values[0], 2)]

    async def test_thousands_of_keys_at_once(self, store: ReadStore) -> None:
        """`get_many` takes thousands of keys, some without a row, some twice, none at all."""
        await build(store, SEATS, [(f"c{n}", n) for n in range(0, 5_000, 2)])
        async with store.snapshot() as snapshot:
            got = await snapshot.get_many(NAME, [(f"c{n}",) for n in range(5_000)] + [("c0",)])
            assert await snapshot.get_many(NAME, []) == {}
        assert got == {(f"c{n}",): (f"c{n}", n) for n in range(0, 5_000, 2)}

    async def test_keys_that_no_row_can_have(self, store: ReadStore) -> None:
        """Keys that cannot be stored have no row, and do not spoil the call."""
        await build(store, SEATS, [("a", 1), ("b", 2)])
        numbered = one_column(ColumnKind.INTEGER)
        await build(store, numbered, [(1, 1), (2, 2)], "numbers")
        async with store.snapshot() as snapshot:
            assert await snapshot.get_many(NAME, [("a",), ("\ud800",), ("b\0",)]) == {("a",): ("a", 1)}
            assert await snapshot.get_many(NAME, [("\ud800",)]) == {}
            assert await snapshot.get_many("numbers", [(2**64,), (2,)]) == {(2,): (2, 2)}
            assert await snapshot.get_many("numbers", [(2**64,)]) == {}

    # ── filters, order, pages ────────────────────────────────────────────────

    async def test_each_comparison_is_pythons(self, store: ReadStore) -> None:
        """For every kind and each pair of values the filters match as Python compares; None matches none of them."""
        for kind, values in SORTED.items():
            await build(store, one_column(kind, nullable=True), [*enumerate(values), (-1, None)], kind.value)
            async with store.snapshot() as snapshot:
                for bound in values:
                    for comparison, matches in _AS_PYTHON.items():
                        wanted = {value for value in values if matches(value, bound)}
                        found = await snapshot.find(
                            kind.value, (Filter("value", comparison, bound),), (Order("id"),), 100
                        )
                        assert {value for _, value in found} == wanted, (kind, comparison, bound)
                        counted = await snapshot.count(kind.value, (Filter("value", comparison, bound),))
                        assert counted == len(found)

    async def test_none_in_filters(self, store: ReadStore) -> None:
        """EQUAL None finds rows without a value, ONE_OF may name None, no other comparison matches with it."""
        table = one_column(ColumnKind.TEXT, nullable=True)
        await build(store, table, [(1, None), (2, "a"), (3, "b")])

        async def numbers(comparison: Comparison, value: Any) -> list[int]:
            return [row[0] for row in await rows_of(store, Filter("value", comparison, value), order=(Order("id"),))]

        assert await numbers(Comparison.EQUAL, None) == [1]
        assert await numbers(Comparison.ONE_OF, (None, "b")) == [1, 3]
        assert await numbers(Comparison.ONE_OF, ("a", "b", "b")) == [2, 3]
        assert await numbers(Comparison.STARTS_WITH, "") == [2, 3]
        for comparison in set(_AS_PYTHON) - {Comparison.EQUAL} | {Comparison.STARTS_WITH}:
            assert await numbers(comparison, None) == []

    async def test_one_of_every_kind(self, store: ReadStore) -> None:
        """ONE_OF finds what the tuple names, of every kind; an empty tuple finds nothing."""
        for kind, values in SORTED.items():
            await build(store, one_column(kind), list(enumerate(values)), kind.value)
            some = tuple(values[::2])
            found = await rows_of(
                store, Filter("value", Comparison.ONE_OF, some), order=(Order("id"),), name=kind.value
            )
            assert [value for _, value in found] == list(some)
            nothing = Filter("value", Comparison.ONE_OF, ())
            assert await rows_of(store, nothing, order=(Order("id"),), name=kind.value) == []

    async def test_values_are_found_as_rows_change(self, store: ReadStore) -> None:
        """By an indexed column: what holds a value now, in a snapshot what held it then; rows that fold go by it."""
        asked = [(Filter("taken", Comparison.EQUAL, 1),), (Filter("taken", Comparison.ONE_OF, (1, 5, 5)),)]
        built = await build(store, SEATS, [("a", 1), ("b", 2), ("c", 1)])
        async with store.snapshot() as before:
            for filters in asked:
                assert await before.find(NAME, filters, BY_COURSE, 10, None, built.number) == [("a", 1), ("c", 1)]
            moved = await write(store, built, upserts=[("a", 3), ("b", 1), ("d", 1)], deletes=[("c",)])
            await write(store, moved, upserts=[("c", 5), ("a", 4)])
            for filters, now in zip(asked, ([], [("c", 5)]), strict=True):
                async with store.snapshot() as after:
                    found = await after.find(NAME, filters, BY_COURSE, 10, None, built.number)
                    assert found == [("b", 1), *now, ("d", 1)]
                assert await before.find(NAME, filters, BY_COURSE, 10) == [("a", 1), ("c", 1)]

    async def test_starts_with_minds_case_and_the_last_code_points(self, store: ReadStore) -> None:
        """A prefix is compared letter by letter; wildcards mean nothing; the last letters there are do not overflow."""
        last = "\U0010ffff"
        texts = ["a", "ab", "aB", "Ab", "a%", "a_c", "b", "\ud7ff", "\ud7ffx", "\ue000", last, last + last, f"a{last}"]
        await build(store, one_column(ColumnKind.TEXT), list(enumerate(texts)))
        for prefix in ("", "a", "A", "a%", "a_", "\ud7ff", last, last * 2, last * 3, f"a{last}", "zz"):
            wanted = Filter("value", Comparison.STARTS_WITH, prefix)
            found = {value for _, value in await rows_of(store, wanted, order=(Order("id"),))}
            assert found == {text for text in texts if text.startswith(prefix)}, prefix

    async def test_every_filter_has_to_match(self, store: ReadStore) -> None:
        """Several filters, also on one column, are all demanded; the limit cuts after them."""
        await build(store, SEATS, [(f"c{n}", n) for n in range(10)])
        filters = (Filter("taken", Comparison.AT_LEAST, 3), Filter("taken", Comparison.LESS_THAN, 8))
        assert [taken for _, taken in await rows_of(store, *filters)] == [3, 4, 5, 6, 7]
        async with store.snapshot() as snapshot:
            assert await snapshot.find(NAME, filters, BY_COURSE, 2) == [("c3", 3), ("c4", 4)]
            assert await snapshot.count(NAME, filters) == 5

    async def test_a_filter_value_that_no_row_can_have_is_an_invalid_message(self, store: ReadStore) -> None:
        """It comes from a caller, so that it is told which column and why."""
        await build(store, SEATS, [("a", 1)])
        for column, value in (("taken", 2**63), ("taken", "1"), ("course", "\ud800")):
            with pytest.raises(InvalidMessage, match=column):
                await rows_of(store, Filter(column, Comparison.EQUAL, value))
        with pytest.raises(InvalidMessage, match="taken"):
            await rows_of(store, Filter("taken", Comparison.ONE_OF, (1, 2**63)))

    async def test_pages_cover_everything_once(self, store: ReadStore) -> None:
        """Page after page, in every mix of directions, with ties and None: each row once, in the order of one find."""
        day = dt.date(2026, 1, 1)
        prices = [None, Decimal(-1), Decimal("2.0"), Decimal("2.00"), Decimal(10), None]
        rows = [(price, line, day, order) for price in prices for line in (1, 2) for order in "ab"]
        numbered = [(price, n, day, order) for n, (price, _, _, order) in enumerate(rows)]
        await build(store, LINES, numbered)
        for directions in range(8):
            down = [bool(directions >> bit & 1) for bit in range(3)]
            names = ("price", "order", "line")
            order = (*(Order(name, way) for name, way in zip(names, down, strict=True)), Order("day"))
            await self._pages_agree(store, order, 5, len(numbered))

    async def _pages_agree(self, store: ReadStore, order: Sequence[Order], size: int, total: int) -> None:
        index = {column.name: n for n, column in enumerate(LINES.columns)}
        async with store.snapshot() as snapshot:
            everything = await snapshot.find(NAME, (), order, 1_000)
            assert len(everything) == total
            pages: list[Row] = []
            after: list[Any] | None = None
            for _ in range(total):
                page = await snapshot.find(NAME, (), order, size, after)
                if not page:
                    break
                pages += page
                after = [page[-1][index[by.column]] for by in order]
        assert pages == everything, order

    async def test_pages_keep_the_filters(self, store: ReadStore) -> None:
        """`after` narrows what the filters match."""
        await build(store, SEATS, [(f"c{n}", n % 3) for n in range(9)])
        order = (Order("taken", descending=True), Order("course"))
        async with store.snapshot() as snapshot:
            filters = (Filter("taken", Comparison.LESS_THAN, 2),)
            found = await snapshot.find(NAME, filters, order, 3, (1, "c4"))
        assert found == [("c7", 1), ("c0", 0), ("c3", 0)]

    # ── search ───────────────────────────────────────────────────────────────

    async def test_search_finds_beginnings_of_words(self, store: ReadStore) -> None:
        """Every word of the text begins a word, in whichever column, without regard to case and accents."""
        rows: list[Row] = [
            ("1", 0, "Café au lait", "Warm drinks"),
            ("2", 0, "CAFETERIA", None),
            ("3", 0, "Decaf", "A café, warmed-up"),
            ("4", 0, "Ночь", "x86 cafe\u0301"),
        ]
        await build(store, ARTICLES, rows)
        async with store.snapshot() as snapshot:
            for text, wanted in (
                ("cafe", "1234"),
                ("CAFÉ", "1234"),
                ("cafe warm", "13"),
                ("warm cafe", "13"),
                ("caf caf", "1234"),
                ("cafet", "2"),
                ("lait drinks", "1"),
                ("ночь", "4"),
                ("x8", "4"),
                ("up", "3"),
                ("afe", ""),
                ("caf nothing", ""),
            ):
                found = await snapshot.search(NAME, text, 10)
                assert sorted(row[0] for row in found) == list(wanted), text

    async def test_search_text_is_never_a_query_language(self, store: ReadStore) -> None:
        """Signs and operators of any search syntax are words or nothing; a text without a word finds nothing."""
        await build(store, ARTICLES, [("1", 0, "salt AND pepper near title", "or NOT"), ("2", 0, "salt", None)])
        async with store.snapshot() as snapshot:
            for text in ("", " ", '"', "*", "-", "()", "^", "\0", "\ud800", "'; --", "\u0301"):
                assert await snapshot.search(NAME, text, 10) == [], text
            for text in ("salt AND", "salt* AND pepper", "(salt NEAR)", "title:salt", "salt OR not", "salt\0and"):
                assert [row[0] for row in await snapshot.search(NAME, text, 10)] == ["1"], text
            for text in ('"salt', "salt*", "-salt", "sal^", "salt'"):
                assert sorted(row[0] for row in await snapshot.search(NAME, text, 10)) == ["1", "2"], text
            many = " ".join(["salt"] * 1_000 + ["pepper"] * 1_000)
            assert [row[0] for row in await snapshot.search(NAME, many, 10)] == ["1"]

    async def test_search_has_the_best_first_and_ties_by_key(self, store: ReadStore) -> None:
        """Who names the word more often in as many words comes first; equals come by key; the limit cuts the worst."""
        rows: list[Row] = [
            (name, 0, title, None)
            for name, title in (
                ("d", "tea cup"),
                ("a", "tea cup"),
                ("z", "tea tea"),
                ("c", "cup cup"),
                ("b", "tea cup"),
                ("e", "jug jug"),
            )
        ]
        await build(store, ARTICLES, rows)
        async with store.snapshot() as snapshot:
            assert [row[0] for row in await snapshot.search(NAME, "tea", 10)] == ["z", "a", "b", "d"]
            assert [row[0] for row in await snapshot.search(NAME, "tea", 2)] == ["z", "a"]

    async def test_search_keeps_step_with_the_rows(self, store: ReadStore) -> None:
        """A changed, deleted or untouched text is found as it is now, and a snapshot finds what was."""
        rows: list[Row] = [("1", 0, "one", "old"), ("2", 0, "two", None), ("3", 0, "three", None)]
        generation = await build(store, ARTICLES, rows)
        async with store.snapshot() as before:
            assert await before.count(NAME, ()) == 3
            changed: list[Row] = [("1", 0, "one", "new"), ("3", 5, "three", None)]
            await write(store, generation, upserts=changed, deletes=[("2",)])
            assert await before.search(NAME, "old", 10) == [rows[0]]
            assert await before.search(NAME, "two", 10) == [rows[1]]
        async with store.snapshot() as snapshot:
            for text, wanted in (("old", []), ("two", []), ("new", [changed[0]]), ("three", [changed[1]])):
                assert await snapshot.search(NAME, text, 10) == wanted, text
