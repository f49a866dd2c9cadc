"""The wiring: what the contexts declare, compiled once, and put to work on the stores of a partition."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from diptych.application import registration
from diptych.application.across import Across
from diptych.application.bounded_context import BoundedContext
from diptych.application.follower import Follower
from diptych.application.parked import Parked
from diptych.application.parked_deliveries import ParkedDeliveries
from diptych.application.parked_events import ParkedEvents
from diptych.application.parked_processes import ParkedOutgoing, ParkedSteps
from diptych.application.parked_scheduled import ParkedScheduled
from diptych.application.partition import Partition
from diptych.application.projected_store import ProjectedStore
from diptych.application.pruning import Pruning
from diptych.application.routed_rebuilds import RoutedRebuilds
from diptych.clock import Clock
from diptych.errors import ConfigurationError
from diptych.event_store.event_store import EventLog, EventStore, KeptOutcome
from diptych.event_store.history import History
from diptych.event_store.merged_log import MergedLog
from diptych.messages.command import Command
from diptych.messages.fingerprint import fingerprint
from diptych.messages.message import field_types
from diptych.messages.registry import EventTypes, MessageTypes
from diptych.messages.unique_id import unique_id
from diptych.process_managers.given_up_commands import GivenUpCommands
from diptych.process_managers.process_leases import ProcessLeases
from diptych.process_managers.process_manager import Process
from diptych.process_managers.process_runner import ProcessRunner
from diptych.process_managers.process_store import ProcessStore
from diptych.process_managers.process_worker import ProcessWorker
from diptych.process_managers.processes import Processes
from diptych.process_managers.scheduled_commands import ScheduledCommands
from diptych.process_managers.scheduler import SCHEDULED, Scheduler
from diptych.process_managers.sender import Execute
from diptych.process_managers.stuck import FindOutcome, StuckProcesses
from diptych.read_side.blocked_keys import BlockedKeys
from diptych.read_side.freshness import Freshness
from diptych.read_side.inline import Inline
from diptych.read_side.inline_rows import FoldsInline
from diptych.read_side.leases import Leases
from diptych.read_side.overlay import Overlay
from diptych.read_side.past import Past
from diptych.read_side.projection import Projection
from diptych.read_side.projector import Projector
from diptych.read_side.query_bus import Handle, ReadPanel, compile_query_handlers
from diptych.read_side.query_limits import QueryLimits
from diptych.read_side.query_source import QuerySource, ReadStoreSource
from diptych.read_side.read_model_watch import Watches
from diptych.read_side.read_store import LeaseKey, ReadStore
from diptych.read_side.rebuild import Rebuilds
from diptych.read_side.rebuild_policy import RebuildPolicy
from diptych.read_side.routed_queries import RoutedQueries
from diptych.read_side.row_history import RowHistories
from diptych.read_side.subscriber import Subscriber, Subscription
from diptych.write_side.command_bus import CommandBus, CommandMiddleware
from diptych.write_side.command_handler import CommandHandler
from diptych.write_side.decision_model import ModelFold

__all__ = ["Compiled", "ConnectedStore", "compile_contexts", "wire", "wire_across"]

_NO_PAST = (
    "the rows are folded across partitions, in an order in which times run back, so that no moment is a place in it; "
    "ask for the rows of one partition"
)


class Compiled(NamedTuple):
    """What contexts declare, checked and compiled: all of an application, or what works on one partition of it.

    Attributes:
        context_names: of the contexts whose events are in the history.
        types: their events.
        handlers: by command.
        projections: that follow the history.
        subscribers: that follow the history.
        processes: that follow the history.
        query_handlers: by query; one for each that a read model answers as well.
        answered: the queries that need no handler, each with the read model that answers.
        commands: by name.
        queries: by name.
        query_scopes: what queries require, by class.
        query_limits: what is declared of what queries may take, by class.
    """

    context_names: frozenset[str]
    types: EventTypes
    handlers: Mapping[type[Command], CommandHandler]
    projections: Sequence[Projection]
    subscribers: Sequence[Subscriber]
    processes: Sequence[Process]
    query_handlers: Mapping[type, Handle]
    answered: Mapping[type, type]
    commands: MessageTypes
    queries: MessageTypes
    query_scopes: Mapping[type, frozenset[str]]
    query_limits: Mapping[type, QueryLimits]


class ConnectedStore(NamedTuple):
    """A read store that read models are sent to, not opened yet.

    Attributes:
        projections: that feed what is kept there.
        answering: the names of those whose queries it answers.
        shown: where it is, without a password; empty where it is the only one.
        query_source: where its queries are asked; None: there.
    """

    read_store: ReadStore
    projections: Sequence[Projection]
    answering: frozenset[str]
    shown: str = ""
    query_source: QuerySource | None = None


def compile_contexts(contexts: Sequence[BoundedContext], services: Mapping[type[Any], object]) -> Compiled:
    """Check the contexts' declarations against each other and against the services, and compile them.

    Raises:
        ConfigurationError: something in the contexts does not fit.
    """
    registration.check_requirements(contexts)
    types = registration.event_types(contexts)
    handlers = registration.command_handlers(contexts, services, types)
    projections = registration.projections(contexts, types)
    query_handlers, answered = compile_query_handlers(
        [found for context in contexts for found in context.query_handlers], projections, services
    )
    return Compiled(
        context_names=frozenset(context.name for context in contexts),
        types=types,
        handlers=handlers,
        projections=projections,
        subscribers=registration.subscribers(contexts, services, types, projections),
        processes=registration.processes(contexts, types, handlers),
        query_handlers=query_handlers,
        answered={query: found.form.cls for query, found in answered.items()},
        commands=MessageTypes("command", registration.handled_commands(contexts)),
        queries=MessageTypes("query", registration.handled_queries(contexts, query_handlers, answered)),
        query_scopes=registration.query_scopes(contexts, query_handlers),
        query_limits=registration.query_limits(contexts, query_handlers),
    )


def wire(  # noqa: PLR0913 — by keyword, most of them
    compiled: Compiled,
    store: EventStore,
    read_stores: Sequence[ConnectedStore],
    process_store: ProcessStore,
    *,
    whole: Compiled | None = None,
    execute: Execute | None = None,
    outcome: FindOutcome | None = None,
    is_here: Callable[[Command], bool] | None = None,
    clock: Clock,
    middleware: Sequence[CommandMiddleware] = (),
    projecting: bool,
    commands_waiting_max: int,
    inline: Collection[str] = (),
    policy: RebuildPolicy,
    name: str = "",
) -> Partition:
    """Give every part of a partition what it needs; nothing is opened yet.

    Processes send their commands to `execute`, whose outcomes `outcome` finds; by default to the command bus of the
    same partition. Whether a command belongs to it says `is_here`; by default all do. `whole` is what the application
    has in all its partitions, and across them; by default no more. `inline` are the projections that every append
    moves on.

    Raises:
        ConfigurationError: the rows of these are not in the event store's database, or it cannot fold them.
    """
    follower = follow(
        compiled,
        store,
        read_stores,
        clock=clock,
        projecting=projecting,
        is_kept=store.durable,
        policy=policy,
        name=name,
    )
    history = follower.history
    if inline:
        fold_inline([found for found in compiled.projections if found.name in inline], store, follower)
    commands = CommandBus(
        compiled.handlers, store, history, clock, middleware=middleware, waiting_max=commands_waiting_max
    )
    working = [found.name for found in compiled.processes if not found.retired]
    leases = ProcessLeases(process_store, [*working, SCHEDULED], unique_id())
    scheduler = Scheduler(process_store, store, commands, compiled.commands, leases, clock)
    runners = [
        ProcessRunner(
            found,
            store,
            history,
            process_store,
            leases,
            compiled.commands,
            execute or commands.execute,
            clock,
            process_fingerprint(found),
        )
        for found in compiled.processes
    ]

    async def outcome_here(_: Command, command_id: str) -> KeptOutcome | None:
        return await store.outcome(command_id)

    stuck = StuckProcesses(runners, store, history, process_store, outcome or outcome_here)
    given_up = GivenUpCommands(
        scheduler, commands, compiled.commands, store, process_store, clock, is_here or (lambda _: True)
    )
    of_processes = ParkedSteps(stuck, store), ParkedOutgoing(stuck, store)
    parked = Parked([*follower.parked.sources, *of_processes, ParkedScheduled(given_up)])
    followed: dict[str, Any] = {**vars(follower), "parked": parked}
    return Partition(
        **followed,
        pruning=Pruning(store, history, _models(whole or compiled), _followers(whole or compiled)),
        process_worker=ProcessWorker(runners, scheduler, store, process_store, leases, clock),
        processes=Processes(runners, store, history, process_store, clock),
        scheduled=ScheduledCommands(scheduler, commands, store, process_store, clock),
        store=store,
        commands=commands,
        context_names=compiled.context_names,
    )


def fold_inline(projections: Sequence[Projection], store: EventStore, follower: Follower) -> None:
    """Have the store fold these with each append.

    Raises:
        ConfigurationError: it cannot, or they are elsewhere.
    """
    if not isinstance(store, FoldsInline):
        raise ConfigurationError(
            f"{projections[0].name} cannot be inline: this event store does not fold read models in the transaction of "
            "an append. Leave inline= out: whoever needs a fresh answer asks with after= or freshness='latest'"
        )
    split = next((found for found in projections if found.partitions != 1), None)
    if split is not None:
        raise ConfigurationError(
            f"{split.name} is split into {split.partitions} slices, for as many processes to fold, and inline each "
            "append folds all of it: leave partitions= out, or inline="
        )
    elsewhere = next((found for found in projections if not follower.stores[0].answers(found.name)), None)
    if elsewhere is not None:
        raise ConfigurationError(
            f"{elsewhere.name} is in inline= and in read_stores=: an append folds what is in the event store's own "
            "database alone. Leave one of them out"
        )
    finding = next((found for found in projections if found.finds_rows), None)
    if finding is not None:
        raise ConfigurationError(
            f"{finding.name} finds rows by where=, which an append cannot wait for: leave it out of inline="
        )
    projector = follower.projector
    projector.inline = Inline(
        follower.history, {found: projector.generations.fingerprint(found) for found in projections}
    )
    store.fold_inline(follower.read_store, projector.inline)


def _models(compiled: Compiled) -> list[tuple[str, ModelFold]]:
    """The models that commands are decided on, each with the contexts of their handlers."""
    return list(
        dict.fromkeys((handler.context, fold) for handler in compiled.handlers.values() for fold in handler.folds)
    )


def _followers(compiled: Compiled) -> list[tuple[str, frozenset[str]]]:
    """What follows histories, with the stored names of the events that it is made of."""
    found = [(f"the projection into {each.name}", each.query) for each in compiled.projections]
    found += [(f"the subscriber {each.name}", each.query) for each in compiled.subscribers]
    found += [(f"the process {each.name}", each.query) for each in compiled.processes if not each.retired]
    return [(name, frozenset(type for item in query.items for type in item.types)) for name, query in found]


def process_fingerprint(process: Process) -> str:
    """What tells one version of a process from the next; empty where its source cannot be found."""
    try:
        return fingerprint([process.cls.react], field_types(process.cls), 1)
    except ConfigurationError:
        return ""


def wire_across(
    compiled: Compiled,
    log: MergedLog,
    read_stores: Sequence[ConnectedStore],
    *,
    clock: Clock,
    projecting: bool,
    policy: RebuildPolicy,
    name: str,
) -> Across:
    """Give every part of what follows all partitions what it needs; nothing is opened yet."""
    follower = follow(
        compiled,
        log,
        read_stores,
        clock=clock,
        projecting=projecting,
        is_kept=log.durable,
        policy=policy,
        name=name,
    )
    return Across(**vars(follower))


def follow(
    compiled: Compiled,
    log: EventLog,
    stores: Sequence[ConnectedStore],
    *,
    clock: Clock,
    projecting: bool,
    is_kept: bool,
    policy: RebuildPolicy,
    name: str,
) -> Follower:
    """Give every part of what follows a log what it needs; nothing is opened yet.

    Where the log `is_kept` when the process ends, rows that are not are folded by every process that has them.

    Raises:
        ConfigurationError: how far subscribers are would be forgotten with the process, and the log would not.
    """
    if is_kept and projecting and compiled.subscribers and not stores[0].read_store.durable:
        told = ", ".join(found.name for found in compiled.subscribers)
        raise ConfigurationError(
            "read_store='memory:' beside events that are kept forgets how far subscribers are: every process would "
            f"deliver the whole history to {told}, each time it starts. Leave read_store= out, and name the read "
            "models that are to be in memory: read_stores={Seats: 'memory:'}"
        )
    history = History(compiled.types)
    projected = [
        _projected(
            compiled.subscribers if number == 0 else (),
            log,
            history,
            each,
            clock=clock,
            policy=policy,
            projecting=projecting or (is_kept and not each.read_store.durable),
            delivering=projecting,
        )
        for number, each in enumerate(stores)
    ]
    panels = [each.panel for each in projected]
    answering = {model: each.read_store for each in projected for model in each.panel.projections}
    return Follower(
        name=name,
        log=log,
        history=history,
        stores=projected,
        clock=clock,
        queries=RoutedQueries(compiled.query_handlers, panels, compiled.answered),
        watches=Watches(panels, history),
        projecting=projecting,
        parked=Parked(
            [
                ParkedEvents([each.blocked_keys for each in projected], log),
                ParkedDeliveries([found.name for found in compiled.subscribers], stores[0].read_store, log, clock),
            ]
        ),
        rebuilds=RoutedRebuilds(projected),
        row_histories=RowHistories(compiled.projections, log, history, answering),
    )


def _projected(
    subscribers: Sequence[Subscriber],
    log: EventLog,
    history: History,
    store: ConnectedStore,
    *,
    clock: Clock,
    policy: RebuildPolicy,
    projecting: bool,
    delivering: bool,
) -> ProjectedStore:
    """Give every part of one read store of a log what it needs."""
    read_store, projections = store.read_store, store.projections
    projector = Projector(log, history, read_store, projections, policy)
    by_model = {
        found.form.cls: (found, projector.generations.fingerprint(found))
        for found in projections
        if found.name in store.answering
    }
    holds, missing = (log.shown, log.missing) if isinstance(log, MergedLog) else (None, None)
    panel = ReadPanel(
        by_model,
        log,
        store.query_source or ReadStoreSource(read_store),
        Freshness(log, clock, missing),
        Overlay(log, history, read_store, projections),
        holds,
        policy.on_changed == "serve-old",
    )
    subscriptions = [Subscription(found, log, history, read_store) for found in subscribers]

    def wanted() -> list[LeaseKey]:
        delivered = [found.lease_key for found in subscriptions if delivering and not found.outdated]
        return projector.wanted() + delivered

    return ProjectedStore(
        url=store.shown,
        read_store=read_store,
        panel=panel,
        projector=projector,
        leases=Leases(read_store, wanted, unique_id()),
        subscriptions=subscriptions,
        blocked_keys=BlockedKeys(projector, log, read_store, clock),
        rebuilds=Rebuilds(projector, read_store, policy),
        policy=policy,
        past=Past(log, history, read_store, clock, _rows_in_memory, _NO_PAST if isinstance(log, MergedLog) else ""),
        projecting=projecting,
        delivering=delivering,
    )


def _rows_in_memory() -> ReadStore:
    """A read store for what is folded for one answer."""
    found: ReadStore = import_module("diptych.adapters.connect").connect_read_store("memory:")
    return found
