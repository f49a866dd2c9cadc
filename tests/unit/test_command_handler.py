"""A handler's signature says what it needs: every form of binding, and what is told where one does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Optional, Protocol

import pytest

from diptych import (
    BoundedContext,
    By,
    Command,
    CommandContext,
    ConfigurationError,
    DecisionModel,
    Event,
    Identity,
    Rejected,
    Untagged,
    Value,
    replace,
)
from diptych.application.registration import command_handlers, event_types
from diptych.event_store.event_query import QueryItem
from diptych.write_side.command_handler import CommandHandler, Decided
from diptych.write_side.decision_model import ModelFold

pytestmark = pytest.mark.anyio


class AccountId(Identity): ...


class ProductId(Identity): ...


class OwnerId(Identity): ...


class Line(Value):
    product: ProductId
    quantity: int = 1


class Happened(Event):
    account: AccountId


class Account(DecisionModel[AccountId]):
    account: AccountId
    count: int = 0

    def evolve(self, event: Happened) -> Account:
        return replace(self, count=self.count + 1)


class Product(DecisionModel[ProductId]):
    product: ProductId

    def evolve(self, event: Happened) -> Product:
        return self


class Ownership(DecisionModel[AccountId, OwnerId]):
    owner: OwnerId
    account: AccountId

    def evolve(self, event: Happened) -> Ownership:
        return self


class Everything(DecisionModel):
    count: int = 0

    def evolve(self, event: Happened) -> Everything:
        return replace(self, count=self.count + 1)


class Pay(Command):
    account: AccountId
    owner: OwnerId = OwnerId("o")


class Transfer(Command):
    source: AccountId
    target_id: AccountId
    fee: Untagged[AccountId] = AccountId("fee")


class Order(Command):
    account: AccountId
    lines: tuple[Line, ...] = ()
    also: Mapping[str, Line | None] = {}
    first: ProductId | None = None


class Book(Command):
    account: AccountId | None = None


class Give(Command):
    source: AccountId
    target: AccountId
    owner: OwnerId


class Gateway(Protocol):
    def charge(self) -> int: ...


class Settings:
    limit = 7


class FreeGateway:
    def charge(self) -> int:
        return 0


CONTEXT = CommandContext(now=datetime(2026, 1, 1, tzinfo=UTC), command_id="id")


def compiled(function: Callable[..., Any], services: Mapping[type, object] | None = None) -> CommandHandler:
    """The handler compiled as the only one of a context."""
    context = BoundedContext("bank", events=[Happened])
    context.command_handler(function)
    (handler,) = command_handlers([context], services or {}, event_types([context])).values()
    return handler


def initial(handler: CommandHandler, command: Command) -> dict[tuple[ModelFold, tuple[str, ...]], Any]:
    return {(fold, ids): fold.initial(ids) for fold, ids in handler.models(command)}


def folded_for(handler: CommandHandler, command: Command) -> list[tuple[str, tuple[str, ...]]]:
    """What a handler's models are folded for, by class name."""
    return [(fold.name, ids) for fold, ids in handler.models(command)]


# ── every form of binding ────────────────────────────────────────────────────


def test_the_only_field_of_the_identity_is_bound() -> None:
    """Whatever the parameter is called; the model knows whom it is folded for."""
    seen: list[Account] = []

    def pay(command: Pay, whoever: Account) -> None:
        seen.append(whoever)

    handler, command = compiled(pay), Pay(account=AccountId("a"))
    assert folded_for(handler, command) == [("Account", ("a",))]
    handler.decide(command, initial(handler, command), CONTEXT)
    assert seen == [Account(account=AccountId("a"))]


def test_of_several_fields_the_parameter_name_chooses() -> None:
    """`source` finds `source`, `target` finds `target_id`, `By` the rest; each gets its own state."""
    seen: list[tuple[str, ...]] = []

    def transfer(command: Transfer, target: Account, source: Account, paid_by: Annotated[Account, By("fee")]) -> None:
        seen.append((target.account, source.account, paid_by.account))

    handler, command = compiled(transfer), Transfer(source=AccountId("s"), target_id=AccountId("t"))
    assert folded_for(handler, command) == [("Account", ("t",)), ("Account", ("s",)), ("Account", ("fee",))]
    handler.decide(command, initial(handler, command), CONTEXT)
    assert seen == [("t", "s", "fee")]


def test_one_entity_in_two_parameters_is_one_model() -> None:
    """A transfer to oneself stands on one state and has one condition."""

    def transfer(command: Transfer, source: Account, target: Account) -> None:
        assert source is target

    handler, command = compiled(transfer), Transfer(source=AccountId("s"), target_id=AccountId("s"))
    assert folded_for(handler, command) == [("Account", ("s",))]
    assert handler.decide(command, initial(handler, command), CONTEXT) == Decided(())


