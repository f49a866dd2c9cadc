"""The OpenAPI 3.1 document: every command and query, their schemas, and every way in which a request can fail."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from diptych.application.application import Application
from diptych.entrypoints.http.body import BODY_BYTES_MAX
from diptych.entrypoints.http.examples import example_of
from diptych.entrypoints.http.json_schemas import Json, Schemas, parameter_schemas
from diptych.entrypoints.http.problems import ProblemType, problem_types
from diptych.entrypoints.http.query_string import Parameter, parameters
from diptych.entrypoints.http.reply import Reply
from diptych.entrypoints.http.request_headers import (
    ENTITY_TAG_PATTERN,
    IDEMPOTENCY_KEY_PATTERN,
    REASON_PATTERN,
    TOKEN_PATTERN,
)
from diptych.messages.codec import encode
from diptych.messages.query import answer_type
from diptych.read_side.freshness import WAIT_S, WAIT_S_MAX

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

__all__ = ["Document", "openapi"]

SECURITY = "authenticated"
"""What the document calls the security scheme."""

_BODY_STATUSES = (400, 404, 405, 408, 409, 413, 415, 422, 500, 503)
_COMMAND_STATUSES = (*_BODY_STATUSES, 412)
_GET_STATUSES = (400, 404, 405, 409, 422, 500, 503)
_FAILURES = {
    400: "The request cannot be read: malformed JSON or query string, or a header field that cannot be",
    401: "Credentials are missing, or do not hold; `WWW-Authenticate` says which are wanted",
    403: "Who sends this lacks the scopes in `missing`",
    404: "No such command or query, or nothing at this path; `close` lists names that are close",
    405: "Another method is needed, see `Allow`",
    408: "The body took too long to arrive",
    409: "The domain says no, with its `code` and `facts`; or the consistency token is not of this history, or "
    "the cursor not of this query",
    412: "What the command is decided on has changed since the answer in If-Match: `events` tells by what; ask again",
    413: f"The body has more than {BODY_BYTES_MAX} bytes",
    415: "The body is no JSON in UTF-8",
    422: "Fields are wrong, missing or unknown, all of them listed; the idempotency key was used for another command; "
    "or a value is too long to be stored",
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
        operations = _query(query, name, references[query], answer)
        paths[f"/queries/{name}"] = (
            {method: _guarded(operation) for method, operation in operations.items()} if scheme else operations
        )
    status = _status()
    paths["/commands/{command_id}"] = {"get": _guarded(status) if scheme else status}
    names = [context.name for context in application.contexts]
    refusing = any(application.required_scopes(command) for command in commands)
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
        "paths": {**paths, **_HEALTH},
        "components": {
            "schemas": {**schemas.components, **_own_schemas(failures.values())},
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
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
        "parameters": [_ref("parameters", name) for name in (*(["DryRun"] if can_be_tried else []), *headers)],
        "requestBody": _body(cls, reference),
        "responses": {
            "200": {
                "description": "It took effect, durably; or did so before, under this Idempotency-Key. Of a dry run: "
                "it would, with these events",
                "headers": {"Consistency-Token": _ref("headers", "OwnToken")},
                "content": {
                    "application/json": {
                        "schema": {"anyOf": [_ref("schemas", "diptych.Receipt"), _ref("schemas", "diptych.Verdict")]}
                    }
                },
            },
            "202": {
                "description": "It was accepted, durably, as `Prefer: respond-async` asks for, and is executed soon",
                "headers": {
                    "Location": _ref("headers", "StatusLocation"),
                    "Preference-Applied": _ref("headers", "PreferenceApplied"),
                },
                "content": {"application/json": {"schema": _ref("schemas", "diptych.CommandStatus")}},
            },
            **_failures([*_COMMAND_STATUSES, *([403] if required else [])]),
        },
    }


def _status() -> Json:
    return {
        "operationId": "command-status",
        "tags": ["commands"],
        "summary": "How far a command is, by its id",
        "parameters": [_ref("parameters", name) for name in ("CommandId", "Partition")],
        "responses": {
            "200": {
                "description": "It was accepted, or its outcome is kept",
                "headers": {"Consistency-Token": _ref("headers", "OwnToken")},
                "content": {"application/json": {"schema": _ref("schemas", "diptych.CommandStatus")}},
            },
            **_failures(_GET_STATUSES),
        },
    }


def _query(cls: type, name: str, reference: Json, answer: Json) -> Json:
    known = parameters(cls)
    operations: Json = {
        "post": {
            "operationId": f"ask-{name}",
            "tags": ["queries"],
            **_words(cls),
            "parameters": _query_headers(),
            "requestBody": _body(cls, reference),
            "responses": {**_answers(answer), **_failures(_BODY_STATUSES)},
        }
    }
    if known is not None:
        operations["get"] = {
            "operationId": f"get-{name}",
            "tags": ["queries"],
            **_words(cls),
            "parameters": [*_query_parameters(cls, known), *_query_headers()],
            "responses": {**_answers(answer), **_failures(_GET_STATUSES)},
        }
    return operations


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
    return [_ref("parameters", name) for name in ("ConsistencyToken", "Prefer", "IfNoneMatch")]


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


def _answers(answer: Json) -> Json:
    headers = {
        "Consistency-Token": _ref("headers", "ConsistencyToken"),
        "ETag": _ref("headers", "ETag"),
        "Answer-Incomplete": _ref("headers", "AnswerIncomplete"),
        "Preference-Applied": _ref("headers", "PreferenceApplied"),
    }
    return {
        "200": {
            "description": "The answer",
            "headers": headers,
            "content": {"application/json": {"schema": answer}},
        },
        "304": {
            "description": "Nothing that it shows has changed since the answer in If-None-Match",
            "headers": headers,
        },
    }


def _failures(statuses: Iterable[int]) -> Json:
    return {str(status): _ref("responses", str(status)) for status in statuses}


def _failure(status: int, types: list[ProblemType]) -> Json:
    found: Json = {
        "description": _FAILURES[status],
        "content": {"application/problem+json": {"schema": {"anyOf": [_problem_ref(type) for type in types]}}},
    }
    if status == 503:
        found["headers"] = {"Retry-After": _ref("headers", "RetryAfter")}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": _ref("headers", "WwwAuthenticate")}
    if status == 405:
        found["headers"] = {"Allow": _ref("headers", "Allow")}
    return found


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _problem_ref(type: ProblemType) -> Json:
    return _ref("schemas", f"problem.{type.name}")


# ── what every application has ───────────────────────────────────────────────

_MEMBER_SCHEMAS: Mapping[str, Json] = {
    "line": {"type": "integer", "minimum": 1},
    "column": {"type": "integer", "minimum": 1},
    "close": {"type": "array", "items": {"type": "string"}, "description": "Names that are close, the closest first"},
    "code": {"type": "string", "description": "A stable word; branch on it"},
    "facts": {"type": "object", "description": "What the refusal stands on"},
    "limit_bytes": {"type": "integer"},
    "limit": {"type": "integer"},
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
_RECEIPT: Json = {
    "type": "object",
    "properties": {
        "command_id": {"type": "string", "description": "The Idempotency-Key, or an id that was made for it"},
        "position": {"type": "integer", "minimum": 0, "description": "The position of its last event"},
        "token": {"type": "string", "description": "Ask a query with it in Consistency-Token to read what was written"},
    },
    "required": ["command_id", "position", "token"],
    "additionalProperties": False,
}
_VERDICT: Json = {
    "type": "object",
    "properties": {
        "events": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"type": "string", "examples": ["school.Enrolled"]},
                    "data": {"type": "object"},
                },
                "required": ["type", "data"],
            },
            "description": "What would happen, in order",
        }
    },
    "required": ["events"],
    "additionalProperties": False,
}


_STATUS: Json = {
    "type": "object",
    "properties": {
        "command_id": {"type": "string"},
        "state": {
            "enum": ["accepted", "running", "done", "rejected", "failed"],
            "description": "`failed` was given up, and waits for somebody",
        },
        "command": {"type": "string", "examples": ["school.Enrol"]},
        "due_at": {"type": "string", "format": "date-time", "description": "When it is executed, or tried again"},
        "expires_at": {"type": "string", "format": "date-time"},
        "attempts": {"type": "integer", "minimum": 0, "description": "How often it has failed"},
        "receipt": {"$ref": "#/components/schemas/diptych.Receipt"},
        "rejection": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "The domain's; or `cancelled`, or `expired`"},
                "facts": {"type": "object"},
            },
            "required": ["code", "facts"],
        },
    },
    "required": ["command_id", "state"],
    "additionalProperties": False,
}


def _own_schemas(failures: Iterable[list[ProblemType]]) -> Json:
    types = [type for found in failures for type in found]
    return {
        "diptych.Receipt": _RECEIPT,
        "diptych.Verdict": _VERDICT,
        "diptych.CommandStatus": _STATUS,
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

`Prefer: respond-async` has a command accepted (202), and executed soon; `GET /commands/{{command_id}}` tells what
becomes of it.

`?dry-run=true` says what would come of a command, its events or the problem, and does nothing.

The `ETag` of an answer, sent as the `If-Match` of a command, has the command refused where what it is decided on has
changed since that answer.

Failures are problem details (RFC 9457) with a stable `type`."""

