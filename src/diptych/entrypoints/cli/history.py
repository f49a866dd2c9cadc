"""`diptych history`: how one row came to be, event by event."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.text import Text

from diptych.entrypoints.cli import screen
from diptych.entrypoints.cli.failures import UsageError
from diptych.entrypoints.cli.options import (
    LOGS_UNSET,
    PARTITION_UNSET,
    STORES_UNSET,
    AppNames,
    LogOptions,
    PartitionOptions,
    StoreOptions,
    at_least,
    settings_of,
)
from diptych.entrypoints.cli.settings import Settings
from diptych.entrypoints.cli.signals import run_async
from diptych.messages.codec import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from diptych.read_side.row_history import FieldChange, RowChange

__all__ = ["history"]

POSITION_COLUMNS = 7
"""Columns of a position, so that those up to ten million stand below each other."""
VALUE_CHARACTERS_MAX = 200
"""Characters that people are shown of one value; --json has all of them."""
ALIKE_CHARACTERS_MAX = 20
"""Characters before the first difference that are shown of two long values."""

_STYLES = {"created": "green", "removed": "red", "blocked": "red", "waiting": "yellow", "discarded": "yellow"}


def history(
    read_model: Annotated[str, Parameter(name="READ_MODEL")],
    key: Annotated[str, Parameter(name="KEY", allow_leading_hyphen=True)],
    /,
    *app: AppNames,
    after: Annotated[int, at_least(0), Parameter(metavar="POSITION")] = 0,
    limit: Annotated[int | None, at_least(1), Parameter(metavar="N")] = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    stores: StoreOptions = STORES_UNSET,
    partition: PartitionOptions = PARTITION_UNSET,
    log: LogOptions = LOGS_UNSET,
) -> None:
    """Print the events that made one row of a read model, each with what it changed.

    They are folded again from the history, by this code: what was discarded is left out, and an event that cannot be
    folded is shown with the reason, and those that wait behind it.

    Args:
        read_model: "school.Seats" or "Seats".
        key: The row's; of a key of several columns, a JSON array of all of them: '["python", "2026"]'.
        app: whose.
        after: Begin after this position.
        limit: Stop after so many events.
        json: Print one JSON object a line.
        stores: which.
        partition: which.
        log: how.
    """
    settings = settings_of(app, stores, partition, log)
    run_async(lambda: _print(settings, read_model, key, after, limit, _in_json if json else _for_people))


async def _print(
    settings: Settings, wanted: str, key: str, after: int, limit: int | None, show: Callable[[RowChange], None]
) -> None:
    from diptych.entrypoints.cli.looking import choose, opened_partition
    from diptych.errors import ConfigurationError

    async with opened_partition(settings) as partition:
        histories = partition.row_histories
        name = choose("read model", wanted, histories.models)
        model = histories.models[name]
        shown = 0
        changes = histories.of(model, *_key_of(model.__name__, histories.key_types(model), key), after=after)
        async with aclosing(changes):
            async for change in changes:
                show(change)
                shown += 1
                if shown == limit:
                    break
        sys.stdout.flush()
        if not shown:
            behind = f" after position {after}" if after else ""
            raise ConfigurationError(f"no event{behind} concerns a row of {name} with the key {key}")


def _key_of(model: str, types: Mapping[str, Any], text: str) -> Sequence[Any]:
    """The values of a key, as they are written on the command line.

    Raises:
        UsageError: they are none of this read model.
    """
    parts = _parts(text)
    if len(parts) != len(types):
        raise UsageError(f"the key of {model} is ({', '.join(types)}), as a JSON array where it is several: {text!r}")
    try:
        return [msgspec.convert(part, held, strict=False) for part, held in zip(parts, types.values(), strict=True)]
    except msgspec.ValidationError as error:
        raise UsageError(f"{text!r} is no key of {model} ({', '.join(types)}): {error}") from error


def _parts(text: str) -> list[Any]:
    """Those of a JSON array, as `diptych parked list` prints keys; else the text itself."""
    try:
        return msgspec.json.decode(text, type=list[Any])
    except msgspec.MsgspecError:
        return [text]


# ── one event ────────────────────────────────────────────────────────────────


def _in_json(change: RowChange) -> None:
    sys.stdout.write(encode(change).decode() + "\n")


def _for_people(change: RowChange) -> None:
    output = screen.output()
    lines = [_headline(change), *(_field(each, came=change.before is None) for each in change.changes)]
    if change.expired_at is not None:
        lines.insert(1, _line(f"the row before had expired at {change.expired_at:%Y-%m-%d %H:%M:%S}Z", "dim"))
    if change.error:
        lines.append(_line(screen.printable(change.error), "red"))
    output.print(*lines, sep="\n", soft_wrap=True)


def _headline(change: RowChange) -> Text:
    return Text.assemble(
        (f"{change.position:>{POSITION_COLUMNS}}", "bold"),
        (f"  {change.recorded_at:%Y-%m-%d %H:%M:%S}Z  ", "dim"),
        (change.event, "cyan"),
        "  ",
        (change.effect, _STYLES.get(change.effect, "")),
        f"  by {screen.printable(change.actor)}" if change.actor else "",
        f": {screen.printable(change.reason)}" if change.reason else "",
    )


def _field(changed: FieldChange, *, came: bool) -> Text:
    before, after = ("", _told(changed.after)) if came else (_told(changed.before), _told(changed.after))
    arrow = "" if came else f"{_short(before, after)} → "
    return _line(f"{changed.field}: {arrow}{_short(after, before)}")


def _line(text: str, style: str = "") -> Text:
    return Text(f"{'':>{POSITION_COLUMNS}}  {text}", style)


def _told(value: Any) -> str:
    return screen.printable(encode(value).decode())


def _short(text: str, other: str) -> str:
    """As much of a long value as shows where it differs from the other one."""
    if len(text) <= VALUE_CHARACTERS_MAX:
        return text
    alike = next((n for n, (mine, theirs) in enumerate(zip(text, other, strict=False)) if mine != theirs), len(other))
    begin = max(0, min(alike, len(text) - 1) - ALIKE_CHARACTERS_MAX)
    end = begin + VALUE_CHARACTERS_MAX
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"