def test_a_mapping_binds_every_identity_of_the_command() -> None:
    """Nested ones, in collections and optional ones too, each once; none gives an empty mapping."""
    seen: list[Mapping[ProductId, Product]] = []

    def order(command: Order, products: Mapping[ProductId, Product], account: Account) -> None:
        seen.append(products)

    handler = compiled(order)
    command = Order(
        account=AccountId("a"),
        lines=(Line(product=ProductId("p:1")), Line(product=ProductId("p2")), Line(product=ProductId("p:1"))),
        also={"x": Line(product=ProductId("p3")), "y": None},
        first=ProductId("p4"),
    )
    assert [ids for _, ids in handler.models(command)] == [("p:1",), ("p2",), ("p3",), ("p4",), ("a",)]
    handler.decide(command, initial(handler, command), CONTEXT)
    assert {key: value.product for key, value in seen[0].items()} == {key: key for key in ("p:1", "p2", "p3", "p4")}
    handler.decide(Order(account=AccountId("a")), initial(handler, Order(account=AccountId("a"))), CONTEXT)
    assert seen[1] == {}


def test_several_identities_and_none_are_boundaries_too() -> None:
    """`DecisionModel[A, B]` is folded for both; a bare one for everything."""
    seen: list[tuple[Ownership, Everything]] = []

    def pay(command: Pay, ownership: Ownership, everything: Everything) -> None:
        seen.append((ownership, everything))

    handler, command = compiled(pay), Pay(account=AccountId("a"), owner=OwnerId("o"))
    ((both, both_ids), (bare, bare_ids)) = handler.models(command)
    assert [item.tags for item in both.query(both_ids).items] == [{"account:a", "owner:o"}]
    assert bare.query(bare_ids).items == (QueryItem(frozenset({"bank.Happened"})),)
    handler.decide(command, initial(handler, command), CONTEXT)
    assert seen == [(Ownership(owner=OwnerId("o"), account=AccountId("a")), Everything())]


def test_by_names_several_fields_in_the_order_of_the_model() -> None:
    """With two accounts in the command, `By` says whose ownership is meant."""

    def give(command: Give, ownership: Annotated[Ownership, By("target", "owner")]) -> None: ...

    command = Give(source=AccountId("s"), target=AccountId("t"), owner=OwnerId("o"))
    assert folded_for(compiled(give), command) == [("Ownership", ("t", "o"))]


def test_services_come_by_type() -> None:
    """A class, a protocol, an optional one; a default is taken where nothing is offered."""
    seen: list[tuple[object, ...]] = []

    def pay(
        command: Pay,
        gateway: Gateway,
        settings: Settings,
        other: Optional[Settings] = None,  # noqa: UP045 — both spellings
        another: Settings | None = None,
        missing: Silent | None = None,
        limit: int = 3,
    ) -> None:
        seen.append((gateway, settings, other, another, missing, limit))

    offered, settings = FreeGateway(), Settings()
    handler = compiled(pay, {Gateway: offered, Settings: settings})
    handler.decide(Pay(account=AccountId("a")), {}, CONTEXT)
    assert seen == [(offered, settings, settings, settings, None, 3)]
    assert not handler.pure


class Silent: ...


def test_a_context_and_plain_defaults_leave_a_handler_pure() -> None:
    """Time and ids come with the command, and a default is the same each time: it may be run again at will."""

    def pay(command: Pay, account: Account, context: CommandContext, limit: int = 3) -> None:
        assert context is CONTEXT
        assert limit == 3

    handler, command = compiled(pay), Pay(account=AccountId("a"))
    handler.decide(command, initial(handler, command), CONTEXT)
    assert handler.pure
    assert handler.idempotent


@pytest.mark.parametrize("idempotent", [False, True])
def test_async_handlers_are_not_run_again_unless_they_say_so(idempotent: bool) -> None:
    """`idempotent=True` is what allows it."""
    context = BoundedContext("bank", events=[Happened])

    @context.command_handler(idempotent=idempotent)
    async def pay(command: Pay) -> None: ...

    (handler,) = command_handlers([context], {}, event_types([context])).values()
    assert (handler.pure, handler.idempotent) == (False, idempotent)


# ── what a handler gives ─────────────────────────────────────────────────────

HAPPENED = Happened(account=AccountId("a"))


@pytest.mark.parametrize(
    ("answer", "events"),
    [(None, ()), (HAPPENED, (HAPPENED,)), ([HAPPENED] * 2, (HAPPENED,) * 2), (iter([HAPPENED]), (HAPPENED,)), ((), ())],
)
async def test_a_handler_gives_events_in_any_iterable(answer: object, events: tuple[Event, ...]) -> None:
    """One event, several, or none; from a coroutine too."""

    def pay(command: Pay) -> Any:
        return answer

    async def pay_async(command: Pay) -> Any:
        return events

    command = Pay(account=AccountId("a"))
    assert compiled(pay).decide(command, {}, CONTEXT) == Decided(events)
    assert await compiled(pay_async).decide_async(command, {}, CONTEXT) == Decided(events)


