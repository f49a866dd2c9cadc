"""Which events newer code's models fold, as far as this process knows it (rule 22).

It is read when the application opens, and again when the append section says that other unions are kept. What the
models of this code fold is kept with it. A model that newer code folds more of goes on where there is no such event:
those are looked for wherever it is folded, and every condition names them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from diptych.errors import NotGranted
from diptych.event_store.event_query import EventQuery
from diptych.event_store.event_store import KeepsModels
from diptych.event_store.model_unions import ModelUnion, ModelUnions, OutgrownQuery, lacking, unions_to_keep
from diptych.event_store.position import START
from diptych.messages.message import options_of
from diptych.write_side.decision_model import Folded, ModelFold

__all__ = ["CodedModels", "KnownModels", "Outgrown"]

SETTLE_ATTEMPTS_MAX = 10
"""How often what is kept of models is compared with the code again because another process kept some meanwhile."""

_log = logging.getLogger("diptych")


class Outgrown(NamedTuple):
    """A model that newer code folds more of.

    Attributes:
        beyond: the types that it does not fold.
        union: what is kept of it.
    """

    beyond: frozenset[str]
    union: ModelUnion

    @property
    def told(self) -> str:
        """In words."""
        types, version = " and ".join(sorted(self.beyond)), self.union.version
        return (
            f"the model {self.union.name} does not fold {types} here, and in newer code it does (version={version}). "
            "Where there is such an event, commands that are decided on it end in NewerHistory: run that code. If this "
            f"is the newer one, and leaves it out on purpose, say version={version + 1} in the class statement"
        )


class CodedModels:
    """What the models of an application fold by their code.

    Those of one context that have one name are one here: each lacks only what none of them folds.
    """

    def __init__(self, folds: Iterable[tuple[str, ModelFold]]) -> None:
        """Take each model with the context whose handlers are decided on it; any of them as often as it comes."""
        self.unions: dict[str, ModelUnion] = {}
        self._names: dict[ModelFold, set[str]] = {}
        for context, fold in folds:
            name = f"{context}.{fold.name}"
            self._names.setdefault(fold, set()).add(name)
            self._add(ModelUnion(name, options_of(fold.cls).version, tuple(sorted(fold.stored_names))))

    def _add(self, coded: ModelUnion) -> None:
        other = self.unions.get(coded.name, coded)
        types = tuple(sorted({*other.types, *coded.types}))
        self.unions[coded.name] = ModelUnion(coded.name, max(other.version, coded.version), types)

    def passed(self, kept: ModelUnions) -> dict[str, str]:
        """In words, by name: which models fold more than is kept with a higher version, so that nobody learns of it."""
        known = kept.by_name()
        return {
            name: f"the model {name} has version={coded.version} here and folds more than what is kept of it, with "
            f"version={known[name].version}, so that no process with that code learns of it. Where this is not older "
            f"code, say version={known[name].version} or higher in the class statement"
            for name, coded in self.unions.items()
            if name in known and known[name].version > coded.version and set(coded.types).difference(known[name].types)
        }

    def outgrown(self, kept: ModelUnions) -> dict[ModelFold, Outgrown]:
        """The models that newer code folds more of."""
        known = kept.by_name()
        found: dict[ModelFold, Outgrown] = {}
        for fold, names in self._names.items():
            for name in sorted(names):
                beyond = lacking(known.get(name), self.unions[name]) - fold.stored_names
                if beyond:
                    also = found[fold].beyond if fold in found else frozenset()
                    found[fold] = Outgrown(beyond | also, known[name])
        return found


class KnownModels:
    """What one command bus knows of the unions that are kept.

    Attributes:
        mark: of what it knows; every commit that was decided by it carries it. Empty while there are no models.
    """

    def __init__(self, folds: Iterable[tuple[str, ModelFold]], store: KeepsModels, forget: Callable[[], None]) -> None:
        """Know nothing yet. `forget` drops all that was folded, when it turns out that it lacks something."""
        self.mark = b""
        self._coded = CodedModels(folds)
        self._store = store
        self._forget = forget
        self._outgrown: Mapping[ModelFold, Outgrown] = {}
        self._passed: set[str] = set()
        self._learning = asyncio.Lock()

    async def open(self) -> None:
        """Learn what is kept, and keep what is new. The store is open."""
        await self.learn(self.mark)

    async def learn(self, instead_of: bytes) -> None:
        """Learn what is kept instead of what had this mark, unless somebody has done so meanwhile."""
        async with self._learning:
            if self._coded.unions and self.mark == instead_of:
                self._take(await self._settled())

    async def _settled(self) -> ModelUnions:
        """What is kept, with what this code has; whoever may not write leaves that to others."""
        for _ in range(SETTLE_ATTEMPTS_MAX):
            kept = await self._store.stored_models()
            new = unions_to_keep(kept, self._coded.unions.values())
            if not new:
                return kept
            try:
                await self._store.keep_models(new, kept.mark)
            except NotGranted:
                return kept
        return await self._store.stored_models()

    def _take(self, kept: ModelUnions) -> None:
        outgrown = self._coded.outgrown(kept)
        for fold in outgrown.keys() - self._outgrown.keys():
            _log.warning("%s", outgrown[fold].told)
        for name, told in self._coded.passed(kept).items():
            if name not in self._passed:
                self._passed.add(name)
                _log.warning("%s", told)
        if outgrown != self._outgrown:
            self._outgrown = outgrown
            self._forget()
        self.mark = kept.mark

    def query(self, fold: ModelFold, ids: tuple[str, ...]) -> EventQuery:
        """The events of a model, with those that only newer code folds."""
        query = fold.query(ids)
        found = self._outgrown.get(fold)
        return query if found is None else OutgrownQuery.of(query, *found)

    def before(self, fold: ModelFold, ids: tuple[str, ...]) -> Folded:
        """What is known of a model of which nothing was read: it is true before the first event."""
        return Folded(self.query(fold, ids), fold.initial(ids), START)
