"""Lets a call in, or says why not: who it comes from, whether they may do this, whether they did it too often."""

import ipaddress
import logging
from collections.abc import Sequence

from service.access.callers import Caller, Visit, payer_at
from service.access.header import token_of
from service.access.keys import KeyRing, Scope
from service.access.quotas import Quotas
from service.errors import ScopeMissing
from service.settings import Settings

log = logging.getLogger(__name__)

_EVERYTHING = frozenset(Scope)


def open_ring(settings: Settings) -> KeyRing | None:
    """The keys that callers must show; None where none are asked for.

    Raises:
        BadKeysFile: keys are to be asked for, and cannot be read. To go on without would be to let everybody in.
    """
    path = settings.own_keys_file
    if settings.keys_file is None and not path.exists():
        return None
    return KeyRing(path)


class Gate:
    """To be asked by every door with every call that is not open to all."""

    def __init__(self, settings: Settings, ring: KeyRing | None, quotas: Quotas) -> None:
        self._settings = settings
        self._ring = ring
        self.quotas = quotas

    @property
    def asks_for_keys(self) -> bool:
        return self._ring is not None

    def identify(self, authorization: Sequence[str | bytes], address: str) -> Visit:
        """Whom a call comes from; nothing else is judged.

        Args:
            authorization: all headers of that name.
            address: of whoever calls, for quotas where no keys are asked for.

        Raises:
            NoKey
        """
        requests, pixels = self._settings.requests_per_minute, self._settings.pixels_per_minute
        if self._ring is None:
            return Visit(
                Caller(
                    payer=payer_at(address),
                    scopes=_EVERYTHING,
                    requests_per_minute=requests,
                    pixels_per_minute=pixels,
                )
            )
        key = self._ring.find(*token_of(authorization))
        return Visit(
            Caller(
                payer=key.holder,
                scopes=key.scopes,
                key=key,
                requests_per_minute=requests if key.requests_per_minute is None else key.requests_per_minute,
                pixels_per_minute=pixels if key.pixels_per_minute is None else key.pixels_per_minute,
            )
        )

    async def admit(self, visit: Visit, scope: Scope) -> None:
        """Let it in, and count it; one that may not do this is counted too.

        Raises:
            ScopeMissing, RateExceeded
        """
        await self.quotas.spend_request(visit)
        if not visit.caller.may(scope):
            raise ScopeMissing(f"this API key has not the scope {scope}, which this call needs", scope=scope)

    def check(self, caller: Caller) -> None:
        """For calls that last: has their key been revoked meanwhile?

        Raises:
            NoKey
        """
        if self._ring is not None and caller.key is not None:
            self._ring.check(caller.key.id)

    def warn_if_wide_open(self, settings: Settings) -> None:
        """To be called once, when the doors open."""
        if is_loopback(settings.host):
            return
        if not self.asks_for_keys:
            log.warning(
                "ANYBODY who can reach %s can use this service, see all jobs and delete them: it listens beyond this "
                "machine and asks for no API keys. Make one with `quietframe keys new`, or keep the network closed.",
                settings.host,
            )
        elif settings.tls_cert_file is None:
            log.warning(
                "API keys and pictures travel readable to %s: it listens beyond this machine without TLS. Set "
                "QUIETFRAME_TLS_CERT_FILE and _KEY_FILE, unless something in front encrypts.",
                settings.host,
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # a name: who knows
        return False
