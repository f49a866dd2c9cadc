"""Who may do what: scopes that handlers require, actors, and reasons."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from diptych import (
    Application,
    BoundedContext,
    Command,
    CommandContext,
    ConfigurationError,
    DecisionModel,
    Event,
    Identity,
    Key,
    ProcessManager,
    Reaction,
    ReadModel,
    Receipt,
    Rejected,
    SyncApplication,
)
from diptych.errors import Forbidden, InvalidMessage
from diptych.event_store.event_query import ALL_EVENTS
from diptych.messages.envelope import Envelope
from diptych.security import ACTOR_NAME_CHARACTERS_MAX, REASON_CHARACTERS_MAX, Actor, required_scopes, requires
from diptych.testing import InMemoryApplication, scenario
from diptych.write_side.command_bus import NextCommand

pytestmark = pytest.mark.anyio


class OrderId(Identity): ...


class Place(Command):
    order: OrderId


class Cancel(Command):
    order: OrderId


class Look(Command):
    order: OrderId


class Placed(Event):
    order: OrderId


class Cancelled(Event):
    order: OrderId
    by: str | None = None


class Order(DecisionModel[OrderId]):
    placed: bool = False

    def evolve(self, event: Placed) -> Order:
        return Order(placed=True)


def shop() -> BoundedContext:
    """A shop where placing needs a scope, cancelling two, and looking none."""
    context = BoundedContext("shop")

    @context.command_handler
    @requires("orders:write")
    def place(command: Place, order: Order) -> Placed:
        if order.placed:
            raise Rejected("placed-already")
        return Placed(order=command.order)

    @requires("orders:cancel")
    @context.command_handler
    @requires("orders:write")
    def cancel(command: Cancel, context: CommandContext) -> Cancelled:
        return Cancelled(order=command.order, by=context.actor)

    @context.command_handler
    def look(command: Look) -> None: ...

    return context


def numbered(*calls: Callable[[], object]) -> list[Any]:
    """Parameters with an id each."""
    return [pytest.param(call, id=str(number)) for number, call in enumerate(calls)]


ONE = OrderId("1")
CLERK = Actor("clerk", {"orders:write"})


@pytest.fixture
async def app(store_url: str) -> AsyncIterator[Application]:
    async with Application(shop(), store=store_url) as opened:
        yield opened


async def history(app: Application) -> list[tuple[str, dict[str, Any]]]:
    return [(event.type, json.loads(event.metadata)) async for event in app.events(ALL_EVENTS)]


# ── scopes ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("actor", [None, "clerk", Actor("clerk"), Actor("clerk", {"orders:read", "orders"})])
async def test_who_lacks_the_scope_is_forbidden(app: Application, actor: Actor | str | None) -> None:
    """Nobody, a name alone, and an actor with other scopes: nothing happens, and the error says what is missing."""
    with pytest.raises(Forbidden) as refused:
        await app.execute(Place(order=ONE), actor=actor)
    assert (refused.value.message, refused.value.missing) == ("Place", ("orders:write",))
    assert refused.value.actor == (None if actor is None else "clerk")
    assert "orders:write" in str(refused.value)
    assert await history(app) == []


@pytest.mark.parametrize("actor", [CLERK, Actor("clerk", {"x", "orders:write"}), Actor(trusted=True)])
async def test_who_has_the_scope_may_do_it(app: Application, actor: Actor) -> None:
    """And whoever is trusted may do everything."""
    assert (await app.execute(Place(order=ONE), actor=actor)).position == 1


async def test_several_scopes_are_all_needed(app: Application) -> None:
    """Whether they stand above `command_handler` or below it; those that are missing are told, and no others."""
    with pytest.raises(Forbidden) as refused:
        await app.execute(Cancel(order=ONE), actor=CLERK)
    assert refused.value.missing == ("orders:cancel",)
    with pytest.raises(Forbidden) as refused:
        await app.execute(Cancel(order=ONE), actor="ada")
    assert refused.value.missing == ("orders:cancel", "orders:write")
    await app.execute(Cancel(order=ONE), actor=Actor("ada", {"orders:cancel", "orders:write"}))
    assert app.required_scopes(Cancel) == {"orders:cancel", "orders:write"}
    assert app.required_scopes(Look) == frozenset()


async def test_what_requires_nothing_is_for_everyone(app: Application) -> None:
    """Also for nobody in particular."""
    assert (await app.execute(Look(order=ONE))).events == ()


async def test_authorisation_comes_before_the_kept_outcome(app: Application) -> None:
    """Rule 4: whoever may not do it does not hear, by its id, what came of it either; and a refusal is not kept."""
    for _ in range(2):
        with pytest.raises(Forbidden):
            await app.execute(Place(order=ONE), command_id="place-1", actor="ada")
    first = await app.execute(Place(order=ONE), command_id="place-1", actor=CLERK)
    with pytest.raises(Forbidden):
        await app.execute(Place(order=ONE), command_id="place-1", actor="ada")
    assert await app.execute(Place(order=ONE), command_id="place-1", actor=CLERK) == first
    with pytest.raises(Rejected):
        await app.execute(Place(order=ONE), command_id="place-2", actor=CLERK)
    with pytest.raises(Forbidden):
        await app.execute(Place(order=ONE), command_id="place-2", actor="ada")


async def test_authorisation_comes_before_what_it_is_based_on(app: Application) -> None:
    """Whoever may not do it does not hear what has changed."""
    based_on = await app.execute(Look(order=ONE))
    await app.execute(Place(order=ONE), actor=CLERK)
    with pytest.raises(Forbidden):
        await app.execute(Place(order=ONE), actor="ada", based_on=based_on)


async def test_what_may_not_be_done_may_not_be_tried(app: Application) -> None:
    """A dry run goes the same way."""
    with pytest.raises(Forbidden):
        await app.can(Place(order=ONE), actor="ada")
    assert await app.can(Place(order=ONE), actor=CLERK)


async def test_a_middleware_may_look_scopes_up() -> None:
    """What it puts into the context counts, since scopes are checked after it."""

    async def roles(command: Command, context: CommandContext, proceed: NextCommand) -> Receipt:
        found = {"ada": frozenset({"orders:write"})}.get(context.actor or "", context.scopes)
        return await proceed(command, msgspec.structs.replace(context, scopes=found))

    async with Application(shop(), command_middleware=[roles]) as app:
        await app.execute(Place(order=ONE), actor="ada")
        with pytest.raises(Forbidden):
            await app.execute(Place(order=ONE), actor="bob")


# ── requires ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    numbered(
        requires,
        lambda: requires(""),
        lambda: requires("orders:read orders:write"),
        lambda: requires("orders:wríte"),
        lambda: requires('"x"'),
        lambda: requires("x" * 257),
        lambda: requires(1),  # type: ignore[arg-type]
        lambda: requires(lambda command: None),  # type: ignore[arg-type]
        lambda: requires("orders:write")(Place),
    ),
)
def test_requires_refuses_what_it_cannot_be(wrong: Callable[[], object]) -> None:
    """No scope, several in one text, no text, no parentheses, and what is no function."""
    with pytest.raises(ConfigurationError):
        wrong()


class Shown(ReadModel):
    order: Key[OrderId]


class Watching(ProcessManager[OrderId]):
    @requires("x")
    def react(self, event: Placed) -> Reaction[Watching]:
        return Reaction(self)


class Marked(DecisionModel[OrderId]):
    @requires("x")
    def evolve(self, event: Placed) -> Marked:
        return self


def _on_a_projection(context: BoundedContext) -> None:
    @requires("x")
    @context.projection
    def show(row: Shown, event: Placed) -> Shown:
        return row


def _on_a_subscriber(context: BoundedContext) -> None:
    @context.subscriber
    @requires("x")
    async def tell(events: Any) -> None: ...


def _on_a_process(context: BoundedContext) -> None:
    context.process_manager(Watching)


def _on_a_model(context: BoundedContext) -> None:
    @context.command_handler
    def mark(command: Look, order: Marked) -> Placed: ...


@pytest.mark.parametrize(
    "misuse", [_on_a_projection, _on_a_subscriber, _on_a_process, _on_a_model], ids=lambda f: f.__name__
)
async def test_requires_is_for_handlers_and_queries_alone(misuse: Callable[[BoundedContext], None]) -> None:
    """Where it would guard nothing, the application does not open, and says where it stands."""
    context = BoundedContext("shop", events=[Placed])
    misuse(context)
    with pytest.raises(ConfigurationError, match=r"tests.*: @requires is for handlers of commands and queries"):
        await Application(context).open()


def _logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def _logged_bare(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


@pytest.mark.parametrize("logged", [_logged, _logged_bare])
@pytest.mark.parametrize("order", ["requires below", "requires above", "declared below"])
async def test_a_scope_is_not_lost_between_decorators(logged: Callable[..., Any], order: str) -> None:
    """Whichever of the wrapped functions is the one that was declared."""
    context = BoundedContext("shop")

    def look(command: Look) -> None: ...

    if order == "requires below":
        context.command_handler(logged(requires("x")(look)))
    elif order == "requires above":
        context.command_handler(requires("x")(logged(look)))
    else:
        requires("x")(logged(context.command_handler(look)))
    async with Application(context) as app:
        with pytest.raises(Forbidden):
            await app.execute(Look(order=ONE))
        await app.execute(Look(order=ONE), actor=Actor("ada", {"x"}))


def test_requires_leaves_the_handler_as_it_is() -> None:
    """It can be called, and tested, as any function."""

    @requires("x")
    def look(command: Look) -> str:
        return command.order

    assert look(Look(order=ONE)) == ONE
    assert required_scopes(look) == {"x"}


# ── actors and reasons ───────────────────────────────────────────────────────


def test_an_actor_is_immutable() -> None:
    """And so are its scopes, whatever they were given as."""
    scopes = {"a"}
    actor = Actor("ada", scopes)
    scopes.add("b")
    assert actor.scopes == {"a"}
    assert actor == Actor("ada", frozenset({"a"}))
    assert hash(actor) == hash(Actor("ada", {"a"}))
    with pytest.raises(AttributeError):
        actor.name = "bob"  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    numbered(
        lambda: Actor(""),
        lambda: Actor("a\nb"),
        lambda: Actor("\0"),
        lambda: Actor("\ud800"),
        lambda: Actor("a" * (ACTOR_NAME_CHARACTERS_MAX + 1)),
        lambda: Actor(7),  # type: ignore[arg-type]
        lambda: Actor("ada", "orders:write"),  # type: ignore[arg-type]
        lambda: Actor("ada", ["orders:write"]),  # type: ignore[arg-type]
        lambda: Actor("ada", {1}),  # type: ignore[arg-type]
    ),
)
def test_an_actor_that_cannot_be_is_refused(wrong: Callable[[], object]) -> None:
    """A name is one line of bounded length; scopes are a set, not the letters of a text."""
    with pytest.raises(InvalidMessage):
        wrong()


async def test_actor_and_reason_are_kept_with_every_event(app: Application) -> None:
    """Of each event of the command, beside its id; scopes are not."""
    reason = "a" * (REASON_CHARACTERS_MAX - 1) + "ü"
    await app.execute(Place(order=ONE), command_id="p", actor=CLERK, reason=reason)
    await app.execute(Cancel(order=ONE), command_id="c", actor=Actor("ann", trusted=True), reason="by phone")
    assert await history(app) == [
        ("shop.Placed", {"command_id": "p", "actor": "clerk", "reason": reason}),
        ("shop.Cancelled", {"command_id": "c", "actor": "ann", "reason": "by phone"}),
    ]


@pytest.mark.parametrize(
    "reason",
    ["", "a\nb", "a\x7f", "\u2028", "\ud800", "x" * (REASON_CHARACTERS_MAX + 1), 7],
    ids=range(7),
)
async def test_a_reason_that_is_no_line_is_refused(app: Application, reason: str) -> None:
    """Before anything is done."""
    with pytest.raises(InvalidMessage):
        await app.execute(Look(order=ONE), reason=reason)


async def test_projections_see_the_reason() -> None:
    """As part of the event's context, and handlers as part of the command's."""
    seen = list[CommandContext]()
    context = BoundedContext("shop")

    @context.command_handler
    def cancel(command: Cancel, context: CommandContext) -> Cancelled:
        seen.append(context)
        return Cancelled(order=command.order)

    async with InMemoryApplication(context) as app:
        await app.execute(Cancel(order=ONE), actor=CLERK, reason="by phone")
        assert (await app.facts())[0].context.reason == "by phone"
    assert {(found.actor, found.reason, found.scopes, found.trusted) for found in seen} == {
        ("clerk", "by phone", frozenset({"orders:write"}), False)
    }


def test_an_envelope_of_before_is_read() -> None:
    """Events that were stored without a reason have none, and older code reads one with a reason."""
    assert msgspec.json.decode(b'{"actor":"ada"}', type=Envelope) == Envelope(actor="ada")
    assert msgspec.json.encode(Envelope(actor="ada")) == b'{"actor":"ada"}'


def test_without_an_event_loop_it_is_the_same() -> None:
    """The blocking application takes actors and reasons, too."""
    with SyncApplication(shop()) as app:
        with pytest.raises(Forbidden):
            app.execute(Place(order=ONE))
        assert not isinstance(app.can(Place(order=ONE), actor=CLERK).rejected, Rejected)
        app.execute(Place(order=ONE), actor=CLERK, reason="by phone")


def test_a_scenario_is_about_decisions_until_it_names_an_actor() -> None:
    """Nobody, or a name, may do everything there; an `Actor` what its scopes let it."""
    scenario(shop()).when(Place(order=ONE)).then(Placed(order=ONE))
    scenario(shop()).when(Cancel(order=ONE), actor="ann").then(Cancelled(order=ONE, by="ann"))
    scenario(shop()).when(Place(order=ONE), actor=CLERK).then(Placed(order=ONE))
    with pytest.raises(Forbidden):
        scenario(shop()).when(Cancel(order=ONE), actor=CLERK)


# ── processes ────────────────────────────────────────────────────────────────


class Confirm(Command):
    order: OrderId


class Confirmed(Event):
    order: OrderId


class Confirming(ProcessManager[OrderId]):
    def react(self, event: Placed) -> Reaction[Confirming]:
        return Reaction(self, [Confirm(order=event.order)], ended=True)


async def test_a_process_may_do_what_its_actors_may_not() -> None:
    """It is the application's own code: what it sends passes whatever scopes are required, under its own name."""
    context = shop()
    context.process_manager(Confirming)

    @context.command_handler
    @requires("orders:confirm")
    def confirm(command: Confirm) -> Confirmed:
        return Confirmed(order=command.order)

    async with InMemoryApplication(context) as app:
        with pytest.raises(Forbidden):
            await app.execute(Confirm(order=ONE), actor=CLERK)
        await app.execute(Place(order=ONE), actor=CLERK)
        found = [(fact.event, fact.context.actor) for fact in await app.facts()]
    assert found == [(Placed(order=ONE), "clerk"), (Confirmed(order=ONE), "process:shop.Confirming")]
