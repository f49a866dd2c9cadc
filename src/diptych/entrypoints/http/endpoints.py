"""The endpoints of commands and of queries: one object per message, compiled when the application is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from diptych.application.application import Application
from diptych.entrypoints.http.authenticator import admitted
from diptych.entrypoints.http.body import read_body
from diptych.entrypoints.http.client_watch import WhileClientWaits
from diptych.entrypoints.http.command_status import accepted_reply, receipt_json
from diptych.entrypoints.http.decoding import MessageDecoder
from diptych.entrypoints.http.event_stream import EventStream, Streams
from diptych.entrypoints.http.field_errors import field_errors, invalid_message
from diptych.entrypoints.http.problems import (
    HISTORY_PRUNED,
    INVALID_HEADER,
    METHOD_NOT_ALLOWED,
    UNKNOWN_CURSOR,
    UNKNOWN_TOKEN,
    Problem,
    problem_of,
)
from diptych.entrypoints.http.query_string import FIELDS, as_json, parameters, with_cursor, without_fields
from diptych.entrypoints.http.reply import Header, Reply, entity_tag, is_known
from diptych.entrypoints.http.request_headers import (
    accepted_datetime,
    as_of_token,
    based_on,
    check_json,
    consistency_token,
    idempotency_key,
    is_dry_run,
    last_event_id,
    preferred_stream,
    preferred_wait_s,
    query_timeout_s,
    reason,
    responds_later,
    select,
    traceparent,
)
from diptych.entrypoints.http.row_lines import RowLines
from diptych.errors import HistoryDiverged, HistoryPruned, InvalidMessage, StoreClosed
from diptych.event_store.position import read_tokens
from diptych.messages.codec import encode
from diptych.messages.message import field_types
from diptych.messages.registry import MessageTypes
from diptych.read_side.chosen_fields import ChosenFields, fields_of_answer
from diptych.read_side.freshness import WAIT_S
from diptych.read_side.query_bus import Answer
from diptych.read_side.query_limits import QueryLimits
from diptych.read_side.reader import Page
from diptych.security import Actor
from diptych.write_side.verdict import Verdict

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = [
    "CURSOR",
    "QUERY_HEADERS",
    "CommandEndpoint",
    "Endpoint",
    "Endpoints",
    "QueryEndpoint",
    "actor_in",
    "headers_of",
    "moment_asked",
    "wait_applied",
]

CURSOR = "cursor"
"""What the read side calls a cursor that it refuses."""

_BODY_HEADERS = frozenset((b"content-type", b"content-encoding", b"content-length", b"expect"))
_COMMAND_HEADERS = _BODY_HEADERS | {b"idempotency-key", b"traceparent", b"if-match", b"reason", b"prefer"}
QUERY_HEADERS = _BODY_HEADERS | {
    b"consistency-token", b"prefer", b"if-none-match", b"as-of", b"accept-datetime", b"accept", b"last-event-id",
    b"query-timeout",
}  # fmt: skip
_INCOMPLETE: Header = (b"answer-incomplete", b"?1")
_REVALIDATE: Header = (b"cache-control", b"no-cache")
_OWN: Header = (b"cache-control", b"private, no-cache")
_OF_THEN: Header = (b"vary", b"accept-datetime, as-of")


class Endpoint(Protocol):
    """Replies to the requests for one message."""

    async def __call__(self, scope: Scope, receive: Receive, /) -> Reply | EventStream | RowLines:
        """The reply; a problem is raised."""
        ...


E = TypeVar("E", bound=Endpoint)


class Endpoints(Generic[E]):
    """The endpoints of all commands, or of all queries, by name."""

    def __init__(self, types: Callable[[], MessageTypes], make: Callable[[type[Any]], E]) -> None:
        self._types = types
        self._make = make
        self._by_name: dict[str, E] = {}

    def compile(self) -> None:
        """Make every endpoint now, instead of each with its first request. The application is open."""
        for name in self._types().names.values():
            self.find(name)

    def find(self, name: str) -> E:
        """The endpoint of a message.

        Raises:
            UnknownMessage: there is no message of that name.
            StoreClosed: the application is not open, so that nobody knows yet.
        """
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name[name] = self._make(self._types().find(name))
        return found


class CommandEndpoint:
    """`POST /commands/{Command}`, and with `?dry-run=true` what would come of it."""

    def __init__(self, application: Application, cls: type[Any]) -> None:
        self._application = application
        self._cls = cls
        self._decoder = MessageDecoder(cls)

    async def __call__(self, scope: Scope, receive: Receive, /) -> Reply:
        """Execute the command in the body; its receipt. Or accept it, where that is preferred; where its status is."""
        if scope["method"] != "POST":
            raise _not_allowed(b"POST")
        found = select(scope["headers"], _COMMAND_HEADERS)
        dry_run = is_dry_run(scope["query_string"])
        key = idempotency_key(found)
        basis = based_on(found)
        why = reason(found)
        actor = actor_in(scope)
        check_json(found)
        body = await read_body(receive, found)
        command = self._decoder.decode(body)
        later = responds_later(found) and not dry_run
        if basis is not None:
            _check_token(basis)
            if later:
                raise Problem(
                    INVALID_HEADER,
                    "What is executed later cannot be based on an answer; leave one out",
                    header="Prefer",
                )
        try:
            if dry_run:
                return self._told(await self._application.can(command, actor=actor, based_on=basis))
            if later:
                accepted = await self._application.schedule(
                    command, command_id=key, actor=actor, reason=why, traceparent=traceparent(found)
                )
                return accepted_reply(scope, accepted)
            receipt = await self._application.execute(
                command, command_id=key, actor=actor, reason=why, traceparent=traceparent(found), based_on=basis
            )
        except InvalidMessage as error:
            raise _invalid(error, body, self._cls) from None
        except HistoryDiverged as error:
            if basis is not None:
                raise
            # No token came with it: the stores do not fit, which is for the log.
            raise problem_of(RuntimeError("the history diverged under a command")) from error
        return Reply(200, receipt_json(receipt), [(b"consistency-token", receipt.token.encode())])

    def _told(self, verdict: Verdict) -> Reply:
        """What would happen; the domain's no is the problem that it would be."""
        if verdict.rejected is not None:
            raise verdict.rejected
        types = self._application.event_types
        events = [{"type": types.of(type(event)).name, "data": event} for event in verdict.events]
        return Reply(200, encode({"events": events}), [])


