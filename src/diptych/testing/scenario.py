"""Scenarios: what happened before, what is wanted, what must come of it.

    scenario(school).given(CourseDefined(...)).when(Enrol(...)).then(Enrolled(...))
    scenario(school).given(Enrolled(...)).then_row(Seats(...))
    scenario(school).given(Enrolled(...)).when_event(Paid(...)).then_commands(Welcome(...))

Nothing is simulated: each scenario is an application of its own, in memory unless told where, with the given events in
its history; the command goes through the command bus, and rows come from the projector and the read store. Beside that,
everything is folded twice and compared, so that a fold which is not pure fails here and not in a rebuild.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from copy import copy
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from diptych.application import registration
from diptych.application.bounded_context import BoundedContext
from diptych.clock import Clock
from diptych.errors import ConfigurationError
from diptych.messages.codec import Codec, to_plain
from diptych.messages.command import Command, CommandContext
from diptych.messages.event import Event
from diptych.messages.rejected import Rejected
from diptych.read_side.projection import Projection
from diptych.read_side.read_model import ReadModel, key_text
from diptych.read_side.read_store import Key
from diptych.security import NOBODY, Actor
from diptych.testing.difference import events_difference, listed, mapping_difference, row_difference
from diptych.testing.in_memory_application import Fact, InMemoryApplication
from diptych.testing.manual_clock import ManualClock
from diptych.testing.process_scenario import Happened, ProcessOutcome, react_to
from diptych.testing.purity import check_decision, fold_models, fold_rows

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Outcome", "Scenario", "scenario"]

SCENARIO_S = 60.0
"""Seconds that one scenario may take, services included."""

T = TypeVar("T")


def scenario(
    *contexts: BoundedContext,
    services: Mapping[type[Any], object] | None = None,
    clock: Clock | None = None,
    stores: Callable[[], str] = lambda: "memory:",
) -> Scenario:
    """Begin a scenario. It is synchronous, and works inside a running event loop as well.

    Args:
        contexts: at least one.
        services: what handlers take, by type. They are used on an event loop of the scenario's own.
        clock: when it is; by default a `ManualClock` that stands still.
        stores: gives the URL of a new, empty store each time, where a scenario is to hold on it as it does in memory.
    """
    return Scenario(_Setting(contexts, dict(services or {}), clock or ManualClock(), stores))


class _Setting(NamedTuple):
    """What a scenario runs with."""

    contexts: tuple[BoundedContext, ...]
    services: Mapping[type[Any], object]
    clock: Clock
    stores: Callable[[], str]


class _Wanted(NamedTuple):
    """A command, and who wants it."""

    command: Command
    command_id: str | None = None
    actor: Actor = NOBODY


class Scenario:
    """What has happened so far. Immutable: each step gives a new one, so that a beginning can be shared."""

    def __init__(self, setting: _Setting, given: tuple[Happened, ...] = ()) -> None:
        self._setting = setting
        self._given = given

    def given(self, *events: Event, at: datetime | None = None, ago: timedelta | None = None) -> Scenario:
        """Events that have happened, after those given before.

        Args:
            events: in order.
            at: when they were recorded, aware, in UTC; by default the clock's time now.
            ago: the same, as how long before the clock's time now.

        Raises:
            ValueError: both `at` and `ago` are given, or the events would lie before those given before.
        """
        if at is not None and ago is not None:
            raise ValueError("given() takes at= or ago=, not both")
        recorded_at = at or self._setting.clock.now() - (ago or timedelta(0))
        if self._given and recorded_at < self._given[-1].recorded_at:
            raise ValueError(
                f"events are given in the order in which they happened: {recorded_at} is before "
                f"{self._given[-1].recorded_at}, when {self._given[-1].event!r} was recorded"
            )
        return Scenario(self._setting, (*self._given, *(Happened(event, recorded_at) for event in events)))

    def when(self, command: Command, *, command_id: str | None = None, actor: Actor | str | None = None) -> Outcome:
        """Execute a command, now.

        Args:
            command: what is wanted.
            command_id: as in `Application.execute`.
            actor: who wants it. An `Actor` may do what its scopes let it; nobody, or a name alone, may do everything
                here, so that scenarios are about decisions.

        Raises:
            AssertionError: a fold is not pure.
            Forbidden: the handler requires a scope that the `Actor` does not have.
            DiptychError: it ended in anything else but a rejection.
        """
        who = actor if isinstance(actor, Actor) else Actor(actor, trusted=True)
        return Outcome(_run(self._setting, self._given, _Wanted(command, command_id, who)))

    def when_event(self, event: Event) -> ProcessOutcome:
        """Have one more event happen, now, and every process react to it; nothing is sent.

        A rejection is `CommandRejected(instance=..., command=..., code=..., facts={})`, also in `given`.

        Raises:
            AssertionError: `react` fails, or is not pure.
        """
        __tracebackhide__ = True
        return react_to(self._setting.contexts, [*self._given, Happened(event, self._setting.clock.now())])

    def then_row(self, row: ReadModel) -> Self:
        """The projections show this row.

        Raises:
            AssertionError: there is none with its key, or one that differs; or a fold is not pure.
        """
        __tracebackhide__ = True
        _run(self._setting, self._given, None).check_row(row)
        return self

    def then_no_row(self, model: type[ReadModel], *key: object) -> Self:
        """The projections show no row with this key, its values in the order of the key fields.

        Raises:
            AssertionError: there is one; or a fold is not pure.
        """
        __tracebackhide__ = True
        _run(self._setting, self._given, None).check_no_row(model, key)
        return self


class Outcome:
    """What came of a command. Each check gives the same outcome again, for the next one."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def then(self, *events: Event) -> Self:
        """Exactly these events happened, in this order.

        Raises:
            AssertionError: others did, or the command was rejected.
        """
        __tracebackhide__ = True
        self._run.check_not_rejected(events)
        difference = events_difference([_settled(event) for event in events], self._run.events)
        if difference:
            raise AssertionError(f"{self._run.asked}: {difference}")
        return self

    def then_nothing(self) -> Self:
        """The command was accepted, and nothing happened.

        Raises:
            AssertionError: something did, or the command was rejected.
        """
        __tracebackhide__ = True
        return self.then()

    def then_rejected(self, code: str, /, *, record: Event | None = None, **facts: object) -> Self:
        """The command was rejected.

        Args:
            code: the rejection's.
            record: the event that was recorded with it; not looked at by default.
            facts: those that it has to carry; others are not looked at.

        Raises:
            AssertionError: it was not, or with another code, fact or event.
        """
        __tracebackhide__ = True
        rejected = self._run.rejected
        if rejected is None:
            raise AssertionError(
                f"{self._run.asked}: expected the rejection {code!r}, but it was accepted, with the events\n"
                f"{listed(self._run.events)}"
            )
        difference = mapping_difference(
            f"rejected with {rejected}, which differs", {"code": code}, {"code": rejected.code}
        ) or mapping_difference(f"the facts of {code!r} differ", to_plain(facts), to_plain(rejected.facts))
        if record is not None and not difference:
            difference = events_difference([_settled(record)], self._run.events)
        if difference:
            raise AssertionError(f"{self._run.asked}: {difference}")
        return self

    def then_row(self, row: ReadModel) -> Self:
        """After that, the projections show this row.

        Raises:
            AssertionError: there is none with its key, or one that differs.
        """
        __tracebackhide__ = True
        self._run.check_row(row)
        return self

    def then_no_row(self, model: type[ReadModel], *key: object) -> Self:
        """After that, the projections show no row with this key, its values in the order of the key fields.

        Raises:
            AssertionError: there is one.
        """
        __tracebackhide__ = True
        self._run.check_no_row(model, key)
        return self


