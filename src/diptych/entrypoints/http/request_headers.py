"""What a request says beside its message: in its header fields and, of a command, in its query string."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote

from diptych.entrypoints.http.problems import (
    INVALID_HEADER,
    MALFORMED_QUERY_STRING,
    UNKNOWN_TOKEN,
    UNSUPPORTED_MEDIA_TYPE,
    Problem,
)
from diptych.entrypoints.http.reply import HASH_BYTES
from diptych.read_side.freshness import WAIT_S_MAX
from diptych.read_side.query_limits import HANDLER_S_MAX
from diptych.security import REASON_CHARACTERS_MAX

__all__ = [
    "DATE_PATTERN",
    "ENTITY_TAG_PATTERN",
    "IDEMPOTENCY_KEY_PATTERN",
    "REASON_PATTERN",
    "TIMEOUT_PATTERN",
    "TOKEN_PATTERN",
    "accepted_datetime",
    "as_of_token",
    "based_on",
    "check_json",
    "consistency_token",
    "idempotency_key",
    "is_dry_run",
    "last_event_id",
    "preferred_stream",
    "preferred_wait_s",
    "query_timeout_s",
    "reason",
    "responds_later",
    "select",
    "traceparent",
]

# A key as it is, or as the structured-field string of draft-ietf-httpapi-idempotency-key-header: "k" and k are one key.
IDEMPOTENCY_KEY_PATTERN = r'^(?:[!#-~][!-~]{0,127}|"(?:[!#-\[\]-~]|\\["\\]){1,128}")$'
TOKEN_CHARACTERS_MAX = 65_536
"""Characters of a `Consistency-Token`, of however many histories."""
TOKEN_PATTERN = rf"^[A-Za-z0-9_,-]{{1,{TOKEN_CHARACTERS_MAX}}}$"
# As proxies that compress send it back, too: only the token counts, which is the same in a weak one.
ENTITY_TAG_PATTERN = rf'^(?:W/)?"[0-9a-f]{{{2 * HASH_BYTES}}}\.([A-Za-z0-9_,-]{{1,{TOKEN_CHARACTERS_MAX}}})"$'
# Visible ASCII, and percent-encoded UTF-8 for everything else but what begins a new line or controls a terminal.
_H, _T = "[0-9A-Fa-f]", "%[89ABab][0-9A-Fa-f]"
_REASON_CHARACTER = "|".join(
    (
        "[!-$&-~]",
        f"%(?:[2-6]{_H}|7[0-9A-Ea-e])",
        f"%(?:[Cc]2%[ABab]{_H}|(?:[Cc][3-9A-Fa-f]|[Dd]{_H}){_T})",
        f"%[Ee]0%[ABab]{_H}{_T}",
        f"%[Ee]2%(?:80%(?:[89Bb]{_H}|[Aa][0-7A-Fa-f])|(?:8[1-9A-Fa-f]|[9ABab]{_H}){_T})",
        f"%[Ee](?:[13-9A-Ca-cEeFf]{_T}|[Dd]%[89]{_H}){_T}",
        f"%[Ff](?:0%[9ABab]{_H}|[1-3]{_T}|4%8{_H}){_T}{_T}",
    )
)
REASON_PATTERN = (
    f"^(?:{_REASON_CHARACTER})(?:(?: |{_REASON_CHARACTER}){{0,{REASON_CHARACTERS_MAX - 2}}}(?:{_REASON_CHARACTER}))?$"
)
# A date as RFC 7089, section 2.1.1.1, has it: that of RFC 9110 which is to be sent, and no other.
_LONG, _SHORT = "Jan|Mar|May|Jul|Aug|Oct|Dec", "Apr|Jun|Sep|Nov"
_DAY = f"(?:0[1-9]|1[0-9]|2[0-8]) (?:{_LONG}|{_SHORT}|Feb)|(?:29|30) (?:{_LONG}|{_SHORT})|31 (?:{_LONG})"
_LEAP_YEAR = "[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00"
DATE_PATTERN = (
    f"^(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?:(?:{_DAY}) [1-9][0-9]{{3}}|29 Feb (?:{_LEAP_YEAR})) "
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9] GMT$"
)
TIMEOUT_PATTERN = "^(?:[1-9]|[1-5][0-9]|60)$"  # to HANDLER_S_MAX
TRACEPARENT_PATTERN = r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?$"
DELTA_SECONDS_DIGITS_MAX = 9
"""Digits of a `Prefer: wait` that are read; more are as good as none."""

_JSON, _STREAMS = "application/json", ("text/event-stream", "application/x-ndjson")

_key = re.compile(IDEMPOTENCY_KEY_PATTERN)
_token = re.compile(rf"[A-Za-z0-9_, -]{{1,{TOKEN_CHARACTERS_MAX}}}")  # spaces as those put them in who join fields
_entity_tag = re.compile(ENTITY_TAG_PATTERN)
_reason = re.compile(REASON_PATTERN)
_date = re.compile(DATE_PATTERN)
_timeout = re.compile(TIMEOUT_PATTERN)
_traceparent = re.compile(TRACEPARENT_PATTERN)
_wait = re.compile(
    rf'(?:^|[,;])\s*wait\s*=\s*"?(\d{{1,{DELTA_SECONDS_DIGITS_MAX}}})"?\s*(?=$|[,;])', re.IGNORECASE | re.ASCII
)
_respond_async = re.compile(
    r'(?:^|,)\s*respond-async\s*(?:=\s*(?:""|1|true)\s*)?(?:;[^,]*)?(?=$|,)', re.IGNORECASE | re.ASCII
)
_weight = re.compile(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*(?=$|;)", re.ASCII)
_charset = re.compile(rb';\s*charset\s*=\s*"?([^";\s]+)"?', re.IGNORECASE)


def select(headers: Iterable[tuple[bytes, bytes]], wanted: frozenset[bytes]) -> dict[bytes, bytes]:
    """The header fields of these names; repeated ones joined by commas (RFC 9110, section 5.3)."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in wanted:
            found[name] = value if name not in found else found[name] + b", " + value
    return found


