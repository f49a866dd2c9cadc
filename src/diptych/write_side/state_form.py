"""How the states of a decision model are kept beside the history.

State-stored (`state_stored=True`): every commit keeps what it makes of every such model that its events match,
whichever handler decided it (rule 24). What is kept is the source: code of tomorrow goes on from it. Snapshots
(`snapshot_every=N`): the state is kept after N events more, to be folded from there by the very same code and by no
other (rule 26).

Neither is ever taken for more than it is: a state up to a position. What came after it is folded onto it, so that it
does not matter who kept none: code of before, another process, a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from diptych.errors import ConfigurationError, InvalidMessage, UnreadableState
from diptych.event_store.event_store import KeptState, ModelState
from diptych.messages.codec import Codec, encode_canonical
from diptych.messages.fingerprint import fingerprint
from diptych.messages.message import field_types, held_types, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from diptych.event_store.event_query import EventQuery
    from diptych.messages.event import Event
    from diptych.messages.registry import EventTypes

__all__ = ["StateForm", "key_of", "state_form", "state_name"]

STATE_STORED = "state-stored"
"""Stands for the fold where the state is the source: whichever code has folded it."""


class StateForm:
    """How one decision model's states are kept.

    Attributes:
        model: its name, qualified by the context whose events it folds.
        every: after how many events more; None with every commit that has an event of it.
        fold: which code folds it.
        unfit: whether it was told that a snapshot could not be kept.
    """

    def __init__(self, cls: type[Any], model: str, every: int | None, fold: str) -> None:
        self.model = model
        self.every = every
        self.fold = fold
        self.unfit = False
        self._cls = cls
        try:
            self._codec = Codec(_as_kept(cls))
            self._codec.decode(b"{}")  # msgspec looks at the types of fields when it is first asked
        except (TypeError, ConfigurationError) as error:
            raise ConfigurationError(f"{model}: its state cannot be kept as JSON: {error}") from error

    def kept(self, ids: tuple[str, ...], state: Any) -> ModelState:
        """A state as it is kept.

        Raises:
            InvalidMessage: it holds what JSON cannot say, or fields of other types than it declares.
        """
        data, _ = self._codec.settle(state)
        return ModelState(self.model, key_of(ids), self.fold, data)

    def state(self, ids: tuple[str, ...], kept: KeptState) -> Any | None:
        """The state that was kept; None where it is none of this fold's.

        Raises:
            UnreadableState: it is the source, and the class of today does not read it.
        """
        if kept.fold != self.fold:
            return None
        try:
            found = self._codec.decode(kept.data)
            return self._cls(**{name: value for name, value in asdict(found).items() if value is not UNSET})
        except (InvalidMessage, TypeError) as error:
            if self.fold != STATE_STORED:
                return None
            raise UnreadableState(self.model, key_of(ids), kept.position, str(error)) from error


def _as_kept(cls: type[Any]) -> type[Any]:
    """A struct with the fields of a model, which any of them may lack: msgspec reads none with several type arguments.

    What is lacking then has the default of the model.
    """
    fields = [(name, held | UnsetType, UNSET) for name, held in field_types(cls).items()]
    return msgspec.defstruct(cls.__name__, fields, module=cls.__module__, frozen=True, kw_only=True)


def key_of(ids: tuple[str, ...]) -> str:
    """What tells one model from others of its class."""
    return msgspec.json.encode(ids).decode()


def state_name(cls: type[Any], events: Iterable[type[Event]], types: EventTypes) -> str:
    """The name under which the states of a decision model of these events are kept."""
    return f"{min(types.of(event).context for event in events)}.{cls.__name__}"


def state_form(
    cls: type[Any],
    events: Sequence[type[Event]],
    types: EventTypes,
    query: EventQuery,
    initial: Callable[[], Any],
    *,
    timed: bool,
) -> StateForm | None:
    """How a decision model's states are kept, by the keywords of its class statement; None where they are not.

    Args:
        cls: the model.
        events: that it folds.
        types: the application's.
        query: what is folded of one of them, by all the names with which it may be stored.
        initial: gives that one before its first event.
        timed: whether its `evolve` asks for the `EventContext`.

    Raises:
        ConfigurationError: they cannot be kept.
    """
    options = options_of(cls)
    every = options.snapshot_every
    if not options.state_stored and every is None:
        return None
    if options.state_stored and every is not None:
        raise ConfigurationError(f"{cls.__name__} is state_stored: every commit keeps its state, drop snapshot_every")
    if every is not None and every < 1:
        raise ConfigurationError(f"{cls.__name__}: snapshot_every takes a number of events from 1 on, not {every}")
    if timed:
        raise ConfigurationError(
            f"{cls.__name__}.evolve takes the EventContext, which an event has only once it is appended; its state is "
            "kept in the same commit: drop state_stored or snapshot_every, or put what it needs into the event"
        )
    model = state_name(cls, events, types)
    form = StateForm(cls, model, every, STATE_STORED)
    if every is not None:
        form.fold = _fingerprint(cls, events, types, query, initial())
    return form


def _fingerprint(
    cls: type[Any], events: Sequence[type[Event]], types: EventTypes, query: EventQuery, initial: Any
) -> str:
    upcasters = types.upcasters_to(events)
    steps = sorted(step.said for step in upcasters)
    fields = [(name, repr(held)) for name, held in field_types(cls).items()]
    found = [(sorted(item.types), sorted(item.tags)) for item in query.items]
    schema = (fields, encode_canonical(initial), found, steps)
    values = {held for part in (cls, *events) for held in held_types(part)} | {cls}
    functions = [cls.evolve, *(step.function for step in upcasters)]
    return fingerprint(functions, schema, options_of(cls).version, values)
