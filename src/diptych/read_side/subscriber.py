"""Subscribers: effects outside, in the order of the history, at least once.

What no pure fold can do (send a mail, feed another system) happens here. The checkpoint moves after the subscriber
returned; a crash in between delivers the batch again. One process at a time delivers to a subscriber, whichever has
it on lease.

What fails is delivered again, event by event, without end, for the order is kept. An event that has failed often enough
is noted with the subscriber's progress, so that somebody looks at it.
"""

from __future__ import annotations

import asyncio
import collections.abc
import inspect
import logging
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from diptych.clock import pause
from diptych.errors import ConfigurationError, MissingService, NewerHistory
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import EventLog
from diptych.event_store.history import History
from diptych.event_store.position import NOWHERE, START, Place, Position
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.stored_query import stored_query
from diptych.failures import Branch, branch_of, trace_of
from diptych.messages.annotations import Scope, parameter_types, unwrap
from diptych.messages.event import Event, EventContext, event_classes
from diptych.messages.registry import EventTypes
from diptych.read_side.leases import Leases
from diptych.read_side.projection import told
from diptych.read_side.read_store import BlockedKey, Generation, LeaseKey, ReadStore, SliceWrite, Written

__all__ = ["NO_KEY", "Subscriber", "SubscriberDeclaration", "Subscription", "compile_subscriber", "subscribed_events"]

BATCH_EVENTS_MAX = 100
"""Stored events delivered at once."""
IDLE_WAIT_S = 5.0
"""Seconds after which an idle subscription looks again without having been woken."""
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.1, 30.0
"""Seconds between deliveries of a batch that fails: doubled each time, up to the second."""
DELIVERY_ATTEMPTS_MAX = 5
"""Failures of one event after which it is listed as parked, and delivered again all the same. What is only not
possible now (`Branch.NOT_NOW`) is not counted."""
NO_KEY = "[]"
"""What stands for the key of a row where a delivery is kept as blocked: a subscriber has no rows."""

_log = logging.getLogger("diptych.subscriber")


