"""Several queries in one request: `POST /queries`, all answered from one moment, with one token.

{"queries":[{"type":"BookOf","data":{"book":"b1"}},{"type":"BooksFrom","data":{"country":"FR"},"fields":["title"]}]}
{"answers":[{"book":"b1",…},[{"title":"Candide"}]]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from diptych.application.application import Application
from diptych.application.query_panel import QUERIES_TOGETHER_MAX
from diptych.entrypoints.http.body import read_body
from diptych.entrypoints.http.client_watch import WhileClientWaits
from diptych.entrypoints.http.decoding import MessageDecoder
from diptych.entrypoints.http.endpoints import (
    CURSOR,
    QUERY_HEADERS,
    Endpoints,
    QueryEndpoint,
    actor_in,
    headers_of,
    moment_asked,
    wait_applied,
)
from diptych.entrypoints.http.field_errors import field_errors, invalid_message
from diptych.entrypoints.http.problems import (
    HISTORY_PRUNED,
    INVALID_MESSAGE,
    METHOD_NOT_ALLOWED,
    UNKNOWN_CURSOR,
    Problem,
)
from diptych.entrypoints.http.reply import Reply, is_known
from diptych.entrypoints.http.request_headers import (
    accepted_datetime,
    as_of_token,
    check_json,
    consistency_token,
    preferred_wait_s,
    query_timeout_s,
    select,
)
from diptych.errors import HistoryPruned, InvalidMessage
from diptych.messages.codec import encode
from diptych.read_side.freshness import WAIT_S
from diptych.read_side.query_limits import QueryLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.types import Receive, Scope

__all__ = ["QueriesTogether", "QueriesTogetherEndpoint"]


class QueryAsked(msgspec.Struct, forbid_unknown_fields=True):
    """One of them.

    Attributes:
        type: its name.
        data: its fields.
        fields: of its answer, those that are wanted; all, where none are named.
    """

    type: str
    data: msgspec.Raw = msgspec.Raw(b"{}")
    fields: list[str] | None = None


class QueriesTogether(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked in one request."""

    queries: Annotated[list[QueryAsked], msgspec.Meta(min_length=1, max_length=QUERIES_TOGETHER_MAX)]


class QueriesTogetherEndpoint:
    """`POST /queries`: what `Application.answer_many` answers."""

    def __init__(self, application: Application, queries: Endpoints[QueryEndpoint]) -> None:
        self._application = application
        self._queries = queries
        self._decoder = MessageDecoder(QueriesTogether)

    async def __call__(self, scope: Scope, receive: Receive, /) -> Reply:
        """Answer the queries in the body; the first that fails is the problem of all."""
        if scope["method"] != "POST":
            raise Problem(METHOD_NOT_ALLOWED, "Use POST", headers=((b"allow", b"POST"),))
        found = select(scope["headers"], QUERY_HEADERS)
        token, preferred_s, timeout_s = consistency_token(found), preferred_wait_s(found), query_timeout_s(found)
        check_json(found)
        asked: QueriesTogether = self._decoder.decode(await read_body(receive, found))
        actor = actor_in(scope)
        then = moment_asked(self._application, token, as_of_token(found), accepted_datetime(found))
        queries, told = self._read(asked.queries)
        try:
            with WhileClientWaits(receive):
                answer = await self._application.answer_many(
                    queries,
                    actor=actor,
                    after=token,
                    as_of=then,
                    wait_s=WAIT_S if preferred_s is None else preferred_s,
                    limits=None if timeout_s is None else QueryLimits(seconds=timeout_s),
                )
        except InvalidMessage as error:
            raise _invalid(error, asked.queries, queries) from None
        except HistoryPruned as error:
            if then is None:
                raise
            detail = f"The event at position {error.position} would be needed, and its data were dropped"
            raise Problem(HISTORY_PRUNED, detail) from error
        values = [tell(value) for tell, value in zip(told, answer.value, strict=True)]
        body = encode({"answers": values})
        tag, headers = headers_of(answer, body, actor, then)
        headers += wait_applied(preferred_s)
        if b"if-none-match" in found and is_known(tag, found[b"if-none-match"].decode("latin-1")):
            return Reply(304, b"", headers)
        return Reply(200, body, headers)

    def _read(self, asked: Sequence[QueryAsked]) -> tuple[list[Any], list[Callable[[Any], object]]]:
        """The queries, and what is told of the answer to each.

        Raises:
            Problem: one is none; with every error in all of them.
            UnknownMessage: there is no query of that name.
        """
        queries: list[Any] = []
        told: list[Callable[[Any], object]] = []
        errors: list[tuple[str, str]] = []
        for place, each in enumerate(asked):
            endpoint = self._queries.find(each.type)
            try:
                queries.append(endpoint.decode(bytes(each.data)))
            except Problem as problem:
                if problem.type is not INVALID_MESSAGE:
                    raise
                listed: Any = problem.members["errors"]
                errors += [(_path(place, "data", error["path"]), error["message"]) for error in listed]
            try:
                told.append(endpoint.chosen(each.fields))
            except InvalidMessage as error:
                errors += [(f"$.queries[{place}].fields", text) for _, text in error.problems]
        if errors:
            raise invalid_message(QueriesTogether, errors)
        return queries, told


def _path(place: int, member: str, path: str) -> str:
    """Where in the request something is that is at a path in one of its queries."""
    return f"$.queries[{place}].{member}{path.removeprefix('$')}"


def _invalid(error: InvalidMessage, asked: Sequence[QueryAsked], queries: Sequence[Any]) -> Problem:
    """The problem with queries that decode, and are refused nevertheless: where it is, or the first where it may be."""
    if error.message == CURSOR:
        errors = [{"path": path, "message": text} for path, text in error.problems]
        return Problem(UNKNOWN_CURSOR, "This is no cursor that its query gave out; begin without one", errors=errors)
    places = [at for at, query in enumerate(queries) if type(query).__name__ == error.message]
    for place in places:
        if wrong := field_errors(bytes(asked[place].data), type(queries[place])):
            return invalid_message(QueriesTogether, [(_path(place, "data", path), text) for path, text in wrong])
    told = [(_path(places[0], "data", path) if places else path, text) for path, text in error.problems]
    return invalid_message(QueriesTogether, told)
