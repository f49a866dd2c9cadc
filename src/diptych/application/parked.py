"""What waits for somebody: events, process steps and commands that failed, in one place (G9, G10).

Each kind of it has a source, `ParkedSource`, which knows where it is kept, and how it is helped on. This place lists
them together, finds them by ids that can be typed, and sees to it that everything done by hand says who and why.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from diptych.errors import ConfigurationError, InvalidMessage
from diptych.messages.codec import decode, encode
from diptych.security import Actor, actor_of, check_reason

__all__ = [
    "ByHand",
    "Cursor",
    "Dealt",
    "Decision",
    "Discarded",
    "Discards",
    "Parked",
    "ParkedDetails",
    "ParkedItem",
    "ParkedPage",
    "ParkedSource",
    "at_hand",
    "parked_id",
    "position_in",
]

PARKED_PAGE_MAX = 100
"""Parked items, or discarded ones, in one page."""
RETRIES_SHOWN_MAX = 20
"""Retries by hand that are shown with an item: the latest."""

Cursor: TypeAlias = tuple[str, ...]
"""A place in the order of one source, behind which a page begins; empty: the beginning."""

_OF_EVENT = re.compile(r"([1-9][0-9]{0,18})-[0-9a-f]{8}")


class ParkedItem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that failed and waits for somebody, as it is listed.

    Attributes:
        id: by which it is shown, retried and discarded: "event-17-9c3f01aa"; of a scheduled command "scheduled-" and
            its id. The same for as long as it waits.
        kind: "event", which a projection cannot fold; "delivery", an event that a subscriber fails to take; "step", one
            that a process cannot react to; "command" or "timeout" of a process, which was given up; "scheduled", a
            command that is executed later, which was given up.
        type: the stored name of the event, or the name of the command.
        name: of the read model, subscriber or process, with its context; of a scheduled command "(scheduled)".
        key: of the row, as a JSON array; or the instance; of a delivery "[]"; of a scheduled command its id.
        error: how it failed last, in one line.
        attempts: how often it has failed since it was last begun with; those by hand included.
        since: when the event was recorded that it is about, or that the command is a reaction to;
            of a scheduled command, when it was accepted.
        position: of that event; 0 where there is none.
    """

    id: str
    kind: str
    type: str
    name: str
    key: str
    error: str
    attempts: int
    since: datetime
    position: int


