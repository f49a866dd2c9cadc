"""What else stands on the tags of events that are tagged anew: kept states of decision models, and processes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from diptych.application.bounded_context import BoundedContext
from diptych.messages.event import Event
from diptych.messages.message import options_of
from diptych.messages.registry import EventTypes
from diptych.write_side.command_handler import decision_models
from diptych.write_side.decision_model import folded_events
from diptych.write_side.state_form import state_name

__all__ = ["Standing", "standing_on"]


class Standing(NamedTuple):
    """What stands on the tags of some types of events.

    Attributes:
        models: decision models of them whose states are kept: these are dropped, and folded anew when needed.
        unaffected: decision models of other events, whose states may stay.
        processes: whose instances are named by tags of such events. What they have done cannot be done again.
    """

    models: Sequence[str]
    unaffected: frozenset[str]
    processes: Sequence[str]


def standing_on(types: Collection[str], contexts: Sequence[BoundedContext], known: EventTypes) -> Standing:
    """What stands on types of events, by their stored names, in the contexts; which are loaded."""
    affected = {found.cls for name in types if (found := known.stored_as(name)) is not None}
    models: dict[str, bool] = {}
    for context in contexts:
        for handler in context.command_handlers:
            for model in decision_models(handler):
                events = folded_events(model)
                if events and _keeps_states(model):
                    models[state_name(model, events, known)] = not affected.isdisjoint(events)
    processes = [
        process.name for context in contexts for process in context.process_managers if _takes(process.events, affected)
    ]
    return Standing(
        sorted(name for name, stands in models.items() if stands),
        frozenset(name for name, stands in models.items() if not stands),
        sorted(processes),
    )


def _keeps_states(model: type) -> bool:
    options = options_of(model)
    return options.state_stored or options.snapshot_every is not None


def _takes(events: Collection[type[Event]], affected: Collection[type[Event]]) -> bool:
    return not set(affected).isdisjoint(events)