class SubscriberDeclaration(NamedTuple):
    """A function that was declared a subscriber, and the names around it."""

    function: Callable[..., Any]
    scope: Scope

    @property
    def name(self) -> str:
        """Where the function is, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


class Subscriber(NamedTuple):
    """A subscriber, compiled.

    Attributes:
        query: what is to be read for it.
        wanted: what of that is meant, by names of now.
    """

    name: str
    query: EventQuery
    wanted: QueryItem
    deliver: Callable[[Sequence[tuple[Event, EventContext]]], Awaitable[None]]


def subscribed_events(declaration: SubscriberDeclaration) -> Sequence[type[Event]]:
    """The event classes in the annotation `Sequence[tuple[E, EventContext]]` of the first parameter.

    Raises:
        ConfigurationError: it is annotated otherwise.
    """
    types = parameter_types(declaration.function, declaration.scope, declaration.name)
    parameters = list(inspect.signature(declaration.function).parameters)
    bare, _ = unwrap(types.get(parameters[0])) if parameters else (None, ())
    if typing.get_origin(bare) is collections.abc.Sequence:
        pair, _ = unwrap(typing.get_args(bare)[0])
        parts = typing.get_args(pair)
        if typing.get_origin(pair) is tuple and len(parts) == 2 and parts[1] is EventContext:
            return event_classes(parts[0], declaration.name)
    raise ConfigurationError(
        f"{declaration.name}: a subscriber's first parameter is annotated Sequence[tuple[SomeEvent, EventContext]]"
    )


def compile_subscriber(
    context: str, declaration: SubscriberDeclaration, services: Mapping[type[Any], object], types: EventTypes
) -> Subscriber:
    """Check a subscriber's signature and bind its services.

    Raises:
        ConfigurationError: a parameter cannot be bound; naming subscriber, parameter and remedy.
    """
    function = declaration.function
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{declaration.name}: a subscriber is an `async def`")
    names = frozenset(types.of(cls).name for cls in subscribed_events(declaration))
    annotations = parameter_types(function, declaration.scope, declaration.name)
    bound: dict[str, object] = {}
    for name in list(inspect.signature(function).parameters)[1:]:
        wanted = unwrap(annotations.get(name))[0]
        if wanted not in services:
            raise MissingService(declaration.name, name, "is no service", getattr(wanted, "__name__", "..."))
        bound[name] = services[wanted]

    async def deliver(events: Sequence[tuple[Event, EventContext]]) -> None:
        await function(events, **bound)

    wanted = QueryItem(names)
    return Subscriber(f"{context}.{function.__name__}", stored_query(EventQuery((wanted,)), types), wanted, deliver)


class Subscription:
    """Delivers the history to one subscriber, from its checkpoint on.

    Attributes:
        failure: what it failed with last; empty while deliveries succeed.
        outdated: it has met an event that newer code has stored, and leaves it to processes that run that.
    """

    def __init__(self, subscriber: Subscriber, store: EventLog, history: History, read_store: ReadStore) -> None:
        self.subscriber = subscriber
        self.failure = ""
        self.outdated = False
        self._store = store
        self._history = history
        self._read_store = read_store
        self._task: asyncio.Task[None] | None = None
        self._generation: Generation | None = None
        self._forks = 0
        self._closing = False
        self._stale = False
        self._batch_max = BATCH_EVENTS_MAX
        self._attempts = 0
        self._failed_at = START
        self._parked = False

    @property
    def position(self) -> Position:
        """The position up to which everything was delivered, as far as is known here."""
        return START if self._generation is None else self._generation.checkpoint.position

    @property
    def lease_key(self) -> LeaseKey:
        """As what it is leased; it is open."""
        return self._opened().lease_key

    async def open(self) -> None:
        """Find its checkpoint; a new subscriber begins with the first event."""
        forks = self._store.forks
        start = Place(self._store.history_id, START, NOWHERE)
        (self._generation,) = await self._read_store.create_generation(self.subscriber.name, "", None, start, live=True)
        place = await self._store.place_at(self.position)
        self._generation.checkpoint.check(
            self._store.history_id, None if place is None else place.event_id, f"the subscriber {self.subscriber.name}"
        )
        async with self._read_store.snapshot() as snapshot:
            self._parked = bool(await snapshot.blocked(self.subscriber.name, self._generation.number))
        self._forks, self._stale = forks, False

    def start(self, leases: Leases) -> None:
        """Deliver from now on, in a task of its own, while it is held."""
        self._closing = self.outdated = False
        following = self._follow(leases)
        self._task = asyncio.get_running_loop().create_task(following, name=f"diptych {self.subscriber.name}")

    async def close(self) -> None:
        """Stop; a delivery under way is cancelled, and comes again."""
        self._closing = True  # for a subscriber that takes the cancellation for its own
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def _opened(self) -> Generation:
        assert self._generation is not None, "open() was called"
        return self._generation

    async def _follow(self, leases: Leases) -> None:
        backoff = BACKOFF_FIRST_S
        while not self._closing:
            version = leases.version
            try:
                if not await self._is_held(leases):
                    await leases.wait(version, lambda: pause(IDLE_WAIT_S))
                elif not await self._deliver_held(leases):
                    await self._store.wait_for_events(self.position, IDLE_WAIT_S)
                self.failure, backoff = "", BACKOFF_FIRST_S
            except NewerHistory as error:
                self.failure, self.outdated = told(error), True
                _log.error("subscriber %s leaves it to newer code: %s", self.subscriber.name, self.failure)
                leases.ask()
                return
            except Exception as error:  # noqa: BLE001  # the user's code failed: reported, and tried again
                self.failure, self._stale = told(error), True  # meanwhile somebody may discard what fails
                _log.error("subscriber %s tries again in %.1f s: %s", self.subscriber.name, backoff, self.failure)
                await pause(backoff)
                backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _is_held(self, leases: Leases) -> bool:
        """Whether this process delivers now; if so, from where whoever did so before has left it."""
        if self.lease_key in leases.gone:
            await self.open()
            leases.ask()
        epoch = leases.epoch(self.lease_key)
        overtaken = epoch is not None and epoch > self._opened().epoch
        if self._stale or overtaken or self._forks != self._store.forks:
            await self.open()
        return leases.epoch(self.lease_key) is not None  # it may have gone to another one meanwhile

    async def _deliver_held(self, leases: Leases) -> bool:
        with leases.using([self.lease_key]):
            return await self._deliver_batch()

    def _decoded(self, events: Sequence[RecordedEvent]) -> list[tuple[Event, EventContext]]:
        """What the subscriber is told, a stored event that has become several as those."""
        history = self._history
        if not history.types.splitting:
            return [(history.event(recorded), history.context(recorded)) for recorded in events]
        return [
            (event, history.context(recorded, ordinal))
            for recorded in events
            for ordinal, event in history.matching(recorded, self.subscriber.wanted)
        ]

    async def _deliver_batch(self) -> bool:
        """Deliver the next events; False at the head."""
        generation = self._opened()
        found = await self._store.read(self.subscriber.query, self.position, self._batch_max)
        if found.through == self.position:
            return False
        if found.events:
            await self._deliver(found.events)
        place = await self._store.place_at(found.through)
        if self._forks != self._store.forks:
            return True  # that place may be of another history than what was delivered
        assert place is not None, "the store said that this position was read"
        (result,) = await self._read_store.write([SliceWrite(generation, place, unblock=self._unblocked())])
        if isinstance(result, Written):
            self._generation, self._parked = result.generation, False
        else:
            await self.open()  # another process delivers as well: go on where it is, not with this batch for ever
        return True

    def _unblocked(self) -> Sequence[str]:
        return (NO_KEY,) if self._parked else ()

    async def _deliver(self, events: Sequence[RecordedEvent]) -> None:
        try:
            decoded = self._decoded(events)
            if decoded:
                await self.subscriber.deliver(decoded)
        except Exception as error:
            if branch_of(error) is not Branch.NOT_NOW:
                await self._count(events[0], error)
            raise
        self._attempts, self._batch_max = 0, min(self._batch_max * 2, BATCH_EVENTS_MAX)

    async def _count(self, first: RecordedEvent, error: Exception) -> None:
        """Find out which event fails, by delivering one by one; and note it where it has failed often enough."""
        again = self._batch_max == 1 and self._failed_at == first.position  # else others may have been at fault
        self._attempts = self._attempts + 1 if again else 1
        self._batch_max, self._failed_at = 1, first.position
        if self._attempts < DELIVERY_ATTEMPTS_MAX:
            return
        failed = BlockedKey(self.subscriber.name, NO_KEY, first.position, told(error), self._attempts, trace_of(error))
        generation = self._opened()
        (result,) = await self._read_store.write([SliceWrite(generation, generation.checkpoint, block=[failed])])
        if isinstance(result, Written):
            self._generation, self._parked = result.generation, True