def idempotency_key(found: dict[bytes, bytes]) -> str | None:
    """The `Idempotency-Key`, which is the command's id.

    Raises:
        Problem: it is not 1 to 128 visible characters.
    """
    raw = found.get(b"idempotency-key")
    if raw is None:
        return None
    key = raw.decode("latin-1")
    if not _key.fullmatch(key):
        raise Problem(
            INVALID_HEADER, "An Idempotency-Key has 1 to 128 visible ASCII characters", header="Idempotency-Key"
        )
    return re.sub(r"\\(.)", r"\1", key[1:-1]) if key.startswith('"') else key


def consistency_token(found: dict[bytes, bytes]) -> str | None:
    """The `Consistency-Token`, as far as its letters tell that it is one.

    Raises:
        Problem: it has other letters than tokens have.
    """
    return _token_in(found.get(b"consistency-token"), "A Consistency-Token", "Consistency-Token")


def as_of_token(found: dict[bytes, bytes]) -> str | None:
    """The consistency token in `As-Of`: the answer shows what was there then, and nothing that came later.

    Raises:
        Problem: it has other letters than tokens have.
    """
    return _token_in(found.get(b"as-of"), "The token of an As-Of", "As-Of")


def _token_in(raw: bytes | None, what: str, header: str) -> str | None:
    if raw is None:
        return None
    token = raw.decode("latin-1")
    if not _token.fullmatch(token):
        raise Problem(INVALID_HEADER, f"{what} is sent as it was received", header=header)
    return token


def accepted_datetime(found: dict[bytes, bytes]) -> datetime | None:
    """The `Accept-Datetime` (RFC 7089): the time as of which the answer is wanted, in UTC.

    Raises:
        Problem: it is no date.
    """
    raw = found.get(b"accept-datetime")
    if raw is None:
        return None
    text = raw.decode("latin-1")
    if not _date.fullmatch(text):
        told = "An Accept-Datetime is a date like Sun, 06 Nov 1994 08:49:37 GMT (RFC 7089)"
        raise Problem(INVALID_HEADER, told, header="Accept-Datetime")
    return parsedate_to_datetime(text)


def last_event_id(found: dict[bytes, bytes]) -> str | None:
    """The token in a `Last-Event-ID`; None where there is none, or an empty one, which says that nothing was seen.

    Raises:
        Problem: it has other letters than tokens have.
    """
    raw = found.get(b"last-event-id", b"")
    if not raw:
        return None
    token = raw.decode("latin-1")
    if not _token.fullmatch(token):
        raise Problem(INVALID_HEADER, "A Last-Event-ID is sent as it was received", header="Last-Event-ID")
    return token


def preferred_stream(found: dict[bytes, bytes]) -> str:
    """The stream that `Accept` names, `text/event-stream` or `application/x-ndjson`; empty where JSON weighs as much.

    What takes anything (`*/*`) takes one answer.
    """
    raw = found.get(b"accept", b"")
    if b"event-stream" not in raw.lower() and b"ndjson" not in raw.lower():
        return ""
    weights = {"application/json": 0.0, "text/event-stream": 0.0, "application/x-ndjson": 0.0}
    for part in raw.decode("latin-1").lower().split(","):
        media_type, _, rest = part.partition(";")
        asked = _weight.search(rest)
        weights[media_type.strip()] = 1.0 if asked is None else float(asked[1])
    return max(_STREAMS, key=weights.__getitem__) if max(map(weights.__getitem__, _STREAMS)) > weights[_JSON] else ""


