"""Reminders: a small domain for tests of commands in time, in which every way that a command may go is one line."""

from __future__ import annotations

import asyncio
from collections import Counter

from diptych import BoundedContext, Command, CommandContext, Event, Identity, Rejected
from diptych.security import requires

__all__ = ["Gate", "Note", "NoteId", "Noted", "Remind", "Reminded", "Slow", "Sneak", "reminders"]


class NoteId(Identity): ...


class Remind(Command):
    """Rejected where the text is "no"."""

    note: NoteId
    text: str = ""


class Slow(Command):
    """Waits at the gate before it is decided; fails there where the note is "fail"."""

    note: NoteId


class Note(Command):
    """Requires a scope."""

    note: NoteId


class Sneak(Command):
    """Requires no scope, and says who sent it."""

    note: NoteId


class Reminded(Event):
    note: NoteId


class Noted(Event):
    note: NoteId
    actor: str
    scopes: tuple[str, ...]
    trusted: bool
    reason: str


class Gate:
    """Where `Slow` waits.

    Attributes:
        mended: whether "fail" does not fail any more.
        tried: how often each note was tried.
    """

    def __init__(self) -> None:
        self.arrived, self.open = asyncio.Event(), asyncio.Event()
        self.mended = False
        self.tried: Counter[str] = Counter()


def reminders(scope: str = "notes:write", *, slow: bool = True) -> BoundedContext:
    """The context, whose `Note` requires a scope; and whether it handles `Slow`, for which it takes a `Gate`."""
    context = BoundedContext("reminders")

    @context.command_handler
    def remind(command: Remind) -> Reminded:
        if command.text == "no":
            raise Rejected("not-now", note=command.note)
        return Reminded(note=command.note)

    @context.command_handler
    @requires(scope)
    def note(command: Note, context: CommandContext) -> Noted:
        return told(command.note, context)

    @context.command_handler
    def sneak(command: Sneak, context: CommandContext) -> Noted:
        return told(command.note, context)

    if slow:
        context.command_handler(_slow)
    return context


async def _slow(command: Slow, gate: Gate) -> Reminded:
    gate.tried[command.note] += 1
    gate.arrived.set()
    await gate.open.wait()
    if command.note == "fail" and not gate.mended:
        raise RuntimeError("out of order")
    return Reminded(note=command.note)


def told(note: NoteId, context: CommandContext) -> Noted:
    scopes = tuple(sorted(context.scopes))
    return Noted(
        note=note, actor=context.actor or "", scopes=scopes, trusted=context.trusted, reason=context.reason or ""
    )
