"""Orders that are placed once, by a token of the client's (dcb.events/examples).

A command id does this in Diptych without a line of code (G4); here the token is part of the domain.
"""

from __future__ import annotations

from diptych import BoundedContext, Command, DecisionModel, Event, Identity, Rejected

orders = BoundedContext("orders")


class OrderId(Identity): ...


class IdempotencyToken(Identity, tag="idempotency"): ...


class PlaceOrder(Command):
    order_id: OrderId
    idempotency_token: IdempotencyToken


class OrderPlaced(Event):
    order_id: OrderId
    idempotency_token: IdempotencyToken


class TokenUse(DecisionModel[IdempotencyToken]):
    used: bool = False

    def evolve(self, event: OrderPlaced) -> TokenUse:
        return TokenUse(used=True)


@orders.command_handler
def place(command: PlaceOrder, token: TokenUse) -> OrderPlaced:
    if token.used:
        raise Rejected("re-submission")
    return OrderPlaced(order_id=command.order_id, idempotency_token=command.idempotency_token)
