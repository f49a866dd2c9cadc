"""A domain for tests of live queries: counters by key, rows that expire, an event that cannot be folded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from diptych import (
    BoundedContext,
    Command,
    CommandContext,
    Event,
    ExpiresAt,
    Identity,
    Key,
    Query,
    Reader,
    ReadModel,
    replace,
)

__all__ = [
    "Add",
    "All",
    "Break",
    "Counter",
    "CounterId",
    "CounterOf",
    "Faults",
    "Hold",
    "HowMany",
    "Looked",
    "Note",
    "Notes",
    "Picky",
    "Seen",
    "Several",
    "Ticket",
    "TicketOf",
    "Tickets",
    "Turning",
    "counters",
]


class CounterId(Identity): ...


class Add(Command):
    counter: CounterId
    count: int = 1


class Added(Event):
    counter: CounterId
    count: int


class Break(Command):
    """Adds what cannot be folded until it is mended."""

    counter: CounterId


class Broken(Event):
    counter: CounterId


class Note(Command):
    """An event that only the other read model is of; one without text stops that."""

    text: str


class Noted(Event):
    text: str


class Hold(Command):
    counter: CounterId
    minutes: int


class Held(Event):
    counter: CounterId
    until: datetime


class Counter(ReadModel):
    counter: Key[CounterId]
    count: int = 0


class Notice(ReadModel):
    text: Key[str]


class Ticket(ReadModel):
    counter: Key[CounterId]
    until: ExpiresAt[datetime]


class CounterOf(Query[Counter | None]):
    counter: CounterId


class All(Query[list[Counter]]): ...


class Notes(Query[list[Notice]]): ...


class TicketOf(Query[Ticket | None]):
    counter: CounterId


class Tickets(Query[int]):
    """How many have not expired."""


class Several(Query[int]):
    """The sum of two counters: of the first one, and of the one that is named after what it has."""

    counter: CounterId


class HowMany(Query[int]):
    """How many counters there are; whoever asks is counted."""


class Picky(Query[int]):
    """How many counters there are; its handler fails where there are any."""


class Turning(Query[int]):
    """What a counter has; once it was told to turn, how many notices there are."""

    counter: CounterId


class Faults:
    """Whether the fold of `Broken` raises, and whether `Turning` reads something else."""

    def __init__(self) -> None:
        self.mended = False
        self.turned = False


class Seen:
    """How often `Looked` and `HowMany` were asked, and what happens while `Looked` is."""

    def __init__(self) -> None:
        self.asked = 0
        self.meanwhile: Callable[[], Awaitable[None]] | None = None


class Looked(Query[int]):
    """What a counter has; whoever asks is counted."""

    counter: CounterId


def _texts(event: Noted) -> list[str]:
    if not event.text:
        raise ValueError("there is no text")
    return [event.text]


def counters(faults: Faults | None = None, seen: Seen | None = None) -> BoundedContext:
    """The context; whoever makes it again has faults of its own."""
    context = BoundedContext("counters")
    _add_commands(context)
    broken = faults or Faults()
    _add_projections(context, broken)
    _add_queries(context, broken, seen or Seen())
    return context


def _add_commands(context: BoundedContext) -> None:
    @context.command_handler
    def add(command: Add) -> Added:
        return Added(counter=command.counter, count=command.count)

    @context.command_handler
    def note(command: Note) -> Noted:
        return Noted(text=command.text)

    @context.command_handler
    def break_it(command: Break) -> Broken:
        return Broken(counter=command.counter)

    @context.command_handler
    def hold(command: Hold, context: CommandContext) -> Held:
        return Held(counter=command.counter, until=context.now + timedelta(minutes=command.minutes))


def _add_projections(context: BoundedContext, broken: Faults) -> None:
    @context.projection(version=1)
    def counted(row: Counter, event: Added | Broken) -> Counter:
        if isinstance(event, Added):
            return replace(row, count=row.count + event.count)
        if not broken.mended:
            raise ValueError("this cannot be folded")
        return replace(row, count=-1)

    @context.projection(keys=_texts)
    def noticed(row: Notice | None, event: Noted) -> Notice:
        return Notice(text=event.text)

    @context.projection
    def tickets(event: Held) -> Ticket:
        return Ticket(counter=event.counter, until=event.until)


def _add_queries(context: BoundedContext, broken: Faults, watching: Seen) -> None:
    @context.query_handler
    async def turning(query: Turning, read: Reader) -> int:
        if broken.turned:
            return 100 + await read.count(Notice)
        row = await read.get(Counter, query.counter)
        return row.count if row else 0

    @context.query_handler
    async def looked(query: Looked, read: Reader) -> int:
        watching.asked += 1
        row = await read.get(Counter, query.counter)
        if watching.meanwhile is not None:
            await watching.meanwhile()
        return row.count if row else 0

    @context.query_handler
    async def how_many(query: HowMany, read: Reader) -> int:
        watching.asked += 1
        return await read.count(Counter)

    @context.query_handler
    async def tickets_left(query: Tickets, read: Reader) -> int:
        return await read.count(Ticket)

    @context.query_handler
    async def picky(query: Picky, read: Reader) -> int:
        count = await read.count(Counter)
        if count:
            raise LookupError(f"{count} are too many")
        return count

    @context.query_handler
    async def several(query: Several, read: Reader) -> int:
        first = await read.get(Counter, query.counter)
        second = await read.get(Counter, CounterId(f"c{first.count}")) if first else None
        return (first.count if first else 0) + 100 * (second.count if second else 0)