class QueryEndpoint:
    """`GET /queries/{Query}` with the fields in the query string, and `POST /queries/{Query}` with a body.

    Where `text/event-stream` is accepted, the answer and those that follow.
    """

    def __init__(self, application: Application, streams: Streams, cls: type[Any]) -> None:
        self._application = application
        self._streams = streams
        self._cls = cls
        self._decoder = MessageDecoder(cls)
        self._parameters = parameters(cls)
        self._has_fields = FIELDS not in field_types(cls) and bool(fields_of_answer(cls))
        self._has_cursor = "cursor" in field_types(cls)
        self._allowed = b"POST" if self._parameters is None else b"GET, HEAD, POST"

    def decode(self, data: bytes) -> Any:
        """The query that JSON is."""
        return self._decoder.decode(data)

    def chosen(self, names: Sequence[str] | None) -> Callable[[Any], object]:
        """An answer's value to what is told of it: these fields of it, or all.

        Raises:
            InvalidMessage: it has no such fields.
        """
        if names is None:
            return _whole
        return ChosenFields(self._cls, names).of

    async def __call__(self, scope: Scope, receive: Receive, /) -> Reply | EventStream | RowLines:
        """Answer the query."""
        found = select(scope["headers"], QUERY_HEADERS)
        preferred = preferred_stream(found)
        is_live = preferred == "text/event-stream"
        token = (last_event_id(found) if is_live else None) or consistency_token(found)
        as_of = as_of_token(found)
        timeout_s = query_timeout_s(found)
        limits = None if timeout_s is None else QueryLimits(seconds=timeout_s)
        preferred_s = preferred_wait_s(found)
        wait_s = WAIT_S if preferred_s is None else preferred_s
        query_string, chosen = self._chosen(scope["query_string"])
        data = await self._data(scope, receive, found, query_string)
        query = self._decoder.decode(data)
        actor = actor_in(scope)
        then = moment_asked(self._application, token, as_of, accepted_datetime(found))
        if is_live and limits is not None:
            told = "A live query has the limits of its author: leave it out, or accept application/json"
            raise Problem(INVALID_HEADER, told, header="Query-Timeout")
        try:
            with WhileClientWaits(receive):
                if is_live:
                    return await self._stream(query, chosen, actor, token, then, wait_s, wait_applied(preferred_s))
                if preferred:
                    return await self._rows(
                        query, chosen, actor, token, then, wait_s, limits, wait_applied(preferred_s)
                    )
                answer = await self._application.answer(
                    query, actor=actor, after=token, as_of=then, wait_s=wait_s, limits=limits
                )
        except InvalidMessage as error:
            raise _invalid(error, data, self._cls) from None
        except HistoryPruned as error:
            if then is None:
                raise
            detail = f"The event at position {error.position} would be needed, and its data were dropped"
            raise Problem(HISTORY_PRUNED, detail) from error
        body = encode(answer.value if chosen is None else chosen.of(answer.value))
        tag, headers = headers_of(answer, body, actor, then)
        if self._has_cursor and scope["method"] != "POST":
            headers += _links(scope["query_string"], answer.value)
        headers += wait_applied(preferred_s)
        if b"if-none-match" in found and is_known(tag, found[b"if-none-match"].decode("latin-1")):
            return Reply(304, b"", headers)
        return Reply(200, body, headers)

    async def _stream(
        self,
        query: Any,
        chosen: ChosenFields | None,
        actor: Actor | None,
        token: str | None,
        then: str | datetime | None,
        wait_s: float,
        headers: list[Header],
    ) -> EventStream:
        """The live query, once its first answer is there: until then it is refused like any other."""
        if then is not None:
            told = "What was then does not change: leave out As-Of and Accept-Datetime, or accept application/json"
            raise Problem(INVALID_HEADER, told, header="Accept")
        answers = self._application.subscribe(query, actor=actor, after=token, wait_s=wait_s)
        try:
            first = await anext(answers, None)
            if first is None:
                raise StoreClosed("the application is being closed")
            return EventStream(answers, first, self._streams, headers, _told_of(chosen))
        except BaseException:
            await answers.aclose()
            raise

    async def _rows(
        self,
        query: Any,
        chosen: ChosenFields | None,
        actor: Actor | None,
        token: str | None,
        then: str | datetime | None,
        wait_s: float,
        limits: QueryLimits | None,
        headers: list[Header],
    ) -> RowLines:
        """The rows of a list, once the first of them are there: until then it is refused like any other."""
        if then is not None:
            told = "Rows are streamed as they are now: leave out As-Of and Accept-Datetime, or accept application/json"
            raise Problem(INVALID_HEADER, told, header="Accept")
        if not self._application.can_be_streamed(self._cls):
            told = "This answer is no list that can be streamed: accept application/json"
            raise Problem(INVALID_HEADER, told, header="Accept")
        rows = self._application.stream(query, actor=actor, after=token, wait_s=wait_s, limits=limits)
        first = await rows.next_page()
        shown: list[Header] = [(b"consistency-token", rows.token.encode())]
        if rows.incomplete:
            shown.append(_INCOMPLETE)
        return RowLines(rows, first or [], self._streams, [*shown, *headers], _told_of(chosen))

    def _chosen(self, query_string: bytes) -> tuple[bytes, ChosenFields | None]:
        """The rest of the query string, and the fields that it chooses.

        Raises:
            Problem: the answer has no such field.
        """
        if not self._has_fields:
            return query_string, None
        rest, names = without_fields(query_string)
        if names is None:
            return rest, None
        try:
            return rest, ChosenFields(self._cls, names)
        except InvalidMessage as error:
            raise invalid_message(self._cls, list(error.problems)) from None

    async def _data(self, scope: Scope, receive: Receive, found: dict[bytes, bytes], query_string: bytes) -> bytes:
        """The query as JSON: from the body, or from the query string."""
        if scope["method"] == "POST":
            check_json(found)
            return await read_body(receive, found)
        if self._parameters is None or scope["method"] not in ("GET", "HEAD"):
            raise _not_allowed(self._allowed)
        data, errors = as_json(query_string, self._parameters)
        if errors:
            raise self._decoder.refusal(data, tuple(errors))
        return data


