"""SQL written by hand, made ready for PostgreSQL: the same statement runs on SQLite, as far as their dialects agree.

- The names of read models stand for the rows of this snapshot: the tables of the generations that are live in it come
  as common table expressions before the statement. A view would show what is live now.
- Beginning with WITH, the statement can only be a query (or a change, which a read-only transaction refuses): COPY, DO,
  SET, EXPLAIN and the like are no SQL behind it.
- Placeholders may be `?`, as in SQLite, or `$1`. Each is given the type of its parameter, which the server would else
  have to guess.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diptych.adapters.postgres.read_columns import DecodeError, cast_of, decode_result
from diptych.adapters.postgres.read_tables import StoredTable, exponent_column, quoted
from diptych.errors import ConfigurationError
from diptych.read_side.read_store import ColumnKind

if TYPE_CHECKING:
    from asyncpg import Record

__all__ = ["decode_results", "prepared"]

_TOKEN = re.compile(
    r"""
      (?P<skipped>
          --[^\n]*                                      # a comment
        | [eE]'(?:[^'\\]|\\.|'')*'                      # text with escapes
        | '(?:[^']|'')*'                                # text
        | "(?:[^"]|"")*"                                # a name
        | \$(?P<tag>(?:[A-Za-z_][A-Za-z0-9_]*)?)\$.*?\$(?P=tag)\$
        | [A-Za-z_\u0080-\U0010ffff][\w$]*              # a word, which may hold a $
      )
    | (?P<opening>/\*)
    | (?P<marks>\?)
    | \$(?P<number>[0-9]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_BEGINNING = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*(WITH(?:\s+RECURSIVE)?\b)?", re.IGNORECASE | re.DOTALL)
"""Space and comments, and the word that begins the statement's own names."""


def prepared(
    statement: str, parameters: Sequence[Any], tables: Sequence[StoredTable], moments: Mapping[str, dt.datetime]
) -> tuple[str, list[Any]]:
    """The statement to run, and its parameters.

    Args:
        statement: as it was written.
        parameters: one for each `?`, or for `$1`, `$2` …
        tables: of the live generations that it may name.
        moments: by projection, as of when rows that expire are shown; else as of the server's time.

    Raises:
        ConfigurationError: placeholders and parameters do not fit, or a parameter is none that a column keeps.
    """
    text, given = _with_parameters(statement, parameters)
    shown = ['"__diptych" AS (SELECT 1)', *(_shown(table, moments.get(table.of)) for table in tables)]
    beginning = _BEGINNING.match(text)
    if beginning is None or beginning[1] is None:
        return f"WITH {', '.join(shown)} {text}", given
    return f"WITH RECURSIVE {', '.join(shown)}, {text[beginning.end() :]}", given


def _shown(table: StoredTable, moment: dt.datetime | None) -> str:
    at = "statement_timestamp()" if moment is None else f"timestamptz '{moment.astimezone(dt.UTC).isoformat()}'"
    return f"{quoted(table.form.name)} AS NOT MATERIALIZED ({table.select_unexpired(at)})"


# ── parameters ───────────────────────────────────────────────────────────────


def _with_parameters(statement: str, parameters: Sequence[Any]) -> tuple[str, list[Any]]:
    """None is written as NULL: a placeholder without type, as in `$1 IS NULL`, would be refused."""
    pieces, marks = _split(statement)
    by_number = any(isinstance(mark, int) for mark in marks)
    if by_number or not parameters:  # `?` is an operator of PostgreSQL's, too
        wanted = max((mark for mark in marks if isinstance(mark, int)), default=0)
    else:
        wanted = len(marks)
    if wanted != len(parameters):
        raise ConfigurationError(f"this SQL has {wanted} placeholders, and {len(parameters)} parameters were given")
    given: list[Any] = []
    typed = [_typed(value, given) for value in parameters]
    text, place = pieces[0], 0
    for mark, piece in zip(marks, pieces[1:], strict=True):
        if isinstance(mark, int):
            text += typed[mark - 1] if mark else "$0"
        elif by_number or not parameters:
            text += mark
        else:
            text, place = text + typed[place], place + 1
        text += piece
    return text, given


def _typed(value: Any, given: list[Any]) -> str:
    if value is None:
        return "NULL"
    kind = cast_of(value)
    given.append(value)
    return f"CAST(${len(given)} AS {kind})"


def _split(statement: str) -> tuple[list[str], list[str | int]]:
    """The statement around its placeholders, and these: "?", or a number. Text, names and comments hold none."""
    pieces, marks = [""], list[str | int]()
    begin = at = 0
    while found := _TOKEN.search(statement, at):
        at = found.end()
        if found["opening"]:
            at = _comment_end(statement, found.start())
        elif found["skipped"] is None:
            pieces[-1] = statement[begin : found.start()]
            marks.append("?" if found["number"] is None else int(found["number"]))
            pieces.append("")
            begin = at
    pieces[-1] = statement[begin:]
    return pieces, marks


def _comment_end(statement: str, start: int) -> int:
    """PostgreSQL's comments may hold others."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(statement, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(statement)


# ── results ──────────────────────────────────────────────────────────────────


def decode_results(
    named: Sequence[str], found: Sequence[Record], columns: Mapping[str, tuple[ColumnKind, bool]]
) -> list[dict[str, Any]]:
    """Rows by column name, of the kinds asked for; columns that are not asked for are left out.

    Raises:
        ConfigurationError: a column is missing, or holds what is of another kind.
    """
    missing = [name for name in columns if name not in named]
    if missing:
        raise ConfigurationError(f"this SQL selects {', '.join(named)}, but not {', '.join(missing)}")
    places = [(name, *columns[name], named.index(name), _exponent_place(name, named)) for name in columns]
    try:
        return [
            {
                name: _decode_one(name, kind, row[place], None if other is None else row[other], nullable=nullable)
                for name, kind, nullable, place, other in places
            }
            for row in found
        ]
    except DecodeError as error:
        raise ConfigurationError(f"this SQL does not fit its result: {error}") from error


def _exponent_place(name: str, named: Sequence[str]) -> int | None:
    other = exponent_column(name)
    return named.index(other) if other in named else None


def _decode_one(name: str, kind: ColumnKind, value: Any, exponent: Any, *, nullable: bool) -> Any:
    if value is None and nullable:
        return None
    try:
        return decode_result(kind, value, exponent if isinstance(exponent, int) else None)
    except DecodeError as error:
        raise DecodeError(f"column {name}: {error}") from error
