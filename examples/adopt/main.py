"""Runs the service before and after each step, on one file: `python -m adopt.main shop.db`."""

from __future__ import annotations

import sys
from importlib import import_module

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from adopt import step_0_crud
from adopt.tables import Product, Tables
from diptych import Rejected, SyncApplication

__all__ = ["main"]


def main(path: str) -> None:
    """Run all of it on a new file."""
    engine = create_engine(f"sqlite:///{path}")
    store = f"sqlite:{path}?own_tables=true"
    before(engine)
    command(engine, store)
    projection(engine, store)
    query(engine, store)
    rule(store)
    engine.dispose()


def before(engine: Engine) -> None:
    """As it was."""
    Tables.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Product(sku="lamp", stock=10), Product(sku="desk", stock=1)])
        session.commit()
    order = {"id": "o-1", "customer": "ada", "sku": "lamp", "quantity": 2}
    print("0 crud      ", step_0_crud.post_order(engine, order), step_0_crud.get_customer(engine, "ada"))


def command(engine: Engine, store: str) -> None:
    """One endpoint executes a command, the other still reads the tables."""
    step = import_module("adopt.step_1_command")
    order = {"id": "o-2", "customer": "ada", "sku": "desk", "quantity": 1}
    with SyncApplication(step.shop, store=store) as app:
        first, again = step.post_order(app, order), step.post_order(app, order)
        refused = step.post_order(app, {**order, "id": "o-3"})
    print("1 command   ", first[0], again == first, refused, step_0_crud.get_customer(engine, "ada"))


def projection(engine: Engine, store: str) -> None:
    """Rows of before get events, once; what had one is known."""
    step = import_module("adopt.step_2_projection")
    with SyncApplication(step.shop, store=store) as app:
        print("2 projection", step.take_over_all(app, engine), step.take_over_all(app, engine), "taken over")


def query(engine: Engine, store: str) -> None:
    """Both endpoints are on the new side, and show what the old one shows."""
    ordering, asking = import_module("adopt.step_1_command"), import_module("adopt.step_3_query")
    with SyncApplication(ordering.shop, store=store) as app:
        order = {"id": "o-4", "customer": "ada", "sku": "lamp", "quantity": 3}
        _, answer = ordering.post_order(app, order)
        shown = asking.get_customer(app, "ada", answer["seen"])
    print("3 query     ", shown, shown == step_0_crud.get_customer(engine, "ada"))


def rule(store: str) -> None:
    """A decision without tables, beside the one with them."""
    step = import_module("adopt.step_4_rule")
    with SyncApplication(step.shop, store=store) as app:
        app.execute(step.ReturnOrder(order="o-4", quantity=2))
        try:
            app.execute(step.ReturnOrder(order="o-4", quantity=2))
        except Rejected as rejected:
            print("4 rule      ", rejected.code, rejected.facts)


if __name__ == "__main__":
    main(*sys.argv[1:])
