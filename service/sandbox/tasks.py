"""What does a decoder do, once it can do nothing else? Runs in the child; each task answers over the channel."""

import mmap
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from service.media.held import HeldFile
from service.sandbox import wire
from service.settings import Settings


class Talk:
    """The child's side of the conversation."""

    def __init__(self, channel: socket.socket, files: list[int], *, threads: int, layers: list[str]) -> None:
        self.channel = channel
        self.files = [HeldFile(descriptor) for descriptor in files]
        self.threads = threads  # for the decoder; 0 takes what the machine has
        self.layers = layers

    def say(self, said: dict[str, Any], *blocks: "bytes | memoryview") -> None:
        wire.send(self.channel, said, *blocks)

    def hear(self) -> dict[str, Any]:
        message = wire.receive(self.channel)
        if message is None:
            raise BrokenPipeError
        return message.said

    def shared_memory(self) -> mmap.mmap:
        """What the worker gives for the pixels."""
        text, descriptors = wire.receive_descriptors(self.channel)
        if not text:
            raise BrokenPipeError
        return mmap.mmap(descriptors[0], 0)


def load() -> None:
    """Load what tasks need, before there is a child: afterwards no file can be opened."""
    import encodings.idna
    import encodings.latin_1
    import encodings.utf_16  # noqa: F401

    import cv2

    from service.media import image, outfile, timeline, video  # noqa: F401

    cv2.setNumThreads(1)  # its pool would not survive the fork
    # Linking a decoder's functions takes each child some milliseconds unless it has been done here.
    for suffix in (".png", ".jpg", ".webp", ".tiff"):
        done, encoded = cv2.imencode(suffix, np.zeros((64, 64, 3), np.uint8))
        assert done
        with tempfile.TemporaryFile() as file:
            file.write(encoded.tobytes())
            file.flush()
            image.read_image(HeldFile(file.fileno()), Settings.model_construct())


def _hello(talk: Talk, told: dict[str, Any]) -> None:  # noqa: ARG001 - as all tasks are called
    talk.say({"layers": talk.layers})


def _image(talk: Talk, told: dict[str, Any]) -> None:
    from service.media.image import read_image

    picture = read_image(talk.files[0], Settings.model_construct(**told))
    about = picture.metadata
    blocks = [about.exif or b"", about.xmp or b"", about.icc or b""]
    blocks += [chunk for _, chunk in about.png_chunks]
    blocks += [tag.raw for tag in about.tiff_tags.values()]
    if sum(map(len, blocks)) > wire.MOST_BYTES:
        raise MemoryError
    talk.say(
        {
            "shape": picture.pixels.shape,
            "type": picture.pixels.dtype.name,
            "has_alpha": picture.alpha is not None,
            "is_grey": picture.is_grey,
            "content_type": picture.content_type,
            "lost": picture.lost,
            "png_chunks": [kind.hex() for kind, _ in about.png_chunks],
            "tiff_tags": [[number, tag.type, tag.count, tag.offset] for number, tag in about.tiff_tags.items()],
        },
        *blocks,
    )
    memory = np.frombuffer(talk.shared_memory(), np.uint8)
    size = picture.pixels.nbytes
    memory[:size].view(picture.pixels.dtype).reshape(picture.pixels.shape)[...] = picture.pixels
    if picture.alpha is not None:
        memory[size:].view(picture.alpha.dtype).reshape(picture.alpha.shape)[...] = picture.alpha
    talk.say({"done": True})


TASKS: dict[str, Callable[[Talk, dict[str, Any]], None]] = {"hello": _hello, "image": _image}
