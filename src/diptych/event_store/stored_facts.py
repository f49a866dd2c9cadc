"""Facts of event types as bytes, the same for every store: equal facts are equal bytes."""

from __future__ import annotations

import msgspec

from diptych.event_store.event_store import TypeFacts
from diptych.messages.codec import encode_canonical

__all__ = ["decode_facts", "encode_facts"]

_decoder = msgspec.json.Decoder(TypeFacts)


def encode_facts(facts: TypeFacts | None) -> bytes | None:
    """As they are stored; None where they are not known."""
    return None if facts is None else encode_canonical(facts)


def decode_facts(data: bytes | None) -> TypeFacts | None:
    """As they were stored; None where they are not known."""
    return _decoder.decode(data) if data else None