async def test_generators_of_both_kinds_are_run_to_their_end() -> None:
    """A refusal in the middle takes back what was given before."""

    def pay(command: Pay) -> Any:
        yield HAPPENED
        raise Rejected("no", why=1)

    async def pay_async(command: Pay) -> Any:
        yield HAPPENED
        raise Rejected("no", record=HAPPENED)

    command = Pay(account=AccountId("a"))
    sync = compiled(pay).decide(command, {}, CONTEXT)
    assert sync.events == ()
    assert sync.rejected is not None
    assert sync.rejected.facts == {"why": 1}
    assert (await compiled(pay_async).decide_async(command, {}, CONTEXT)).events == (HAPPENED,)


@pytest.mark.parametrize("answer", ["text", 1, [HAPPENED, None], Pay(account=AccountId("a")), {"a": 1}])
def test_what_is_no_event_is_refused(answer: object) -> None:
    """The handler is named, and what it gave."""

    def pay(command: Pay) -> Any:
        return answer

    with pytest.raises(TypeError, match=r"pay must give events, None, or an iterable of events, not"):
        compiled(pay).decide(Pay(account=AccountId("a")), {}, CONTEXT)


# ── what does not fit ────────────────────────────────────────────────────────


def no_command() -> None: ...
def not_a_command(command: int) -> None: ...
def without_annotation(command, account: Account) -> None: ...  # type: ignore[no-untyped-def]
def no_annotation(command: Pay, account) -> None: ...  # type: ignore[no-untyped-def]
def no_service(command: Pay, gateway: Gateway) -> None: ...
def ambiguous(command: Transfer, account: Account) -> None: ...
def no_such_field(command: Transfer, product: Product) -> None: ...
def optional_field(command: Book, account: Account) -> None: ...
def nested_field(command: Order, product: Product) -> None: ...
def by_unknown(command: Pay, account: Annotated[Account, By("payer")]) -> None: ...
def by_wrong_type(command: Pay, account: Annotated[Account, By("owner")]) -> None: ...
def by_wrong_order(command: Pay, both: Annotated[Ownership, By("owner", "account")]) -> None: ...
def by_too_few(command: Pay, both: Annotated[Ownership, By("account")]) -> None: ...
def maps_other(command: Order, products: Mapping[AccountId, Product]) -> None: ...
def maps_none(command: Pay, products: Mapping[ProductId, Product]) -> None: ...
def maps_several(command: Pay, owners: Mapping[AccountId, Ownership]) -> None: ...
def maps_mutably(command: Order, products: dict[ProductId, Product]) -> None: ...
def keyword_only(command: Pay, *, account: Account) -> None: ...
def variable(command: Pay, *accounts: Account) -> None: ...
def keywords(command: Pay, **accounts: Account) -> None: ...
def sequence(command: Order, products: Sequence[Product]) -> None: ...


FIRST = "annotate the first parameter with the command"


@pytest.mark.parametrize(
    ("function", "parameter", "remedy"),
    [
        (no_command, "", FIRST),
        (not_a_command, "", FIRST),
        (without_annotation, "", FIRST),
        (no_annotation, "account", "say which model, service or context it takes"),
        (no_service, "gateway", "services={Gateway: ...}"),
        (ambiguous, "account", 'Annotated[Account, By("source")]'),
        (no_such_field, "product", "add a field of type ProductId to the command"),
        (optional_field, "account", "take Mapping[AccountId, Account]"),
        (nested_field, "product", "take Mapping[ProductId, Product]"),
        (by_unknown, "account", "Pay has no such field"),
        (by_wrong_type, "account", "Account is scoped by (AccountId)"),
        (by_wrong_order, "both", "Ownership is scoped by (AccountId, OwnerId), in this order"),
        (by_too_few, "both", "Ownership is scoped by (AccountId, OwnerId), in this order"),
        (maps_other, "products", "Product must be a DecisionModel[AccountId]"),
        (maps_none, "products", "add a field of type ProductId, or one that contains such"),
        (maps_several, "owners", "Ownership must be a DecisionModel[AccountId]"),
        (maps_mutably, "products", "Mapping[ProductId, Product]"),
        (sequence, "products", "Mapping[ProductId, Product]"),
        (keyword_only, "account", "without `*`"),
        (variable, "accounts", "without `*`"),
        (keywords, "accounts", "without `*`"),
    ],
)
def test_what_cannot_be_bound_is_told_with_its_remedy(
    function: Callable[..., Any], parameter: str, remedy: str
) -> None:
    """At start-up, naming handler, parameter and what to do."""
    with pytest.raises(ConfigurationError) as wrong:
        compiled(function)
    text = str(wrong.value)
    assert f"test_command_handler.{function.__name__}: " in text
    assert f"parameter `{parameter}`" in text or not parameter
    assert remedy in text


def test_the_error_tells_what_is_offered() -> None:
    """Among the services, the one that was meant may have another type."""
    with pytest.raises(ConfigurationError, match=r"offered: Settings"):
        compiled(no_service, {Settings: Settings()})
