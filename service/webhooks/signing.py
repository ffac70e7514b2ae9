"""How does a receiver know that a message is ours, and no older than it says? Standard Webhooks, scheme v1."""

import base64
import hashlib
import hmac
from collections.abc import Iterable


def signed_headers(keys: Iterable[bytes], message_id: str, sent_at: int, body: bytes) -> dict[str, str]:
    """The headers that vouch for a body.

    Args:
        keys: while one is replaced by another, both: a receiver that knows either of them is content.
        message_id: the same however often the message is sent, so that a receiver can tell repetitions.
        sent_at: seconds since 1970, of this very try; receivers refuse what is some minutes off.
    """
    content = f"{message_id}.{sent_at}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
