"""What key does an `Authorization` header show? The same over HTTP and in gRPC's metadata."""

import re
from collections.abc import Sequence

from service.errors import NoKey

# RFC 6750, 2.1, with the scheme in any case (RFC 9110, 11.1). What stands behind it is judged by its form before
# anything is computed of it.
_BEARER = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE | re.ASCII)
_TOKEN = re.compile(r"qf_(?P<id>[0-9a-f]{12})_[A-Za-z0-9_-]{43}", re.ASCII)
_LONGEST = 200  # three times an honest one


def token_of(values: Sequence[str | bytes]) -> tuple[str, str]:
    """Read all `Authorization` headers of a call.

    Returns:
        The key's public id, and the key as it was shown.

    Raises:
        NoKey: there is none, or it is none of ours by its form. The message does not repeat what was sent.
    """
    if not values:
        raise NoKey("an API key is needed: send it as Authorization: Bearer qf_...")
    if len(values) > 1:  # which of them counts would be a matter of taste, and a proxy's may differ from ours
        raise NoKey("there is more than one Authorization header")
    value = values[0].decode("latin-1") if isinstance(values[0], bytes) else values[0]
    shown = _BEARER.fullmatch(value.strip(" \t")) if len(value) <= _LONGEST else None
    if shown is None:
        raise NoKey("the Authorization header is not Bearer and a key")
    token = _TOKEN.fullmatch(shown[1])
    if token is None:
        raise NoKey("what the Authorization header holds has not the form of an API key")
    return token["id"], token[0]