_PARAMETERS: Json = {
    "DryRun": {
        "name": "dry-run",
        "in": "query",
        "description": "`true` only says what would come of it: the events, or the problem. Nothing is stored",
        "schema": {"type": "boolean", "default": False},
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "One key, one effect, one outcome: make a new one for each command, and send it again with each "
        "retry. With another command or payload than the first time it is a 422, `command-id-reused`. Plain, or a "
        "quoted string",
        "schema": {"type": "string", "pattern": IDEMPOTENCY_KEY_PATTERN},
        "example": "order-1841",
    },
    "ConsistencyToken": {
        "name": "Consistency-Token",
        "in": "header",
        "description": "As received with a receipt or an answer: this answer shows at least that",
        "schema": {"type": "string", "pattern": TOKEN_PATTERN},
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": f"`wait=<seconds>` (RFC 7240): how long to wait, {WAIT_S:g} by default, {WAIT_S_MAX:g} at most",
        "schema": {"type": "string"},
        "example": "wait=10",
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The ETag of an answer: 304 where nothing that it shows has changed since",
        "schema": {"type": "string"},
    },
    "IfMatch": {
        "name": "If-Match",
        "in": "header",
        "description": "The ETag of the answer that the user was looking at: 412 where anything that the command is "
        "decided on has changed since; other changes do not matter",
        "schema": {"type": "string", "pattern": ENTITY_TAG_PATTERN},
    },
    "Reason": {
        "name": "Reason",
        "in": "header",
        "description": "Why this is wanted, kept with the events: one line; what is not ASCII is percent-encoded, as "
        "`encodeURIComponent` does, and so is %",
        "schema": {"type": "string", "pattern": REASON_PATTERN},
        "example": "asked for by phone",
    },
    "RespondAsync": {
        "name": "Prefer",
        "in": "header",
        "description": "`respond-async` (RFC 7240): it is accepted with a 202, and executed soon; its status is at "
        "`Location`. Not together with If-Match; a dry run is answered at once",
        "schema": {"type": "string"},
        "example": "respond-async",
    },
    "CommandId": {
        "name": "command_id",
        "in": "path",
        "required": True,
        "description": "As in the receipt, or the Idempotency-Key that it was sent with",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "Partition": {
        "name": "partition",
        "in": "query",
        "description": "As in `Location`, of an application in partitions",
        "schema": {"type": "string"},
    },
    "Traceparent": {
        "name": "traceparent",
        "in": "header",
        "description": "W3C trace context; kept with the events. An invalid one is ignored",
        "schema": {"type": "string"},
        "example": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    },
}
_HEADERS: Json = {
    "ConsistencyToken": {
        "description": "What this shows, or has written",
        "required": True,
        "schema": {"type": "string"},
    },
    "OwnToken": {
        "description": "What this has written; none of a dry run",
        "schema": {"type": "string"},
    },
    "ETag": {
        "description": "For If-None-Match, and for the If-Match of a command",
        "required": True,
        "schema": {"type": "string"},
    },
    "AnswerIncomplete": {
        "description": "There, as `?1`, if the answer lacks events that could not be folded",
        "schema": {"type": "string"},
    },
    "PreferenceApplied": {"description": "The preference that was applied", "schema": {"type": "string"}},
    "StatusLocation": {
        "description": "Where the command's status is",
        "required": True,
        "schema": {"type": "string"},
    },
    "RetryAfter": {"description": "Seconds", "required": True, "schema": {"type": "integer", "minimum": 0}},
    "WwwAuthenticate": {
        "description": "The credentials that are wanted",
        "required": True,
        "schema": {"type": "string"},
    },
    "Allow": {"description": "The methods that there are", "required": True, "schema": {"type": "string"}},
}
_HEALTH: Json = {
    "/health/live": {
        "get": {
            "operationId": "live",
            "tags": ["health"],
            "summary": "Whether the process answers",
            "responses": {
                "200": {
                    "description": "It does",
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "properties": {"live": {"const": True}},
                                "required": ["live"],
                            }
                        }
                    },
                },
                "405": _ref("responses", "405"),
            },
        }
    },
    "/health/ready": {
        "get": {
            "operationId": "ready",
            "tags": ["health"],
            "summary": "Whether the store is reachable, and the projections run and keep up",
            "responses": {
                "200": {
                    "description": "It is ready",
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "properties": {
                                    "ready": {"const": True},
                                    "impaired": {
                                        "type": "array",
                                        "items": {"type": "string"},
                                        "description": "What is wrong though it is ready; left out where nothing is",
                                    },
                                },
                                "required": ["ready"],
                            }
                        }
                    },
                },
                "405": _ref("responses", "405"),
                "503": _ref("responses", "503"),
            },
        }
    },
}
