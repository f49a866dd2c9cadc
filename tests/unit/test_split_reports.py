"""What is told of events that are several now, or none: golden files, and checks of what a store holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych import BoundedContext
from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.application.registration import event_types
from diptych.clock import SystemClock
from diptych.entrypoints.cli import schema
from diptych.event_store.event_store import Commit, StoredType
from diptych.event_store.history import History
from diptych.event_store.schema_check import CheckedSchema, SplitType, check_schema
from diptych.testing import check_golden_events
from tests.split_orders import Fields, OrderPlaced, apart, pinged, placed, splitting

pytestmark = pytest.mark.anyio


def golden(folder: Path, name: str, **file: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(file))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Golden files of what older code has stored, each for an upcaster; what is read of them is not known yet."""
    stored = {"order": "pen", "cents": 250, "street": "Hafen 1"}
    golden(tmp_path, "placed", type="shop.OrderCreated", version=1, stored=stored, tags=["purchase:pen"], read={})
    stored = {"order": "pen", "cents": 250}
    golden(tmp_path, "placed2", type="shop.OrderPlaced", version=2, stored=stored, tags=["order:pen"], read={})
    stored = {"order": "pen", "street": "Hafen 1"}
    golden(tmp_path, "given", type="shop.AddressGiven", version=1, stored=stored, tags=["order:pen"], read={})
    golden(tmp_path, "pinged", type="shop.Pinged", version=1, stored={"order": "pen"}, tags=["order:pen"], read={})
    return tmp_path


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())["read"]


def test_a_golden_file_has_the_parts_in_order(folder: Path) -> None:
    """And holds them from then on; of what means nothing any more, none."""
    check_golden_events(splitting(), folder=folder, update=True)
    assert read(folder, "placed") == [
        {"type": "shop.OrderPlaced", "read": {"order": "pen", "cents": 250, "currency": "EUR"}},
        {"type": "shop.AddressGiven", "read": {"order": "pen", "lines": ["Hafen 1", "Germany"]}},
    ]
    assert read(folder, "pinged") == []
    assert read(folder, "given") == {"order": "pen", "lines": ["Hafen 1", "Germany"]}
    check_golden_events(splitting(), folder=folder)


def test_parts_that_are_read_otherwise_fail_their_golden_file(folder: Path) -> None:
    """In another order, or fewer, or as one event again; with both."""
    check_golden_events(splitting(), folder=folder, update=True)

    def turned(stored: Fields) -> Any:
        return list(apart(stored))[::-1]

    for split in (turned, lambda stored: list(apart(stored))[:1]):
        with pytest.raises(AssertionError, match=r"placed\.json is read otherwise than before.*\n.*- \[.*\n.*\+ \["):
            check_golden_events(splitting(split), folder=folder)
    (folder / "placed.json").write_text((folder / "placed.json").read_text().replace("Hafen 1", ""))
    with pytest.raises(AssertionError, match="placed"):
        check_golden_events(splitting(), folder=folder)


def test_every_upcaster_that_splits_wants_a_golden_file(folder: Path) -> None:
    """As any other does."""
    (folder / "pinged.json").unlink()
    with pytest.raises(AssertionError, match=r"tries the upcaster tests\.split_orders\.nothing"):
        check_golden_events(splitting(), folder=folder, update=True)


def test_a_golden_file_whose_part_lacks_its_tag_fails(folder: Path) -> None:
    """As the event would that it stands for."""

    def others(stored: Fields) -> Any:
        yield OrderPlaced, {"order": "ink", "cents": 1}

    with pytest.raises(AssertionError, match=r"OrderPlaced would be tagged \['order:ink'\]"):
        check_golden_events(splitting(others), folder=folder, update=True)


async def checked(context: BoundedContext, *, tag: str = "order") -> CheckedSchema:
    """A store with orders of several versions and a ping, read by a context."""
    store = MemoryEventStore(SystemClock())
    await store.open()
    await store.register_types([StoredType(name, 1, (tag,)) for name in ("shop.OrderPlaced", "shop.Pinged")])
    await store.register_types([StoredType("shop.OrderCreated", 1, ("purchase",))])
    events = (placed(), placed(street=""), pinged(), placed("ink"), placed(former=True))
    await store.append([Commit(events=events)])
    return await check_schema(store, History(event_types([context])), ["shop"], lambda *_: None)


async def test_a_check_tells_what_is_read_as_what() -> None:
    """Of each stored type and version that splits, how many events of which type are read; and how often nothing."""
    found = await checked(splitting())
    assert (found.breaks, found.ignored) == ([], [])
    assert found.split == [
        SplitType("shop.OrderPlaced", 1, 3, {"shop.OrderPlaced": 3, "shop.AddressGiven": 2}, 0),
        SplitType("shop.Pinged", 1, 1, {}, 1),
        SplitType("shop.OrderCreated", 1, 1, {"shop.OrderPlaced": 1, "shop.AddressGiven": 1}, 0),
    ]


async def test_a_check_breaks_where_a_part_cannot_be_read_or_found() -> None:
    """One of its fields, or its tags by name."""

    def odd(stored: Fields) -> Any:
        yield OrderPlaced, {"order": stored["order"], "cents": stored["street"]}

    found = await checked(splitting(odd))
    assert [(each.type, each.events) for each in found.breaks] == [("shop.OrderPlaced", 3), ("shop.OrderCreated", 1)]
    assert "it is no OrderPlaced (version 3)" in found.breaks[0].reason
    found = await checked(splitting(), tag="customer")
    assert "diptych retag" in found.breaks[0].reason


async def test_the_command_line_shows_what_is_read_as_what(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each type and version."""

    def some(stored: Fields) -> Any:
        return list(apart(stored))[1:]

    schema.tell(await checked(splitting()))
    schema.tell(await checked(splitting(some)))
    out = capsys.readouterr().out
    assert "shop.OrderPlaced (version 1): 3 events are read as 2 shop.AddressGiven, 3 shop.OrderPlaced\n" in out
    assert "shop.Pinged (version 1): 1 event is read as nothing\n" in out
    assert "shop.OrderPlaced (version 1): 3 events are read as 2 shop.AddressGiven, nothing (1 of them)\n" in out
