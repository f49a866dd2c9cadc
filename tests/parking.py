"""What failed and waits, helped on by hand: for tests in which it does not matter who does it and why."""

from __future__ import annotations

from collections.abc import Sequence

from diptych import Application
from diptych.application.parked import ParkedItem

ACTOR, REASON = "ann", "the library is mended"


async def parked(app: Application) -> Sequence[ParkedItem]:
    """Everything that is parked, of which there are few."""
    page = await app.parked.list()
    assert page.next == ""
    return page.items


async def retry(app: Application, key: str) -> ParkedItem | None:
    """Try the one item of a key again; what it waits behind now."""
    (item,) = [found for found in await parked(app) if found.key == key]
    return (await app.parked.retry(item.id, actor=ACTOR, reason=REASON)).still


async def discard(app: Application, key: str) -> ParkedItem | None:
    """Discard the one item of a key; what it waits behind now."""
    (item,) = [found for found in await parked(app) if found.key == key]
    return (await app.parked.discard(item.id, actor=ACTOR, reason=REASON)).still