class ByHand(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did by hand.

    Attributes:
        actor: who; None where it was not kept.
        reason: why; may be empty where it was not asked for.
        at: when; None where it was not kept.
    """

    actor: str | None
    reason: str
    at: datetime | None


class ParkedDetails(ParkedItem, frozen=True, kw_only=True):
    """All that is known of a parked item.

    Attributes:
        data: the fields of the event or command, as JSON reads them.
        trace: the stack trace, without values of variables; empty where there is none.
        retries: by hand, the latest first; at most `RETRIES_SHOWN_MAX`.
    """

    data: Mapping[str, Any]
    trace: str
    retries: Sequence[ByHand] = ()


class ParkedPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of parked items.

    Attributes:
        items: may be empty.
        next: the cursor of the next page; empty where there is none.
    """

    items: Sequence[ParkedItem]
    next: str = ""


class Discarded(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was left out for good, by hand.

    Attributes:
        kind: as of `ParkedItem`; so are type, name and key.
        position: of the event that is left out; of a command or timeout, of the event that says that it is dropped;
            of a scheduled command 0.
        by: who, why and when.
    """

    kind: str
    type: str
    name: str
    key: str
    position: int
    by: ByHand


class Discards(msgspec.Struct, frozen=True, kw_only=True):
    """A page of what was discarded; see `ParkedPage`."""

    items: Sequence[Discarded]
    next: str = ""


class Dealt(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a retry or a discard.

    Attributes:
        id: of the item.
        position: of the event in the history that says so, which the worker of the process takes in soon after; 0 where
            it was done at once, and is kept with the read models, or with the commands that are executed later.
        command_id: of a scheduled command, the id that it is executed under from now on: another one if it was edited;
            empty of all else.
        still: what the same key waits behind now; None where it goes on.
    """

    id: str
    position: int = 0
    command_id: str = ""
    still: ParkedItem | None = None


class Decision(NamedTuple):
    """Who helps something on by hand, and why: both were checked."""

    actor: str
    reason: str


class ParkedSource(Protocol):
    """Where some kinds of parked items are kept."""

    @property
    def kinds(self) -> Collection[str]:
        """The kinds that it has, lower-case words."""
        ...

    async def page(self, kinds: Collection[str], after: Cursor, limit: int) -> Sequence[tuple[Cursor, ParkedItem]]:
        """The next `limit` items of these kinds behind a cursor, in one order, each with the cursor behind it."""
        ...

    async def find(self, which: str) -> Sequence[ParkedDetails]:
        """What has an id that may be this behind the kind; may be empty. Without what was retried."""
        ...

    async def retries(self, item: ParkedDetails, limit: int) -> Sequence[ByHand]:
        """The latest retries of an item by hand."""
        ...

    async def retry(self, item: ParkedDetails, edited: Mapping[str, Any] | None, by: Decision) -> Dealt:
        """Try it again, with other fields where some are given.

        Raises:
            ConfigurationError: this kind has no fields to edit, or it is not parked any more.
        """
        ...

    async def discard(self, item: ParkedDetails, by: Decision) -> Dealt:
        """Leave it out for good."""
        ...

    async def discarded(self, after: Cursor, limit: int) -> Sequence[tuple[Cursor, Discarded]]:
        """What was discarded, in one order, each with the cursor behind it."""
        ...


T = TypeVar("T")
_Fetch: TypeAlias = Callable[[ParkedSource, Cursor, int], Awaitable[Sequence[tuple[Cursor, T]]]]


class Parked:
    """What failed and waits for somebody, of one history. Made by the application.

    Args:
        sources: whose kinds differ, in the order in which they are listed.

    Attributes:
        sources: the same.
    """

    def __init__(self, sources: Sequence[ParkedSource]) -> None:
        self.sources = tuple(sources)

    async def list(self, *, kind: str | None = None, after: str = "", limit: int = PARKED_PAGE_MAX) -> ParkedPage:
        """A page of what is parked: by kind, then by name and key.

        Args:
            kind: of this one alone.
            after: the cursor of the page before; empty for the first page.
            limit: at most so many, up to `PARKED_PAGE_MAX`.

        Raises:
            ConfigurationError: there is no such kind.
            InvalidMessage: the cursor or the limit is none.
        """
        wanted = self._kinds(kind)

        async def fetch(source: ParkedSource, begin: Cursor, count: int) -> Sequence[tuple[Cursor, ParkedItem]]:
            return await source.page(wanted, begin, count) if wanted & {*source.kinds} else ()

        items, following = await self._paged(fetch, after, limit)
        return ParkedPage(items=items, next=following)

    async def show(self, item_id: str) -> ParkedDetails:
        """All that is known of an item: its fields, its stack trace, and who had it tried again.

        Raises:
            ConfigurationError: nothing of this id is parked.
        """
        source, item = await self._find(item_id)
        return msgspec.structs.replace(item, retries=await source.retries(item, RETRIES_SHOWN_MAX))

    async def retry(
        self, item_id: str, *, actor: Actor | str, reason: str, edited: Mapping[str, Any] | None = None
    ) -> Dealt:
        """Try an item again. Who and why is kept.

        Args:
            item_id: its id, as listed.
            actor: who wants it.
            reason: why, in one line of 1 to 500 characters.
            edited: of a command, the fields that are others now, by name; the rest stay. It then has another id.

        Raises:
            ConfigurationError: nothing of this id is parked, or it has no fields that could be edited.
            InvalidMessage: a field is of the wrong type or unknown; or the actor, or the reason, is none.
        """
        by = _decision(actor, reason)
        source, item = await self._find(item_id)
        return await source.retry(item, edited, by)

    async def discard(self, item_id: str, *, actor: Actor | str, reason: str) -> Dealt:
        """Leave an item out for good. Who and why is kept.

        The row is folded without the event, also by rebuilds; the instance goes on behind it; the command or timeout
        does not go out; a scheduled command is rejected as "discarded".

        Raises:
            ConfigurationError: nothing of this id is parked.
            InvalidMessage: the actor, or the reason, is none.
        """
        by = _decision(actor, reason)
        source, item = await self._find(item_id)
        return await source.discard(item, by)

    async def discarded(self, *, after: str = "", limit: int = PARKED_PAGE_MAX) -> Discards:
        """A page of what was discarded, with who, why and when; arguments and errors as of `list`."""

        async def fetch(source: ParkedSource, begin: Cursor, count: int) -> Sequence[tuple[Cursor, Discarded]]:
            return await source.discarded(begin, count)

        items, following = await self._paged(fetch, after, limit)
        return Discards(items=items, next=following)

    async def _paged(self, fetch: _Fetch[T], after: str, limit: int) -> tuple[Sequence[T], str]:
        """Items of one source after the other, behind a cursor; and the cursor behind them, empty at the end."""
        if not 1 <= limit <= PARKED_PAGE_MAX:
            raise InvalidMessage("limit", [("$", f"it is 1 to PARKED_PAGE_MAX={PARKED_PAGE_MAX}")])
        first, begin = _read_cursor(after, len(self.sources))
        items: list[T] = []
        for number, source in list(enumerate(self.sources))[first:]:
            found = await fetch(source, begin, limit + 1 - len(items))
            items += [item for _, item in found]
            if len(items) > limit:
                before = found[-2][0] if len(found) > 1 else begin
                return items[:limit], _cursor(number, before)
            begin = ()
        return items, ""

    def _kinds(self, kind: str | None) -> set[str]:
        known = {found for source in self.sources for found in source.kinds}
        if kind is None:
            return known
        if kind not in known:
            raise ConfigurationError(f"there is no kind {kind!r} of parked items; there are {', '.join(sorted(known))}")
        return {kind}

    async def _find(self, item_id: str) -> tuple[ParkedSource, ParkedDetails]:
        kind, _, which = item_id.partition("-")
        for source in self.sources:
            if kind in source.kinds:
                for item in await source.find(which):
                    if item.id == item_id:
                        return source, item
        raise ConfigurationError(f"nothing is parked as {item_id!r}; see `diptych parked list`")


def parked_id(kind: str, position: int, *which: str) -> str:
    """The id of a parked item: short enough to be typed, and the same for as long as it waits.

    Args:
        kind: of the item.
        position: of the event that it is about.
        which: what tells it from others of its kind there.
    """
    told = hashlib.blake2b("\0".join(which).encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{kind}-{position}-{told}"


def position_in(which: str) -> int | None:
    """The position in an id of `parked_id`, behind its kind; None where it is none."""
    match = _OF_EVENT.fullmatch(which)
    return None if match is None else int(match[1])


def at_hand(details: ParkedDetails) -> ParkedItem:
    """An item as it is listed."""
    return ParkedItem(**{name: getattr(details, name) for name in ParkedItem.__struct_fields__})


def _decision(actor: Actor | str, reason: str) -> Decision:
    name = actor_of(actor).name
    if name is None:
        raise InvalidMessage("actor", [("$", "what is done by hand says who does it")])
    return Decision(name, check_reason(reason))


def _cursor(source: int, place: Cursor) -> str:
    """A cursor as text: opaque, and free of what a shell would take for its own."""
    return base64.urlsafe_b64encode(encode([source, *place])).decode().rstrip("=")


def _read_cursor(text: str, sources: int) -> tuple[int, Cursor]:
    if not text:
        return 0, ()
    try:
        source, *place = decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), list[Any])
    except (InvalidMessage, ValueError, binascii.Error):
        source, place = None, []
    if type(source) is not int or not 0 <= source < sources or not all(isinstance(part, str) for part in place):
        raise InvalidMessage("cursor", [("$", "it is the `next` of a page before")])
    return source, tuple(place)