def moment_asked(
    application: Application, token: str | None, as_of: str | None, time: datetime | None
) -> str | datetime | None:
    """The moment that is asked for, if any; of a time that has not come yet, now (RFC 7089, section 4.5.3).

    Raises:
        Problem: more than one of the header fields that say which moment were sent, or a token is none.
    """
    for given in (token, as_of):
        if given is not None:
            _check_token(given)
    if sum(given is not None for given in (token, as_of, time)) > 1:
        told = "Of Consistency-Token, As-Of and Accept-Datetime, send one"
        raise Problem(INVALID_HEADER, told, header="As-Of" if time is None else "Accept-Datetime")
    return as_of if time is None else min(time, application.now().replace(microsecond=0))


def headers_of(
    answer: Answer[Any], body: bytes, actor: Actor | None, then: str | datetime | None
) -> tuple[str, list[Header]]:
    """The ETag of an answer that has this body, and all that is said of it beside the body."""
    token = answer.token
    tag = entity_tag(body, token)
    found = [(b"consistency-token", token.encode()), (b"etag", tag.encode()), _REVALIDATE if actor is None else _OWN]
    if then is not None:
        found.append(_OF_THEN)
    if isinstance(then, datetime):
        found.append((b"memento-datetime", format_datetime(then, usegmt=True).encode()))
    if answer.incomplete:
        found.append(_INCOMPLETE)
    return tag, found


