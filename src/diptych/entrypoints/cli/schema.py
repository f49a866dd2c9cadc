"""`diptych schema`: which event types a store holds, and whether the code reads all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from msgspec import to_builtins
from msgspec.structs import replace

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import FAILED
from diptych.entrypoints.cli.options import (
    EVENT_STORE_UNSET,
    LOGS_UNSET,
    PARTITION_UNSET,
    AppNames,
    EventStoreOptions,
    LogOptions,
    PartitionOptions,
)
from diptych.entrypoints.cli.settings import Settings, settled
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diptych.application.bounded_context import BoundedContext
    from diptych.event_store.event_store import EventStore
    from diptych.event_store.model_unions import ModelUnion
    from diptych.event_store.schema_check import CheckedSchema, HeldType, LackingModel, SplitType
    from diptych.messages.registry import EventTypes
    from diptych.write_side.decision_model import ModelFold

__all__ = ["check", "checked", "show", "tell"]


def show(
    *app: AppNames,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: EventStoreOptions = EVENT_STORE_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """List the event types of a store: versions, how many events, the first and the last; and what its models fold.

    It reads the whole history, and needs no code. With APP it shows what that reads them as, where its upcasters split.

    Args:
        app: the code.
        json: Print one JSON object a line.
        stores: which.
        partition: which.
        log: how.
    """
    settings = settled(
        verbose=log.verbose, app=app, store=stores.store, partition=partition.partition, log_format=log.log_format
    )
    splits = _Splits(settings if app else None)
    found, models = run_async(lambda: _held(settings))
    if json:
        for held in found:
            screen.write(encode({**to_builtins(held), **splits.shown(held)}))
        for model in models:
            screen.write(encode({"model": model.name, "version": model.version, "folds": model.types}))
        return
    screen.output().print(_table(found, splits) if found else "The store holds no events.")
    if models:
        screen.output().print(_models(models))


def check(
    *app: AppNames,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: EventStoreOptions = EVENT_STORE_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> int:
    """Read every event of a store with the code, and tell what it does not read.

    The exit code is 1 where there is something. Run it before a release, against a copy of what is live.

    Args:
        app: the code.
        json: Print one JSON object.
        stores: which.
        partition: which.
        log: how.
    """
    settings = settled(
        verbose=log.verbose, app=app, store=stores.store, partition=partition.partition, log_format=log.log_format
    )
    found = run_async(lambda: checked(settings))
    if json:
        screen.write(encode(found))
    else:
        tell(found)
    return FAILED if found.breaks or any(each.stored for each in found.lacking) else 0


async def _held(settings: Settings) -> tuple[list[HeldType], Sequence[ModelUnion]]:
    from diptych.entrypoints.cli.looking import opened_store
    from diptych.event_store.schema_check import held_types

    async with opened_store(settings) as store:
        with screen.progress("Reading") as bar:
            return await held_types(store, bar), (await store.stored_models()).models


async def checked(settings: Settings) -> CheckedSchema:
    """Read every event of a store with the code.

    Raises:
        ConfigurationError: there is no such store, or the code does not fit.
    """
    from diptych.application.registration import decided_models
    from diptych.entrypoints.cli.looking import opened_store
    from diptych.event_store.history import History
    from diptych.event_store.schema_check import check_schema

    contexts, types = _coded(settings)
    history = History(types)
    async with opened_store(settings) as store:
        with screen.progress("Reading") as bar:
            found = await check_schema(store, history, [context.name for context in contexts], bar)
        return replace(found, lacking=await _lacking(store, decided_models(contexts, types)))


async def _lacking(store: EventStore, models: Sequence[tuple[str, ModelFold]]) -> list[LackingModel]:
    """The models of the code that do not fold all that is kept of them."""
    from diptych.event_store.schema_check import LackingModel
    from diptych.write_side.known_models import CodedModels

    held = {stored.name for stored in await store.stored_types()}
    outgrown = CodedModels(models).outgrown(await store.stored_models()).values()
    return [
        LackingModel(union.name, union.version, sorted(beyond), not beyond.isdisjoint(held))
        for beyond, union in outgrown
    ]


def _coded(settings: Settings) -> tuple[Sequence[BoundedContext], EventTypes]:
    from diptych.application.registration import event_types
    from diptych.entrypoints.cli.contexts import load_contexts

    contexts = load_contexts(settings.app)
    for context in contexts:
        context.load()
    return contexts, event_types(contexts)


class _Splits:
    """What code reads stored types as, where its upcasters split them; nothing is known without code."""

    def __init__(self, settings: Settings | None) -> None:
        self.types = None if settings is None else _coded(settings)[1]

    def read_as(self, held: HeldType) -> list[str] | None:
        """The types of which a stored event may have parts; None where it is one event."""
        known = None if self.types is None else self.types.stored_as(held.type)
        if self.types is None or known is None or known.upcasters.split(held.version) is None:
            return None
        return [part.name for part in self.types.parts_of(known, held.version)]

    def shown(self, held: HeldType) -> dict[str, list[str]]:
        """The same as a member of a JSON object; none where there is nothing to say."""
        found = self.read_as(held)
        return {} if found is None else {"read_as": found}


def _table(found: list[HeldType], splits: _Splits) -> object:
    read_as = () if splits.types is None else ("read as",)
    table = screen.table("Event types", "type", "tags", *read_as, "version", "events", "first", "last", numbers=4)
    for held in found:
        numbers = (held.version, held.events, held.first, held.last)
        parts = splits.read_as(held)
        told = [] if splits.types is None else ["" if parts is None else ", ".join(parts) or "nothing"]
        table.add_row(held.type, " ".join(held.tags), *told, *map(screen.count, numbers))
    return table


def _models(models: Sequence[ModelUnion]) -> object:
    table = screen.table("Decision models", "model", "folds", "version", numbers=1)
    for model in models:
        table.add_row(model.name, " ".join(model.types), screen.count(model.version))
    return table


def tell(found: CheckedSchema) -> None:
    """Say for people what of a store the code does not read."""
    output = screen.output()
    for each in found.breaks:
        events = "1 event" if each.events == 1 else f"{screen.count(each.events)} events"
        first = f"from position {screen.count(each.position)} on"
        output.print(f"{each.type} (version {each.version}): {events} cannot be read, {first}", style="bold red")
        output.print(each.reason, soft_wrap=True)
        if each.skeleton:
            output.print(f"\n{each.skeleton}\n", soft_wrap=True)
    for field in found.ignored:
        output.print(
            f"{field.type} (version {field.version}): nothing reads the field {field.field!r} that "
            f"{screen.count(field.events)} of its events have, from position {screen.count(field.position)} on",
            style="yellow",
            soft_wrap=True,
        )
    for model in found.lacking:
        output.print(_told_lacking(model), style="bold red" if model.stored else "yellow", soft_wrap=True)
    for split in found.split:
        output.print(_told(split), soft_wrap=True)
    looked_at = f"{screen.count(found.events)} events of {screen.count(found.types)} types and versions"
    broken = screen.count(sum(each.events for each in found.breaks))
    output.print(f"{looked_at}: {f'{broken} cannot be read' if found.breaks else 'all can be read'}")


def _told_lacking(model: LackingModel) -> str:
    there = "and there are such events" if model.stored else "though no such event is stored"
    return (
        f"{model.model}: newer code's model folds {' and '.join(model.types)} as well, {there}. Run that code; if this "
        f"is the newer one, and leaves them out on purpose, say version={model.version + 1} in the class statement"
    )


def _told(split: SplitType) -> str:
    """What becomes of the events of one type and version, which are several now, or none."""
    events = "1 event is" if split.events == 1 else f"{screen.count(split.events)} events are"
    parts = [f"{screen.count(count)} {name}" for name, count in sorted(split.parts.items())]
    nothing = [f"nothing ({screen.count(split.none)} of them)" if parts else "nothing"] if split.none else []
    return f"{split.type} (version {split.version}): {events} read as {', '.join(parts + nothing)}"
