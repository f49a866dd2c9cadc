"""Finds the shop that `diptych demo` runs: in a wheel beside the package, in a checkout among the examples."""

from __future__ import annotations

import sys
from pathlib import Path

import diptych.entrypoints
from diptych.errors import ConfigurationError

__all__ = ["make_shop_importable"]


def make_shop_importable() -> Path:
    """Put the folder that holds the shop on the import path, first, and return it.

    Raises:
        ConfigurationError: this installation has no shop.
    """
    package = Path(diptych.entrypoints.__path__[0]).parent
    places = [package / "_examples", package.parent.parent / "examples"]
    for place in places:
        if (place / "shop" / "demo.py").is_file():
            if str(place) not in sys.path:
                sys.path.insert(0, str(place))
            return place
    listed = " nor ".join(str(place / "shop") for place in places)
    raise ConfigurationError(f"the shop is neither in {listed}: install Diptych again")
