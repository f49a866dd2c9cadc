"""What an application finds out of process managers when it opens: each error says what would mend it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from diptych import (
    BoundedContext,
    Command,
    CommandRejected,
    ConfigurationError,
    Event,
    EventContext,
    Identity,
    ProcessManager,
    Reaction,
    Timeout,
    Untagged,
)
from diptych.application.registration import command_handlers, event_types, processes
from diptych.process_managers.process_manager import Process
from diptych.testing import InMemoryApplication

pytestmark = pytest.mark.anyio


class OrderId(Identity): ...


class Placed(Event):
    order: OrderId


class Paid(Event):
    order: OrderId


class Nameless(Event):
    order: Untagged[OrderId]


class Overdue(Timeout):
    order: OrderId


class OtherOverdue(Timeout):
    order: OrderId


class Ship(Command):
    order: OrderId


class Unhandled(Command):
    order: OrderId


def compiled(cls: type[Any], **options: Any) -> Process:
    context = BoundedContext("shop", events=[Placed, Paid, Nameless])
    context.process_manager(**options)(cls)

    @context.command_handler
    def ship(command: Ship) -> Paid: ...

    types = event_types([context])
    (found,) = processes([context], types, command_handlers([context], {}, types))
    return found


# ── what is compiled ─────────────────────────────────────────────────────────


class Shipping(ProcessManager[OrderId]):
    order: OrderId
    paid: bool = False

    def react(
        self, event: Placed | Paid | Overdue | CommandRejected[Ship], context: EventContext
    ) -> Reaction[Shipping]: ...


def test_a_process_is_compiled_from_its_annotations() -> None:
    """What reaches it, what begins it, and what it brings about itself."""
    found = compiled(Shipping)
    assert (found.name, found.identity, found.takes_context) == ("shop.Shipping", OrderId, True)
    assert found.starts == {Placed, Paid}
    assert found.timeouts == {Overdue}
    assert found.query.items[0].types == {
        "shop.Placed",
        "shop.Paid",
        "shop.Overdue",
        "shop.Shipping.ShipRejected",
        "shop.Shipping.InstanceRetried",
        "shop.Shipping.InstanceClosed",
        "shop.Shipping.CommandGiven",
        "shop.Shipping.StepRetried",
        "shop.Shipping.StepSkipped",
        "shop.Shipping.OutgoingRetried",
        "shop.Shipping.OutgoingDiscarded",
    }
    assert found.initial("o1") == Shipping(order=OrderId("o1"))
    assert found.named_by(["order:o1", "customer:c", "order:o2", "order:o1"]) == ["o1", "o2"]
    assert compiled(Shipping, starts=[Placed]).starts == {Placed}


def test_a_rejection_is_a_class_of_its_own() -> None:
    """It matches as written, and is tagged with the instance alone."""
    cls = compiled(Shipping).rejections[Ship]
    event = cls(instance="o1", command=Ship(order=OrderId("o2")), code="sold-out", facts={})
    match event:
        case CommandRejected(command=Ship(), code="sold-out"):
            pass
        case _:
            pytest.fail("it does not match")
    context = BoundedContext("shop")
    context.process_manager(Shipping)
    found = event_types([context]).stored_as("shop.Shipping.ShipRejected")
    assert found is not None
    assert found.tag_names == ("order",)
    assert found.codec.settle(found.cls(instance="o1", command=event.command, code="x", facts={"n": 1}))[1].facts == {
        "n": 1
    }


async def test_several_openings_share_the_classes() -> None:
    """An application that is opened again knows the events of before."""
    context = BoundedContext("shop", events=[Placed, Paid])
    context.process_manager(Shipping)

    @context.command_handler
    def ship(command: Ship) -> Paid:
        return Paid(order=command.order)

    assert [found.cls for found in event_types([context])] == [found.cls for found in event_types([context])]
    for _ in range(2):
        async with InMemoryApplication(context):
            pass


# ── what does not fit ────────────────────────────────────────────────────────


class NoReact(ProcessManager[OrderId]): ...


class Bare(ProcessManager):  # type: ignore[type-arg]
    def react(self, event: Placed) -> Reaction[Bare]: ...


class OfText(ProcessManager[str]):  # type: ignore[type-var]
    def react(self, event: Placed) -> Reaction[OfText]: ...


class Async(ProcessManager[OrderId]):
    async def react(self, event: Placed) -> Reaction[Async]: ...


class Unannotated(ProcessManager[OrderId]):
    def react(self, event): ...  # type: ignore[no-untyped-def]


class TakesMore(ProcessManager[OrderId]):
    def react(self, event: Placed, context: int) -> Reaction[TakesMore]: ...


class TakesTooMany(ProcessManager[OrderId]):
    def react(self, event: Placed, context: EventContext, more: int) -> Reaction[TakesTooMany]: ...


class TakesUntagged(ProcessManager[OrderId]):
    def react(self, event: Placed | Nameless) -> Reaction[TakesUntagged]: ...


class AnyRejection(ProcessManager[OrderId]):
    def react(self, event: Placed | CommandRejected) -> Reaction[AnyRejection]: ...  # type: ignore[type-arg]


class RejectionOfNobody(ProcessManager[OrderId]):
    def react(self, event: Placed | CommandRejected[Unhandled]) -> Reaction[RejectionOfNobody]: ...


class NoState(ProcessManager[OrderId]):
    count: int

    def react(self, event: Placed) -> Reaction[NoState]: ...


class NeverBegins(ProcessManager[OrderId]):
    def react(self, event: Overdue) -> Reaction[NeverBegins]: ...


class NoEvent(ProcessManager[OrderId]):
    def react(self, event: Ship) -> Reaction[NoEvent]: ...


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (NoReact, r"NoReact needs `def react\(self, event: SomeEvent\) -> Reaction\[NoReact\]`"),
        (Bare, r"Bare does not say of which identity it is: write `class Bare\(ProcessManager\[OrderId\]\)`"),
        (OfText, "OfText is of <class 'str'>, which is no Identity"),
        (Async, r"Async\.react is a plain function"),
        (Unannotated, r"Unannotated\.react: annotate `event` with the events that reach it"),
        (TakesMore, r"TakesMore\.react: `context` can only be an EventContext"),
        (TakesTooMany, r"TakesTooMany\.react takes the event and, if it asks, the EventContext"),
        (TakesUntagged, r"takes Nameless, which names no OrderId.*Add a field of that type, which is not Untagged"),
        (AnyRejection, r"AnyRejection\.react: say of which command, as in CommandRejected\[Ship\]"),
        (RejectionOfNobody, r"takes CommandRejected\[Unhandled\], a command without a handler"),
        (NoState, r"NoState\.count needs a default \(the state at first\), or the type OrderId"),
        (NeverBegins, "NeverBegins: no event begins it; name one"),
        (NoEvent, r"NoEvent\.react: .*Ship.* is no Event"),
    ],
)
def test_what_does_not_fit_is_told(cls: type[Any], says: str) -> None:
    """Naming the class, and what to write."""
    with pytest.raises(ConfigurationError, match=says):
        compiled(cls)


@pytest.mark.parametrize(
    ("starts", "says"),
    [
        ([], r"starts= of Shipping is empty"),
        ([Overdue], r"starts= of Shipping names Overdue, which is of the process itself"),
        ([Nameless], r"starts= of Shipping names Nameless, which is not in the annotation of Shipping\.react"),
        ([Ship], r"starts= of Shipping: .*Ship.* is no Event"),
    ],
)
def test_starts_names_events_of_the_process(starts: list[Any], says: str) -> None:
    """None that it does not take, and none that it makes."""
    with pytest.raises(ConfigurationError, match=says):
        compiled(Shipping, starts=starts)


def test_only_process_managers_are_declared() -> None:
    """And each under a name of its own."""
    context = BoundedContext("shop")
    with pytest.raises(ConfigurationError, match="is no process manager"):
        context.process_manager(OrderId)  # type: ignore[type-var]
    context.process_manager(Shipping)
    context.process_manager(Shipping)

    @context.command_handler
    def ship(command: Ship) -> Paid: ...

    with pytest.raises(ConfigurationError, match="both be stored as 'shop"):
        event_types([context])


# ── what a reaction may not have ─────────────────────────────────────────────


def reacting(make: Callable[[OrderId], Any]) -> BoundedContext:
    class Doing(ProcessManager[OrderId]):
        order: OrderId
        note: str = ""

        def react(self, event: Placed | Overdue) -> Reaction[Doing]:
            found = make(self.order)
            return found(self) if callable(found) else found  # type: ignore[no-any-return]

    context = BoundedContext("shop", events=[Placed])
    context.process_manager(Doing)

    @context.command_handler
    def ship(command: Ship) -> Paid:
        return Paid(order=command.order)

    return context


MINUTE = timedelta(minutes=1)
ANOTHER = OrderId("another")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda order: None, "Doing.react must return a Reaction, not None"),
        (lambda order: Reaction("state"), "the state in a Reaction of Doing is 'state', of another class"),
        (lambda order: lambda self: Reaction(self, [Unhandled(order=order)]), "Unhandled has no command handler"),
        (lambda order: lambda self: Reaction(self, ["ship"]), "'ship' is no command"),  # type: ignore[list-item]
        (lambda order: lambda self: Reaction(self, [Ship(order=7)]), "Ship is invalid"),  # type: ignore[arg-type]
        (
            lambda order: lambda self: Reaction(self, (), [(OtherOverdue(order=order), MINUTE)]),
            "is no Timeout in the annotation of Doing.react",
        ),
        (
            lambda order: lambda self: Reaction(self, (), [(Overdue(order=ANOTHER), MINUTE)]),
            "is for another instance than 'o1'",
        ),
        (
            lambda order: lambda self: Reaction(self, (), [(Overdue(order=order), MINUTE)], ended=True),
            "an instance that ends hears no timeout",
        ),
        (
            lambda order: lambda self: Reaction(self, [Ship(order=order)] * 101),
            "101 commands are more than REACTION_COMMANDS_MAX=100",
        ),
        (
            lambda order: lambda self: Reaction(type(self)(order=order, note="x" * (1 << 20))),
            "bytes of state are more than STATE_BYTES_MAX",
        ),
    ],
)
async def test_a_reaction_that_cannot_be_kept_blocks_its_instance(make: Callable[[OrderId], Any], says: str) -> None:
    """Nothing of it is kept, and the instance says why."""
    with pytest.raises(AssertionError, match="the instance 'o1' of shop.Doing is stuck") as told:
        async with InMemoryApplication(reacting(make)) as app:
            await app.given(Placed(order=OrderId("o1")))
    assert says in str(told.value)
