"""Replies: what goes back, as raw ASGI messages, which costs half of what a response object does."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from starlette.types import Send

__all__ = ["JSON", "Header", "Reply", "entity_tag", "is_known", "send_reply"]

Header = tuple[bytes, bytes]
JSON = b"application/json"
HASH_BYTES = 16
"""Bytes of the hash in an entity tag."""


class Reply(NamedTuple):
    """A response that is complete."""

    status: int
    body: bytes
    headers: list[Header]
    content_type: bytes = JSON


async def send_reply(send: Send, reply: Reply, *, with_body: bool = True) -> None:
    """Send a response; without its body where HEAD asked for it, or there is none (304)."""
    headers = reply.headers
    if reply.status != 304:
        headers = [(b"content-type", reply.content_type), (b"content-length", b"%d" % len(reply.body)), *headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body if with_body else b""})


def entity_tag(body: bytes, token: str) -> str:
    """The ETag of an answer: the hash of what it shows, and the token that a command can be based on (rule 29)."""
    return f'"{blake2b(body, digest_size=HASH_BYTES).hexdigest()}.{token}"'


def is_known(tag: str, if_none_match: str) -> bool:
    """Whether a client that sends this `If-None-Match` has what the tag stands for.

    Only the hashes are compared: the token moves with every event, also with those that change nothing here.
    """
    shown = tag.partition(".")[0]
    return any(
        known == "*" or known.removeprefix("W/").partition(".")[0] == shown
        for known in (part.strip() for part in if_none_match.split(","))
    )
