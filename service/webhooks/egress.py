"""How is a receiver called that may be anybody's? Within a time, on the very address that was checked, and once.

The name is looked up here, every address it has is judged, and the connection goes to one of those: a second look-up
could give another answer (DNS rebinding). TLS and the Host header keep to the name. There are no redirects, no proxies
and no connections kept, and of the answer little more than its status is read.
"""

import contextlib
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore

from service.settings import Settings
from service.webhooks.target import Address, Target, why_forbidden
from service.webhooks.turns import Turn, TurnedAway, Turns

# A name and a port to addresses, as text. May block for long and may raise OSError.
Resolve = Callable[[str, int], Sequence[str]]

AT_ONCE_PER_ADDRESS = 4  # any number of names may lead to one; more than for a name, for large hosts serve many
_ADDRESSES_TRIED = 4
_CONNECT_S = 5.0  # for each of them
_READ_AT_ONCE = 4096
_ANSWER_BYTES = 4096  # read and thrown away, so that the receiver can finish its sentence
_ANSWER_S = 1.0  # the status is known by then, and nothing else of it is of use


class CallFailed(Exception):
    """There was no answer; the message says why, for operators."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    retry_after_s: float | None  # as the receiver wishes


def look_up(name: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)]


class Egress:
    """The only way out. May be used from any number of threads."""

    def __init__(self, settings: Settings, resolve: Resolve = look_up) -> None:
        """
        Raises:
            OSError: the file of certificate authorities cannot be read.
        """
        self._allow_private = settings.webhook_allow_private
        self._timeout_s = settings.webhook_timeout_s
        self._resolve = resolve
        self._turns = Turns(AT_ONCE_PER_ADDRESS)
        self._trust = ssl.create_default_context()
        if settings.webhook_ca_file:
            self._trust.load_verify_locations(settings.webhook_ca_file)

    def post(self, target: Target, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send it, and wait for the answer's status.

        Raises:
            CallFailed: no address that may be called, no connection, no trust, no answer, or not in time.
            TurnedAway: as many wait for that address already as may; nothing was sent.
        """
        deadline = _Deadline(self._timeout_s)
        url = httpcore.URL(
            scheme=b"https" if target.secure else b"http",
            host=target.host.encode(),
            port=target.port,
            target=target.path.encode(),
        )
        told = {"Host": target.authority, "Content-Length": str(len(body)), "Connection": "close", **headers}
        dialer = _Dialer(self._resolve, deadline, self._turns, allow_private=self._allow_private)
        try:
            with (
                httpcore.ConnectionPool(ssl_context=self._trust, network_backend=dialer) as pool,
                pool.stream("POST", url, headers=list(told.items()), content=body) as response,
            ):
                answer = Answer(response.status, _retry_after_s(dict(response.headers)))
                deadline.come_closer(_ANSWER_S)
                with contextlib.suppress(*_BROKEN):
                    _throw_away(response.iter_stream())
                return answer
        except httpcore.TimeoutException as err:
            raise CallFailed(f"{target.authority} did not answer within {self._timeout_s:g} s") from err
        except _BROKEN as err:
            raise CallFailed(f"{target.authority}: {err or type(err).__name__}") from err
        finally:
            dialer.leave()


_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)


class _Deadline:
    """One limit over everything: one for each read would let a slow receiver trickle for ever."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def come_closer(self, seconds: float) -> None:
        self._at = min(self._at, time.monotonic() + seconds)

    def left_s(self) -> float:
        """
        Raises:
            httpcore.ReadTimeout: nothing is left.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the time is up")
        return left


class _Dialer(httpcore.NetworkBackend):
    """Looks a name up, judges what it finds, and connects there and nowhere else, when it is its turn there."""

    def __init__(self, resolve: Resolve, deadline: _Deadline, turns: Turns, *, allow_private: bool) -> None:
        self._resolve = resolve
        self._deadline = deadline
        self._turns = turns
        self._turn: Turn | None = None
        self._allow_private = allow_private
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - what is left until the deadline holds
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        why = "it has no address"
        crowded: TurnedAway | None = None
        for address in self._addresses(host, port)[:_ADDRESSES_TRIED]:
            left = self._deadline.left_s()
            self.leave()
            try:
                self._turn = self._turns.enter(_owner_of(ipaddress.ip_address(address)))
                # An address, so nothing is looked up again.
                stream = self._sockets.connect_tcp(address, port, min(left, _CONNECT_S), local_address, socket_options)
                return _TimedStream(stream, self._deadline)
            except TurnedAway as err:
                crowded = err
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as err:
                why = f"{address} cannot be reached ({err})"
        if crowded:
            raise crowded
        raise httpcore.ConnectError(why)

    def leave(self) -> None:
        """Make room for others at the address; to be called when nothing more is expected from it."""
        if self._turn:
            self._turn.leave()
            self._turn = None

    def _addresses(self, host: str, port: int) -> list[str]:
        """All addresses of a host; one bad one spoils them all, for nobody means such a name well."""
        try:
            found = [str(ipaddress.ip_address(host))]
        except ValueError:
            # With a dot at its end the name is whole: else a cluster's resolver tries it within its own domains first.
            whole = f"{host}." if not self._allow_private else host
            found = list(dict.fromkeys(_look_up_within(self._deadline, self._resolve, whole, port)))
        for address in found:
            if why := why_forbidden(ipaddress.ip_address(address), allow_private=self._allow_private):
                raise httpcore.ConnectError(f"its address {address} is not called: {why}")
        return found


class _TimedStream(httpcore.NetworkStream):
    """A connection whose every step ends at the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - as above
        return self._stream.read(min(max_bytes, _READ_AT_ONCE), self._deadline.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - as above
        self._stream.write(buffer, self._deadline.left_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left_s())
        return _TimedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _owner_of(address: Address) -> str:
    """What one owner has at the least: of IPv6, a network of 2^64 addresses (RFC 4291, section 2.5.4)."""
    return str(address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False))


def _look_up_within(deadline: _Deadline, resolve: Resolve, name: str, port: int) -> Sequence[str]:
    """Look a name up in a thread of its own: the system's resolver can be neither timed nor stopped."""
    answers: queue.SimpleQueue[Sequence[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(name, port))
        except (OSError, UnicodeError) as err:
            answers.put(OSError(f"it cannot be looked up ({err})"))

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.left_s())
    except queue.Empty:
        raise httpcore.ConnectTimeout("the name server did not answer in time") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _throw_away(chunks: Iterable[bytes]) -> None:
    read = 0
    for chunk in chunks:
        read += len(chunk)
        if read >= _ANSWER_BYTES:
            return


def _retry_after_s(headers: Mapping[bytes, bytes]) -> float | None:
    """What the receiver asks for (RFC 9110, section 10.2.3): seconds, or a moment."""
    text = {name.lower(): value for name, value in headers.items()}.get(b"retry-after", b"").decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # the latter for a year or an offset beyond what a C integer holds
        return None
