"""How is Redis reached, and what does it mean when it is not?"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from service.errors import NotReady

# A read that waits for work ends after so long and is asked again: long enough to cost nothing, short enough that a
# dead connection, a due sweep or the end of the process is seen soon. It must stay well below the socket's time limit.
BLOCK_S = 2.0
_ANSWER_S = 5.0
_RETRIES = 3
_BACKOFF = ExponentialBackoff(cap=0.2, base=0.02)
# No disk, or no replica, to write to: refusals that the client has no class for. Of a pipeline it puts words before.
_REFUSAL = re.compile(r"(?:^|caused error: )(?:MISCONF|NOREPLICAS)\b")

Argument = str | bytes | int | float


class Batch(Protocol):
    """Commands that travel together."""

    def execute_command(self, *args: Argument) -> Any: ...
    def execute(self) -> list[Any]: ...


class Link(Protocol):
    """What of a Redis client is used here; for threads."""

    def execute_command(self, *args: Argument) -> Any: ...
    def pipeline(self, transaction: bool) -> Batch: ...
    def close(self) -> None: ...


class AsyncBatch(Protocol):
    def execute_command(self, *args: Argument) -> Any: ...
    def execute(self) -> Awaitable[list[Any]]: ...


class AsyncLink(Protocol):
    """The same for an event loop."""

    def execute_command(self, *args: Argument) -> Awaitable[Any]: ...
    def pipeline(self, transaction: bool) -> AsyncBatch: ...
    async def aclose(self) -> None: ...


def open_link(url: str) -> Link:
    """Each command is sent again after a lost connection: the scripts bear repetition."""
    return Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        socket_timeout=_ANSWER_S,
        socket_connect_timeout=_ANSWER_S,
        retry=Retry(_BACKOFF, _RETRIES),
    )


def open_async_link(url: str, max_connections: int) -> AsyncLink:
    """To be used inside `answering`, which bounds each command."""
    return AsyncRedis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        # With a limit here the client sends inside asyncio.wait_for, which on Python 3.11 can lose a cancellation: a
        # request whose caller has gone would wait on.
        socket_timeout=None,
        max_connections=max_connections,
        socket_connect_timeout=_ANSWER_S,
        retry=AsyncRetry(_BACKOFF, _RETRIES),
    )


@contextmanager
def reachable() -> Iterator[None]:
    """Turns every way in which the server can be away, or refuse to write, into NotReady."""
    try:
        yield
    except (NoConnection, NoAnswer, OutOfMemoryError, ReadOnlyError, ClusterDownError, OSError) as err:
        raise NotReady(f"the queue's server does not answer ({type(err).__name__})") from err
    except ResponseError as err:
        if not _REFUSAL.search(str(err)):
            raise
        raise NotReady("the queue's server cannot write now") from err


@asynccontextmanager
async def answering(*, blocked_s: float = 0.0) -> AsyncIterator[None]:
    """The same for an event loop, where the server has so long to answer, beyond the time it was asked to block."""
    with reachable():
        async with asyncio.timeout(_ANSWER_S + blocked_s):
            yield
