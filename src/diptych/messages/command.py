"""Commands: what is wanted, in the imperative."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import datetime

import msgspec

from diptych.messages.message import Message

__all__ = ["Command", "CommandContext"]


class Command(Message, forbid_unknown_fields=True):
    """What is wanted: `class Enrol(Command): course: CourseId`. Handled by one command handler."""


class CommandContext(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a command handler may know beside the command and its models.

    Attributes:
        now: the time of the command, aware, in UTC; the same across the retries of one command.
        command_id: the command's id; the idempotency key for calls to the outside.
        actor: who wants it, where the entry point knows.
        reason: why, in the words of whoever wants it.
        scopes: what they may do; see `requires`.
        trusted: whether they may do everything, whatever the scopes: the application's own code does, and processes.
        correlation_id: what this command, and all that follows from it, belongs to.
        dry_run: whether it is only to be said what would come of it; for middlewares.
    """

    now: datetime
    command_id: str
    actor: str | None = None
    correlation_id: str | None = None
    dry_run: bool = False
    reason: str | None = None
    scopes: AbstractSet[str] = frozenset()
    trusted: bool = False
