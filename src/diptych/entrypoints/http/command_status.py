"""`GET /commands/{id}`: how far a command is, of one that was accepted, and of every one whose outcome is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from diptych.application.application import Application
from diptych.entrypoints.http.problems import (
    MALFORMED_QUERY_STRING,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    RETRY_SOON_S,
    Problem,
)
from diptych.entrypoints.http.reply import Header, Reply
from diptych.errors import ConfigurationError, UnknownMessage
from diptych.messages.codec import encode
from diptych.process_managers.scheduled_commands import CommandStatus, Scheduled
from diptych.write_side.idempotency import Receipt

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["COMMANDS", "StatusEndpoint", "accepted_reply", "receipt_json"]

COMMANDS = "/commands/"
PARTITION = "partition"
"""The field of the query string that names the partition of a command."""


def receipt_json(receipt: Receipt) -> bytes:
    """A receipt as it is replied: its events are for queries to show."""
    return b'{"command_id":%b,"position":%d,"token":"%b"}' % (
        encode(receipt.command_id),
        receipt.position,
        receipt.token.encode(),
    )


def accepted_reply(scope: Scope, accepted: Scheduled) -> Reply:
    """The reply to a command that was accepted: where its status is."""
    location = f"{scope.get('root_path', '')}{COMMANDS}{quote(accepted.command_id, safe='')}"
    if accepted.partition:
        location += f"?{PARTITION}={quote(accepted.partition, safe='')}"
    headers: list[Header] = [(b"location", quote(location, safe="/%?=").encode()), _APPLIED]
    return Reply(202, encode({"command_id": accepted.command_id, "state": "accepted"}), headers)


class StatusEndpoint:
    """`GET /commands/{id}`, and `?partition=…` where there are several."""

    def __init__(self, application: Application, command_id: str) -> None:
        self._application = application
        self._command_id = command_id

    async def __call__(self, scope: Scope, _receive: Receive, /) -> Reply:
        """How far it is; a problem where nothing is known under that id."""
        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(METHOD_NOT_ALLOWED, "Use GET", headers=((b"allow", b"GET, HEAD"),))
        status = await self._status(_partition(scope["query_string"]))
        if status is None:
            raise self._nothing()
        headers: list[Header] = [(b"cache-control", b"no-cache")]
        if status.state in ("accepted", "running"):
            headers.append((b"retry-after", b"%d" % RETRY_SOON_S))
        body: dict[str, Any] = {"command_id": status.command_id, "state": status.state}
        if status.due_at is not None:
            body |= {"command": status.command, "due_at": status.due_at, "attempts": status.attempts}
        if status.expires_at is not None:
            body["expires_at"] = status.expires_at
        if status.state == "rejected":
            body["rejection"] = {"code": status.code, "facts": status.facts}
        if status.receipt is not None:
            token = status.receipt.token
            body["receipt"] = {"command_id": status.command_id, "position": status.receipt.position, "token": token}
            headers.append((b"consistency-token", token.encode()))
        return Reply(200, encode(body), headers)

    async def _status(self, partition: str) -> CommandStatus | None:
        try:
            found = self._application.partition(partition)
        except ConfigurationError:
            return None
        return await found.scheduled.status(self._command_id)

    def _nothing(self) -> Problem:
        """The name of a command is the id of none, but for those who give them such ids."""
        try:
            self._application.commands.find(self._command_id)
        except UnknownMessage:
            return Problem(NOT_FOUND, "No command was accepted or executed under this id, here")
        return Problem(METHOD_NOT_ALLOWED, "Use POST", headers=((b"allow", b"POST"),))


_APPLIED: Header = (b"preference-applied", b"respond-async")


def _partition(query_string: bytes) -> str:
    """The partition that a query string names; empty where it names none.

    Raises:
        Problem: it says anything else.
    """
    try:
        found = parse_qsl(query_string.decode(), keep_blank_values=True, strict_parsing=bool(query_string))
    except ValueError:
        found = [("", "")]
    if len(found) > 1 or (found and found[0][0] != PARTITION):
        raise Problem(MALFORMED_QUERY_STRING, f"Of a command's status it is {PARTITION}=<name>, or empty")
    return found[0][1] if found else ""
