"""Questions about rows as OpenSearch's queries: which show, which a filter matches, which have a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from diptych.adapters.opensearch.catalog import Build
from diptych.adapters.opensearch.columns import NONE, SOME, WORD_LETTERS_MAX, RowCodec, term
from diptych.errors import InvalidMessage
from diptych.read_side.read_store import Comparison, Filter, Order
from diptych.read_side.row_filters import words_of
from diptych.read_side.row_refusal import value_refusal

__all__ = [
    "INDEX_FORM",
    "Query",
    "after",
    "ended",
    "index_of",
    "matching",
    "of_keys",
    "order_by",
    "searched",
    "showing",
]

SEARCHED_WORDS_MAX = 100
"""Different words of one search in OpenSearch."""
RANKED_BEGINNINGS_MAX = 500
"""Words that begin with those of a search in OpenSearch, shared among them, and count towards the rank; rows with any
other are found as well. A query may have 1,024 parts."""
KEYS_MAX = 1_000
"""Rows that one request to OpenSearch asks for by key."""
TERMS_MAX = 10_000
"""Terms of one part of a query; OpenSearch takes 65,536."""

Query: TypeAlias = dict[str, Any]

_KEYWORD = {"type": "keyword"}
INDEX_FORM: Mapping[str, Any] = {
    "settings": {
        "index": {
            # Rows show once their write is published, which comes after a refresh of its own.
            "refresh_interval": "-1",
            # What was acknowledged is on disk, and a refresh reaches every copy, whatever the cluster's defaults are.
            "translog.durability": "request",
            "replication.type": "DOCUMENT",
        },
        "analysis": {
            "analyzer": {"words": {"type": "custom", "tokenizer": "words"}},
            "tokenizer": {"words": {"type": "whitespace", "max_token_length": WORD_LETTERS_MAX}},
        },
    },
}


def index_of(codec: RowCodec | None) -> Mapping[str, Any]:
    """The form of the index of a table's rows; of the catalog's, without one."""
    kept = {"type": "object", "enabled": False}
    if codec is None:
        return {**INDEX_FORM, "mappings": {"dynamic": False, "properties": {"body": kept, "now": {"type": "date"}}}}
    terms = {codec.field(column.name): _KEYWORD for column in codec.table.columns}
    numbers = {name: {"type": "long"} for name in ("from", "until")}
    words = {"type": "text", "analyzer": "words"}
    properties = {"k": _KEYWORD, "row": kept, "words": words, **numbers, **terms}
    return {**INDEX_FORM, "mappings": {"dynamic": False, "properties": properties}}


def showing(build: Build, last: int, *conditions: Query) -> Query:
    """The rows of a generation that show when `last` was the last number given out, and meet these conditions."""
    unseen = _one_of("from", build.unseen)
    return {
        "bool": {
            "filter": [{"range": {"from": {"lte": last}}}, *conditions],
            "must_not": [*([unseen] if build.unseen else []), ended(build, last)],
        }
    }


def ended(build: Build, last: int) -> Query:
    """The documents that have been replaced or deleted."""
    unseen = [_one_of("until", build.unseen)] if build.unseen else []
    return {"bool": {"filter": [{"range": {"until": {"lte": last}}}], "must_not": unseen}}


def of_keys(ids: Sequence[str]) -> Query:
    """The rows of keys."""
    return {"terms": {"k": list(ids)}}


def matching(codec: RowCodec, build: Build, filters: Sequence[Filter]) -> list[Query]:
    """The conditions of filters.

    Raises:
        InvalidMessage: a filter's value is none that its column can hold, or the column has values too long for it.
    """
    return [_matching(codec, build, wanted) for wanted in filters]


def _matching(codec: RowCodec, build: Build, wanted: Filter) -> Query:
    column, field, comparison = codec.column(wanted.column), codec.field(wanted.column), wanted.comparison
    values = list(wanted.value) if comparison is Comparison.ONE_OF else [wanted.value]
    for value in values:
        reason = None if value is None else value_refusal(column, value)
        if reason is not None:
            raise InvalidMessage(f"a filter of {codec.table.name}", [(wanted.column, reason)])
    _check_short(codec, build, wanted.column)
    terms = [term(column.kind, value) for value in values]
    if comparison in (Comparison.EQUAL, Comparison.ONE_OF):
        return _one_of(field, terms)
    if comparison is Comparison.MORE_THAN_OR_NONE:
        later = [] if wanted.value is None else [{"range": {field: {"gt": terms[0]}}}]
        return {"bool": {"should": [{"term": {field: NONE}}, *later], "minimum_should_match": 1}}
    if wanted.value is None:
        return {"match_none": {}}
    if comparison is Comparison.STARTS_WITH:
        return {"prefix": {field: {"value": terms[0]}}}
    bounds = {
        Comparison.AT_LEAST: {"gte": terms[0]},
        Comparison.MORE_THAN: {"gt": terms[0]},
        Comparison.AT_MOST: {"gte": SOME, "lte": terms[0]},
        Comparison.LESS_THAN: {"gte": SOME, "lt": terms[0]},
    }
    return {"range": {field: bounds[comparison]}}


def _one_of(field: str, terms: Sequence[Any]) -> Query:
    parts = [{"terms": {field: terms[at : at + TERMS_MAX]}} for at in range(0, len(terms), TERMS_MAX)]
    if len(parts) == 1:
        return parts[0]
    return {"bool": {"should": parts, "minimum_should_match": 1}} if parts else {"match_none": {}}


def _check_short(codec: RowCodec, build: Build, name: str) -> None:
    if name in build.long:
        reason = "it holds values too long for OpenSearch to filter or order by; mark it as indexed to refuse them"
        raise InvalidMessage(f"a query of {codec.table.name}", [(name, reason)])


def order_by(codec: RowCodec, build: Build, order: Sequence[Order]) -> list[Query]:
    """How to sort.

    Raises:
        InvalidMessage: a column has values too long for it.
    """
    for by in order:
        _check_short(codec, build, by.column)
    return [{codec.field(by.column): {"order": "desc" if by.descending else "asc"}} for by in order]


def after(codec: RowCodec, order: Sequence[Order], place: Sequence[Any]) -> list[str]:
    """Where to go on: a place, with one value for each column of the order."""
    return [term(codec.column(by.column).kind, value) for by, value in zip(order, place, strict=True)]


def searched(text: str) -> tuple[list[Query], list[Query]] | None:
    """What rows have to meet in which every word of a text begins a word, and what ranks them; None without a word.

    The words are those of every other read store (`words_of`), so that the same rows are found. The rank is
    OpenSearch's own: how often a word is in the row, in how many words, and how rare it is.

    Raises:
        InvalidMessage: it has too many words.
    """
    words = [word[:WORD_LETTERS_MAX] for word in dict.fromkeys(words_of(text))]
    if len(words) > SEARCHED_WORDS_MAX:
        reason = f"{len(words)} different words; OpenSearch is asked for {SEARCHED_WORDS_MAX} at most"
        raise InvalidMessage("a search", [("text", reason)])
    if not words:
        return None
    ranked = f"top_terms_blended_freqs_{RANKED_BEGINNINGS_MAX // len(words)}"
    return (
        [{"prefix": {"words": {"value": word}}} for word in words],
        [{"prefix": {"words": {"value": word, "rewrite": ranked}}} for word in words],
    )
