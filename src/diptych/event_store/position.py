"""Places in one history, and the tokens that carry them.

A store has one history: events at positions 1, 2, 3 …, known by the store's history id. A copied file or a restored
backup may go on as another history under the same id. So whatever carries a position from one moment to a later one
(tokens, checkpoints, cursors) carries the id of the event there as well, and is checked before it is trusted.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import NewType

import msgspec

from diptych.errors import HistoryDiverged, InvalidMessage

__all__ = ["NOWHERE", "START", "TOKENS_MAX", "Place", "Position", "Token", "read_tokens", "said"]

Position = NewType("Position", int)
"""The place of an event in its history: 1, 2, 3 … without gaps, in commit order. 0 is before the first."""

POSITION_MAX = (1 << 63) - 1
"""The last position that any store can hold."""
START = Position(0)
"""Before the first event."""
NOWHERE = b"\0" * 16
"""What stands for the event id at position 0."""


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A position, and proof of the history it is in.

    Attributes:
        history_id: 16 bytes, made with the store.
        position: from 0.
        event_id: the id of the event at the position; `NOWHERE` at 0.
    """

    history_id: bytes
    position: Position
    event_id: bytes

    def __repr__(self) -> str:
        return f"Place({self.position}, history={self.history_id.hex()[:8]}…, event={self.event_id.hex()[:8]}…)"

    def check(self, history_id: bytes, event_id: bytes | None, what: str) -> None:
        """Compare with what the store holds: its history id, and its event id at this position (None past the head).

        Raises:
            HistoryDiverged: they differ.
        """
        if self.history_id != history_id:
            raise HistoryDiverged(what, "the store has another history id; was it replaced?")
        if event_id is None:
            raise HistoryDiverged(what, f"the store ends before position {self.position}; was a backup restored?")
        if event_id != self.event_id:
            raise HistoryDiverged(what, f"another event is at position {self.position}; did a copy go its own way?")


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What an answer shows, or what a command has done: a span of positions over what was touched.

    Attributes:
        low: every read model that was touched shows at least this.
        high: no read model that was touched shows more than this.
    """

    low: Position
    high: Place

    def __str__(self) -> str:
        """The token as opaque text: letters, digits, - and _."""
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).rstrip(b"=").decode()


TOKENS_MAX = 1_000
"""Histories that one text of tokens may name."""
SEPARATOR = ","
"""Between the tokens of several histories; in an HTTP field it makes a list, too (RFC 9110, section 5.6.1)."""

_decoder = msgspec.msgpack.Decoder(Token)


def said(tokens: Iterable[Token]) -> str:
    """Tokens as one text, each of a history of its own."""
    return SEPARATOR.join(map(str, tokens))


def read_tokens(text: str) -> list[Token]:
    """The tokens in a text, at least one: those of an answer, or of several, with commas between them.

    Raises:
        InvalidMessage: they are no tokens, or more than `TOKENS_MAX`.
    """
    parts = text.split(SEPARATOR, TOKENS_MAX)
    if len(parts) > TOKENS_MAX:
        raise InvalidMessage("consistency token", [("$", f"at most {TOKENS_MAX} tokens are read at once")])
    return [_read(part.strip()) for part in parts]


def _read(text: str) -> Token:
    try:
        raw = text.encode("ascii")
        token = _decoder.decode(base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)))
        if 0 <= token.low <= token.high.position <= POSITION_MAX:
            return token
        raise ValueError("positions beyond any history")
    except (UnicodeError, ValueError, msgspec.MsgspecError) as error:
        raise InvalidMessage("consistency token", [("$", "this is no token that Diptych gave out")]) from error
