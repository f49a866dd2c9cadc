"""The OpenAPI 3.1 document: every command and query, their schemas, and every way in which a request can fail."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from diptych.application.application import Application
from diptych.application.query_panel import QUERIES_TOGETHER_MAX
from diptych.entrypoints.http import openapi_parts as parts
from diptych.entrypoints.http.body import BODY_BYTES_MAX
from diptych.entrypoints.http.examples import example_of
from diptych.entrypoints.http.json_schemas import Json, Schemas, parameter_schemas, with_some_fields
from diptych.entrypoints.http.openapi_parts import ref
from diptych.entrypoints.http.problems import ProblemType, problem_types
from diptych.entrypoints.http.query_string import FIELDS, Parameter, parameters
from diptych.entrypoints.http.reply import Reply
from diptych.messages.codec import encode
from diptych.messages.message import field_types, required_fields
from diptych.messages.query import answer_type
from diptych.read_side.chosen_fields import fields_of_answer
from diptych.read_side.freshness import WAIT_S, WAIT_S_MAX
from diptych.read_side.reader import Page

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["Document", "openapi"]

SECURITY = "authenticated"
"""What the document calls the security scheme."""

_BODY_STATUSES = (400, 404, 405, 408, 409, 413, 415, 422, 500, 503)
_COMMAND_STATUSES = (*_BODY_STATUSES, 412)
_GET_STATUSES = (400, 404, 405, 409, 422, 500, 503)
_PAST_STATUSES = (410,)
_FAILURES = {
    400: "The request cannot be read: malformed JSON or query string, or a header field that cannot be",
    401: "Credentials are missing, or do not hold; `WWW-Authenticate` says which are wanted",
    403: "Who sends this lacks the scopes in `missing`",
    404: "No such command or query, or nothing at this path; `close` lists names that are close",
    405: "Another method is needed, see `Allow`",
    408: "The body took too long to arrive",
    409: "The domain says no, with its `code` and `facts`; or the consistency token is not of this history, or "
    "the cursor not of this query; or it cannot be shown as it was then",
    410: "Data of events that it is made of were dropped, so that it cannot be shown as it was then",
    412: "What the command is decided on has changed since the answer in If-Match: `events` tells by what; ask again",
    413: f"The body has more than {BODY_BYTES_MAX} bytes",
    415: "The body is no JSON in UTF-8",
    422: "Fields are wrong, missing or unknown, all of them listed; the idempotency key was used for another command; "
    "a value is too long to be stored; or the query asks for more rows than it may",
    500: "Nobody foresaw this; the server's log has more under the `id`",
    503: "Not now; nothing was done, except for `outcome-unknown`: try again after `Retry-After`, commands with the "
    "same Idempotency-Key",
}


class Document:
    """`GET /openapi.json`: made once, when it is first asked for."""

    def __init__(self, application: Application, scheme: Mapping[str, str] = {}) -> None:
        self._application = application
        self._scheme = scheme
        self._made: Json | None = None

    async def __call__(self, scope: Scope, _receive: Receive, /) -> Reply:
        """The document, with the place where this application is mounted."""
        if self._made is None:
            self._made = openapi(self._application, self._scheme)
        root = str(scope.get("root_path", ""))
        document = {**self._made, "servers": [{"url": root}]} if root else self._made
        return Reply(200, encode(document), [(b"cache-control", b"no-cache")])


def openapi(application: Application, scheme: Mapping[str, str] = {}) -> Json:
    """The document of an open application.

    Args:
        application: is open.
        scheme: what authenticates requests; empty where nothing does.

    Raises:
        StoreClosed: it is not open.
    """
    commands, queries = application.commands.names, application.queries.names
    schemas = Schemas([*commands, *queries], [answer_type(query) for query in queries])
    references = dict(zip([*commands, *queries], schemas.inputs, strict=True))
    paths: Json = {}
    for command, name in commands.items():
        required = sorted(application.required_scopes(command))
        operation = _command(
            command, name, references[command], required, can_be_tried=application.can_be_tried(command)
        )
        paths[f"/commands/{name}"] = {"post": _guarded(operation, required) if scheme else operation}
    for (query, name), answer in zip(queries.items(), schemas.outputs, strict=True):
        required = sorted(application.required_scopes(query))
        operations = _query(query, name, references[query], _answer(query, answer, schemas), required)
        if application.can_be_streamed(query):
            for operation in operations.values():
                operation["responses"]["200"]["content"]["application/x-ndjson"] = parts.ROWS
        paths[f"/queries/{name}"] = (
            {method: _guarded(operation, required) for method, operation in operations.items()}
            if scheme
            else operations
        )
    if queries:
        together = _together([(query, name, references[query]) for query, name in queries.items()], schemas)
        refused = [403] if any(application.required_scopes(query) for query in queries) else []
        together["responses"] |= _failures(refused)
        paths["/queries"] = {"post": _guarded(together) if scheme else together}
    status = _status()
    paths["/commands/{command_id}"] = {"get": _guarded(status) if scheme else status}
    names = [context.name for context in application.contexts]
    refusing = any(application.required_scopes(message) for message in [*commands, *queries])
    failures = {
        status: types
        for status, types in problem_types().items()
        if {401: bool(scheme), 403: refusing}.get(status, True)
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": " · ".join(names),
            "version": _version(),
            "description": _DESCRIPTION,
        },
        "tags": [{"name": "commands"}, {"name": "queries"}, {"name": "health"}],
        "paths": {**paths, **parts.HEALTH},
        "components": {
            "schemas": {**schemas.components, **_own_schemas(failures.values())},
            "parameters": parts.PARAMETERS,
            "headers": parts.HEADERS,
            "responses": {str(status): _failure(status, types) for status, types in failures.items()},
            **({"securitySchemes": {SECURITY: dict(scheme)}} if scheme else {}),
        },
    }


def _version() -> str:
    try:
        return version("diptych")
    except PackageNotFoundError:
        return "0"


# ── operations ───────────────────────────────────────────────────────────────


def _guarded(operation: Json, required: Sequence[str] = ()) -> Json:
    """An operation for those alone whom the security scheme lets in."""
    responses = {**operation["responses"], **_failures([401])}
    return {**operation, "responses": responses, "security": [{SECURITY: list(required)}]}


def _command(cls: type, name: str, reference: Json, required: Sequence[str], *, can_be_tried: bool) -> Json:
    headers = ("IdempotencyKey", "IfMatch", "Reason", "RespondAsync", "Traceparent")
    return {
        "operationId": f"execute-{name}",
        "tags": ["commands"],
        **_words(cls),
        "parameters": [ref("parameters", name) for name in (*(["DryRun"] if can_be_tried else []), *headers)],
        "requestBody": _body(cls, reference),
        "responses": {
            "200": {
                "description": "It took effect, durably; or did so before, under this Idempotency-Key. Of a dry run: "
                "it would, with these events",
                "headers": {"Consistency-Token": ref("headers", "OwnToken")},
                "content": {
                    "application/json": {
                        "schema": {"anyOf": [ref("schemas", "diptych.Receipt"), ref("schemas", "diptych.Verdict")]}
                    }
                },
            },
            "202": {
                "description": "It was accepted, durably, as `Prefer: respond-async` asks for, and is executed soon",
                "headers": {
                    "Location": ref("headers", "StatusLocation"),
                    "Preference-Applied": ref("headers", "PreferenceApplied"),
                },
                "content": {"application/json": {"schema": ref("schemas", "diptych.CommandStatus")}},
            },
            **_failures([*_COMMAND_STATUSES, *([403] if required else [])]),
        },
    }


def _status() -> Json:
    return {
        "operationId": "command-status",
        "tags": ["commands"],
        "summary": "How far a command is, by its id",
        "parameters": [ref("parameters", name) for name in ("CommandId", "Partition")],
        "responses": {
            "200": {
                "description": "It was accepted, or its outcome is kept",
                "headers": {"Consistency-Token": ref("headers", "OwnToken")},
                "content": {"application/json": {"schema": ref("schemas", "diptych.CommandStatus")}},
            },
            **_failures(_GET_STATUSES),
        },
    }


def _query(cls: type, name: str, reference: Json, answer: Json, required: Sequence[str]) -> Json:
    known = parameters(cls)
    refused = [403] if required else []
    operations: Json = {
        "post": {
            "operationId": f"ask-{name}",
            "tags": ["queries"],
            **_words(cls),
            "parameters": [*(_chosen_fields(cls) if known is None else []), *_query_headers()],
            "requestBody": _body(cls, reference),
            "responses": {**_answers(answer), **_failures((*_BODY_STATUSES, *_PAST_STATUSES, *refused))},
        }
    }
    if known is not None:
        operations["get"] = {
            "operationId": f"get-{name}",
            "tags": ["queries"],
            **_words(cls),
            "parameters": [*_query_parameters(cls, known), *_chosen_fields(cls), *_query_headers()],
            "responses": {
                **_answers(answer, linked="cursor" in known),
                **_failures((*_GET_STATUSES, *_PAST_STATUSES, *refused)),
            },
        }
    return operations


def _together(queries: Sequence[tuple[type, str, Json]], schemas: Schemas) -> Json:
    """Several queries in one request; which answer is of which is told by their order."""
    asked = [_asked_together(cls, name, reference) for cls, name, reference in queries]
    answers = [_answer(cls, answer, schemas) for (cls, _, _), answer in zip(queries, schemas.outputs, strict=True)]
    different = list({encode(answer): answer for answer in answers}.values())
    listed: Json = {"type": "array", "minItems": 1, "maxItems": QUERIES_TOGETHER_MAX}
    example = next(({"type": name, "data": made} for cls, name, _ in queries if (made := example_of(cls))), None)
    content: Json = {"schema": _object({"queries": {**listed, "items": {"anyOf": asked}}}, ["queries"])}
    if example is not None:
        content["example"] = {"queries": [example]}
    answered = _object({"answers": {**listed, "items": {"anyOf": different}}}, ["answers"])
    responses = _answers(answered)
    del responses["200"]["content"]["text/event-stream"]
    responses["200"]["description"] = "The answers, in the order of the queries, all of one moment"
    return {
        "operationId": "ask-together",
        "tags": ["queries"],
        "summary": "Ask several queries, of one moment",
        "description": "The first that fails is the problem of all.",
        "parameters": [header for header in _query_headers() if header != ref("parameters", "LastEventId")],
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {**responses, **_failures((*_BODY_STATUSES, *_PAST_STATUSES))},
    }


def _asked_together(cls: type, name: str, reference: Json) -> Json:
    properties: Json = {"type": {"const": name}, "data": reference}
    if fields_of_answer(cls):
        names = {"enum": list(fields_of_answer(cls))}
        properties["fields"] = {"type": "array", "items": names, "minItems": 1}
    return _object(properties, ["type", "data"] if required_fields(cls) else ["type"])


def _object(properties: Json, required: Sequence[str]) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _words(cls: type) -> Json:
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    summary, _, rest = text.partition("\n\n")
    words = {"summary": " ".join(summary.split()) or cls.__name__}
    return {**words, "description": text} if rest else words


def _body(cls: type, reference: Json) -> Json:
    content: Json = {"schema": reference}
    example = example_of(cls)
    if example is not None:
        content["example"] = example
    return {"required": True, "content": {"application/json": content}}


def _query_headers() -> list[Json]:
    names = ("ConsistencyToken", "AsOf", "AcceptDatetime", "Prefer", "QueryTimeout", "IfNoneMatch", "LastEventId")
    return [ref("parameters", name) for name in names]


def _query_parameters(cls: type, known: Mapping[str, Parameter]) -> list[Json]:
    """The fields of a query, each with its schema and, where it is required, an example."""
    schemas, examples = parameter_schemas(cls), example_of(cls) or {}
    found: list[Json] = []
    for name, parameter in known.items():
        schema = schemas[name]
        one: Json = {"name": name, "in": "query", "required": parameter.required, "schema": schema}
        if "description" in schema:
            one["description"] = schema.pop("description")
        if parameter.required and name in examples:
            one["example"] = examples[name]
        found.append(one)
    return found


def _has_fields(cls: type) -> bool:
    return FIELDS not in field_types(cls) and bool(fields_of_answer(cls))


def _chosen_fields(cls: type) -> list[Json]:
    """The parameter that chooses fields of the answer, where it has some."""
    if not _has_fields(cls):
        return []
    one = "|".join(map(re.escape, fields_of_answer(cls)))
    told = "Fields of the answer, or of each of its rows, with commas between them: these alone are given"
    names = {"type": "string", "pattern": f"^(?:{one})(?:,(?:{one}))*$"}
    return [{"name": FIELDS, "in": "query", "description": told, "schema": names}]


def _answer(cls: type, answer: Json, schemas: Schemas) -> Json:
    """The schema of an answer: whole, or of the fields that were chosen."""
    if not _has_fields(cls):
        return answer
    paged = typing.get_origin(answer_type(cls)) is Page
    return {"anyOf": [answer, with_some_fields(answer, schemas.components, paged=paged)]}


def _answers(answer: Json, *, linked: bool = False) -> Json:
    headers = {
        **({"Link": ref("headers", "Link")} if linked else {}),
        "Consistency-Token": ref("headers", "ConsistencyToken"),
        "ETag": ref("headers", "ETag"),
        "Answer-Incomplete": ref("headers", "AnswerIncomplete"),
        "Preference-Applied": ref("headers", "PreferenceApplied"),
        "Memento-Datetime": ref("headers", "MementoDatetime"),
        "Vary": ref("headers", "Vary"),
    }
    return {
        "200": {
            "description": "The answer; where `Accept` prefers `text/event-stream`, it and those that follow",
            "headers": headers,
            "content": {"application/json": {"schema": answer}, "text/event-stream": parts.EVENTS},
        },
        "304": {
            "description": "Nothing that it shows has changed since the answer in If-None-Match",
            "headers": headers,
        },
    }


def _failures(statuses: Iterable[int]) -> Json:
    return {str(status): ref("responses", str(status)) for status in statuses}


def _failure(status: int, types: list[ProblemType]) -> Json:
    found: Json = {
        "description": _FAILURES[status],
        "content": {"application/problem+json": {"schema": {"anyOf": [_problem_ref(type) for type in types]}}},
    }
    if status == 503:
        found["headers"] = {"Retry-After": ref("headers", "RetryAfter")}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": ref("headers", "WwwAuthenticate")}
    if status == 405:
        found["headers"] = {"Allow": ref("headers", "Allow")}
    return found


def _problem_ref(type: ProblemType) -> Json:
    return ref("schemas", f"problem.{type.name}")


# ── what every application has ───────────────────────────────────────────────

_MEMBER_SCHEMAS: Mapping[str, Json] = {
    "line": {"type": "integer", "minimum": 1},
    "column": {"type": "integer", "minimum": 1},
    "close": {"type": "array", "items": {"type": "string"}, "description": "Names that are close, the closest first"},
    "code": {"type": "string", "description": "A stable word; branch on it"},
    "facts": {"type": "object", "description": "What the refusal stands on"},
    "limit_bytes": {"type": "integer"},
    "limit": {"type": "integer"},
    "rows": {"type": "integer", "description": "How many it may ask a store for"},
    "seconds": {"type": "number", "description": "How long it may take"},
    "attempts": {"type": "integer"},
    "wanted": {"type": "integer", "description": "The position that was asked for"},
    "reached": {"type": "integer", "description": "The position that is shown"},
    "keys": {"type": "array", "items": {"type": "string"}},
    "missing": {"type": "array", "minItems": 1, "items": {"type": "string"}, "description": "Scopes"},
    "more": {"type": "boolean", "description": "Whether there are more"},
    "events": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {
                "position": {"type": "integer", "minimum": 1},
                "type": {"type": "string", "examples": ["school.Enrolled"]},
                "recorded_at": {"type": "string", "format": "date-time"},
            },
            "required": ["position", "type", "recorded_at"],
        },
    },
    "errors": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "properties": {
                "path": {"type": "string", "examples": ["$.lines[0].quantity"]},
                "message": {"type": "string"},
            },
            "required": ["path", "message"],
        },
    },
}


def _own_schemas(failures: Iterable[list[ProblemType]]) -> Json:
    types = [type for found in failures for type in found]
    return {
        "diptych.Receipt": parts.RECEIPT,
        "diptych.Verdict": parts.VERDICT,
        "diptych.CommandStatus": parts.STATUS,
        **{f"problem.{type.name}": _problem_schema(type) for type in types},
    }


def _problem_schema(type: ProblemType) -> Json:
    members = {name: _MEMBER_SCHEMAS.get(name, {"type": "string"}) for name in type.members}
    return {
        "type": "object",
        "title": type.title,
        "properties": {
            "type": {"const": type.uri},
            "title": {"type": "string"},
            "status": {"const": type.status},
            "detail": {"type": "string"},
            **members,
        },
        "required": ["type", "title", "status", "detail", *members],
    }


_DESCRIPTION = f"""\
Commands change state and give a receipt; queries show it.

An `Idempotency-Key` (1 to 128 visible characters, plain or as a quoted string) makes a command safe to send again: the
same key gives the first outcome again, be it receipt or rejection; the same key with another command is a 422.

The `Consistency-Token` of a receipt or answer, sent with a query, makes the query wait until its answer shows at least
that, for {WAIT_S:g} seconds or as `Prefer: wait=<seconds>` says (at most {WAIT_S_MAX:g}); an older answer is
never given.

`As-Of` with such a token, or `Accept-Datetime` (RFC 7089), has a query answered as things stood then.

`Prefer: respond-async` has a command accepted (202), and executed soon; `GET /commands/{{command_id}}` tells what
becomes of it.

`?dry-run=true` says what would come of a command, its events or the problem, and does nothing.

The `ETag` of an answer, sent as the `If-Match` of a command, has the command refused where what it is decided on has
changed since that answer.

Failures are problem details (RFC 9457) with a stable `type`."""
