"""Who is calling? Known to all code that runs for a call, without being handed from one to the next.

A door that forgot to pass it on would be an open one. So the door sets it once, and what needs it (`own.OwnJobs`, the
intake, the quotas) asks here; where nobody set it, nobody is calling, and nobody sees no job.
"""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from service.access.keys import ApiKey, Scope

WINDOW_S = 60.0  # in which a quota is filled
_ROUNDING = 1e-6  # 3 thirds of a minute need not be a minute to the last bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom a call comes from."""

    payer: str  # whose quotas it uses: the holder of the key, or an address where no keys are asked for
    scopes: frozenset[Scope]
    key: ApiKey | None = None  # None: no keys are asked for
    requests_per_minute: int = 0  # 0: no bound
    pixels_per_minute: int = 0

    @property
    def owner(self) -> str | None:
        """Whose the jobs are that it hands in."""
        return self.key.holder if self.key else None

    @property
    def sees_all(self) -> bool:
        return self.key is None or Scope.ADMIN in self.scopes

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a caller stands with one quota: a bucket that a minute fills."""

    policy: str
    quota: int
    debt_s: float  # until it is full again

    @property
    def remaining(self) -> int:
        return max(0, int(self.quota * (1 - self.debt_s / WINDOW_S) + _ROUNDING))


@dataclass(slots=True)
class Visit:
    """One call: who makes it, and how their quotas stand since."""

    caller: Caller
    standings: dict[str, Standing] = field(default_factory=dict)


_VISIT: ContextVar[Visit | None] = ContextVar("quietframe_visit", default=None)


def current_visit() -> Visit | None:
    return _VISIT.get()


def current_caller() -> Caller | None:
    """None outside of any call."""
    visit = _VISIT.get()
    return visit.caller if visit else None


@contextmanager
def visiting(visit: Visit) -> Iterator[None]:
    """Tasks begun inside know of it too."""
    token = _VISIT.set(visit)
    try:
        yield
    finally:
        _VISIT.reset(token)


def payer_at(address: str) -> str:
    """Where no keys are asked for: one quota for an IPv4 address, or for the /64 that one IPv6 subscriber is given."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "nowhere"  # a unix socket, or a test's transport
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((found, 64), strict=False).network_address)
        found = found.ipv4_mapped
    return str(found)
