"""Bounded contexts: the declarations of one part of the domain, in its own language."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, overload

from diptych.errors import ConfigurationError
from diptych.messages.annotations import scope_of_caller
from diptych.messages.event import Event, EventContext
from diptych.messages.query import Query
from diptych.messages.upcaster import Split, Upcast, UpcasterDeclaration
from diptych.process_managers.process_manager import ProcessDeclaration, ProcessManager
from diptych.read_side.projection import ProjectionDeclaration
from diptych.read_side.query_bus import QueryDeclaration
from diptych.read_side.read_model import ReadModel
from diptych.read_side.subscriber import SubscriberDeclaration
from diptych.write_side.command_handler import Declaration

__all__ = ["BoundedContext"]

P = ParamSpec("P")
R = TypeVar("R")
Q = TypeVar("Q", bound=Query[Any])
E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=ReadModel)
I = TypeVar("I")  # noqa: E741  # an item of an event
Decision: TypeAlias = Event | Iterable[Event] | None
Decider = TypeVar("Decider", bound=Callable[..., Decision | Awaitable[Decision] | AsyncIterable[Event]])
Upcaster = TypeVar("Upcaster", bound=Upcast | Split)
Subscriber = TypeVar("Subscriber", bound=Callable[..., Awaitable[None]])
PM = TypeVar("PM", bound=type[ProcessManager[Any]])
Fold = TypeVar("Fold", bound=Callable[..., ReadModel | None])


class BoundedContext:
    """Collects the handlers, projections, processes and subscribers of one bounded context (Eric Evans, 2003).

    Args:
        name: letters, digits, - and _; qualifies the stored names of its events.
        modules: imported when an application opens, so that a forgotten import is no silently missing projection.
        events: events that it publishes beside those in its handlers' return annotations and models. One that is
            listed is meant to be there, whoever takes it: `diptych check` does not ask.
    """

    def __init__(self, name: str, *, modules: Iterable[str] = (), events: Iterable[type[Event]] = ()) -> None:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigurationError(f"the context name {name!r} may hold letters, digits, - and _ only")
        self.name = name
        self.modules = tuple(modules)
        self.events = tuple(events)
        self.command_handlers: list[Declaration] = []
        self.query_handlers: list[QueryDeclaration] = []
        self.projections: list[ProjectionDeclaration] = []
        self.subscribers: list[SubscriberDeclaration] = []
        self.upcasters: list[UpcasterDeclaration] = []
        self.process_managers: list[ProcessDeclaration] = []

    def __repr__(self) -> str:
        return f"BoundedContext({self.name!r})"

    def load(self) -> None:
        """Import the modules, so that they declare what they have.

        Raises:
            ConfigurationError: a module does not exist.
        """
        for module in self.modules:
            try:
                import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not module.startswith(error.name):
                    raise
                raise ConfigurationError(f"context {self.name!r} lists the module {module!r}: {error}") from error

    @overload
    def command_handler(self, function: Decider, /) -> Decider: ...
    @overload
    def command_handler(self, /, *, idempotent: bool) -> Callable[[Decider], Decider]: ...
    def command_handler(self, function: Any = None, /, *, idempotent: bool = False) -> Any:
        """Declare the handler of the command in the first parameter.

        The other parameters are its decision models, its `CommandContext`, services, and the `Transaction` (or a
        session of SQLAlchemy's), for tables of its own. It returns events, or raises `Rejected`. A synchronous handler
        without services is pure: it is run again when it lost a race, and so is one that takes the transaction and no
        services. Another that is async or takes services is run again only with `idempotent=True`.
        """
        scope = scope_of_caller()

        def declare(function: Decider) -> Decider:
            self.command_handlers.append(Declaration(self.name, function, scope, idempotent))
            return function

        return declare if function is None else declare(function)

    def query_handler(
        self, function: Callable[Concatenate[Q, P], Awaitable[R]], /
    ) -> Callable[Concatenate[Q, P], Awaitable[R]]:
        """Declare the handler of the query in the first parameter; it takes a `Reader`, `QueryContext`, and services.

        It may run twice for one query: it is asked again on a newer snapshot if it met a read model that was behind.
        """
        self.query_handlers.append(QueryDeclaration(function, scope_of_caller()))
        return function

    @overload
    def projection(
        self, function: Callable[Concatenate[M | None, E, P], M | None], /
    ) -> Callable[Concatenate[M | None, E, P], M | None]: ...
    @overload
    def projection(
        self, function: Callable[Concatenate[M, E, P], M | None], /
    ) -> Callable[Concatenate[M, E, P], M | None]: ...
    @overload
    def projection(
        self, function: Callable[Concatenate[E, P], M | None], /
    ) -> Callable[Concatenate[E, P], M | None]: ...
    @overload
    def projection(
        self,
        /,
        *,
        each: Callable[[E], Iterable[I]],
        key: Callable[[I], object] | None = None,
        where: str | Mapping[str, str] | None = None,
        version: int = 1,
        partitions: int | None = None,
        commutative: bool = False,
    ) -> Callable[[Callable[Concatenate[M, E, I, P], M | None]], Callable[Concatenate[M, E, I, P], M | None]]: ...
    @overload
    def projection(
        self,
        /,
        *,
        key: Callable[[E], object],
        version: int = 1,
        partitions: int | None = None,
        commutative: bool = False,
    ) -> Callable[[Callable[Concatenate[M, E, P], M | None]], Callable[Concatenate[M, E, P], M | None]]: ...
    @overload
    def projection(
        self,
        /,
        *,
        key: Callable[[E, EventContext], object],
        version: int = 1,
        partitions: int | None = None,
        commutative: bool = False,
    ) -> Callable[[Callable[Concatenate[M, E, P], M | None]], Callable[Concatenate[M, E, P], M | None]]: ...
    @overload
    def projection(
        self,
        /,
        *,
        keys: Callable[[E], Iterable[object]],
        version: int = 1,
        partitions: int | None = None,
        commutative: bool = False,
    ) -> Callable[[Callable[Concatenate[M, E, P], M | None]], Callable[Concatenate[M, E, P], M | None]]: ...
    @overload
    def projection(
        self,
        /,
        *,
        where: str | Mapping[str, str],
        version: int = 1,
        partitions: int | None = None,
        commutative: bool = False,
    ) -> Callable[[Callable[Concatenate[M, E, P], M | None]], Callable[Concatenate[M, E, P], M | None]]: ...
    @overload
    def projection(
        self, /, *, version: int, partitions: int | None = None, commutative: bool = False
    ) -> Callable[[Fold], Fold]: ...
    @overload
    def projection(
        self, /, *, partitions: int, version: int = 1, commutative: bool = False
    ) -> Callable[[Fold], Fold]: ...
    @overload
    def projection(self, /, *, commutative: bool, version: int = 1) -> Callable[[Fold], Fold]: ...
    def projection(
        self,
        function: Any = None,
        /,
        *,
        each: Any = None,
        key: Any = None,
        keys: Any = None,
        where: str | Mapping[str, str] | None = None,
        version: int = 1,
        partitions: int | None = None,
        commutative: bool = False,
    ) -> Any:
        """Declare a fold of events into the rows of the read model that it returns.

        The form of the row parameter decides: `(event) -> M` creates; `(row: M, event)` meets a blank row where there
        is none; `(row: M | None, event)` is explicit. A further `context: EventContext` brings position and time. A
        returned None deletes the row. Several functions over distinct events may feed one read model.

        Args:
            function: the fold, where used without arguments.
            each: folds once per part of the event; the fold takes the part after the event.
            key: computes the row's key from the event (from the part, with `each`); a tuple where it is composite. By
                default it is the fields named like the key fields, of the part, else of the event. Without `each` a
                function of two arguments takes the `EventContext` as well.
            keys: fans one event out to the rows of several keys.
            where: finds the rows by what they hold, with `(row: M, event)`: a field of the read model that is equal to
                the event's field of that name (with `each`, to the part's); or fields of the read model, each with the
                name of the event's: `where={"customer": "gone"}`. One of them is `Indexed`, or the first of the key.
                Where there is no such row, nothing happens.
            version: raise it to rebuild the read model where the change of the code cannot be seen.
            partitions: splits the rows by key into so many slices, 1 to 256, that as many processes can fold at once;
                a change takes effect when an application that projects is opened, without a rebuild.
            commutative: says that the rows come out the same whatever the order of events of two partitions; those of
                one come in their order. Only such a fold may follow several partitions (Application(partition_by=));
                try it with `diptych.testing.check_commutative`.
        """
        scope = scope_of_caller()

        def declare(function: Fold) -> Fold:
            declaration = ProjectionDeclaration(
                function, scope, each, key, keys, version, partitions, commutative, where
            )
            self.projections.append(declaration)
            return function

        return declare if function is None else declare(function)

    def subscriber(self, function: Subscriber, /) -> Subscriber:
        """Declare `async def f(events: Sequence[tuple[E, EventContext]], ...services)`: effects outside, in order.

        Batches come at least once: after a crash the last one comes again. What raises is retried with backoff, and
        nothing behind it is delivered meanwhile.
        """
        self.subscribers.append(SubscriberDeclaration(function, scope_of_caller()))
        return function

    # Not overloaded by `into`: mypy then takes a dict of several event classes for one of another type.
    def upcaster(
        self, event: type[Event], /, *, from_version: int, into: Mapping[type[Event], int] | None = None
    ) -> Callable[[Upcaster], Upcaster]:
        """Declare how stored events of an older version are read: from their fields to those of the next version.

        The function takes the fields as JSON reads them, and gives those of the next version. It is pure, as
        a fold is: everything that is folded from such events depends on it. Those of several versions are applied one
        after the other, up to the version that the class has (`class OrderPlaced(Event, version=3)`).

        With `into` an event becomes several, or none: the function gives, or yields, pairs of a class and the fields of
        one part, `yield AddressGiven, {"order": stored["order"], "street": stored["street"]}`, in the order in which
        they are to be seen. Each part goes on from the version that `into` names.

        Args:
            event: the class, of a higher version.
            from_version: that of the stored events, from 1.
            into: the classes that the parts may have, each with the version that its fields are of,
                `into={OrderPlaced: 2, AddressGiven: 1}`; `{}` where the event has no meaning any more.
        """

        def declare(function: Upcaster) -> Upcaster:
            self.upcasters.append(UpcasterDeclaration(event, from_version, function, into))
            return function

        return declare

    @overload
    def process_manager(self, cls: PM, /) -> PM: ...
    @overload
    def process_manager(
        self, /, *, starts: Iterable[type[Event]] | None = None, from_beginning: bool = False, retired: bool = False
    ) -> Callable[[PM], PM]: ...
    def process_manager(
        self,
        cls: Any = None,
        /,
        *,
        starts: Iterable[type[Event]] | None = None,
        from_beginning: bool = False,
        retired: bool = False,
    ) -> Any:
        """Declare a process: a `ProcessManager[OrderId]` with `react(self, event) -> Reaction[Self]`.

        Args:
            cls: the class, where used without arguments.
            starts: the events that may begin an instance; by default all in the annotation of `react` that are neither
                a `Timeout` nor a `CommandRejected`. Others are ignored where they meet no instance.
            from_beginning: a process that is new reacts to the whole history. By default it begins at the head, with
                what happens from the first time on that a worker has it.
            retired: it takes no events and sends nothing any more. Its class is there for what it has left in the
                history and for its instances, which are still listed.
        """

        def declare(cls: PM) -> PM:
            declaration = ProcessDeclaration(self.name, cls, starts, from_beginning=from_beginning, retired=retired)
            self.process_managers.append(declaration)
            return cls

        return declare if cls is None else declare(cls)
