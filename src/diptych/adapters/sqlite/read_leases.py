"""Leases of a read store's generations as locks of the operating system: a locked file beside the store for each.

An idle application writes nothing: a lock needs no renewing. The system frees it when its holder dies; one that is
stopped keeps it, and has to be ended or continued. Whoever comes first holds it. The epochs in the file fence, as with
every store; they change when a lock changes hands.

A lock file is removed by its holder, so that none of a dropped generation stays. Who locks one therefore makes sure
afterwards that it is the one that others find under its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO
from urllib.parse import quote

from diptych.errors import StoreUnavailable
from diptych.read_side.read_store import LeaseKey

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no flock: everybody holds everything there, and is fenced.
    fcntl = None  # type: ignore[assignment]

__all__ = ["LeaseLocks"]

LOCK_NAME_CHARACTERS_MAX = 120
"""Of a generation's name in that of its lock file, where file systems take 255 bytes; of a longer one, a hash is."""
LOCK_TRIES_MAX = 10
"""How often a lock file is opened anew since its holder removed it in between; past it, the lock is not taken."""


class LeaseLocks:
    """The locks of one open read store, by worker."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._files: dict[tuple[str, LeaseKey], IO[bytes]] = {}

    @property
    def exclude(self) -> bool:
        """Whether locks keep others out: not where the system has none."""
        return fcntl is not None

    def held(self, worker: str) -> set[LeaseKey]:
        """What a worker holds."""
        return {key for name, key in self._files if name == worker}

    def take(self, worker: str, keys: Iterable[LeaseKey]) -> list[LeaseKey]:
        """Lock what is free, and give what was.

        Raises:
            StoreUnavailable: the lock files cannot be made or locked; nothing was taken.
        """
        taken: list[LeaseKey] = []
        for key in keys:
            path = self._path(key)
            try:
                file = _locked(path)
            except OSError as error:
                self.let_go(worker, taken)
                raise StoreUnavailable(
                    f"{path} cannot be locked: {error.strerror}; check its folder, and that its file system has locks"
                ) from error
            if file is not None:
                self._files[worker, key] = file
                taken.append(key)
        return taken

    def let_go(self, worker: str, keys: Collection[LeaseKey]) -> None:
        """Unlock what a worker holds of these."""
        for key in keys:
            file = self._files.pop((worker, key), None)
            if file is not None:
                self._path(key).unlink(missing_ok=True)  # while it is locked: nobody else has this one
                file.close()

    def close(self) -> None:
        """Unlock everything."""
        for worker, key in list(self._files):
            self.let_go(worker, [key])

    def _path(self, key: LeaseKey) -> Path:
        name, number, slice = quote(key[0], safe=""), key[1], key[2]
        if len(name) > LOCK_NAME_CHARACTERS_MAX:
            name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        return Path(f"{self._store}-lease-{name}-{number}-{slice}")


def _locked(path: Path) -> IO[bytes] | None:
    """The file of that name, locked; None where somebody else holds it."""
    assert fcntl is not None, "there are locks"
    for _ in range(LOCK_TRIES_MAX):
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(file, path):
                return file
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        file.close()
    return None


def _is_there(file: IO[bytes], path: Path) -> bool:
    """Whether the name still stands for this file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
