"""One command id, one outcome (G4): what is kept of a command, and how it is heard again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from diptych.errors import CommandIdReused, InvalidMessage
from diptych.event_store.event_store import COMMAND_ID_CHARACTERS_MAX, KeptOutcome
from diptych.event_store.position import Place, Token
from diptych.messages.codec import decode, encode, to_plain
from diptych.messages.event import Event
from diptych.messages.rejected import Rejected

__all__ = ["Receipt", "check_command_id", "check_payload", "encode_rejection", "receipt", "rejection"]


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What a command gives: where it took effect, never state.

    Attributes:
        command_id: the id it was executed under; its outcome is kept under it.
        place: of its last event or, where it had none, of the head at which that was decided.
        events: what happened, in order, may be empty.
    """

    command_id: str
    place: Place
    events: tuple[Event, ...] = ()

    @property
    def position(self) -> int:
        """The position of its last event or, where it had none, the head at which that was decided."""
        return self.place.position

    @property
    def token(self) -> str:
        """The consistency token: give it to `query(after=...)` to read what this command has written."""
        return str(Token(self.place.position, self.place))


class _Refusal(msgspec.Struct, frozen=True):
    code: str
    facts: dict[str, Any]


def encode_rejection(rejected: Rejected) -> bytes:
    """A rejection as it is kept.

    Raises:
        TypeError: a fact is nothing that JSON can say.
        ValueError: a fact holds a lone surrogate or the like.
    """
    return encode(_Refusal(rejected.code, to_plain(rejected.facts)))


def rejection(kept: bytes) -> Rejected:
    """The rejection as every caller hears it: the first and those who repeat it alike."""
    refusal = decode(kept, _Refusal)
    return Rejected(refusal.code, **refusal.facts)


def check_payload(kept: KeptOutcome, payload_hash: bytes) -> None:
    """Compare a command with the one whose outcome is kept under its id.

    Raises:
        CommandIdReused: it is another command.
    """
    if kept.payload_hash != payload_hash:
        raise CommandIdReused(kept.command_id)


def check_command_id(command_id: str) -> None:
    """Refuse ids that no store could keep.

    Raises:
        InvalidMessage: not 1 to 128 printable characters.
    """
    if not (0 < len(command_id) <= COMMAND_ID_CHARACTERS_MAX and command_id.isprintable()):
        problem = f"a command id has 1 to {COMMAND_ID_CHARACTERS_MAX} printable characters"
        raise InvalidMessage("command id", [("$", problem)])


def receipt(kept: KeptOutcome, events: Sequence[Event]) -> Receipt:
    """The receipt as it was given first."""
    return Receipt(command_id=kept.command_id, place=kept.place, events=tuple(events))
