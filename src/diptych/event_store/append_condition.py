"""Under which conditions a commit holds."""

from __future__ import annotations

import msgspec

from diptych.event_store.event_query import QueryItem
from diptych.event_store.position import Position

__all__ = ["AppendCondition"]


class AppendCondition(msgspec.Struct, frozen=True, gc=False):
    """Holds if no event that `item` matches is at a position after `after`.

    A decision carries one for each model it was made on, each at the position up to which that model was folded
    (the head that its read covered, not its last matching event). They are judged one by one and never merged.
    """

    item: QueryItem
    after: Position
