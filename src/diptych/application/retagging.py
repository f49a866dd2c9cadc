"""What else stands on the tags of events that are tagged anew: kept states of decision models, and processes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from diptych.application.bounded_context import BoundedContext
from diptych.errors import ConfigurationError
from diptych.event_store.event_query import EventQuery, QueryItem
from diptych.event_store.event_store import EventStore
from diptych.event_store.position import START, Position
from diptych.messages.event import Event
from diptych.messages.message import options_of
from diptych.messages.registry import EventTypes
from diptych.write_side.command_handler import decision_models
from diptych.write_side.decision_model import folded_events
from diptych.write_side.state_form import state_name

__all__ = ["Standing", "check_states", "standing_on"]

_LAST_KEY = "\U0010ffff"
"""Behind all keys of a model, which are JSON arrays."""


class Standing(NamedTuple):
    """What stands on the tags of some types of events.

    Attributes:
        models: decision models of them whose states are kept: these are dropped, and folded anew when needed.
        unaffected: decision models of other events, whose states may stay.
        processes: whose instances are named by tags of such events. What they have done cannot be done again.
        sources: of those of the models whose kept states are the source, under which names what they fold is stored.
        contexts: that are known, and all their models with them.
    """

    models: Sequence[str]
    unaffected: frozenset[str]
    processes: Sequence[str]
    sources: Mapping[str, frozenset[str]]
    contexts: frozenset[str]


def standing_on(types: Collection[str], contexts: Sequence[BoundedContext], known: EventTypes) -> Standing:
    """What stands on types of events, by their stored names, in the contexts; which are loaded."""
    affected, models, sources = frozenset(types), dict[str, bool](), dict[str, frozenset[str]]()
    for context in contexts:
        for handler in context.command_handlers:
            for model in decision_models(handler):
                events = folded_events(model)
                if events and _keeps_states(model):
                    name, folded = state_name(model, events, known), _stored_names(events, known)
                    models[name] = not affected.isdisjoint(folded)
                    if models[name] and options_of(model).state_stored:
                        sources[name] = folded
    processes = [
        process.name
        for context in contexts
        for process in context.process_managers
        if not affected.isdisjoint(_stored_names(process.events, known))
    ]
    return Standing(
        sorted(name for name, stands in models.items() if stands),
        frozenset(name for name, stands in models.items() if not stands),
        sorted(processes),
        sources,
        frozenset(context.name for context in contexts),
    )


async def check_states(store: EventStore, standing: Standing) -> None:
    """Make sure that the kept states that are to be dropped can be folded anew.

    Raises:
        ConfigurationError: events that they are made of were pruned: with the models, and what to do.
    """
    pruned = {name for name, until in (await store.horizons()).items() if await _has_lost(store, name, until)}
    if not pruned:
        return
    lost = {model: folded & pruned for model, folded in standing.sources.items() if not folded.isdisjoint(pruned)}
    told = [f"{model}, which folds {', '.join(sorted(names))}" for model, names in sorted(lost.items())]
    if told:
        raise ConfigurationError(
            "kept states stand on tags that are to change, and can never be folded anew, since diptych prune has "
            f"dropped the data of their events: of {'; '.join(told)}. Nothing was changed: let the code tag these "
            "events as they are tagged, or restore a backup"
        )
    elsewhere = sorted({name for name in await _kept_models(store) if name.partition(".")[0] not in standing.contexts})
    if elsewhere:
        raise ConfigurationError(
            f"diptych prune has dropped the data of {', '.join(sorted(pruned))}, and whether the kept states of "
            f"{', '.join(elsewhere)} could be folded anew, only their code can tell. Nothing was changed: name the "
            "contexts that have them as well"
        )


async def _has_lost(store: EventStore, type: str, until: Position) -> bool:
    """Whether any event of a type has no data: the first one has lost them first."""
    first = await store.read(EventQuery((QueryItem(types=frozenset((type,))),)), START, 1, until=until)
    return bool(first.events) and not first.events[0].data


async def _kept_models(store: EventStore) -> Sequence[str]:
    """Of which models states are kept."""
    found: list[str] = []
    while page := await store.model_states((found[-1], _LAST_KEY) if found else ("", ""), 1):
        found.append(page[0].model)
    return found


def _stored_names(events: Iterable[type[Event]], known: EventTypes) -> frozenset[str]:
    """Under which names events of these classes may be stored, or what they are parts of."""
    names = [known.of(cls).name for cls in events]
    return frozenset(stored for name in names for stored in (*known.stored_names(name), *known.split_names(name)))


def _keeps_states(model: type) -> bool:
    options = options_of(model)
    return options.state_stored or options.snapshot_every is not None