def _told_of(chosen: ChosenFields | None) -> Callable[[Any], object]:
    """A value to what is told of it."""
    return _whole if chosen is None else chosen.of


def _whole(value: Any) -> object:
    return value


def _links(query_string: bytes, value: Any) -> list[Header]:
    """Where the next page is, relative to this one (RFC 8288)."""
    cursor: str | None = value.next if isinstance(value, Page) else None
    if cursor is None:
        return []
    return [(b"link", f'<?{with_cursor(query_string, cursor)}>; rel="next"'.encode("latin-1"))]


def wait_applied(wait_s: int | None) -> list[Header]:
    """What tells that a preference was applied."""
    return [] if wait_s is None else [(b"preference-applied", b"wait=%d" % wait_s)]


def _not_allowed(allowed: bytes) -> Problem:
    return Problem(METHOD_NOT_ALLOWED, f"Use {allowed.decode()}", headers=((b"allow", allowed),))


def _check_token(token: str) -> None:
    """Refuse what is no token at all like a token of another history: what a token holds is not for clients to know."""
    try:
        read_tokens(token)
    except InvalidMessage:
        raise Problem(UNKNOWN_TOKEN, "This is no token that this history gave out") from None


def _invalid(error: InvalidMessage, data: bytes, cls: type) -> Problem:
    """The problem with a message that decodes, and is refused nevertheless: NUL in a text, a cursor that is none."""
    if error.message == CURSOR:
        errors = [{"path": path, "message": text} for path, text in error.problems]
        return Problem(UNKNOWN_CURSOR, "This is no cursor that this query gave out; begin without one", errors=errors)
    told = [(path if path.startswith("$") else f"$.{path}", text) for path, text in error.problems]
    return invalid_message(cls, field_errors(data, cls) or told)


def actor_in(scope: Scope) -> Actor | None:
    """Who sends a request, as far as anybody knows."""
    return admitted(scope) or _authenticated(scope)


def _authenticated(scope: Scope) -> Actor | None:
    """Who an authentication middleware of Starlette says that it is, with the scopes of its `AuthCredentials`."""
    user = scope.get("user")
    if user is None or not user.is_authenticated:
        return None
    try:
        name = str(user.identity)
    except NotImplementedError:  # SimpleUser has a name only
        name = str(user.display_name)
    return Actor(name, frozenset(getattr(scope.get("auth"), "scopes", ())))
