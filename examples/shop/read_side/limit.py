"""How much one answer shows."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

__all__ = ["LIMIT_MAX", "Limit"]

LIMIT_MAX = 1_000
"""Rows that one answer shows at most."""
Limit = Annotated[int, Meta(ge=1, le=LIMIT_MAX)]
"""How many rows are wanted."""
