"""The contract on which events models fold is itself proven: whichever guarantee a store breaks, a test of it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from diptych.adapters.memory.event_store import MemoryEventStore
from diptych.clock import Clock
from diptych.event_store.event_store import AppendResult, Commit, EventStore, ModelsChanged
from diptych.event_store.model_unions import NONE_KEPT, ModelUnion, ModelUnions
from diptych.event_store.position import Position
from diptych.testing.contracts.event_store_models import ModelsContract


class AppendsUnderAny(MemoryEventStore):
    """Does not compare what was known with what is kept."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        return await super().append([replace(commit, models=b"") for commit in commits], base)


class ComparesTheFirst(MemoryEventStore):
    """Answers the first commit alone, and appends the rest."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        rest = [replace(commit, models=b"") for commit in commits[1:]]
        return await super().append([*commits[:1], *rest], base)


class DuplicatesFirst(MemoryEventStore):
    """Tells of a kept outcome before it compares."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        kept = [commit.command_id in self._outcomes for commit in commits]
        return await super().append(
            [replace(c, models=b"") if again else c for c, again in zip(commits, kept, strict=True)], base
        )


class NothingKeptWillDo(MemoryEventStore):
    """Compares only where something is kept."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        if not self._models.mark:
            commits = [replace(commit, models=b"") for commit in commits]
        return await super().append(commits, base)


class NobodyDecidesWithout(MemoryEventStore):
    """Refuses what nobody has decided."""

    async def append(self, commits: Sequence[Commit], base: Position | None = None) -> list[AppendResult]:
        if self._models.mark and any(not commit.models for commit in commits):
            return [ModelsChanged() for _ in commits]
        return await super().append(commits, base)


class MarkOfTheFirst(MemoryEventStore):
    """Makes a mark once."""

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        before = self._models.mark
        done = await super().keep_models(models, instead_of)
        self._models = replace(self._models, mark=before or self._models.mark)
        return done


class KeepsAnyway(MemoryEventStore):
    """Keeps, whatever the caller knows."""

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        return await super().keep_models(models, self._models.mark)


class KeepsTheLastAlone(MemoryEventStore):
    """Forgets the models that are not among those given."""

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        self._models = ModelUnions(self._models.mark, ())
        return await super().keep_models(models, instead_of)


class KeepsTheFirst(MemoryEventStore):
    """Leaves what is there under a name."""

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        known = self._models.by_name()
        return await super().keep_models([known.get(model.name, model) for model in models], instead_of)


class AsTheyCame(MemoryEventStore):
    """Lists them in no order."""

    async def stored_models(self) -> ModelUnions:
        kept = await super().stored_models()
        return ModelUnions(kept.mark, tuple(reversed(kept.models)))


class ForgetsThem(MemoryEventStore):
    """Keeps them until it is closed."""

    async def close(self) -> None:
        await super().close()
        self._models = NONE_KEPT


NOT_JUDGED = "test_what_was_decided_under_other_models_is_not_judged"
BY_NAME = "test_models_are_kept_by_name"
BROKEN: Sequence[tuple[type[MemoryEventStore], str]] = [
    (AppendsUnderAny, NOT_JUDGED),
    (AppendsUnderAny, "test_models_and_appends_do_not_pass_each_other"),
    (ComparesTheFirst, NOT_JUDGED),
    (DuplicatesFirst, NOT_JUDGED),
    (NothingKeptWillDo, "test_a_mark_of_nothing_that_is_kept_is_another_one"),
    (NobodyDecidesWithout, "test_what_was_decided_under_these_models_is_appended"),
    (MarkOfTheFirst, BY_NAME),
    (KeepsAnyway, "test_models_are_kept_in_place_of_what_is_known"),
    (KeepsTheLastAlone, BY_NAME),
    (KeepsTheFirst, BY_NAME),
    (AsTheyCame, BY_NAME),
    (ForgetsThem, BY_NAME),
]
"""What is broken, and the test that has to notice."""


@pytest.mark.parametrize(("store_type", "noticed_by"), BROKEN, ids=[f"{b.__name__}-{n}" for b, n in BROKEN])
def test_a_broken_store_fails_the_contract(store_type: type[MemoryEventStore], noticed_by: str) -> None:
    """Each broken guarantee is noticed by the test that is named for it."""

    class Contract(ModelsContract):
        shares_history = False

        @asynccontextmanager
        async def history(self, clock: Clock) -> AsyncGenerator[Callable[[], EventStore]]:
            store = store_type(clock)
            yield lambda: store

    with pytest.raises(AssertionError):
        asyncio.run(getattr(Contract(), noticed_by)())
