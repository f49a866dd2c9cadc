"""Who waits for rows to change: woken at once by this process's own writes, and soon by those of others.

A notification, or the fallback's look every now and then, only says when to look. What changed is told by the versions
of the rows in the catalog, so that neither own writes, which are known, nor lost or doubled notifications matter. While
an own write is under way, a new version of what it writes is most likely its own: it is judged when that is known.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager

import asyncpg

from diptych.adapters.postgres.connection import PostgresUrl
from diptych.adapters.postgres.read_writes import Versions
from diptych.adapters.postgres.wake_ups import WakeUps
from diptych.clock import pause
from diptych.errors import DiptychError
from diptych.read_side.change_count import ChangeCount
from diptych.read_side.read_store import LeaseKey

__all__ = ["Changes"]

CHANGES_POLL_S = 1.0
"""How often the catalog is looked at while somebody waits and notifications come: one may be lost …"""
CHANGES_POLL_DEAF_S = 0.1
"""… and while none can come."""


class Changes:
    """Counts what was committed to the read store, by whomever, as far as anyone looked."""

    def __init__(
        self, url: PostgresUrl, channel: str, look: Callable[[], Awaitable[Versions]], is_own: Callable[[int], bool]
    ) -> None:
        """Remember the settings.

        Args:
            url: of the server.
            channel: of notifications.
            look: gives the versions of all generations as they are now.
            is_own: whether a notification is of this store's own, which is noted or looked for in any case.
        """
        self._url = url
        self._look_at_catalog = look
        self._versions: Versions = {}
        self._being_written = Counter[LeaseKey]()
        self._passed_over = False
        self._noticed = ChangeCount(url.shown)
        self._wake_ups = WakeUps(url, channel, self.look_soon, is_own)
        self._looking: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._look_again = False
        self._closed = True

    @property
    def count(self) -> int:
        """How many changes anyone noticed."""
        return self._noticed.count

    async def open(self) -> None:
        """Remember how it is now."""
        self._noticed = ChangeCount(self._url.shown)
        self._versions = await self._look_at_catalog()
        self._closed = False

    async def close(self) -> None:
        """Wake everyone, to hear that it is over."""
        self._closed = True
        self._noticed.close()
        await self._wake_ups.close()
        tasks = [task for task in (self._looking, self._polling) if task is not None]
        self._looking = self._polling = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def note(self, versions: Versions, *, whole: bool = False) -> None:
        """Count an own change, after which these are the versions of the generations that it touched, or of all.

        Where all are as they were, there was none.
        """
        if whole and versions == self._versions:
            return
        self._versions = versions if whole else self._versions | versions
        self._noticed.note()

    @contextmanager
    def writing(self, keys: Iterable[LeaseKey]) -> Generator[None]:
        """While an own write of these generations is under way, up to where its outcome is noted."""
        written = tuple(keys)
        self._being_written.update(written)
        try:
            yield
        finally:
            self._being_written -= Counter(written)
            if self._passed_over:
                self.look_soon()

    async def wait(self, seen: int, timeout_s: float) -> int:
        """The count, once it is another than `seen` or the time is over."""
        if self.count != seen:
            return self.count
        self._keep_watch()
        return await self._noticed.wait(seen, timeout_s)

    # ── looking ──────────────────────────────────────────────────────────────

    def _keep_watch(self) -> None:
        self._wake_ups.ensure()
        if self._polling is None:
            self._polling = asyncio.get_running_loop().create_task(self._look_regularly())

    async def _look_regularly(self) -> None:
        """Look every now and then; ends when nobody waits."""
        while self._noticed.waiting:
            await pause(CHANGES_POLL_S if self._wake_ups.is_listening else CHANGES_POLL_DEAF_S)
            self._wake_ups.ensure()
            self.look_soon()
        self._polling = None

    def look_soon(self) -> None:
        """Look at the catalog: something may have been written."""
        self._look_again = True
        if self._looking is None and not self._closed:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            while self._look_again:
                self._look_again = False
                before = self.count
                versions = await self._look_at_catalog()
                if self.count != before:  # an own write came in between, and what was read may be older
                    self._look_again = True
                else:
                    self._judge(versions)
        except (DiptychError, asyncpg.PostgresError):
            self._noticed.wake()  # the own reads of those who wait say what is wrong
        finally:
            self._looking = None

    def _judge(self, versions: Versions) -> None:
        """Count a change by others, if there is one."""
        known = self._versions
        differ = {key for key in versions.keys() | known.keys() if versions.get(key) != known.get(key)}
        theirs = differ - self._being_written.keys()
        self._passed_over = theirs != differ
        if theirs:
            kept = {key: version for key, version in known.items() if key not in theirs}
            self.note(kept | {key: versions[key] for key in theirs & versions.keys()}, whole=True)
