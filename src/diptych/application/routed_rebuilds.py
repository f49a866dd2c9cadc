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

        One after the other, the one that answers first; where one is not approved, the others are left alone.

        Returns:
            The least position from which the new rows answer; None where that was not approved.

        Raises:
            ConfigurationError: no read model has that name.
            StoreUnavailable: it cannot be built in a store; what is live there stays.
        """
        reached: list[Position] = []
        for store in self._of(name):
            position = await store.rebuilds.rebuild(name, progress, approve=approve)
            if position is None:
                return None
            reached.append(position)
        return min(reached)

    async def compare(self, name: str, progress: Progress | None = None) -> Comparison:
        """Compare the rows that answer with a fresh fold; see `Rebuilds.compare`."""
        return await self._of(name)[0].rebuilds.compare(name, progress)

    async def back(self, name: str, progress: Progress | None = None) -> Position:
        """Go back to the rows that answered before the last switch; see `Rebuilds.back`.

        Where it is in several stores, in each of them, the one that answers first.

        Returns:
            The least position from which they answer.

        Raises:
            ConfigurationError: no read model has that name, or a store keeps nothing of it.
            StoreUnavailable: what a store keeps is behind, and stays so: it goes on answering as it does, and so do
                those after it.
        """
        return min([await store.rebuilds.back(name, progress) for store in self._of(name)])

    def _of(self, name: str) -> list[ProjectedStore]:
        """The stores of a read model, the one that answers first."""
        known = {each for store in self._stores for each in store.names()}
        meant = [name] if name in known else [each for each in known if each.rpartition(".")[2] == name]
        if len(meant) != 1:
            raise ConfigurationError(f"no read model is named {name!r}; there are {', '.join(sorted(known))}")
        found = [store for store in self._stores if meant[0] in store.names()]
        return sorted(found, key=lambda store: not store.answers(meant[0]))