# ── running ──────────────────────────────────────────────────────────────────


class _Shown(NamedTuple):
    """What one projection shows: its rows by key as the columns hold it, and why it waits for keys, if it does."""

    projection: Projection
    rows: Mapping[Key, ReadModel]
    blocked: Mapping[str, str]
    stopped: str


class _Run(NamedTuple):
    """What came of a scenario."""

    command: Command | None
    events: tuple[Event, ...]
    rejected: Rejected | None
    shown: Mapping[type, _Shown]

    @property
    def asked(self) -> str:
        return f"when {self.command!r}" if self.command is not None else "given these events"

    def check_not_rejected(self, expected: tuple[Event, ...]) -> None:
        __tracebackhide__ = True
        if self.rejected is not None:
            raise AssertionError(
                f"{self.asked}: rejected with {self.rejected}, but expected the events\n{listed(expected)}"
            )

    def check_row(self, row: ReadModel) -> None:
        __tracebackhide__ = True
        shown = self._shown(type(row))
        form = shown.projection.form
        expected = form.model(form.row(row))
        key = form.column_key_of(expected)
        actual = self._row(shown, key)
        if actual is None:
            others = listed(shown.rows.values())
            raise AssertionError(f"{self.asked}: no row {expected!r}; {form.name} has the rows\n{others}")
        difference = row_difference(expected, actual)
        if difference:
            raise AssertionError(f"{self.asked}: {difference}")

    def check_no_row(self, model: type[ReadModel], key: tuple[object, ...]) -> None:
        __tracebackhide__ = True
        shown = self._shown(model)
        form = shown.projection.form
        if len(key) != len(form.key_fields):
            raise TypeError(f"the key of {form.name} is ({', '.join(form.key_fields)}), not {key!r}")
        actual = self._row(shown, form.column_key(key))
        if actual is not None:
            raise AssertionError(f"{self.asked}: expected no row with the key {key!r}, but there is {actual!r}")

    def _shown(self, model: type[ReadModel]) -> _Shown:
        if model not in self.shown:
            raise ConfigurationError(f"{model.__name__} is fed by no projection of the scenario's contexts")
        return self.shown[model]

    def _row(self, shown: _Shown, key: Key) -> ReadModel | None:
        __tracebackhide__ = True
        reason = shown.stopped or shown.blocked.get(key_text(key))
        if reason:
            raise AssertionError(f"{self.asked}: {shown.projection.name} could not be folded: {reason}")
        return shown.rows.get(key)


