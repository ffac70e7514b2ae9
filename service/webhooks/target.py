"""Which URLs may be called on a stranger's word, and which addresses may stand behind them?

Everything is judged twice: the URL when a job is handed in, so that its caller hears what is wrong with it, and the
addresses its name has at that moment whenever it is called. A URL has one reading here or none: what other parsers are
known to read differently (RFC 3986 against the WHATWG's) is refused.
"""

import ipaddress
import re
from dataclasses import dataclass

from service.errors import BadInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARS = 1024
_FREE_PORTS_FROM = 1024  # below stand mail, name and file servers, which must not be spoken to in a stranger's words
_DEFAULT_PORTS = {"https": 443, "http": 80}

_SPLIT = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# Of a name whose last label is one of these, some resolver somewhere makes an IPv4 address: 127.1, 0x7f.1, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _networks(*texts: str) -> tuple[_Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_ELSEWHERE = ipaddress.ip_network("2000::/3")  # all of IPv6 that is given out for the internet (RFC 4291, section 2.4)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind a translator (RFC 6052): as good as the address inside
_METADATA = _networks(
    "169.254.0.0/16",  # link-local, where most clouds have it
    "fe80::/10",
    "fd00:ec2::254/128",  # AWS
    "fd20:ce::254/128",  # Google
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure's platform; globally routable by its number, and only ever the machine's own host
)
# Beside what `ipaddress` knows, whose table differs between patch releases of Python.
_SET_APART = _networks(
    "0.0.0.0/8",
    "192.0.0.0/24",
    "192.88.99.0/24",  # relays of 6to4 (RFC 7526)
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "2001::/23",  # Teredo, ORCHID and other protocols' numbers
    "2002::/16",  # 6to4: an IPv4 address in disguise
    "3fff::/20",  # documentation (RFC 9637)
    "fec0::/10",
    "ff00::/8",
)
_PRIVATE = _networks(
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",  # behind a carrier's translator (RFC 6598)
    "fc00::/7",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL that may be called, if its addresses may."""

    secure: bool
    host: str  # lower case; an IPv6 address without brackets
    port: int
    path: str  # with the query

    @property
    def authority(self) -> str:
        """For the Host header, and for logs: path and query may hold secrets of the receiver's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == _DEFAULT_PORTS["https" if self.secure else "http"]
        return host if usual else f"{host}:{self.port}"


def target_of(url: str, *, allow_http: bool, allow_private: bool) -> Target:
    """Judge a URL by how it is written; no name is looked up.

    Raises:
        BadInput: it is never to be called; the message says what is wrong with it.
    """
    if len(url) > MAX_URL_CHARS:
        raise _refused(f"has {len(url)} characters; at most {MAX_URL_CHARS} are accepted")
    if not re.fullmatch(r"[\x21-\x7e]+", url):
        raise _refused("has blanks or characters beyond ASCII; write a name as xn--..., and anything else as %XX")
    parts = _SPLIT.fullmatch(url)
    if parts is None:
        raise _refused("must be https://NAME/PATH, without a fragment (#)")
    scheme = parts["scheme"].lower()
    if scheme != "https" and not (scheme == "http" and allow_http):
        raise _refused(f"begins with {scheme[:16]}://; only {'https and http' if allow_http else 'https'} is called")
    host, port = _host_and_port(parts["authority"], scheme)
    path = (parts["path"] or "/") + (parts["query"] or "")
    if not _PATH.fullmatch(path):
        raise _refused("has characters in its path or query that must be written as %XX")
    if address := _literal(host):
        if why := why_forbidden(address, allow_private=allow_private):
            raise _refused(f"names {address}, which is not called: {why}")
        host = str(address)
    else:
        _check_name(host, allow_private=allow_private)
    return Target(secure=scheme == "https", host=host, port=port, path=path)


def why_forbidden(address: Address, *, allow_private: bool) -> str | None:
    """Why an address is not to be called; None where it may be."""
    if isinstance(address, ipaddress.IPv6Address) and address in _NAT64:
        return why_forbidden(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF), allow_private=False)
    if _within(address, _METADATA):
        return "link-local, or where a cloud keeps its machines' credentials"
    if _within(address, _SET_APART):
        return "multicast, or set apart from the internet"
    if _within(address, _PRIVATE):
        return None if allow_private else "a private network"
    if not address.is_global or (address.version == 6 and address not in _ELSEWHERE):
        return "not an address of the internet"
    return None


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    if "@" in authority:
        raise _refused("has a user name or password in it; the signature is how the receiver knows us")
    parts = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?", authority)
    if parts is None or not parts[1]:
        raise _refused(f"has no host that can be read in {authority[:80]!r}")
    usual = _DEFAULT_PORTS[scheme]
    port = int(parts[2]) if parts[2] else usual
    if port != usual and not _FREE_PORTS_FROM <= port <= 65535:
        raise _refused(f"has port {port}; {usual} and {_FREE_PORTS_FROM} to 65535 are called")
    return parts[1].lower(), port


def _literal(host: str) -> Address | None:
    """The address that stands there in place of a name.

    Raises:
        BadInput: it is meant to be one, and there are several ways to read it.
    """
    try:
        if host.startswith("["):
            if "%" in host:
                raise ValueError
            return ipaddress.IPv6Address(host[1:-1])
        if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            return ipaddress.IPv4Address(host)
    except ValueError:
        raise _refused(
            f"has host {host[:80]!r}; an address is four decimal numbers, or IPv6 in brackets without a zone"
        ) from None
    return None


def _check_name(name: str, *, allow_private: bool) -> None:
    if name.endswith("."):
        raise _refused(f"has host {name[:80]!r}; write it without the dot at its end")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise _refused(f"has host {name[:80]!r}, which is no domain name")
    if "." not in name and not allow_private:
        raise _refused(f"has host {name[:80]!r}; a name without a dot is one of a private network")


def _within(address: Address, networks: tuple[_Network, ...]) -> bool:
    return any(address in network for network in networks)


def _refused(why: str) -> BadInput:
    return BadInput(f"webhook_url {why}")
