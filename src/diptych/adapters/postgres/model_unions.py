"""Which events decision models fold, in one schema of PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from diptych.adapters.postgres.register import Register
from diptych.event_store.model_unions import ModelUnion, ModelUnions

__all__ = ["ModelRegister"]

_types_decoder = msgspec.json.Decoder(tuple[str, ...])


class ModelRegister(Register):
    """The unions of one schema."""

    async def stored(self) -> ModelUnions:
        """What is kept, by name, and its mark: one statement, so that they are of one moment."""
        rows = await self._fetch(
            f"SELECT h.models, m.model, m.version, m.types FROM {self._schema}.history AS h "
            f"LEFT JOIN {self._schema}.model_unions AS m ON true WHERE h.one = 1 ORDER BY m.model"
        )
        kept = [ModelUnion(name, version, _types_decoder.decode(types)) for _, name, version, types in rows if name]
        return ModelUnions(rows[0]["models"], tuple(kept))

    async def keep(self, models: Sequence[ModelUnion], instead_of: bytes) -> bool:
        """Keep these where the mark is still that one; see `EventStore.keep_models`."""
        statement = f"SELECT {self._schema}.keep_models($1::text[], $2::integer[], $3::bytea[], $4::bytea, $5::integer)"
        names, versions = [model.name for model in models], [model.version for model in models]
        types = [msgspec.json.encode(model.types) for model in models]
        ((done,),) = await self._write(statement, names, versions, types, instead_of)
        return bool(done)