def _run(setting: _Setting, given: tuple[Happened, ...], wanted: _Wanted | None) -> _Run:
    """Run on an event loop and thread of its own, since the caller may be on a loop already."""
    with ThreadPoolExecutor(1, thread_name_prefix="diptych scenario") as pool:
        running = _in_time(_run_async(setting, given, wanted, setting.clock.now()))
        return pool.submit(copy_context().run, asyncio.run, running).result()


async def _in_time(running: Coroutine[Any, Any, T]) -> T:
    limit = asyncio.timeout(SCENARIO_S)
    try:
        async with limit:
            return await running
    except TimeoutError:
        if not limit.expired():
            raise
        raise AssertionError(f"the scenario did not end within {SCENARIO_S:g} s") from None


def _without_subscribers(context: BoundedContext) -> BoundedContext:
    """The same context without effects outside: a scenario is about decisions and rows."""
    quiet = copy(context)
    quiet.subscribers = []
    return quiet


async def _run_async(setting: _Setting, given: tuple[Happened, ...], wanted: _Wanted | None, now: datetime) -> _Run:
    if given and given[-1].recorded_at > now:
        raise ValueError(f"{given[-1].event!r} is given as recorded at {given[-1].recorded_at}, and it is {now}")
    clock = ManualClock(given[0].recorded_at if given else now)
    contexts = [_without_subscribers(context) for context in setting.contexts]
    app = InMemoryApplication(*contexts, services=setting.services, clock=clock, reacting=False, store=setting.stores())
    async with app:
        for recorded_at, together in groupby(given, key=lambda found: found.recorded_at):
            clock.set(recorded_at)
            await app.given(*(found.event for found in together))
        clock.set(now)
        rejected = None if wanted is None else await _decide(app, setting, wanted)
        facts = await app.facts()
        return _Run(
            None if wanted is None else wanted.command,
            tuple(fact.event for fact in facts[len(given) :]),
            rejected,
            await _shown(app, facts),
        )


async def _decide(app: InMemoryApplication, setting: _Setting, wanted: _Wanted) -> Rejected | None:
    types = registration.event_types(setting.contexts)
    handler = registration.command_handlers(setting.contexts, setting.services, types).get(type(wanted.command))
    command: Command = wanted.command
    states: dict[Any, Any] = {}
    if handler is not None:
        _, command = Codec(type(wanted.command)).settle(wanted.command)
        states = fold_models(handler, command, await app.facts())
    rejected: Rejected | None = None
    try:
        await app.execute(wanted.command, command_id=wanted.command_id, actor=wanted.actor)
    except Rejected as said:
        rejected = said
    if handler is not None and handler.pure:
        context = CommandContext(
            now=app.clock.now(),
            command_id=wanted.command_id or "scenario",
            actor=wanted.actor.name,
            scopes=wanted.actor.scopes,
            trusted=wanted.actor.trusted,
        )
        check_decision(handler, command, states, context)
    return rejected


async def _shown(app: InMemoryApplication, facts: list[Fact]) -> dict[type, _Shown]:
    """What every projection shows, compared with what folding everything once more gives."""
    blocked_keys = await app.partition().blocked_keys.all()
    stopped = {found.name: found.stopped for found in (await app.status()).projections}
    shown: dict[type, _Shown] = {}
    for projection in registration.projections(app.contexts, registration.event_types(app.contexts)):
        form = projection.form
        rows = {form.column_key_of(row): row for row in await app.rows(form.cls)}
        blocked = {found.key: found.error for found in blocked_keys if found.name == projection.name}
        shown[form.cls] = _Shown(projection, rows, blocked, stopped.get(projection.name, ""))
        folded = {
            key: None if row is not None and form.has_expired(row, app.clock.now()) else row
            for key, row in fold_rows(projection, facts).items()
        }
        if not shown[form.cls].stopped:
            _check_stored(shown[form.cls], folded)
    return shown


def _check_stored(shown: _Shown, folded: Mapping[Key, Any]) -> None:
    for key, row in folded.items():
        stored = shown.rows.get(key)
        if key_text(key) not in shown.blocked and stored != row:
            raise AssertionError(
                f"{shown.projection.name}: its fold gives {row!r}, and stored is {stored!r}: fields must read back "
                "from the read store as they were written"
            )


def _settled(event: Event) -> Event:
    """An expected event as the codec reads it back."""
    settled: Event = Codec(type(event)).settle(event)[1]
    return settled
