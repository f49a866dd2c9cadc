"""Constraints of fields (`Meta`) are told near the client: in the OpenAPI document and in problems, all at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
import pytest
from msgspec import Meta

from diptych import Application, BoundedContext, Command, Event, Identity, Query, Value
from diptych.entrypoints.http import http_app
from diptych.errors import InvalidMessage

pytestmark = pytest.mark.anyio


class OrderId(Identity): ...


class Line(Value):
    sku: Annotated[str, Meta(pattern="^[A-Z]{3}$", description="As on the label")]
    quantity: Annotated[int, Meta(ge=1, le=99)] = 1


class Place(Command):
    order: OrderId
    lines: Annotated[tuple[Line, ...], Meta(min_length=1, max_length=2)]
    remark: Annotated[str, Meta(max_length=9)] | None = None


class Placed(Event):
    order: OrderId


class Count(Query[int]):
    least: Annotated[int, Meta(ge=1)] = 1


WRONG = {"order": "1", "lines": [{"sku": "lamp", "quantity": 0}], "remark": "much too long"}
PATHS = ["$.lines[0].sku", "$.lines[0].quantity", "$.remark"]


def shop() -> BoundedContext:
    made = BoundedContext("shop")

    @made.command_handler
    def place(command: Place) -> Placed:
        return Placed(order=command.order)

    @made.query_handler
    async def count(query: Count) -> int:
        return query.least

    return made


@pytest.fixture
async def app() -> AsyncIterator[Application]:
    async with Application(shop(), store="memory:") as opened:
        yield opened


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(http_app(app)), base_url="http://shop") as made:
        yield made


async def test_the_document_tells_constraints(client: httpx2.AsyncClient) -> None:
    """Of fields, of nested ones, of what is optional, and of what a query is asked with."""
    document = (await client.get("/openapi.json")).json()
    schemas: dict[str, Any] = document["components"]["schemas"]
    line, place = schemas["Line"]["properties"], schemas["Place"]["properties"]
    assert {"pattern": "^[A-Z]{3}$", "description": "As on the label"}.items() <= line["sku"].items()
    assert {"minimum": 1, "maximum": 99, "default": 1}.items() <= line["quantity"].items()
    assert {"minItems": 1, "maxItems": 2}.items() <= place["lines"].items()
    assert place["remark"]["anyOf"][0]["maxLength"] == 9
    (least,) = [
        each for each in document["paths"]["/queries/Count"]["get"]["parameters"] if each.get("name") == "least"
    ]
    assert least["schema"]["minimum"] == 1


@pytest.mark.parametrize("asked", ["", "?dry-run=true"])
async def test_a_problem_names_every_field_that_breaks_one(client: httpx2.AsyncClient, asked: str) -> None:
    """By its path, with what is wanted; nothing is decided."""
    response = await client.post(f"/commands/Place{asked}", json=WRONG)
    assert response.status_code == 422
    errors = response.json()["errors"]
    assert [error["path"] for error in errors] == PATHS
    assert "`int` >= 1" in errors[1]["message"]
    response = await client.get("/queries/Count?least=0")
    assert (response.status_code, [error["path"] for error in response.json()["errors"]]) == (422, ["$.least"])


async def test_they_hold_without_http_too(app: Application) -> None:
    """Python does not check them where a message is made; `execute`, `can` and `schedule` do."""
    wrong = Place(order=OrderId("1"), lines=(Line(sku="LMP", quantity=100),))
    for call in (app.execute(wrong), app.can(wrong), app.schedule(wrong)):
        with pytest.raises(InvalidMessage, match=r"\$\.lines\[0\]\.quantity"):
            await call
    assert await app.scheduled.list() == []
