"""The hard cases, as users write them: clean under both checkers, and compiled by an application in the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Protocol

from diptych import (
    BoundedContext,
    By,
    Command,
    CommandContext,
    CommandRejected,
    DecisionModel,
    Event,
    EventContext,
    Identity,
    Indexed,
    Key,
    Page,
    ProcessManager,
    Query,
    Reaction,
    Reader,
    ReadModel,
    Rejected,
    Searchable,
    Timeout,
    Untagged,
    Value,
    at_least,
    one_of,
    replace,
)

bank = BoundedContext("bank")


# ── two models of one type, bound by the parameters' names ───────────────────


class AccountId(Identity): ...


class TransferId(Identity, tag="transfer"): ...


class Transfer(Command):
    transfer_id: TransferId
    source: AccountId
    target: AccountId
    amount: Decimal


class MoneyTransferred(Event):
    transfer_id: TransferId
    source: AccountId
    target: AccountId
    amount: Decimal


class Account(DecisionModel[AccountId]):
    account: AccountId  # filled with the identity it was bound by: no default needed
    balance: Decimal = Decimal(0)

    def evolve(self, event: MoneyTransferred) -> Account:
        change = event.amount * ((event.target == self.account) - (event.source == self.account))
        return replace(self, balance=self.balance + change)


@bank.command_handler
def transfer(command: Transfer, source: Account, target: Account) -> MoneyTransferred:
    if source.account == target.account or source.balance < command.amount:
        raise Rejected("insufficient-funds", balance=source.balance)
    return MoneyTransferred(
        transfer_id=command.transfer_id, source=command.source, target=command.target, amount=command.amount
    )


class Donate(Command):
    donor: AccountId
    charity: AccountId
    amount: Decimal


class Donated(Event):
    donor: AccountId
    charity: Untagged[AccountId]


@bank.command_handler
def donate(command: Donate, payer: Annotated[Account, By("donor")]) -> Donated | None:
    return None if payer.balance < command.amount else Donated(donor=command.donor, charity=command.charity)


# ── time in the fold and in the decision ─────────────────────────────────────


class UserName(Identity, tag="username"): ...


class Register(Command):
    name: UserName


class Registered(Event):
    name: UserName


class AccountClosed(Event):
    name: UserName


class NameClaim(DecisionModel[UserName]):
    closed_at: datetime | None = None
    claimed: bool = False

    def evolve(self, event: Registered | AccountClosed, context: EventContext) -> NameClaim:
        match event:
            case Registered():
                return NameClaim(claimed=True)
            case AccountClosed():
                return NameClaim(closed_at=context.recorded_at)


@bank.command_handler
def register(command: Register, claim: NameClaim, context: CommandContext) -> Registered:
    if claim.claimed or (claim.closed_at and context.now - claim.closed_at <= timedelta(days=3)):
        raise Rejected("name-claimed")
    return Registered(name=command.name)


# ── models scoped by none, by two, by many ───────────────────────────────────


class InvoiceCreated(Event):
    number: int


class CreateInvoice(Command): ...


class InvoiceNumbers(DecisionModel):  # bare: legal through the type variable's default
    last: int = 0

    def evolve(self, event: InvoiceCreated) -> InvoiceNumbers:
        return InvoiceNumbers(last=event.number)


@bank.command_handler
def create_invoice(command: CreateInvoice, numbers: InvoiceNumbers) -> InvoiceCreated:
    return InvoiceCreated(number=numbers.last + 1)


class Contact(DecisionModel[AccountId, UserName]):
    known: bool = False

    def evolve(self, event: ContactAdded) -> Contact:
        return Contact(known=True)


class ContactAdded(Event):
    account: AccountId
    name: UserName


class AddContact(Command):
    account: AccountId
    name: UserName


@bank.command_handler
def add_contact(command: AddContact, contact: Contact) -> tuple[ContactAdded, ...]:
    return () if contact.known else (ContactAdded(account=command.account, name=command.name),)


class ProductId(Identity): ...


class OrderLine(Value):
    product: ProductId
    quantity: int
    price: Decimal


class Checkout(Command):
    lines: tuple[OrderLine, ...]


class CheckoutRefused(Event):
    product: ProductId


class Reserved(Event):
    product: ProductId
    quantity: int


class Sold(Event):
    placed_at: datetime
    lines: tuple[OrderLine, ...]


class Product(DecisionModel[ProductId]):
    on_hand: int = 0

    def evolve(self, event: Reserved) -> Product:
        return replace(self, on_hand=self.on_hand - event.quantity)


@bank.command_handler
def checkout(
    command: Checkout, products: Mapping[ProductId, Product], context: CommandContext
) -> Iterator[Reserved | Sold | CheckoutRefused]:
    for line in command.lines:
        if products[line.product].on_hand < line.quantity:
            refused = CheckoutRefused(product=line.product)
            raise Rejected("out-of-stock", record=refused, product=line.product)
        yield Reserved(product=line.product, quantity=line.quantity)
    yield Sold(placed_at=context.now, lines=command.lines)


# ── async handlers with services ─────────────────────────────────────────────


class Gateway(Protocol):
    async def pay(self) -> bool: ...


class Stripe:
    async def pay(self) -> bool:
        return True


class Pay(Command):
    account: AccountId


class Paid(Event):
    account: AccountId


class PayTwice(Command):
    account: AccountId


@bank.command_handler
async def pay(command: Pay, gateway: Gateway) -> Paid | None:
    return Paid(account=command.account) if await gateway.pay() else None


@bank.command_handler(idempotent=True)
async def pay_twice(command: PayTwice, account: Account, gateway: Gateway) -> AsyncIterator[Paid]:
    for _ in range(2):
        if await gateway.pay():
            yield Paid(account=account.account)


# ── projections: the three row forms, each, key, keys, context ───────────────


class ProductSales(ReadModel):
    product: Key[ProductId]
    description: Searchable[str] = ""
    units: Indexed[int] = 0


def lines(event: Sold) -> tuple[OrderLine, ...]:
    return event.lines


@bank.projection(each=lines)
def product_sales(row: ProductSales, event: Sold, line: OrderLine) -> ProductSales:
    return replace(row, units=row.units + line.quantity)


class MonthSales(ReadModel):
    month: Key[str]
    orders: int = 0


def month(event: Sold) -> str:
    return event.placed_at.strftime("%Y-%m")


@bank.projection(key=month)
def month_sales(row: MonthSales, event: Sold) -> MonthSales:
    return replace(row, orders=row.orders + 1)


class ProductMonth(ReadModel):
    product: Key[ProductId]
    month: Key[str]
    units: int = 0


def product_months(event: Sold) -> list[tuple[ProductId, str]]:
    return [(line.product, month(event)) for line in event.lines]


@bank.projection(keys=product_months)
def sold_in(row: ProductMonth | None, event: Sold) -> ProductMonth | None:
    return row


class User(ReadModel):
    name: Key[UserName]
    since: datetime


@bank.projection
def registered_user(event: Registered, context: EventContext) -> User:
    return User(name=event.name, since=context.recorded_at)


@bank.projection
def closed_user(row: User | None, event: AccountClosed) -> User | None:
    return None


@bank.subscriber
async def tell(events: Sequence[tuple[Paid | Donated, EventContext]], gateway: Gateway) -> None:
    for _event, _context in events:
        await gateway.pay()


# ── queries ──────────────────────────────────────────────────────────────────


class SalesOf(Query[ProductSales | None]):
    product: ProductId


class WithUnits(Query[list[ProductSales]]):
    units: int


class Search(Query[list[ProductSales]]):
    text: str


class Best(Query[Page[ProductSales]]):
    cursor: str | None = None


class Total(Value):
    units: int


class UnitsSold(Query[Total]): ...


@bank.query_handler
async def search(query: Search, read: Reader) -> list[ProductSales]:
    return await read.search(ProductSales, query.text, limit=10)


@bank.query_handler
async def best(query: Best, read: Reader) -> Page[ProductSales]:
    return await read.page(ProductSales, units=at_least(10), order_by="-units", cursor=query.cursor)


@bank.query_handler
async def units_sold(query: UnitsSold, read: Reader) -> Total:
    found = await read.find(ProductSales, product=one_of("pen", "ink"), limit=2)
    return Total(units=sum(row.units for row in found))


# ── a process: its own identity, a timeout, a rejection as a generic fact, an end ────────────────────────────────────


class Deposit(Command):
    transfer_id: TransferId


class Refund(Command):
    transfer_id: TransferId


class Requested(Event):
    transfer_id: TransferId


class Deposited(Event):
    transfer_id: TransferId


class Refunded(Event):
    transfer_id: TransferId


class DepositOverdue(Timeout):
    transfer_id: TransferId


@bank.command_handler
def deposit(command: Deposit) -> Deposited:
    return Deposited(transfer_id=command.transfer_id)


@bank.command_handler
def give_back(command: Refund) -> Refunded:
    return Refunded(transfer_id=command.transfer_id)


@bank.process_manager
class Transferring(ProcessManager[TransferId]):
    transfer: TransferId

    def react(self, event: Requested | Deposited | DepositOverdue | CommandRejected[Deposit]) -> Reaction[Transferring]:
        match event:
            case Requested():
                overdue = DepositOverdue(transfer_id=self.transfer)
                return Reaction(self, [Deposit(transfer_id=self.transfer)], [(overdue, timedelta(minutes=10))])
            case Deposited():
                return Reaction(self, ended=True)
            case CommandRejected(command=Deposit(), code="again"):
                return Reaction(self, [event.command], {DepositOverdue(transfer_id=self.transfer): timedelta(hours=1)})
            case DepositOverdue() | CommandRejected():
                return Reaction(self, [Refund(transfer_id=self.transfer)], ended=True)


class Counting(ProcessManager[AccountId]):
    account: AccountId
    transfers: int = 0

    def react(self, event: MoneyTransferred, context: EventContext) -> Reaction[Counting]:
        return Reaction(replace(self, transfers=self.transfers + context.position))


bank.process_manager(starts=[MoneyTransferred], from_beginning=True)(Counting)


# ── what was stored as one event ─────────────────────────────────────────────


class Sent(Event, version=2):
    transfer_id: TransferId


class Noted(Event):
    transfer_id: TransferId
    note: str


upcast = BoundedContext("upcast", events=[Sent, Noted])


@upcast.upcaster(Sent, from_version=1, into={Sent: 2, Noted: 1})
def with_its_note(stored: Mapping[str, Any]) -> Iterator[tuple[type[Event], Mapping[str, Any]]]:
    yield Sent, {"transfer_id": stored["transfer_id"]}
    if stored["note"]:
        yield Noted, stored
