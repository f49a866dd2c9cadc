"""Unique ids that sort by time: UUID version 7 (RFC 9562, section 5.7).

Time-ordered ids keep indexes dense: random keys cost a third of the commit rate of SQLite (see the benchmarks).
"""

from __future__ import annotations

import os
import struct
import threading
import time

__all__ = ["unique_bytes", "unique_id"]

POOL_SIZE = 256
"""Ids whose random part is drawn at once: a system call for each would cost more than all the rest of it."""
_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62
_unpack = struct.Struct(f">{POOL_SIZE}Q").unpack
_lock = threading.Lock()
_last_time = 0
_pool: list[int] = []
"""Lower halves of ids to come: 62 random bits under the variant."""


def _begin_anew() -> None:
    """In a forked process: draw random bytes of its own, and hold no lock of a thread that was left behind."""
    global _lock  # noqa: PLW0603
    _pool.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_begin_anew)


def unique_bytes() -> bytes:
    """A UUIDv7 as 16 bytes, greater than every earlier one of this process.

    The 12 bits after the milliseconds hold the fraction of the millisecond (RFC 9562, section 6.2, method 3).
    """
    global _last_time  # noqa: PLW0603 — order within the process is the point
    # 2**12 steps in a millisecond: about 244 ns each
    now = time.time_ns() * 4096 // 1_000_000
    with _lock:
        if now <= _last_time:
            now = _last_time + 1
        _last_time = now
    try:
        lower_half = _pool.pop()
    except IndexError:
        lower_half, *others = (_VARIANT | drawn >> 2 for drawn in _unpack(os.urandom(8 * POOL_SIZE)))
        _pool.extend(others)
    return (now >> 12 << 80 | _VERSION | (now & 4095) << 64 | lower_half).to_bytes(16, "big")


def unique_id() -> str:
    """A UUIDv7 in its usual text form, 36 characters."""
    digits = unique_bytes().hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
