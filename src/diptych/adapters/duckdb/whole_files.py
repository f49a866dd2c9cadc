"""Files that others see whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from diptych.errors import StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["put_in_place"]


def put_in_place(finished: Path, target: Path) -> None:
    """Let a finished file, of the same file system, take the place of another, durably.

    Raises:
        StoreUnavailable: it cannot; with the reason. The other one is there still.
    """
    try:
        with finished.open("rb+") as file:
            os.fsync(file.fileno())
        finished.replace(target)
    except OSError as error:
        raise StoreUnavailable(
            f"{target} cannot be written: {error.strerror} (it has to be on the file system of {finished})"
        ) from error
