"""Step 3, a query: the row that answers it is there, and a customer sees their own order in it."""

from __future__ import annotations

from typing import Any

from adopt.step_2_projection import CustomerOrders
from diptych import Query, SyncApplication

__all__ = ["OrdersOf", "get_customer"]


class OrdersOf(Query[CustomerOrders | None]):
    """Its field is the key of the row: it needs no handler."""

    customer: str


def get_customer(app: SyncApplication, customer: str, seen: str | None = None) -> tuple[int, dict[str, Any]]:
    """GET /customers/{customer}, with what POST /orders answered as `seen`."""
    row = app.query(OrdersOf(customer=customer), after=seen)
    return 200, {"customer": customer, "orders": row.orders if row else 0, "units": row.units if row else 0}
