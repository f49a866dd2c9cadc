"""Golden files of events: what was stored is read as it was read before, or a test says how not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diptych import BoundedContext, Event, Identity, Untagged
from diptych.testing import check_golden_events

Fields = Mapping[str, Any]


class OrderId(Identity): ...


class OrderPlaced(Event):
    order: OrderId
    total: str


class OrderPaid(Event):
    order: OrderId


PLACED = OrderPlaced(order=OrderId("pen"), total="2.50")


class Later(Event, stored_as="shop.OrderPlaced", version=2):
    order: OrderId
    cents: int


def in_cents(stored: Fields) -> Fields:
    return {"order": stored["order"], "cents": round(float(stored["total"]) * 100)}


def shop(*events: type[Event], upcaster: Any = None) -> BoundedContext:
    context = BoundedContext("shop", events=events)
    if upcaster is not None:
        context.upcaster(events[0], from_version=1)(upcaster)
    return context


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Golden files of the first release."""
    folder = tmp_path / "golden"
    check_golden_events(shop(OrderPlaced), folder=folder, examples=[PLACED], update=True)
    return folder


def test_files_are_written_once_and_hold_from_then_on(folder: Path) -> None:
    """One for each example that differs, to be read by people."""
    (path,) = folder.iterdir()
    assert path.name == "shop.OrderPlaced.v1.json"
    fields = {"order": "pen", "total": "2.50"}
    expected = {"type": "shop.OrderPlaced", "version": 1, "stored": fields, "tags": ["order:pen"], "read": fields}
    assert json.loads(path.read_text()) == expected
    assert '\n  "type": "shop.OrderPlaced",\n' in path.read_text()
    check_golden_events(shop(OrderPlaced), folder=folder, examples=[PLACED])
    other = OrderPlaced(order=OrderId("ink"), total="1.00")
    with pytest.raises(AssertionError, match=r"shop\.OrderPlaced\.v1-2\.json is missing.*should its version be raised"):
        check_golden_events(shop(OrderPlaced), folder=folder, examples=[PLACED, other])
    check_golden_events(shop(OrderPlaced), folder=folder, examples=[PLACED, other], update=True)
    check_golden_events(shop(OrderPlaced), folder=folder, examples=[PLACED, other])
    assert len(list(folder.iterdir())) == 2


def test_a_changed_class_fails_with_the_upcaster_to_write(folder: Path) -> None:
    """Before any store has seen it."""
    with pytest.raises(
        AssertionError, match=r"nothing upcasts version 1.*\n@shop\.upcaster\(Later, from_version=1\)\n"
    ):
        check_golden_events(shop(Later), folder=folder)


def test_what_an_upcaster_gives_is_golden_too(folder: Path) -> None:
    """A changed upcaster changes what every fold has seen: it is shown, and noted with update=True."""
    before = json.loads((folder / "shop.OrderPlaced.v1.json").read_text())
    check_golden_events(shop(Later, upcaster=in_cents), folder=folder, update=True)
    after = json.loads((folder / "shop.OrderPlaced.v1.json").read_text())
    assert after == {**before, "read": {"order": "pen", "cents": 250}}
    check_golden_events(shop(Later, upcaster=in_cents), folder=folder)
    wrong = shop(Later, upcaster=lambda stored: {**in_cents(stored), "cents": 249})
    with pytest.raises(AssertionError, match=r"v1\.json is read otherwise(.|\n)*cents=250(.|\n)*cents=249"):
        check_golden_events(wrong, folder=folder)


def test_a_field_that_came_with_a_default_is_noticed(folder: Path) -> None:
    """It is compatible; that it is there now is part of what is read."""

    class WithNote(Event, stored_as="shop.OrderPlaced"):
        order: OrderId
        total: str
        note: str = ""

    with pytest.raises(AssertionError, match=r"is read otherwise than before: there are \['note'\] too"):
        check_golden_events(shop(WithNote), folder=folder)


def test_an_upcaster_that_changes_an_identity_fails(folder: Path) -> None:
    """The event would be found by one tag and tell of another."""
    wrong = shop(Later, upcaster=lambda stored: {**in_cents(stored), "order": "ink"})
    with pytest.raises(AssertionError, match=r"tagged \['order:pen'\], and upcast .* \['order:ink'\]"):
        check_golden_events(wrong, folder=folder, update=True)


def test_a_class_that_is_tagged_otherwise_fails(folder: Path) -> None:
    """Without an upcaster, too: what is stored keeps its tags, and decisions look for those of now."""

    class OrderPlaced(Event):
        order: Untagged[OrderId]
        total: str

    with pytest.raises(AssertionError, match=r"stored with the tags \['order:pen'\], and read with \[\]"):
        check_golden_events(shop(OrderPlaced), folder=folder, update=True)


def test_an_upcaster_without_a_golden_file_fails(folder: Path) -> None:
    """It was never tried; a file of a former name will do."""

    class Paid(Event, formerly=["OrderPaid"], version=2):
        order: OrderId

    both = shop(Paid, OrderPlaced, upcaster=dict)
    with pytest.raises(
        AssertionError, match=r"tries the upcaster .*dict: write one of shop\.Paid or shop\.OrderPaid \("
    ):
        check_golden_events(both, folder=folder)
    check_golden_events(
        shop(OrderPaid, OrderPlaced), folder=folder, examples=[OrderPaid(order=OrderId("pen"))], update=True
    )
    check_golden_events(both, folder=folder)


def test_a_file_of_another_form_is_named(folder: Path) -> None:
    """With what is wrong in it."""
    (folder / "broken.json").write_text('{"type": "shop.OrderPlaced"}')
    with pytest.raises(AssertionError, match=r"broken\.json is no golden file: .*version"):
        check_golden_events(shop(OrderPlaced), folder=folder)
