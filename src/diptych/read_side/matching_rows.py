"""The rows that `where=` finds in a batch: stored ones together with those pending, in event order (rule 33)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from diptych.read_side.key_index import KeyIndex
from diptych.read_side.projection import KEYS_PER_EVENT_MAX, KeyNotFound, Step
from diptych.read_side.read_model import RowForm
from diptych.read_side.read_store import Key, Row

__all__ = ["MatchingRows", "too_many_found"]


class MatchingRows:
    """The rows of a batch by what they hold, stored ones together with those pending, as they are between two steps."""

    def __init__(self, form: RowForm, steps: Iterable[Step], loaded: Mapping[Key, Row]) -> None:
        self._form = form
        self._position = 0
        self._found: set[Key] = set()
        places = {column.name: place for place, column in enumerate(form.table.columns)}
        self._indexes = {where.columns: KeyIndex() for step in steps if (where := step.fold.where) is not None}
        for columns, index in self._indexes.items():
            for key, row in loaded.items():
                index.put(key, tuple(row[places[name]] for name in columns))

    def expanded(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The steps in order, one that finds its rows as a step for each of them, found when it is its turn.

        Raises:
            KeyNotFound: one event finds more rows than the limit.
        """
        for step in steps:
            if step.values is None:
                yield step
                continue
            where = step.fold.where
            assert where is not None, "only such steps look for values"
            keys = list(self._indexes[where.columns].keys(step.values))
            self._count(step, keys)
            for key in keys:
                yield msgspec.structs.replace(step, key=key)

    def _count(self, step: Step, keys: Iterable[Key]) -> None:
        """Refuse what an event finds beyond the limit also where it is pending: it would be refused once it is stored.

        Raises:
            KeyNotFound: there are more rows than that.
        """
        if self._position != step.position:
            self._position, self._found = step.position, set()
        self._found.update(keys)
        if len(self._found) > KEYS_PER_EVENT_MAX:
            raise KeyNotFound(too_many_found((step,)))

    def changed(self, key: Key, model: Any) -> None:
        """Take notice of a row as it is now; None: there is none any more."""
        for columns, index in self._indexes.items():
            if model is None:
                index.remove(key)
            else:
                index.put(key, tuple(self._form.column_value(name, getattr(model, name)) for name in columns))


def too_many_found(finding: Sequence[Step]) -> str:
    """Why events cannot be folded that find so many rows."""
    first, last = finding[0].position, finding[-1].position
    events = f"the event at position {first}" if first == last else f"the events at positions {first} to {last}"
    return (
        f"{finding[0].fold.name}: {events} would change more than KEYS_PER_EVENT_MAX={KEYS_PER_EVENT_MAX} rows that "
        "where= finds, at once; let such rows refer to one that holds what changes, and join them in the query"
    )
