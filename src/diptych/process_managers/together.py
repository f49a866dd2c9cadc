"""Calls that come at the same moment are done as one: one transaction, and one sync of the disk, for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from diptych.errors import StoreClosed

__all__ = ["Together"]

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Does one thing for many who want it at a time. While it is done for some, the next ones gather.

    Args:
        do: gives a result for each, in order; what it raises, all of them hear.
        together_max: for how many at once.
        name: of the task that does it.
    """

    def __init__(self, do: Callable[[Sequence[T]], Awaitable[Sequence[R]]], together_max: int, name: str) -> None:
        self._do = do
        self._together_max = together_max
        self._name = name
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait to be begun."""
        return len(self._waiting)

    async def result(self, wanted: T) -> R:
        """The result for one. It is done also where its caller is cancelled meanwhile."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=self._name)
        return await asyncio.shield(answer)

    async def end(self) -> None:
        """Wait until all is done that was asked for."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._together_max], self._waiting[self._together_max :]
                await self._run_batch(batch)
        finally:
            self._task = None
            left, self._waiting = self._waiting, []
            self._fail(left, StoreClosed("the event loop was torn down: this was not done"))

    async def _run_batch(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._do([wanted for wanted, _ in batch])
        except Exception as error:  # noqa: BLE001  # everyone in the batch hears it
            self._fail(batch, error)
            return
        except BaseException:
            self._fail(batch, StoreClosed("the event loop was torn down: whether this was done is not known"))
            raise
        for (_, answer), result in zip(batch, results, strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):
                answer.set_result(result)

    @staticmethod
    def _fail(batch: Sequence[tuple[T, asyncio.Future[R]]], error: Exception) -> None:
        for _, answer in batch:
            with contextlib.suppress(asyncio.InvalidStateError):
                answer.set_exception(error)
                answer.exception()  # whoever wanted it may be gone, and is no cause for a warning
