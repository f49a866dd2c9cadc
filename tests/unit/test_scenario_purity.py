"""Folds that are not pure fail the scenario that meets them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from msgspec import field

from diptych import BoundedContext, Command, DecisionModel, Event, Identity, Key, ReadModel, replace
from diptych.testing import scenario


class BoxId(Identity): ...


class Put(Command):
    box: BoxId


class Filled(Event):
    box: BoxId
    things: list[str] = field(default_factory=list)


FILLED = Filled(box=BoxId("a"), things=["pen"])
PUT = Put(box=BoxId("a"))


def decider(model: type[DecisionModel[BoxId]]) -> BoundedContext:
    """A context that decides on the model."""
    context = BoundedContext("store-room")

    def put(command: Put, box: model) -> Filled:  # type: ignore[valid-type]
        return Filled(box=command.box)

    context.command_handler(put)
    return context


def test_an_evolve_that_counts_elsewhere_is_found() -> None:
    """What depends on anything but its arguments answers differently the second time."""
    numbers = count()

    class Box(DecisionModel[BoxId]):
        number: int = 0

        def evolve(self, event: Filled) -> Box:
            return Box(number=next(numbers))

    with pytest.raises(AssertionError, match=r"Box.evolve is not pure.*Box\(number=0\), then Box\(number=1\)"):
        scenario(decider(Box)).given(FILLED).when(PUT)


def test_an_evolve_that_changes_its_state_is_found() -> None:
    """A list that is appended to is shared with the state before."""

    class Box(DecisionModel[BoxId]):
        things: list[str] = field(default_factory=list)

        def evolve(self, event: Filled) -> Box:
            self.things.extend(event.things)
            return self

    with pytest.raises(AssertionError, match=r"Box.evolve is not pure: it changes what it is given.*tuples"):
        scenario(decider(Box)).given(FILLED).when(PUT)


def test_an_evolve_that_changes_the_event_is_found() -> None:
    """Events are shared by every fold."""

    class Box(DecisionModel[BoxId]):
        last: str = ""

        def evolve(self, event: Filled) -> Box:
            return Box(last=event.things.pop() if event.things else "")

    with pytest.raises(AssertionError, match=r"Box.evolve is not pure: it changes what it is given"):
        scenario(decider(Box)).given(FILLED).when(PUT)


def test_an_evolve_that_answers_with_shared_state_is_found() -> None:
    """An answer that a later fold changes is no value."""
    everything: list[str] = []

    class Box(DecisionModel[BoxId]):
        things: list[str] = field(default_factory=list)

        def evolve(self, event: Filled) -> Box:
            everything.extend(event.things)
            return Box(things=everything)

    with pytest.raises(AssertionError, match=r"Box.evolve is not pure: given the same twice"):
        scenario(decider(Box)).given(FILLED).when(PUT)


def test_a_handler_that_changes_its_model_is_found() -> None:
    """Models are cached, and shared by the commands of a batch."""
    context = BoundedContext("store-room")

    class Box(DecisionModel[BoxId]):
        things: list[str] = field(default_factory=list)

        def evolve(self, event: Filled) -> Box:
            return Box(things=[*self.things, *event.things])

    @context.command_handler
    def put(command: Put, box: Box) -> Filled:
        box.things.append("mine")
        return Filled(box=command.box, things=box.things)

    with pytest.raises(AssertionError, match="changes the model that it decides on"):
        scenario(context).given(FILLED).when(PUT)


class Content(ReadModel):
    box: Key[BoxId]
    number: int = 0
    things: list[str] = field(default_factory=list)


def test_a_projection_that_counts_elsewhere_is_found() -> None:
    """With a scenario of rows, and with one of commands."""
    numbers = count()
    context = BoundedContext("store-room")

    @context.projection
    def content(row: Content, event: Filled) -> Content:
        return replace(row, number=next(numbers))

    with pytest.raises(AssertionError, match="content is not pure: given the same twice"):
        scenario(context).given(FILLED).then_no_row(Content, "a")


def test_a_projection_that_changes_its_row_is_found() -> None:
    """The row before belongs to the batch."""
    context = BoundedContext("store-room")

    @context.projection
    def content(row: Content, event: Filled) -> Content:
        row.things.append("pen")
        return row

    with pytest.raises(AssertionError, match="content is not pure: it changes what it is given"):
        scenario(context).given(FILLED, FILLED).then_no_row(Content, "b")


def test_keys_that_depend_on_something_else_are_found() -> None:
    """The function behind `keys=` is a part of the fold."""
    numbers = count()
    context = BoundedContext("store-room")

    def everywhere(event: Filled) -> Iterator[str]:
        yield str(next(numbers))

    @context.projection(keys=everywhere)
    def content(row: Content, event: Filled) -> Content:
        return row

    with pytest.raises(AssertionError, match=r"the key function of store-room\.Content is not pure"):
        scenario(context).given(FILLED).then_no_row(Content, "a")


def test_a_fold_that_fails_now_and_then_is_found() -> None:
    """It would block a key in one run, and not in a rebuild."""
    numbers = count()
    context = BoundedContext("store-room")

    @context.projection
    def content(row: Content, event: Filled) -> Content:
        if next(numbers) % 2:
            raise ValueError("now and then")
        return row

    with pytest.raises(AssertionError, match=r"content is not pure.*now and then"):
        scenario(context).given(FILLED).then_no_row(Content, "a")


def test_a_value_without_equality_is_named() -> None:
    """What cannot be compared with its own copy cannot be checked, so it is said instead of blamed."""

    class Opaque:
        pass

    class Box(DecisionModel[BoxId]):
        thing: Opaque | None = None

        def evolve(self, event: Filled) -> Box:
            return Box(thing=Opaque())

    with pytest.raises(AssertionError, match="is not equal to its own copy"):
        scenario(decider(Box)).given(FILLED, FILLED).when(PUT)


def test_a_row_that_does_not_read_back_is_found() -> None:
    """A value that its JSON cannot tell apart from another is stored as the other."""
    context = BoundedContext("store-room")

    class Shelf(ReadModel):
        box: Key[BoxId]
        things: Any = None

    @context.projection
    def shelf(row: Shelf, event: Filled) -> Shelf:
        return replace(row, things=("pen",))

    with pytest.raises(AssertionError, match="must read back from the read store as they were written"):
        scenario(context).given(FILLED).then_row(Shelf(box=BoxId("a"), things=["pen"]))


def test_pure_folds_pass() -> None:
    """New values from old ones, lists included."""
    context = BoundedContext("store-room")

    class Box(DecisionModel[BoxId]):
        things: list[str] = field(default_factory=list)

        def evolve(self, event: Filled) -> Box:
            return Box(things=[*self.things, *event.things])

    @context.command_handler
    def put(command: Put, box: Box) -> Filled:
        return Filled(box=command.box, things=box.things)

    @context.projection
    def content(row: Content, event: Filled) -> Content:
        return replace(row, number=row.number + 1, things=[*row.things, *event.things])

    outcome = scenario(context).given(FILLED, FILLED).when(PUT)
    outcome.then(Filled(box=BoxId("a"), things=["pen", "pen"]))
    outcome.then_row(Content(box=BoxId("a"), number=3, things=["pen"] * 4))
