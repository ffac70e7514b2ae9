"""How is Redis reached, and what does it mean when it is not?

| URL                                                              | means                                      |
| ---------------------------------------------------------------- | ------------------------------------------ |
| `redis://[user:password@]host[:port][/db]`                       | one server                                 |
| `unix://[user:password@]/path[?db=N]`                            | one server, on a socket file               |
| `redis+sentinel://[user:password@]host[:port],.../service[/db]`  | the primary that these sentinels name      |
| `rediss://...`, `rediss+sentinel://...`                          | the same over TLS, to the sentinels too    |

Behind `?` stand the options of `_OPTIONS`. A password is never told: not in a message, not in a log.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from redis import Redis
from redis import sentinel as sentinels
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import connection as async_connections
from redis.asyncio import sentinel as async_sentinels
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, ClusterDownError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from models.errors import QuietframeError
from service.errors import NotReady

# A read that waits for work ends after so long and is asked again: long enough to cost nothing, short enough that a
# dead connection, a due sweep or the end of the process is seen soon. It must stay well below the socket's time limit.
BLOCK_S = 2.0
_ANSWER_S = 5.0
_SENTINEL_S = 1.0  # the next one must be asked well within the time that a command has
_RETRIES = 3
_BACKOFF = ExponentialBackoff(cap=0.2, base=0.02)
# No disk, or no replica, to write to, or no primary any more: refusals that the client has no class for. Of a pipeline
# it puts words before.
_REFUSAL = re.compile(r"(?:^|caused error: )(?:MISCONF|NOREPLICAS|UNBLOCKED force unblock)\b")
_SERVER_PORT, _SENTINEL_PORT = 6379, 26379
_SENTINEL_LIMITS = {"protocol": 2, "socket_timeout": _SENTINEL_S, "socket_connect_timeout": _SENTINEL_S}
_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")

Argument = str | bytes | int | float
T = TypeVar("T")


class BadRedisUrl(QuietframeError):
    """The URL names no server that could be reached; the message does not hold the URL, for that holds a password."""


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
    """Each command is sent again after a lost connection: the scripts bear repetition.

    Raises:
        BadRedisUrl
    """
    place = _place_of(url)
    options = place.options | {
        "decode_responses": True,
        "protocol": 2,
        "socket_timeout": _ANSWER_S,
        "socket_connect_timeout": _ANSWER_S,
        "retry": _Patience(_BACKOFF, _RETRIES),
        "retry_on_error": [ReadOnlyError],
    }
    if place.sentinels:
        watchers = _Sentinel(place.sentinels, sentinel_kwargs=place.sentinel_options | {"retry": Retry(NoBackoff(), 0)})
        pool: ConnectionPool = _SentinelPool(place.service, watchers, ssl=place.tls, **options)
        return Redis.from_pool(pool)
    kind = UnixDomainSocketConnection if "path" in options else SSLConnection if place.tls else Connection
    return Redis.from_pool(ConnectionPool(connection_class=kind, **options))


def open_async_link(url: str, max_connections: int) -> AsyncLink:
    """To be used inside `answering`, which bounds each command.

    Raises:
        BadRedisUrl
    """
    place = _place_of(url)
    options = place.options | {
        "decode_responses": True,
        "protocol": 2,
        # With a limit here the client sends inside asyncio.wait_for, which on Python 3.11 can lose a cancellation: a
        # request whose caller has gone would wait on.
        "socket_timeout": None,
        "max_connections": max_connections,
        "socket_connect_timeout": _ANSWER_S,
        "retry": AsyncRetry(_BACKOFF, _RETRIES),
        "retry_on_error": [ReadOnlyError],
    }
    if place.sentinels:
        once = AsyncRetry(NoBackoff(), 0)
        watchers = _AsyncSentinel(place.sentinels, sentinel_kwargs=place.sentinel_options | {"retry": once})
        pool: async_connections.ConnectionPool = _AsyncSentinelPool(place.service, watchers, ssl=place.tls, **options)
        return AsyncRedis.from_pool(pool)
    kind: type[async_connections.AbstractConnection] = async_connections.Connection
    if "path" in options:
        kind = async_connections.UnixDomainSocketConnection
    elif place.tls:
        kind = async_connections.SSLConnection
    return AsyncRedis.from_pool(async_connections.ConnectionPool(connection_class=kind, **options))


def check_url(url: str) -> None:
    """Find out, without a connection, whether a URL can be used.

    Raises:
        BadRedisUrl: it cannot; the message says what is wrong with it.
    """
    _place_of(url)


@contextmanager
def reachable() -> Iterator[None]:
    """Turns every way in which the server can be away, or refuse to write, into NotReady."""
    try:
        yield
    except AuthenticationError as err:
        raise NotReady("the queue's server refuses the user or the password of its URL") from err
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


class _Patience(Retry):
    """Tries again, but not beyond `_ANSWER_S`.

    The client connects inside its tries of a command, with as many tries again: of a server whose packets are dropped
    it would hear nothing for 16 time limits, longer than a lease lasts.
    """

    _until: float | None = None

    def call_with_retry(self, do: Callable[[], T], fail: Callable[..., Any], *args: Any, **kwargs: Any) -> T:
        outermost = self._until is None
        until = self._until = self._until or time.monotonic() + _ANSWER_S

        def fail_in_time(error: Exception, *more: Any) -> None:
            fail(error, *more)
            if time.monotonic() >= until:
                raise error

        try:
            return super().call_with_retry(do, fail_in_time, *args, **kwargs)
        finally:
            if outermost:
                self._until = None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the server is; the options are named as the client names them."""

    tls: bool
    options: dict[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


class _PrimaryPool(sentinels.SentinelConnectionPool):
    """Connections to whichever server is the primary: each new one asks the sentinels."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:  # the pool is closed; else it only changes over to another primary
            for one in self.sentinel_manager.sentinels:
                one.close()


class _AsyncPrimaryPool(async_sentinels.SentinelConnectionPool):
    """The same for an event loop."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for one in self.sentinel_manager.sentinels:
                await one.aclose()


# The client tells no types here.
_Sentinel: Any = sentinels.Sentinel
_AsyncSentinel: Any = async_sentinels.Sentinel
_SentinelPool: Any = _PrimaryPool
_AsyncSentinelPool: Any = _AsyncPrimaryPool


def _place_of(url: str) -> _Place:
    try:
        scheme, netloc, path, query, _ = urlsplit(url)
    except ValueError:  # its message quotes what may be the password
        raise BadRedisUrl("the Redis URL cannot be read; a sign such as [ in a password is written %5B") from None
    if scheme not in _SCHEMES:
        raise BadRedisUrl(f"the Redis URL must begin with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
    if "@" in path + query or "#" in url:
        # A password cut in two: from here on nothing of the URL may be told before this is made sure of.
        raise BadRedisUrl("in a Redis URL the signs / ? # @ of a password or a path are written %2F %3F %23 %40")
    userinfo, _, hosts = netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    said = {"username": unquote(user), "password": unquote(password)}
    tls = scheme.startswith("rediss")
    options = {name: value for name, value in said.items() if value} | _options_of(query, tls=tls)
    sentinel_options = {
        name.removeprefix("sentinel_"): options.pop(name) for name in list(options) if name.startswith("sentinel_")
    }
    path = unquote(path)
    if scheme == "unix":
        if hosts or not path or sentinel_options:
            raise BadRedisUrl("a unix:// URL has three slashes, then the path of the socket: unix:///run/redis.sock")
        return _Place(tls=False, options=options | {"path": path})
    if not scheme.endswith("+sentinel"):
        if sentinel_options:
            raise BadRedisUrl("options of sentinels need a redis+sentinel:// or rediss+sentinel:// URL")
        host, port = _host_of(hosts, _SERVER_PORT)
        return _Place(tls=tls, options=options | {"host": host, "port": port} | _database_of(path.removeprefix("/")))
    service, _, database = path.removeprefix("/").partition("/")
    if not service:
        raise BadRedisUrl("a URL of sentinels ends in the name they watch the primary by: ...host:26379/mymaster")
    encryption = {name: value for name, value in options.items() if name.startswith("ssl_")} | {"ssl": tls}
    return _Place(
        tls=tls,
        options=options | _database_of(database),
        sentinels=tuple(_host_of(one, _SENTINEL_PORT) for one in hosts.split(",")),
        service=service,
        sentinel_options=sentinel_options | encryption | _SENTINEL_LIMITS,
    )


def _host_of(text: str, default_port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or default_port) if found else 0
    if not found or not 0 < port < 65536:
        raise BadRedisUrl("in the Redis URL a server is not written as host or host:port, with a port up to 65535")
    return found["v6"] or unquote(found["name"] or "") or "localhost", port


def _database_of(text: str) -> dict[str, int]:
    if not text:
        return {}
    try:
        return {"db": _whole(text)}
    except ValueError as err:
        raise BadRedisUrl(f"the database of the Redis URL is {text!r}; it {err}") from None


def _options_of(query: str, *, tls: bool) -> dict[str, Any]:
    options = {}
    # By hand: `parse_qsl` takes + for a blank, which in a password is another one.
    for pair in filter(None, query.split("&")):
        name, is_told, text = pair.partition("=")
        name, text = unquote(name), unquote(text)
        if name not in _OPTIONS:
            # What stands alone may be the rest of a password with an & in it.
            said = f" {name!r}" if is_told and re.fullmatch(r"[a-z_]{2,30}", name) else ""
            raise BadRedisUrl(f"the Redis URL has an unknown option{said}; known are {', '.join(sorted(_OPTIONS))}")
        if name.startswith("ssl_") and not tls:
            raise BadRedisUrl(f"{name} in the Redis URL needs rediss://, for without it nothing is encrypted")
        try:
            options[name] = _OPTIONS[name](text)
        except ValueError as err:
            raise BadRedisUrl(f"{name} in the Redis URL {err}") from None
    return options


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("must be a whole number")
    return int(text)


def _switch(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ValueError(f"is {text!r}; it must be true or false")
    return known[text.lower()]


def _strictness(text: str) -> str:
    if text not in ("none", "optional", "required"):
        raise ValueError(f"is {text!r}; it must be none, optional or required")
    return text


def _file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError(f"is {text!r}, which is no file")
    return text


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise ValueError(f"is {text!r}, which is no folder")
    return text


_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
# Named as the client names them, so that a URL written for it means the same here. Its time limits and its protocol are
# not among them: the code above leans on ours.
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "db": _whole,
    "username": str,
    "password": str,
    "client_name": str,
    "health_check_interval": _whole,
    "socket_keepalive": _switch,
    "ssl_ca_certs": _file,
    "ssl_ca_path": _folder,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": str,
    "ssl_cert_reqs": _strictness,
    "ssl_check_hostname": _switch,
    "ssl_ciphers": str,
    "sentinel_username": str,
    "sentinel_password": str,
}
