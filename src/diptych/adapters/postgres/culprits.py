"""Which commits of a batch the database cannot store, found by trying parts of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

__all__ = ["find_culprits"]


async def find_culprits(
    refusals: Sequence[str | None], try_out: Callable[[Sequence[int]], Awaitable[str | None]]
) -> list[str | None]:
    """Why commits cannot be stored, one for each; None where they can.

    Args:
        refusals: what is known of them.
        try_out: what the database has against storing those of these numbers, and takes back; None where nothing.
    """
    found = list(refusals)
    parts = [range(len(refusals))]
    while parts:
        part = parts.pop()
        reason = await try_out(part)
        if reason is None:
            continue
        if len(part) == 1:
            found[part[0]] = reason
        else:
            middle = len(part) // 2
            parts += [part[:middle], part[middle:]]
    return found