def based_on(found: dict[bytes, bytes]) -> str | None:
    """The consistency token in an `If-Match`, which is the `ETag` of an answer.

    Raises:
        Problem: it is no such tag; or there are several, or `*`, which says nothing of what was seen.
    """
    raw = found.get(b"if-match")
    if raw is None:
        return None
    tag = _entity_tag.fullmatch(raw.decode("latin-1"))
    if tag is None:
        raise Problem(UNKNOWN_TOKEN, "An If-Match is the one ETag of an answer, as it was received")
    return tag[1]


def reason(found: dict[bytes, bytes]) -> str | None:
    """The `Reason`: one line of text, percent-encoded where it is not ASCII, as `encodeURIComponent` does.

    Raises:
        Problem: it is not 1 to 500 characters of one line, or not encoded so.
    """
    raw = found.get(b"reason")
    if raw is None:
        return None
    text = raw.decode("latin-1")
    if not _reason.fullmatch(text):
        raise Problem(
            INVALID_HEADER,
            f"A Reason is one line of 1 to {REASON_CHARACTERS_MAX} characters; percent-encode what is not ASCII, and %",
            header="Reason",
        )
    return unquote(text, errors="strict")


def is_dry_run(query_string: bytes) -> bool:
    """Whether a command is only to be tried. What cannot be read is refused: misspelt, it would be executed.

    Raises:
        Problem: the query string is anything but `dry-run=true` or `dry-run=false`.
    """
    if query_string not in (b"", b"dry-run=true", b"dry-run=false"):
        raise Problem(
            MALFORMED_QUERY_STRING, "Of a command it is dry-run=true, dry-run=false, or empty; nothing was done"
        )
    return query_string == b"dry-run=true"


def preferred_wait_s(found: dict[bytes, bytes]) -> int | None:
    """The seconds in `Prefer: wait=…` (RFC 7240), at most the longest wait there is; None where there is none to read.

    A preference that cannot be read is ignored, as the RFC asks; of several, the first one counts.
    """
    raw = found.get(b"prefer")
    asked = None if raw is None else _wait.search(raw.decode("latin-1"))
    return None if asked is None else min(int(asked.group(1)), int(WAIT_S_MAX))


def query_timeout_s(found: dict[bytes, bytes]) -> int | None:
    """The seconds in a `Query-Timeout`, that the query may take; None where there is none.

    Raises:
        Problem: it is no number of them, or more than any query may take.
    """
    raw = found.get(b"query-timeout")
    if raw is None:
        return None
    text = raw.decode("latin-1")
    if not _timeout.fullmatch(text):
        told = f"A Query-Timeout is a whole number of seconds, 1 to {HANDLER_S_MAX}"
        raise Problem(INVALID_HEADER, told, header="Query-Timeout")
    return int(text)


def responds_later(found: dict[bytes, bytes]) -> bool:
    """Whether there is a `Prefer: respond-async` (RFC 7240): the command is accepted, and executed after the reply."""
    raw = found.get(b"prefer")
    return raw is not None and _respond_async.search(raw.decode("latin-1")) is not None


def traceparent(found: dict[bytes, bytes]) -> str | None:
    """The W3C trace context; None where there is none, or one that is invalid and so to be ignored (section 3.2)."""
    raw = found.get(b"traceparent")
    if raw is None:
        return None
    text = raw.decode("latin-1")
    return text if _traceparent.fullmatch(text) and (text[:2] != "00" or len(text) == 55) else None


def check_json(found: dict[bytes, bytes]) -> None:
    """Refuse a body that says that it is something else than JSON in UTF-8, uncompressed.

    Raises:
        Problem: it does, or does not say what it is.
    """
    raw = found.get(b"content-type", b"")
    if raw != b"application/json":
        media_type = raw.partition(b";")[0].strip().lower()
        is_json = media_type == b"application/json" or (
            media_type.startswith(b"application/") and media_type.endswith(b"+json") and b"," not in media_type
        )
        charset = _charset.search(raw)
        if not is_json or (charset is not None and charset.group(1).lower() not in (b"utf-8", b"utf8")):
            raise Problem(
                UNSUPPORTED_MEDIA_TYPE,
                "Send JSON in UTF-8, with Content-Type: application/json",
                headers=((b"accept", b"application/json"),),
            )
    if found.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise Problem(
            UNSUPPORTED_MEDIA_TYPE, "Send the body uncompressed", headers=((b"accept-encoding", b"identity"),)
        )
