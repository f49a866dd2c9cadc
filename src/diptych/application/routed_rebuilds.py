"""Rebuilds of read models, wherever each is kept."""

from __future__ import annotations

from collections.abc import Sequence

from diptych.application.projected_store import ProjectedStore
from diptych.errors import ConfigurationError
from diptych.event_store.position import Position
from diptych.read_side.comparison import Comparison
from diptych.read_side.rebuild import Approve, Progress

__all__ = ["RoutedRebuilds"]


class RoutedRebuilds:
    """Builds read models anew, in each of the stores that they are kept in. Made by the application."""

    def __init__(self, stores: Sequence[ProjectedStore]) -> None:
        self._stores = stores

    async def rebuild(
        self, name: str, progress: Progress | None = None, *, approve: Approve | None = None
    ) -> Position | None:
        """Build a read model anew beside the live one, and switch to it; where it is in several stores, in each.

        One after the other, the one that answers first; where one is not approved, the others are left alone. Rows in
        memory are a fold of this very code: they come last, and are not compared where others are.

        Returns:
            The least position from which the new rows answer; None where that was not approved.

        Raises:
            ConfigurationError: no read model has that name.
            StoreUnavailable: it cannot be built in a store; what is live there stays.
        """
        reached: list[Position] = []
        stores = self._of(name)
        for store in stores:
            asked = approve if store.read_store.durable or not stores[0].read_store.durable else None
            position = await store.rebuilds.rebuild(name, progress, approve=asked)
            if position is None:
                return None
            reached.append(position)
        return min(reached)

    async def compare(self, name: str, progress: Progress | None = None) -> Comparison:
        """Compare the rows that answer, of those that outlive the process, with a fresh fold.

        See `Rebuilds.compare`.
        """
        return await self._of(name)[0].rebuilds.compare(name, progress)

    async def back(self, name: str, progress: Progress | None = None) -> Position:
        """Go back to the rows that answered before the last switch; see `Rebuilds.back`.

        Where it is in several stores, in each of them, the one that answers first; but for rows in memory of which none
        are kept: they were folded when this process began, by its code, and stay.

        Returns:
            The least position from which they answer.

        Raises:
            ConfigurationError: no read model has that name, or a store keeps nothing of it; nothing has changed.
            StoreUnavailable: what a store keeps is behind, and stays so: it goes on answering as it does, and so do
                those after it.
        """
        stores = self._of(name)
        keeping = [store for store in stores if await store.rebuilds.keeps(name)]
        lacking = [store for store in stores if store.read_store.durable and store not in keeping]
        if keeping and lacking:
            raise ConfigurationError(
                f"the read store {lacking[0].url} keeps no rows of {name} to go back to, and {keeping[0].url} does: "
                "nothing has changed. Leave it out of read_stores= to go back without it"
            )
        return min([await store.rebuilds.back(name, progress) for store in keeping or stores])

    def _of(self, name: str) -> list[ProjectedStore]:
        """The stores of a read model, those first whose rows outlive the process, and of these the one that answers."""
        known = {each for store in self._stores for each in store.names()}
        meant = [name] if name in known else [each for each in known if each.rpartition(".")[2] == name]
        if len(meant) != 1:
            raise ConfigurationError(f"no read model is named {name!r}; there are {', '.join(sorted(known))}")
        found = [store for store in self._stores if meant[0] in store.names()]
        return sorted(found, key=lambda store: (not store.read_store.durable, not store.answers(meant[0])))
