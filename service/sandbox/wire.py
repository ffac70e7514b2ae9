"""What do a worker and its decoder say to each other, and how is it read by one who trusts not a word?

A message is a JSON object and some blocks of bytes behind it. Nothing that arrives is ever run or unpickled, and no
length is believed beyond a bound. Pixels go by shared memory instead.
"""

import json
import socket
import struct
import time
from typing import Any, NamedTuple

MOST_BYTES = 192 * 1024**2  # in one message: a file's metadata, or the times of a million frames and of as many keys
_HEAD = struct.Struct(">IQ")  # bytes of JSON, bytes of blocks
_MOST_JSON_BYTES = 16 * 1024**2
_MOST_DESCRIPTORS = 8


class Message(NamedTuple):
    said: dict[str, Any]
    blocks: list[memoryview]


class Garbled(Exception):
    """What came is no message."""


def send(channel: socket.socket, said: dict[str, Any], *blocks: "bytes | bytearray | memoryview") -> None:
    """
    Raises:
        OSError: the other end is gone, or does not read in time.
        ValueError: it is more than the other end would take.
    """
    text = json.dumps({**said, "blocks": [len(block) for block in blocks]} if blocks else said).encode()
    size = sum(len(block) for block in blocks)
    if len(text) > _MOST_JSON_BYTES or size > MOST_BYTES:
        raise ValueError(f"a message has {len(text)} and {size} bytes")
    head = _HEAD.pack(len(text), size) + text
    if size <= 65536:
        channel.sendall(head + b"".join(blocks))
        return
    channel.sendall(head)
    for block in blocks:
        channel.sendall(block)


def receive(channel: socket.socket, within_s: float | None = None) -> Message | None:
    """
    Args:
        within_s: the whole message, however slowly it trickles; None waits for ever.

    Returns:
        None where the other end has closed.

    Raises:
        Garbled: it closed in the middle, or what it says is no message.
        OSError: nothing came in time, or the other end is gone.
    """
    deadline = None if within_s is None else time.monotonic() + within_s
    if within_s is not None:
        channel.settimeout(within_s)
    head = channel.recv(_HEAD.size)
    if not head:
        return None
    text_bytes, size = _HEAD.unpack(head + _exactly(channel, _HEAD.size - len(head), deadline))
    if text_bytes > _MOST_JSON_BYTES or size > MOST_BYTES:
        raise Garbled(f"a message of {text_bytes} and {size} bytes")
    try:
        said = json.loads(bytes(_exactly(channel, text_bytes, deadline)))
        lengths = said.pop("blocks", [])
        if not isinstance(said, dict) or any(type(length) is not int or length < 0 for length in lengths):
            raise ValueError
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Garbled("no JSON object") from None
    if sum(lengths) != size:
        raise Garbled("blocks that do not fill the message")
    rest = memoryview(_exactly(channel, size, deadline))
    blocks, at = [], 0
    for length in lengths:
        blocks.append(rest[at : at + length])
        at += length
    return Message(said, blocks)


def send_descriptors(channel: socket.socket, descriptors: list[int], text: bytes = b"!") -> None:
    socket.send_fds(channel, [text], descriptors)


def receive_descriptors(channel: socket.socket, text_bytes: int = 1) -> tuple[bytes, list[int]]:
    """Empty text where the other end has closed."""
    text, descriptors, _, _ = socket.recv_fds(channel, text_bytes, _MOST_DESCRIPTORS)
    return text, list(descriptors)


def _exactly(channel: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        if deadline is not None:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
        more = channel.recv_into(view[got:])
        if not more:
            raise Garbled("a message cut short")
        got += more
    return data
