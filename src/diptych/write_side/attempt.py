"""One command on its way to its outcome, and what may become of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from diptych.event_store.event_store import Commit, KeptOutcome
from diptych.event_store.position import Position
from diptych.messages.command import Command, CommandContext
from diptych.messages.envelope import Envelope
from diptych.messages.rejected import Rejected
from diptych.write_side.command_handler import CommandHandler, Decided, ModelKey
from diptych.write_side.decision_model import Folded
from diptych.write_side.idempotency import Receipt
from diptych.write_side.model_cache import RecentEvent

__all__ = ["Attempt", "Decision", "Draft", "Lost", "Outdated", "Superseded", "Unfolded", "UnfoldedModels"]


class Lost(NamedTuple):
    """The decision did not hold: an event at this position came between."""

    position: Position


class Outdated(NamedTuple):
    """The command was not decided: its models changed, or may have, in a way that cannot be told without reading."""


class Superseded(NamedTuple):
    """The command was decided by unions of models that are not those kept: its outcome is not known, and not judged."""


class Unfolded(NamedTuple):
    """The command is decided, but not what its events make of these models, whose states are kept."""

    keys: Sequence[ModelKey]


Decision: TypeAlias = Receipt | Rejected | KeptOutcome | Lost | Outdated
"""What becomes of an attempt, where it does not fail; `KeptOutcome`: it is a duplicate."""
Outcome: TypeAlias = Decision | Superseded | Unfolded


class Attempt:
    """One command on its way to its outcome.

    Attributes:
        stands: what was read for it, by model; the cache may know better by the time it is decided.
        changes: the models whose states the events of its last decision change (rule 24).
        others: those of them that were read for it, since nobody knew them.
        decided: where it was decided before it was submitted (handlers that are not pure).
        based_on: nothing that it is decided on may have changed since then; None where its caller asks for no such.
        dry_run: it is decided and judged like any other, and nothing is appended.
        forks: `EventStore.forks` before anything of that was read.
        models: `KnownModels.mark` before anything of that was read.
        outcome: what became of it; or an exception, where it failed.
    """

    __slots__ = (
        "based_on", "broken", "caller_gave_id", "changes", "command", "context", "decided", "dry_run", "envelope",
        "forks", "handler", "models", "others", "outcome", "payload_hash", "stands",
    )  # fmt: skip

    def __init__(
        self,
        handler: CommandHandler,
        command: Command,
        context: CommandContext,
        envelope: Envelope,
        payload_hash: bytes,
        *,
        caller_gave_id: bool,
        dry_run: bool = False,
    ) -> None:
        """A command that no outcome has been found for; the loop is running."""
        self.handler = handler
        self.command = command
        self.context = context
        self.envelope = envelope
        self.payload_hash = payload_hash
        self.caller_gave_id = caller_gave_id
        self.dry_run = dry_run
        self.stands: dict[ModelKey, Folded] = {}
        self.changes: Sequence[ModelKey] = ()
        self.others: dict[ModelKey, Folded] = {}
        self.decided: Decided | None = None
        self.based_on: Position | None = None
        self.broken = 0
        self.forks = 0
        self.models = b""
        self.await_outcome()

    def await_outcome(self) -> None:
        """Be ready for an outcome, or for the next one."""
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        """End it with an error, unless its caller has gone."""
        if not self.outcome.done():
            self.outcome.set_exception(error)

    def end(self, outcome: Outcome) -> None:
        """End it, unless its caller has gone."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Draft(msgspec.Struct, frozen=True):
    """A decided command, ready to be appended.

    Attributes:
        events: those of the commit.
        decided: what its caller is told: the same but for a dry run, whose commit has none.
        left: models after it, as its commit keeps them.
    """

    attempt: Attempt
    stands: Mapping[ModelKey, Folded]
    commit: Commit
    events: Sequence[RecentEvent]
    decided: Sequence[RecentEvent]
    rejected: Rejected | None
    left: Mapping[ModelKey, Folded]


class UnfoldedModels(Exception):
    """The command's events change models that have to be read first; see `Unfolded`."""

    def __init__(self, keys: Sequence[ModelKey]) -> None:
        self.keys = keys
        super().__init__(", ".join(fold.name for fold, _ in keys))
