"""What no store takes: the limits that hold for every commit, checked before it costs anybody else time."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.event_store.event_store import (
    COMMAND_ID_CHARACTERS_MAX,
    COMMIT_BYTES_MAX,
    COMMIT_EVENTS_MAX,
    COMMIT_STATES_MAX,
    EVENT_BYTES_MAX,
    EVENT_TAGS_MAX,
    STATE_BYTES_MAX,
    STATE_KEY_BYTES_MAX,
    TAG_BYTES_MAX,
    Commit,
    ModelState,
)
from diptych.event_store.recorded_event import NewEvent

__all__ = ["is_storable", "refusal"]

EVENT_ID_BYTES = 16
"""Bytes of an event id."""
VERSION_MAX = (1 << 31) - 1
"""The highest version of an event type."""


def refusal(commit: Commit) -> str | None:
    """Why no store can keep this commit as it is; None where it can.

    Whether its event ids are new is for the store to say.
    """
    events = commit.events
    if len(events) > COMMIT_EVENTS_MAX:
        return f"{len(events)} events are more than COMMIT_EVENTS_MAX={COMMIT_EVENTS_MAX}"
    if (command_id := commit.command_id) is not None and (reason := _command_id_refusal(command_id)):
        return reason
    if commit.rejection is not None and len(commit.rejection) > EVENT_BYTES_MAX:
        return f"its rejection has {len(commit.rejection)} bytes, more than EVENT_BYTES_MAX={EVENT_BYTES_MAX}"
    for event in events:
        if not _is_plain(event) and (reason := _event_refusal(event)):
            return f"event {event.type!r}: {reason}"
    if commit.states and (reason := _states_refusal(commit.states)):
        return reason
    return None if len(events) < 2 else _several_refusal(events)


def _several_refusal(events: Sequence[NewEvent]) -> str | None:
    if len({event.event_id for event in events}) < len(events):
        return "two of its events have the same id"
    count = sum(len(event.data) + len(event.metadata) for event in events)
    return (
        f"its events have {count} bytes, more than COMMIT_BYTES_MAX={COMMIT_BYTES_MAX}"
        if count > COMMIT_BYTES_MAX
        else None
    )


def is_storable(text: str) -> bool:
    """Whether every store can keep this text: no NUL, no lone surrogate."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_plain(event: NewEvent) -> bool:
    """Whether the event is surely storable. False says nothing; it spares nearly every event the closer look."""
    data, metadata, tags = event.data, event.metadata, event.tags
    names = event.type + "".join(tags)
    return (
        len(names) <= TAG_BYTES_MAX
        and names.isascii()
        and "\0" not in names
        and len(data) <= EVENT_BYTES_MAX
        and len(metadata) <= EVENT_BYTES_MAX
        and b"\0" not in data
        and b"\0" not in metadata
        and len(event.event_id) == EVENT_ID_BYTES
        and 1 <= event.version <= VERSION_MAX
        and (len(tags) <= 1 or len(set(tags)) == len(tags))
    )


def _states_refusal(states: Sequence[ModelState]) -> str | None:
    if len(states) > COMMIT_STATES_MAX:
        return f"{len(states)} states are more than COMMIT_STATES_MAX={COMMIT_STATES_MAX}"
    for state in states:
        if reason := _state_refusal(state):
            return f"the state of {state.model}: {reason}"
    count = sum(len(state.data) for state in states)
    return (
        f"its states have {count} bytes, more than COMMIT_BYTES_MAX={COMMIT_BYTES_MAX}"
        if count > COMMIT_BYTES_MAX
        else None
    )


def _state_refusal(state: ModelState) -> str | None:
    if len(state.data) > STATE_BYTES_MAX:
        return f"it has {len(state.data)} bytes, more than STATE_BYTES_MAX={STATE_BYTES_MAX}"
    if not all(map(is_storable, (state.model, state.key, state.fold))) or b"\0" in state.data:
        return "it contains NUL or a lone surrogate"
    if len(state.key.encode()) > STATE_KEY_BYTES_MAX:
        return f"its key {state.key[:32]!r}… has more than STATE_KEY_BYTES_MAX={STATE_KEY_BYTES_MAX} bytes"
    return None


def _command_id_refusal(command_id: str) -> str | None:
    if not 0 < len(command_id) <= COMMAND_ID_CHARACTERS_MAX:
        return (
            f"its command id has {len(command_id)} characters, "
            f"allowed are 1 to COMMAND_ID_CHARACTERS_MAX={COMMAND_ID_CHARACTERS_MAX}"
        )
    return None if is_storable(command_id) else "its command id contains NUL or a lone surrogate"


def _event_refusal(event: NewEvent) -> str | None:
    if len(event.event_id) != EVENT_ID_BYTES:
        return f"its id has {len(event.event_id)} bytes instead of {EVENT_ID_BYTES}"
    if not is_storable(event.type):
        return "its type contains NUL or a lone surrogate"
    if not 1 <= event.version <= VERSION_MAX:
        return f"its version {event.version} is not from 1 to {VERSION_MAX}"
    return _content_refusal("data", event.data) or _content_refusal("metadata", event.metadata) or _tags_refusal(event)


def _content_refusal(what: str, content: bytes) -> str | None:
    if len(content) > EVENT_BYTES_MAX:
        return f"its {what} has {len(content)} bytes, more than EVENT_BYTES_MAX={EVENT_BYTES_MAX}"
    return f"its {what} contains NUL" if b"\0" in content else None


def _tags_refusal(event: NewEvent) -> str | None:
    tags = event.tags
    if len(tags) > EVENT_TAGS_MAX:
        return f"{len(tags)} tags are more than EVENT_TAGS_MAX={EVENT_TAGS_MAX}"
    for tag in tags:
        if not is_storable(tag):
            return f"its tag {tag!r} contains NUL or a lone surrogate"
        if len(tag) * 4 > TAG_BYTES_MAX and len(tag.encode()) > TAG_BYTES_MAX:
            return f"its tag {tag[:32]!r}… has more than TAG_BYTES_MAX={TAG_BYTES_MAX} bytes"
    if len(tags) > 1 and len(set(tags)) < len(tags):
        return "it carries a tag twice"
    return None
