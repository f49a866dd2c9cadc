"""Calls of commands, drawn by properties: to one of two buses, late, sent twice, on what a screen showed, only asked.

Whoever draws them says what a history makes of a command; here is how a call is made, and what its caller heard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from anyio.lowlevel import checkpoint
from hypothesis import strategies as st

from diptych import Command, Conflict, ContextChanged, Rejected, Verdict
from diptych.errors import NotPure
from diptych.event_store.event_store import EventStore
from diptych.event_store.position import Position, Token
from diptych.write_side import model_cache
from diptych.write_side.command_bus import CommandBus, Sender
from diptych.write_side.idempotency import Receipt


@dataclass(frozen=True)
class Call:
    """One command on its way.

    Attributes:
        bus: which of two buses executes it.
        turns: how many turns of the event loop it comes later.
        with_id: whether it has an id, and is sent again at the end.
        back: how far before the head the answer was that it is based on; None where it is based on none.
        dry_run: whether it is only asked what would come of it.
    """

    command: Command
    bus: int
    turns: int
    with_id: bool
    back: int | None
    dry_run: bool


def calls_of(commands: st.SearchStrategy[Command]) -> st.SearchStrategy[Call]:
    """Calls of any of these commands: a fourth of them is only asked, two fifths are based on an answer."""
    return st.builds(
        Call,
        commands,
        st.integers(0, 1),
        st.integers(0, 8),
        st.booleans(),
        st.sampled_from([None, None, None, 0, 2]),
        st.sampled_from([False, False, False, True]),
    )


@dataclass(frozen=True)
class Answer:
    """What came of a call.

    Attributes:
        before: the head when it was sent.
        after: the head when it was answered.
    """

    call: Call
    command_id: str | None
    before: int
    after: int
    outcome: Receipt | Verdict | Exception

    @property
    def basis(self) -> int:
        """The position that the command was based on."""
        return max(0, self.before - (self.call.back or 0))


async def told(store: EventStore, bus: CommandBus, call: Call, command_id: str | None) -> Answer:
    """Make a call."""
    for _ in range(call.turns):
        await checkpoint()
    before = (await store.head()).position
    answer = Answer(call, command_id, before, before, Conflict("", 0, 0))
    basis = [] if call.back is None else [await token_at(store, answer.basis)]
    outcome: Receipt | Verdict | Exception
    try:
        if call.dry_run:
            outcome = await bus.can(call.command, Sender(), basis)
        else:
            outcome = await bus.execute(call.command, command_id, Sender(), basis)
    except (Rejected, Conflict, ContextChanged, NotPure) as error:
        outcome = error
    return replace(answer, outcome=outcome, after=(await store.head()).position)


async def told_all(
    stores: Sequence[EventStore], buses: Sequence[CommandBus], calls: Sequence[Call], prefix: str
) -> list[Answer]:
    """Make these calls at the same time, each on its own bus; ids begin with the prefix."""
    jobs = [
        told(stores[call.bus], buses[call.bus], call, f"{prefix}-{n}" if call.with_id else None)
        for n, call in enumerate(calls)
    ]
    return await asyncio.gather(*jobs)


async def token_at(store: EventStore, position: int) -> Token:
    """The token of an answer that showed the history up to there."""
    place = await store.place_at(Position(position))
    assert place is not None
    return Token(place.position, place)


async def check_again(answers: Iterable[Answer], bus: CommandBus) -> None:
    """Whatever had an id and an outcome has the same one for ever (G4)."""
    for answer in answers:
        if answer.command_id is not None and not answer.call.dry_run and isinstance(answer.outcome, Receipt | Rejected):
            outcome: Receipt | Rejected
            try:
                outcome = await bus.execute(answer.call.command, answer.command_id, Sender())
            except Rejected as rejected:
                outcome = rejected
            assert _heard(outcome) == _heard(answer.outcome)


def _heard(outcome: Receipt | Rejected) -> object:
    return outcome if isinstance(outcome, Receipt) else (outcome.code, outcome.facts)


@contextmanager
def tail_limit(events: int) -> Iterator[None]:
    """So many events at most are read behind what a cache of models knows."""
    kept, model_cache.TAIL_EVENTS_MAX = model_cache.TAIL_EVENTS_MAX, events
    try:
        yield
    finally:
        model_cache.TAIL_EVENTS_MAX = kept
