"""What the OpenAPI document of every application has: schemas, parameters, headers."""

from __future__ import annotations

from diptych.entrypoints.http.json_schemas import Json
from diptych.entrypoints.http.request_headers import (
    DATE_PATTERN,
    ENTITY_TAG_PATTERN,
    IDEMPOTENCY_KEY_PATTERN,
    REASON_PATTERN,
    TIMEOUT_PATTERN,
    TOKEN_PATTERN,
)
from diptych.read_side.freshness import WAIT_S, WAIT_S_MAX

__all__ = ["EVENTS", "HEADERS", "HEALTH", "PARAMETERS", "RECEIPT", "ROWS", "STATUS", "VERDICT", "ref"]


def ref(kind: str, name: str) -> Json:
    """A reference to a part of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


RECEIPT: Json = {
    "type": "object",
    "properties": {
        "command_id": {"type": "string", "description": "The Idempotency-Key, or an id that was made for it"},
        "position": {"type": "integer", "minimum": 0, "description": "The position of its last event"},
        "token": {"type": "string", "description": "Ask a query with it in Consistency-Token to read what was written"},
    },
    "required": ["command_id", "position", "token"],
    "additionalProperties": False,
}
VERDICT: Json = {
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


STATUS: Json = {
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


EVENTS: Json = {
    "schema": {
        "type": "string",
        "description": "Server-Sent Events: the answer as it is now, and again after each change of it. `data` is its "
        "JSON, `id` its token, to go on from with `Last-Event-ID`. An event `incomplete` is an answer that lacks "
        "events which could not be folded; an event `error` has a problem as its data, and is the last",
    }
}


ROWS: Json = {
    "schema": {
        "type": "string",
        "description": "One row in each line, as fast as they are taken, where `Accept` prefers it. A line `$snapshot` "
        "between them says that those that follow are of a newer moment. The last line is `$end`, or `$error` with a "
        "problem",
    }
}


PARAMETERS: Json = {
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
    "AsOf": {
        "name": "As-Of",
        "in": "header",
        "description": "A token as received with a receipt or an answer: this answer shows what was there then. Of "
        "Consistency-Token, As-Of and Accept-Datetime, send one",
        "schema": {"type": "string", "pattern": TOKEN_PATTERN},
    },
    "AcceptDatetime": {
        "name": "Accept-Datetime",
        "in": "header",
        "description": "A time (RFC 7089): this answer shows what was there then; of one that has not come yet, now",
        "schema": {"type": "string", "pattern": DATE_PATTERN, "examples": ["Sun, 06 Nov 1994 08:49:37 GMT"]},
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": f"`wait=<seconds>` (RFC 7240): how long to wait, {WAIT_S:g} by default, {WAIT_S_MAX:g} at most",
        "schema": {"type": "string"},
        "example": "wait=10",
    },
    "QueryTimeout": {
        "name": "Query-Timeout",
        "in": "header",
        "description": "How many seconds it may take, where that is less than it may anyway; the wait for a fresh "
        "answer is apart from it. Not of a stream of events",
        "schema": {"type": "string", "pattern": TIMEOUT_PATTERN},
        "example": "5",
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "Of a stream of events: the `id` of the last one received; the first one shows at least that",
        "schema": {"type": "string"},
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
HEADERS: Json = {
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
    "Link": {
        "description": 'Of a page: where the next one is, `rel="next"`, relative to this one (RFC 8288); none of the '
        "last",
        "schema": {"type": "string"},
    },
    "AnswerIncomplete": {
        "description": "There, as `?1`, if the answer lacks events that could not be folded",
        "schema": {"type": "string"},
    },
    "MementoDatetime": {
        "description": "The time as of which this is, where one was asked for (RFC 7089)",
        "schema": {"type": "string"},
    },
    "Vary": {"description": "Of answers as of a past moment", "schema": {"type": "string"}},
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
HEALTH: Json = {
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
                "405": ref("responses", "405"),
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
                "405": ref("responses", "405"),
                "503": ref("responses", "503"),
            },
        }
    },
}
