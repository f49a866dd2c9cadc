"""The part of the event store on PostgreSQL that knows types and models, and has stored events tagged anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING

from diptych.adapters.postgres.known_types import TypeRegister
from diptych.adapters.postgres.model_unions import ModelRegister
from diptych.adapters.postgres.retagging import Retagging
from diptych.event_store.event_store import StoredType, TypeFacts
from diptych.event_store.model_unions import ModelUnion, ModelUnions
from diptych.event_store.recorded_event import RecordedEvent
from diptych.event_store.tagging import Tagging

if TYPE_CHECKING:
    import asyncpg

__all__ = ["TypesAndTags"]


class TypesAndTags(ABC):
    """Base of the event store; these methods of the port are all that it has."""

    _types: TypeRegister
    _models: ModelRegister
    _retagging: Retagging
    _fetch: Callable[..., Awaitable[list[asyncpg.Record]]]

    @abstractmethod
    def _check_open(self) -> None:
        """Raise where the store is not open."""

    async def stored_types(self) -> list[StoredType]:
        """Types and versions that events are stored of, by name and version."""
        self._check_open()
        return await self._types.stored()

    async def register_types(self, types: Sequence[StoredType]) -> None:
        """Remember tag names and facts; what is known of a type that events are stored of stays.

        Where all are known nothing is written, so that whoever may only read can open an application.

        Raises:
            NotGranted: some are new, and this role adds nothing to the history.
        """
        self._check_open()
        await self._types.register(types)

    async def keep_facts(self, before: Sequence[StoredType], after: Sequence[TypeFacts]) -> None:
        """Replace the facts of types that are still as before.

        Raises:
            NotGranted: this role adds nothing to the history.
        """
        self._check_open()
        await self._types.keep(before, after)

    async def stored_models(self) -> ModelUnions:
        """What is kept of models."""
        self._check_open()
        return await self._models.stored()

    async def keep_models(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        """Keep these under another mark, where that one is still there.

        Raises:
            NotGranted: this role adds nothing to the history.
        """
        self._check_open()
        return await self._models.keep(models, instead_of)

    async def tagging(self) -> Tagging:
        """How events are tagged now."""
        self._check_open()
        return await self._retagging.tagging(self._fetch)

    async def begin_retag(self, types: Sequence[tuple[str, int]], instead_of: Tagging) -> Tagging:
        """Keep everyone who has the store open from appending, and applications from opening."""
        self._check_open()
        return await self._retagging.begin(types, instead_of)

    async def write_tags(self, tagging: Tagging, changes: Sequence[tuple[RecordedEvent, tuple[str, ...]]]) -> None:
        """Give events other tags."""
        self._check_open()
        await self._retagging.write_tags(tagging, changes)

    async def end_retag(self, tagging: Tagging, types: Sequence[StoredType], unaffected: Collection[str]) -> None:
        """Make tag names and facts true, and drop kept states but for those of the models named."""
        self._check_open()
        await self._retagging.end(tagging, types, unaffected)
