"""Problems: every way in which a request can fail, as RFC 9457 problem details. The one table from errors to HTTP.

The `type` of a problem is stable: clients may branch on it. `detail` is prose for people.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException

from diptych.entrypoints.http.reply import Reply
from diptych.errors import (
    Blocked,
    CannotShowPast,
    CommandIdReused,
    Conflict,
    Forbidden,
    HistoryDiverged,
    InvalidMessage,
    NotFresh,
    NotPure,
    OutcomeUnknown,
    Overloaded,
    PastTooLong,
    StoreClosed,
    StoreUnavailable,
    Unavailable,
    UnknownMessage,
    Unstorable,
)
from diptych.messages.codec import encode
from diptych.messages.rejected import Rejected
from diptych.messages.unique_id import unique_id
from diptych.read_side.query_limits import QueryTimedOut, QueryTooCostly
from diptych.write_side.context_changed import ContextChanged

__all__ = ["Problem", "ProblemType", "by_status", "problem_of", "problem_reply", "problem_types"]

RETRY_SOON_S = 1
"""Seconds after which a client is told to try again, where waiting alone is likely to help."""
RETRY_LATER_S = 60
"""Seconds after which a client is told to try again, where somebody has to do something first."""
CONTENT_TYPE = b"application/problem+json"

_log = logging.getLogger("diptych.http")


class ProblemType(NamedTuple):
    """One kind of problem.

    Attributes:
        name: the last part of the `type` URI; stable.
        status: the HTTP status.
        title: the same for every problem of this type.
        members: the names of its further members, as in `problem_members`.
        retry_after_s: the `Retry-After` that it carries, if any.
    """

    name: str
    status: int
    title: str
    members: tuple[str, ...] = ()
    retry_after_s: int | None = None

    @property
    def uri(self) -> str:
        """The `type` of its problems."""
        return f"urn:diptych:problem:{self.name}"


MALFORMED_JSON = ProblemType("malformed-json", 400, "The body is no JSON", ("line", "column"))
MALFORMED_QUERY_STRING = ProblemType("malformed-query-string", 400, "The query string cannot be read")
INVALID_HEADER = ProblemType("invalid-header", 400, "A header field has a value that it cannot have", ("header",))
UNAUTHORIZED = ProblemType("unauthorized", 401, "Who sends this is not known")
FORBIDDEN = ProblemType("forbidden", 403, "Who sends this may not do it", ("missing",))
NOT_FOUND = ProblemType("not-found", 404, "Nothing is here")
UNKNOWN_MESSAGE = ProblemType("unknown-message", 404, "No such command or query is handled here", ("name", "close"))
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "This is not done with that method")
BODY_TIMEOUT = ProblemType("body-timeout", 408, "The body took too long to arrive")
REJECTED = ProblemType("rejected", 409, "The domain says no", ("code", "facts"))
UNKNOWN_TOKEN = ProblemType("unknown-token", 409, "The token is not of this history")
UNKNOWN_CURSOR = ProblemType("unknown-cursor", 409, "The cursor is not of this query", ("errors",))
CANNOT_SHOW_PAST = ProblemType("cannot-show-past", 409, "This cannot be shown as it was then")
PAST_TOO_LONG = ProblemType(
    "past-too-long", 409, "To show this as it was then is too much", ("limit_name", "limit", "reached", "wanted")
)
HISTORY_PRUNED = ProblemType("history-pruned", 410, "What this is made of is gone")
CONTEXT_CHANGED = ProblemType("context-changed", 412, "What this is decided on has changed since", ("events", "more"))
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "The body is too large", ("limit_bytes",))
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The body must be JSON in UTF-8")
INVALID_MESSAGE = ProblemType("invalid-message", 422, "Fields are wrong, missing or unknown", ("errors",))
COMMAND_ID_REUSED = ProblemType(
    "command-id-reused", 422, "The idempotency key was used for something else", ("command_id",)
)
QUERY_TOO_COSTLY = ProblemType("query-too-costly", 422, "This asks for more rows than it may", ("query", "rows"))
NOT_PURE = ProblemType("not-pure", 422, "What would come of this cannot be said without doing it", ("command",))
UNSTORABLE = ProblemType("unstorable", 422, "This would make an event that cannot be stored", ("id",))
INTERNAL = ProblemType("internal", 500, "Something went wrong here", ("id",))
CONFLICT = ProblemType("conflict", 503, "Others changed what this was decided on", ("attempts",), RETRY_SOON_S)
OVERLOADED = ProblemType("overloaded", 503, "Too much is waiting", ("limit_name", "limit"), RETRY_SOON_S)
STORE_UNAVAILABLE = ProblemType("store-unavailable", 503, "The store cannot be reached", (), RETRY_SOON_S)
OUTCOME_UNKNOWN = ProblemType(
    "outcome-unknown", 503, "The command may or may not have taken effect", ("command_id",), RETRY_SOON_S
)
QUERY_TIMED_OUT = ProblemType(
    "query-timed-out", 503, "The answer took longer than it may", ("query", "seconds"), RETRY_LATER_S
)
NOT_FRESH = ProblemType(
    "not-fresh", 503, "What was asked for is not shown yet", ("read_model", "wanted", "reached"), RETRY_SOON_S
)
BLOCKED = ProblemType(
    "blocked",
    503,
    "What was asked for waits behind an event that cannot be folded",
    ("read_model", "keys"),
    RETRY_LATER_S,
)
UNAVAILABLE = ProblemType("unavailable", 503, "Not now", (), RETRY_SOON_S)
CLOSED = ProblemType("closed", 503, "This application is not open", (), RETRY_SOON_S)
NOT_READY = ProblemType("not-ready", 503, "This application is not ready", (), RETRY_SOON_S)

PROBLEM_TYPES = (
    MALFORMED_JSON, MALFORMED_QUERY_STRING, INVALID_HEADER, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, UNKNOWN_MESSAGE,
    METHOD_NOT_ALLOWED, BODY_TIMEOUT, REJECTED, UNKNOWN_TOKEN, UNKNOWN_CURSOR, CANNOT_SHOW_PAST, PAST_TOO_LONG,
    HISTORY_PRUNED, CONTEXT_CHANGED, BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE, INVALID_MESSAGE, COMMAND_ID_REUSED, QUERY_TOO_COSTLY,
    NOT_PURE, UNSTORABLE, INTERNAL, CONFLICT, OVERLOADED,
    STORE_UNAVAILABLE, OUTCOME_UNKNOWN, QUERY_TIMED_OUT, NOT_FRESH, BLOCKED, UNAVAILABLE, CLOSED, NOT_READY,
)  # fmt: skip

# From the error tree to HTTP: the first line that fits. A problem's members are the error's attributes of that name.
_OF_ERROR: tuple[tuple[type[Exception], ProblemType], ...] = (
    (Rejected, REJECTED),
    (Forbidden, FORBIDDEN),
    (InvalidMessage, INVALID_MESSAGE),
    (UnknownMessage, UNKNOWN_MESSAGE),
    (CommandIdReused, COMMAND_ID_REUSED),
    (NotPure, NOT_PURE),
    (QueryTooCostly, QUERY_TOO_COSTLY),
    (PastTooLong, PAST_TOO_LONG),
    (CannotShowPast, CANNOT_SHOW_PAST),
    (Conflict, CONFLICT),
    (ContextChanged, CONTEXT_CHANGED),
    (Overloaded, OVERLOADED),
    (StoreUnavailable, STORE_UNAVAILABLE),
    (OutcomeUnknown, OUTCOME_UNKNOWN),
    (QueryTimedOut, QUERY_TIMED_OUT),
    (NotFresh, NOT_FRESH),
    (Blocked, BLOCKED),
    (Unavailable, UNAVAILABLE),
    (HistoryDiverged, UNKNOWN_TOKEN),
    (StoreClosed, CLOSED),
)
_OF_STATUS = {404: NOT_FOUND, 405: METHOD_NOT_ALLOWED, 413: BODY_TOO_LARGE, 415: UNSUPPORTED_MEDIA_TYPE}


class Problem(Exception):
    """A request ends here.

    Attributes:
        type: what kind of problem it is.
        detail: what happened this time, and what to do about it.
        members: further members of the problem, by name.
        headers: further header fields of the response.
    """

    def __init__(
        self,
        type: ProblemType,
        detail: str,
        *,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        **members: object,
    ) -> None:
        self.type = type
        self.detail = detail
        self.members = members
        self.headers = headers
        super().__init__(detail)


def problem_types() -> Mapping[int, list[ProblemType]]:
    """Every kind of problem, by status."""
    found: dict[int, list[ProblemType]] = {}
    for type in PROBLEM_TYPES:
        found.setdefault(type.status, []).append(type)
    return found


def problem_of(error: Exception) -> Problem:
    """The problem that an error is to a client. What nobody foresaw is logged, under an id that the client gets."""
    if isinstance(error, Problem):
        return error
    for kind, type in _OF_ERROR:
        if isinstance(error, kind):
            members: dict[str, Any] = {
                name: _MEMBERS.get((type, name), _attribute(name))(error) for name in type.members
            }
            return Problem(type, _DETAILS.get(type) or str(error), **members)
    if isinstance(error, HTTPException):
        return by_status(error.status_code, error.detail, error.headers)
    if isinstance(error, Unstorable):
        # Sent again it fails again, and mostly by what was sent (an identity longer than a tag may be), so a 4xx; but
        # the handler took it, and whoever wrote that has to know.
        return Problem(
            UNSTORABLE, "Is a value in it too long? The log of the server has more, under this id.", id=_logged(error)
        )
    return Problem(INTERNAL, "The cause is in the log of the server, under this id.", id=_logged(error))


def by_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    """The problem for a status that a router or a middleware gave; `about:blank` (RFC 9457) where we have none."""
    type = _OF_STATUS.get(status) or ProblemType("", status, detail)
    given = tuple((name.lower().encode(), value.encode()) for name, value in (headers or {}).items())
    return Problem(type, detail, headers=given)


def problem_reply(problem: Problem) -> Reply:
    """The response to a request that ended in a problem."""
    type = problem.type
    body = {"type": type.uri if type.name else "about:blank", "title": type.title, "status": type.status}
    headers = list(problem.headers)
    if type.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % type.retry_after_s))
    return Reply(type.status, encode({**body, "detail": problem.detail, **problem.members}), headers, CONTENT_TYPE)


_DETAILS = {
    # What the user's code raised, and where, is not for clients.
    QUERY_TIMED_OUT: "It was stopped: ask for less, narrow it, or try again when there is less to do",
    QUERY_TOO_COSTLY: "Ask for a page of it, or narrow it; asked as it is it fails again",
    BLOCKED: "An event that this answer needs could not be folded; on the server, `diptych parked list` tells why",
    NOT_PURE: "Its handler is async or uses services, so that it may do something outside; execute it, or leave it",
    CONTEXT_CHANGED: "Nothing was done: ask again, look at what has changed, and decide anew",
}
"""Where it is not the error's text."""


def _attribute(name: str) -> Callable[[Any], object]:
    return lambda error: getattr(error, name)


def _field_errors(error: InvalidMessage) -> object:
    return [{"path": path, "message": text} for path, text in error.problems]


def _changes(error: ContextChanged) -> object:
    """Which events they are: what they say is for queries to show, to whom they may."""
    return [
        {"position": event.position, "type": event.type, "recorded_at": event.recorded_at} for event in error.events
    ]


_MEMBERS: Mapping[tuple[ProblemType, str], Callable[[Any], object]] = {
    (INVALID_MESSAGE, "errors"): _field_errors,
    (CONTEXT_CHANGED, "events"): _changes,
}


def _logged(error: Exception) -> str:
    problem_id = unique_id()
    _log.error("problem %s: a request failed with %s", problem_id, type(error).__name__, exc_info=error)
    return problem_id
