"""Is the caller still on the line? Work that is waited for ends when nobody waits."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do it, and cancel it when the caller leaves; the body must have been read to its end.

    Raises:
        ClientDisconnect: the caller left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()


async def left(request: Request) -> None:
    """Return when the connection is gone: after the body nothing else is to come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
