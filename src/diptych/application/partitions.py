"""The partitions of an open application, and the way of every message to its own (rule 38).

A partition is a history of its own: its own order, append section, outcomes and read models. Nothing is decided, and
no row folded, across two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from diptych.application.across import Across
from diptych.application.dividing import ACROSS
from diptych.application.follower import Follower
from diptych.application.partition import Partition
from diptych.application.status import Health
from diptych.application.wiring import Compiled
from diptych.errors import (
    CannotShowPast,
    ConfigurationError,
    DiptychError,
    HistoryDiverged,
    SpansPartitions,
    UnknownPartition,
)
from diptych.event_store.position import Token
from diptych.messages.codec import Codec
from diptych.messages.command import Command
from diptych.messages.identity import Identity, tag_name
from diptych.messages.message import Message, field_types
from diptych.messages.query import Query
from diptych.messages.tags import tag_reader
from diptych.read_side.freshness import HowFresh, Requirement
from diptych.read_side.live_queries import Touches
from diptych.read_side.past import AsOf, PastTurns
from diptych.read_side.query_bus import Answer, Handle, ReadPanel
from diptych.read_side.query_context import QueryContext
from diptych.read_side.spanning_queries import SpanningQueryBus

__all__ = ["Asked", "ByContext", "ByIdentity", "Partitions"]

R = TypeVar("R")

HEALTH_S_MAX = 4.0
"""Seconds that one of several partitions has to tell how it is; past it, it is told of as one that is not ready."""


class Asked(NamedTuple):
    """How fresh an answer is asked to be.

    Attributes:
        after: tokens that it shows at least; None where none are given.
        freshness: "latest" and "overlay" show everything that is in the history now.
        within_s: it lacks nothing that is older than so many seconds.
        as_of: the past moment that it shows, instead of all that; None where it is about now.
        touches: of a live query, hears what the answer touches.
        by: what answers, instead of the query's own handler.
    """

    after: Sequence[Token] | None = None
    freshness: HowFresh = "eventual"
    within_s: float | None = None
    as_of: AsOf | None = None
    touches: Touches | None = None
    by: Handle | None = None

    async def of(self, follower: Follower, after: Sequence[Token] | None) -> Requirement:
        """What an answer from one of the partitions has to show; errors as of `Follower.requirement`."""
        found = await follower.requirement(after, self.freshness, self.within_s)
        return found if self.touches is None else self.touches.of(follower.watches, found)


class Partitions:
    """The only partition of an application, and what is the same where there are several.

    Attributes:
        across: what follows all of them at once; None where nothing does.
    """

    def __init__(self, named: Mapping[str, Partition], across: Across | None = None) -> None:
        self.across = across
        self._named = named
        self._first = next(iter(named.values()))
        self._followers: Sequence[Follower] = [*named.values(), *([] if across is None else [across])]
        self._of_panel = {id(store.panel): found for found in self._followers for store in found.stores}
        self._past_turns = PastTurns()

    async def open(self) -> None:
        """Open every partition, or none.

        Raises:
            ConfigurationError: two partitions are one store.
        """
        histories: dict[bytes, str] = {}
        for follower in self._followers:  # what follows all of them is the last
            name = follower.name
            try:
                await follower.open()
            except DiptychError as error:
                if name:
                    error.add_note(f"It was opening the partition {name!r}.")
                raise
            other = histories.setdefault(follower.log.history_id, name)
            if other != name:
                raise ConfigurationError(f"the stores of the partitions {other!r} and {name!r} are one and the same")

    async def close(self) -> None:
        """Close every partition that is open."""
        async with AsyncExitStack() as closing:
            for follower in self._followers:
                closing.push_async_callback(follower.close)

    def find(self, name: str) -> Partition:
        """The partition of that name; of the empty name the only one.

        Raises:
            ConfigurationError: there is none, or none was named and there are several.
        """
        if not name and len(self._named) == 1:
            return self._first
        found = self._named.get(name)
        if found is None:
            what = f"there is no partition {name!r}" if name else "this application is partitioned: say which partition"
            raise ConfigurationError(f"{what}; there are {', '.join(map(repr, filter(None, self._named))) or 'none'}")
        return found

    async def health(self) -> Health:
        """Whether any of them can do its work: what is wrong with one is told, and keeps nobody from the others."""
        if len(self._followers) == 1:
            return await self._first.health()
        found = await asyncio.gather(*map(_health_of_one, self._followers))
        told: list[str] = []
        for follower, each in zip(self._followers, found, strict=True):
            named = f"partition {follower.name!r}"
            told += [f"{named}: {what}" for what in ((each.reason,) if each.reason else each.impaired)]
        if any(each.ready for each in found):
            return Health(ready=True, impaired=tuple(told))
        return Health(ready=False, reason=told[0])

    async def projected(self) -> None:
        """Wait until every projection of each shows its history as it is now."""
        for follower in self._followers:
            await follower.projected()

    def of_command(self, command: Command) -> Partition:
        """Where a command is decided."""
        del command
        return self._first

    def check_together(self, queries: Sequence[Query[Any]]) -> None:
        """Make sure that queries can be answered from one place; where there is one, they can.

        Raises:
            SpansPartitions: they name several partitions.
        """

    async def answer(self, query: Query[R], asked: Asked, wait_s: float, context: QueryContext) -> Answer[R]:
        """Answer a query; errors as of `QueryBus.answer`."""
        partition = self._first
        if asked.as_of is not None:
            return await self._as_of(partition, query, asked.as_of, wait_s, context, asked.by)
        requirement = await asked.of(partition, asked.after)
        return await partition.queries.answer(query, requirement, wait_s, context, asked.by)

    async def _as_of(
        self,
        partition: Follower,
        query: Query[R],
        as_of: AsOf,
        wait_s: float,
        context: QueryContext,
        by: Handle | None,
    ) -> Answer[R]:
        """Answer a query from one partition, as of a past moment."""
        self._check_known(as_of)
        async with self._past_turns:
            return await partition.answer_as_of(query, as_of, wait_s, context, by)

    def _check_known(self, as_of: AsOf) -> None:
        known = {each.log.history_id for each in self._followers}
        if not isinstance(as_of, datetime) and any(token.high.history_id not in known for token in as_of):
            raise HistoryDiverged("the moment asked for", "no partition has the history that its token is of")

    async def _required(self, follower: Follower, asked: Asked) -> Requirement:
        """What is required of one of several: of the tokens, those of its own history; across all, each of them."""
        after = None
        if asked.after is not None:
            known = {each.log.history_id for each in self._followers}
            if any(token.high.history_id not in known for token in asked.after):
                raise HistoryDiverged("the consistency token", "no partition has the history that it is of")
            own = [token for token in asked.after if token.high.history_id == follower.log.history_id]
            after = asked.after if follower is self.across else own
        return await asked.of(follower, after)

    async def _spanning(
        self, queries: SpanningQueryBus, query: Query[R], asked: Asked, wait_s: float, context: QueryContext
    ) -> Answer[R]:
        if asked.as_of is not None:
            return await self._spanning_as_of(queries, query, asked.as_of, wait_s, context, asked.by)

        required: dict[int, Requirement] = {}

        async def require(panel: ReadPanel) -> Requirement:
            follower = self._of_panel[id(panel)]
            if id(follower) not in required:  # one for all its stores: the same moment is asked of each
                required[id(follower)] = await self._required(follower, asked)
            return required[id(follower)]

        return await queries.answer(query, require, wait_s, context, asked.by)

    async def _spanning_as_of(
        self,
        queries: SpanningQueryBus,
        query: Query[R],
        as_of: AsOf,
        wait_s: float,
        context: QueryContext,
        by: Handle | None,
    ) -> Answer[R]:
        """As of a past moment of each history: of a time, or of what tokens tell of those that are touched."""
        self._check_known(as_of)
        now = {model: self._of_panel[id(panel)] for model, panel in queries.panels.items()}
        followers = {id(follower): follower for follower in now.values()}.values()
        moments = {id(each): await each.past.moment(as_of) for each in followers if each.past.tells_of(as_of)}
        of_panel: dict[int, Follower] = {}
        panels: list[ReadPanel] = []
        for each in followers:
            moment = moments.get(id(each))
            shown = [store.panel for store in each.stores] if moment is None else each.panels_at(moment)
            of_panel |= {id(panel): each for panel in shown}
            panels += shown

        async def require(panel: ReadPanel) -> Requirement:
            follower = of_panel[id(panel)]
            if id(follower) not in moments:
                raise CannotShowPast(follower.past.why_not or f"the token tells nothing of {follower.name!r}")
            return follower.past.requirement(moments[id(follower)])

        async with self._past_turns:
            return await queries.on(panels).answer(query, require, wait_s, context, by)


async def _health_of_one(follower: Follower) -> Health:
    """How one of several is, of which none waits for one that hangs."""
    limit = asyncio.timeout(HEALTH_S_MAX)
    try:
        async with limit:
            return await follower.health()
    except TimeoutError:
        if not limit.expired():
            raise
        return Health(ready=False, reason=f"no answer within HEALTH_S_MAX={HEALTH_S_MAX:g} s")


class ByContext(Partitions):
    """A partition for each context: its commands are decided there, and its events followed."""

    def __init__(
        self,
        named: Mapping[str, Partition],
        across: Across | None,
        parts: Mapping[str, Compiled],
        queries: Mapping[type, Handle],
    ) -> None:
        super().__init__(named, across)
        self._of_command = {cls: named[name] for name in named for cls in parts[name].handlers}
        self._queries = SpanningQueryBus(queries, [store.panel for found in self._followers for store in found.stores])

    def of_command(self, command: Command) -> Partition:
        """Where a command is decided: in the partition of its context."""
        return self._of_command.get(type(command), self._first)

    async def answer(self, query: Query[R], asked: Asked, wait_s: float, context: QueryContext) -> Answer[R]:
        """Answer a query, from the partitions of all the read models that its handler reads."""
        return await self._spanning(self._queries, query, asked, wait_s, context)


class _Route(NamedTuple):
    """How the partition of a message class is told, and where in it, for messages."""

    tags: Callable[[Any], tuple[str, ...]]
    settle: Callable[[Any], tuple[bytes, Any]]
    path: str


class ByIdentity(Partitions):
    """A partition for each identity of a kind: a tenant, a country. Every command names one.

    A query that names none is of rows across partitions.

    Raises:
        ConfigurationError: a command has no field for the identity; or a query has none, and there are no rows across.
    """

    def __init__(
        self, named: Mapping[str, Partition], across: Across | None, identity: type[Identity], compiled: Compiled
    ) -> None:
        super().__init__(named, across)
        self._prefix = f"{tag_name(identity)}:"
        queries = [query for query in compiled.queries.names if across is None or _names(query, identity)]
        self._routes = {cls: _route(cls, identity) for cls in [*compiled.commands.names, *queries]}
        self._across: SpanningQueryBus | None = None
        if across is not None:
            handlers = {cls: handle for cls, handle in compiled.query_handlers.items() if cls not in self._routes}
            self._across = SpanningQueryBus(handlers, [store.panel for store in across.stores])

    def of_command(self, command: Command) -> Partition:
        """Where a command is decided: in the partition that it names."""
        return self._of(command)

    async def answer(self, query: Query[R], asked: Asked, wait_s: float, context: QueryContext) -> Answer[R]:
        """Answer a query from the partition that it names; from rows across all where it names none."""
        if self._across is not None and type(query) not in self._routes:
            return await self._spanning(self._across, query, asked, wait_s, context)
        partition = self._of(query)
        if asked.as_of is not None:
            return await self._as_of(partition, query, asked.as_of, wait_s, context, asked.by)
        requirement = await self._required(partition, asked)
        return await partition.queries.answer(query, requirement, wait_s, context, asked.by)

    def check_together(self, queries: Sequence[Query[Any]]) -> None:
        """See `Partitions.check_together`."""
        named = [self._of(query).name if type(query) in self._routes else ACROSS for query in queries]
        if len(set(named)) > 1:
            raise SpansPartitions(type(queries[-1]).__name__, "$", sorted(set(named)))

    def _of(self, message: Message) -> Partition:
        """The partition that a message names.

        Raises:
            UnknownPartition: there is none of that name.
            SpansPartitions: it names several, or none.
            InvalidMessage: a field is of the wrong type.
        """
        cls = type(message)
        route = self._routes.get(cls)
        if route is None:
            return self._first  # it knows this message no more than the others do, and says so
        try:
            tags = route.tags(message)
        except (AttributeError, TypeError, ValueError):  # a field is of another type, and may be read as the right one
            tags = route.tags(route.settle(message)[1])
        names = [tag.removeprefix(self._prefix) for tag in tags if tag.startswith(self._prefix)]
        if len(names) != 1:
            raise SpansPartitions(cls.__name__, route.path, names)
        found = self._named.get(names[0])
        if found is None:
            raise UnknownPartition(cls.__name__, route.path, names[0])
        return found


def _names(cls: type, identity: type[Identity]) -> bool:
    """Whether a message class has a field for the identity."""
    return tag_name(identity) in tag_reader(cls).names


def _route(cls: type, identity: type[Identity]) -> _Route:
    if not _names(cls, identity):
        raise ConfigurationError(
            f"{cls.__name__} does not say which partition it is for: partitioned by {identity.__name__}, every command "
            f"and query has a field of that type, which is not Untagged"
        )
    fields = [name for name, annotation in field_types(cls).items() if annotation is identity]
    return _Route(tag_reader(cls).read, Codec(cls).settle, f"$.{fields[0]}" if len(fields) == 1 else "$")
