"""A hook for schemathesis: one idempotency key for one payload, as a client would have it.

Schemathesis draws headers and bodies apart, so that one key (the example, the shortest that the pattern has) comes with
many bodies. Each of them is valid as the document says it, and all but the first are a 422 by contract: which body a
key came with before is nothing that a schema can say. So a valid key is made one of its payload here. Invalid ones, and
requests without a key, are left as they are; all checks stay on.

And it makes the number 0 of a text in a header field that cannot be of letters and digits alone, as a date cannot, and
takes that for valid. Such a field gets the date of the document.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import schemathesis

KEY = "Idempotency-Key"
DATE = "Accept-Datetime"


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Put a digest of the payload over the beginning of a valid key: its form, and mostly its length, stay."""
    is_valid = case.meta is None or case.meta.generation.mode.is_positive
    if is_valid and str(case.headers.get(DATE)) == "0":
        case.headers[DATE] = "Sun, 06 Nov 1994 08:49:37 GMT"
    key = case.headers.get(KEY)
    pattern = case.operation.schema.raw_schema["components"]["parameters"]["IdempotencyKey"]["schema"]["pattern"]
    if isinstance(key, str) and re.fullmatch(pattern, key):
        digest = hashlib.sha256(repr((key, case.path, case.body)).encode(errors="surrogatepass")).hexdigest()[:32]
        case.headers[KEY] = f'"{digest}"' if key.startswith('"') else digest + key[len(digest) :]
