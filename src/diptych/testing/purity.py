"""Whether folds are pure: everything is folded twice, on values that must not change, and compared.

Retries, rebuilds, caches and batches of any size give one result only if a fold is a function of what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import msgspec

from diptych.messages.command import Command, CommandContext
from diptych.read_side.projection import Projection, Step
from diptych.read_side.read_store import Key
from diptych.testing.in_memory_application import Fact
from diptych.write_side.command_handler import CommandHandler, ModelKey

__all__ = ["check_decision", "fold_models", "fold_rows"]


class _Failed(NamedTuple):
    """What a fold raised, told so that it can be compared."""

    error: str


def fold_models(handler: CommandHandler, command: Command, facts: Sequence[Fact]) -> dict[ModelKey, Any]:
    """The states that a command is decided on.

    Raises:
        AssertionError: an `evolve` is not pure.
    """
    return {key: _fold_model(key, facts) for key in handler.models(command)}


def _fold_model(key: ModelKey, facts: Sequence[Fact]) -> Any:
    fold, ids = key
    wanted = fold.query(ids).items[0]  # a scenario is given events of now
    state = _twice(f"the initial state of {fold.name}", fold.initial, ids)
    for fact in facts:
        if wanted.matches(fact.recorded.type, fact.recorded.tags):
            state = _twice(f"{fold.name}.evolve", fold.evolve, state, fact.event, fact.context)
    return state


def check_decision(
    handler: CommandHandler, command: Command, states: Mapping[ModelKey, Any], context: CommandContext
) -> None:
    """Decide once more, to see whether the handler changes the models that it is given.

    Raises:
        AssertionError: it does; other commands would decide on what it left.
    """
    kept = deepcopy(list(states.values()))
    handler.decide(command, states, context)
    for before, after in zip(kept, states.values(), strict=True):
        if before != after:
            raise AssertionError(
                f"{handler.name} changes the model that it decides on: it was {before!r}, and is {after!r}. Models are "
                "shared with other commands: let the handler only read them"
            )


def fold_rows(projection: Projection, facts: Sequence[Fact]) -> dict[Key, Any]:
    """The rows after the whole history, by key as the columns hold it; None for deleted ones.

    A key whose fold raises is left out from there on, as the projector does.

    Raises:
        AssertionError: the fold, or the function that computes its keys, is not pure.
    """
    rows: dict[Key, Any] = {}
    blocked: set[Key] = set()
    for fact in facts:
        steps = _planned(projection, fact)
        for step in (one for planned in steps for one in _each_found(projection, planned, rows)):
            if step.key in blocked:
                continue
            key, after = _applied(projection, step, rows)
            if isinstance(after, _Failed):
                if key is not None:
                    blocked.add(key)
            elif key is not None:
                rows[key] = after
    return {key: row for key, row in rows.items() if key not in blocked}


def _each_found(projection: Projection, step: Step, rows: Mapping[Key, Any]) -> Sequence[Step]:
    """A step for each row that it finds by what the row holds now; the step itself where it does not look for rows."""
    where, form = step.fold.where, projection.form
    if where is None:
        return (step,)
    return [
        msgspec.structs.replace(step, key=key)
        for key, row in rows.items()
        if row is not None
        and not (step.context is not None and form.has_expired(row, step.context.recorded_at))
        and tuple(form.column_value(name, getattr(row, name)) for name in where.columns) == step.values
    ]


def _planned(projection: Projection, fact: Fact) -> Sequence[Step]:
    def keys(event: Any) -> Any:
        return [
            (step.key, step.part, step.values) for step in projection.steps(fact.recorded.position, event, fact.context)
        ]

    failed = isinstance(_twice(f"the key function of {projection.name}", _tried(keys), fact.event), _Failed)
    return () if failed else projection.steps(fact.recorded.position, fact.event, fact.context)


def _applied(projection: Projection, step: Step, rows: Mapping[Key, Any]) -> tuple[Key | None, Any]:
    def apply(before: Any, event: Any) -> Any:
        return step.fold.apply(before, msgspec.structs.replace(step, event=event))

    before = None if step.key is None else rows.get(step.key)
    if (
        before is not None
        and step.context is not None
        and projection.form.has_expired(before, step.context.recorded_at)
    ):
        before = None
    after = _twice(step.fold.declaration.name, _tried(apply), before, step.event)
    if step.key is not None or after is None or isinstance(after, _Failed):
        return step.key, after
    return projection.form.column_key(projection.form.key_of(after)), after


def _tried(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or what it raised; the projector reports that, with its place in the code."""

    def tried(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001  # whatever the user's code raises blocks a key
            return _Failed(repr(error))

    return tried


def _twice(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's answer, which has to be the same twice, and to leave the arguments as they were."""
    kept = _copied(what, arguments)
    first = function(*arguments)
    (answered,) = _copied(what, (first,))
    second = function(*arguments)
    for argument, copy in zip(arguments, kept, strict=True):
        if argument != copy:
            raise AssertionError(
                f"{what} is not pure: it changes what it is given, which was {copy!r}, and is {argument!r}. Return a "
                "new value instead (replace), and hold tuples, not lists"
            )
    if first != answered or first != second:
        raise AssertionError(
            f"{what} is not pure: given the same twice, ({', '.join(map(repr, kept))}), it answered {answered!r}, then "
            f"{second!r}. It must depend on nothing but its arguments, and keep none of what it returns"
        )
    return first


def _copied(what: str, values: Sequence[Any]) -> Sequence[Any]:
    copies = deepcopy(values)
    for value, copy in zip(values, copies, strict=True):
        if value != copy:
            raise AssertionError(f"{what}: {value!r} is not equal to its own copy: what it holds needs an __eq__")
    return copies
