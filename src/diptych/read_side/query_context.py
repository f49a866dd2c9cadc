"""Who asks, and what they may see: what goes with a query through its middlewares to its handler and its reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from types import MappingProxyType

import msgspec

from diptych.errors import ConfigurationError
from diptych.read_side.conditions import AllOf, one_of
from diptych.read_side.query_limits import NO_LIMITS, QueryLimits
from diptych.read_side.read_model import ReadModel
from diptych.security import Actor

__all__ = ["QueryContext", "VisibleRows", "query_context"]

VisibleRows = Mapping[type[ReadModel], Sequence[tuple[str, object]]]
"""Of read models of which not every row may be seen: what has to hold of a column, by its name."""

_ALL_ROWS: VisibleRows = MappingProxyType({})


class QueryContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a query handler, and a query middleware, may know beside the query.

    Attributes:
        now: the time when it was asked, aware, in UTC.
        actor: who asks, where the entry point knows.
        scopes: what they may do; see `requires`.
        trusted: whether they may do everything, whatever the scopes.
        rows: which rows may be seen, of the read models that `only` names; of all others every row.
        limits: to a middleware, what the caller has asked for; to a handler, what holds.
        query: the name of the query's type, once every middleware has let it through.
    """

    now: datetime
    actor: str | None = None
    scopes: AbstractSet[str] = frozenset()
    trusted: bool = False
    rows: VisibleRows = _ALL_ROWS
    limits: QueryLimits = NO_LIMITS
    query: str = ""

    def only(self, model: type[ReadModel], /, **where: object) -> QueryContext:
        """The context in which all other rows of a read model do not exist: `context.only(Order, customer=name)`.

        It holds for whatever the query reads, by key, filter, word or count; SQL is refused, since it reads what it
        likes. What was narrowed before stays so.

        Args:
            model: the read model.
            where: values or conditions, as for `Reader.find`; all have to hold. None matches no row, so that whoever is
                not known does not see the rows of nobody; say `one_of(None)` where those are meant.

        Raises:
            ConfigurationError: no column is named.
        """
        if not where:
            raise ConfigurationError(f"only({model.__name__}) hides no row: say which ones may be seen, by column")
        added = [(name, _owned(value)) for name, value in where.items()]
        rows = {**self.rows, model: (*self.rows.get(model, ()), *added)}
        return msgspec.structs.replace(self, rows=MappingProxyType(rows))

    def limited(self, *, seconds: float | None = None, rows: int | None = None) -> QueryContext:
        """The context in which the query may take no longer, and ask for no more rows: `context.limited(rows=100)`.

        Raises:
            InvalidMessage: either is none, see `QueryLimits`.
        """
        limits = self.limits.within(QueryLimits(seconds=seconds, rows=rows))
        return msgspec.structs.replace(self, limits=limits)


def _owned(value: object) -> object:
    """What has to hold, in which None matches no row."""
    if isinstance(value, AllOf):
        return AllOf(tuple(map(_owned, value.conditions)))
    return one_of() if value is None else value


def query_context(actor: Actor, now: datetime, limits: QueryLimits | None = None) -> QueryContext:
    """The context of a query that an actor asks."""
    asked = NO_LIMITS if limits is None else limits
    return QueryContext(now=now, actor=actor.name, scopes=actor.scopes, trusted=actor.trusted, limits=asked)
