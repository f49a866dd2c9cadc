"""How the events of a history are tagged, which `diptych retag` changes (`event_store/retag.py`).

A decision is judged by tags. So nobody appends by tags that are not those of the stored events: a *tagging* has an id,
every open store remembers the one that it was opened under, and the append section compares. Whoever tags events anew
begins with another id. From then on no store that is open appends anything, its own included, until it is opened again;
and no application is opened before the work is done.
"""

from __future__ import annotations

import msgspec

from diptych.errors import Retagged

__all__ = ["UNTOUCHED", "Tagging", "check_tagging", "retagged"]


class Tagging(msgspec.Struct, frozen=True):
    """How the events of a history are tagged.

    Attributes:
        id: 16 bytes, others whenever events are begun to be tagged anew; empty while they are tagged as they were
            appended.
        unfinished: types and versions whose events are being tagged anew; empty where none are.
    """

    id: bytes = b""
    unfinished: tuple[tuple[str, int], ...] = ()


UNTOUCHED = Tagging()
"""Of a history whose events are tagged as they were appended."""


def check_tagging(found: bytes, known: bytes) -> None:
    """Compare the id of the tagging that is there with the one that somebody goes by.

    Raises:
        Retagged: they differ.
    """
    if found != known:
        raise retagged()


def retagged() -> Retagged:
    """The error for whoever goes by another tagging than the one that is there."""
    return Retagged(
        "the stored events are being tagged anew, or were since this process opened the store; nothing was done. "
        "Once diptych retag is done, start it again, with the code that tags them so"
    )
