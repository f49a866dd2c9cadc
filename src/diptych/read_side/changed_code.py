"""What opening does about read models whose rows are of other code: refuse to, or wait until those of this code answer.

The other policies need nothing of this: the projector builds, and queries look for rows that they may show.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from diptych.errors import ConfigurationError, StoreUnavailable
from diptych.read_side.projector import Projector
from diptych.read_side.read_store import Generation, ReadStore

__all__ = ["refuse_changed", "wait_until_built"]

TOLD_EVERY_S = 5.0
"""Seconds between lines of the log that tell how far the builds are that opening waits for."""
LOOK_AGAIN_S = 0.5
"""Seconds after which what is waited for is looked at again without a change."""

_log = logging.getLogger("diptych.rebuild")


async def refuse_changed(read_store: ReadStore, fingerprints: Mapping[str, str]) -> None:
    """Make sure that no rows answer that are of other code than this; none at all are no reason.

    Args:
        read_store: it is open.
        fingerprints: of this code, by the projection's name.

    Raises:
        ConfigurationError: some do, and nothing was changed; with their names and what to do.
    """
    answering = [found for found in await read_store.generations() if found.live and found.slice == 0]
    changed = [each.name for each in answering if each.fingerprint != fingerprints.get(each.name, each.fingerprint)]
    if changed:
        raise ConfigurationError(
            f"the rows of {', '.join(changed)} are of other code than this, and on_changed is 'refuse': build them "
            "with `diptych rebuild changed` and this code, or open with another policy"
        )


async def wait_until_built(
    projector: Projector, read_store: ReadStore, fingerprints: Mapping[str, str], failure: Callable[[], str]
) -> None:
    """Wait until rows of this code answer in every read model, whoever builds them; and tell how far they are.

    Args:
        projector: of this process, running or not.
        read_store: it is open.
        fingerprints: of this code, by the projection's name.
        failure: why nothing is folded in this process any more; empty while all is well.

    Raises:
        StoreUnavailable: one of them cannot be built to its end here; with the reason.
    """
    told_at, seen = time.monotonic(), read_store.changes
    while True:
        known = await read_store.generations()
        missing = [name for name, fingerprint in fingerprints.items() if not _answers(known, name, fingerprint)]
        if not missing:
            return
        reasons = [slice.stopped for name in missing for slice in projector.slices_of(name) if slice.stopped]
        if failure() or reasons:
            raise StoreUnavailable(f"{', '.join(missing)} cannot be built: {failure() or reasons[0]}")
        if time.monotonic() >= told_at:
            told_at = time.monotonic() + TOLD_EVERY_S
            head = await projector.head()
            for name in missing:
                mine = [found for found in known if (found.name, found.fingerprint) == (name, fingerprints[name])]
                reached = min([found.checkpoint.position for found in mine], default=0)
                _log.warning("opening waits for %s, which is built up to position %d of %d", name, reached, head)
        seen = await read_store.wait_for_change(seen, LOOK_AGAIN_S)


def _answers(known: Sequence[Generation], name: str, fingerprint: str) -> bool:
    return any(not found.under_way and (found.name, found.fingerprint) == (name, fingerprint) for found in known)
