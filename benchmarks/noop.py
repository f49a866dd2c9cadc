"""Servers that do nothing, to compare with: a Starlette route and, where it is installed, a FastAPI one."""

from __future__ import annotations

import importlib.util

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def nothing(request: Request) -> JSONResponse:
    """Read the body, as a command has to be read, and answer."""
    await request.body()
    return JSONResponse({"done": True})


starlette = Starlette(routes=[Route("/nothing", nothing, methods=["GET", "POST"])])

if importlib.util.find_spec("fastapi"):
    from fastapi import FastAPI  # type: ignore[import-not-found]
    from pydantic import BaseModel  # type: ignore[import-not-found]

    class Nothing(BaseModel):  # type: ignore[misc]
        """What the measured command holds."""

        account: str
        amount: int

    fastapi = FastAPI()

    @fastapi.post("/nothing")  # type: ignore[untyped-decorator]
    async def do_nothing(body: Nothing) -> dict[str, bool]:
        """Answer."""
        return {"done": True}

    @fastapi.get("/nothing")  # type: ignore[untyped-decorator]
    async def get_nothing() -> dict[str, bool]:
        """Answer."""
        return {"done": True}
