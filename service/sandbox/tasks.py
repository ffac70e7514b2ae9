"""What does a decoder do, once it can do nothing else? Runs in the child; each task answers over the channel."""

import mmap
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from service.job import Part
from service.media.held import HeldFile
from service.sandbox import heads, wire
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

    def hear_out(self) -> None:
        """Wait until the worker has closed: what it had yet to say must find somebody, or it would lose our words."""
        while wire.receive(self.channel) is not None:
            pass

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

    from service.media import image, opening, outfile, scan, timeline, video  # noqa: F401

    opening.load_all()

    cv2.setNumThreads(1)  # its pool would not survive the fork
    # Linking a decoder's functions takes each child some milliseconds unless it has been done here.
    for suffix in (".png", ".jpg", ".webp", ".tiff", ".avif"):
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

    picture = read_image(talk.files[0], Settings.model_construct(**told["settings"]), told["page"])
    about = picture.metadata
    blocks = [about.exif or b"", about.xmp or b"", about.icc or b""]
    blocks += [chunk for _, chunk in about.png_chunks]
    blocks += [tag.raw for tag in about.tiff_tags.values()]
    blocks += [segment for _, segment in about.jpeg_segments]
    blocks += [one.raw for one in about.exr.attributes] if about.exr else []
    if sum(map(len, blocks)) > wire.MOST_BYTES:
        raise MemoryError
    talk.say(
        {
            "shape": picture.pixels.shape,
            "type": picture.pixels.dtype.name,
            "has_alpha": picture.alpha is not None,
            "is_grey": picture.is_grey,
            "is_linear": picture.is_linear,
            "depth": picture.depth,
            "is_lossless": picture.is_lossless,
            "is_multiplied": picture.is_multiplied,
            "content_type": picture.content_type,
            "lost": picture.lost,
            "png_chunks": [kind.hex() for kind, _ in about.png_chunks],
            "jpeg_segments": [marker for marker, _ in about.jpeg_segments],
            "dpi": about.dpi,
            "colours": about.colours,
            "exr": about.exr
            and {
                "window": about.exr.window,
                "is_half": about.exr.is_half,
                "compression": about.exr.compression,
                "layer": about.exr.layer,
                "is_plain": about.exr.is_plain,
                "attributes": [[one.name.hex(), one.kind.hex()] for one in about.exr.attributes],
            },
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


def _frames(talk: Talk, told: dict[str, Any]) -> None:
    """All frames of a video, or of a part, each in a slot of the shared memory that the worker has freed."""
    from service.media.video import VideoReader

    part = Part.model_validate(told["part"]) if told["part"] else None
    settings = Settings.model_construct(**told["settings"])
    asked = {name: told[name] for name in ("with_beyond", "of_fields")}
    with VideoReader(talk.files[0], settings, part, threads=talk.threads, **asked) as reader:
        talk.say(heads.as_said(reader.head))
        frames = iter(reader)
        order = talk.hear()  # where to put them; none are asked for who only wants the head
        memory = np.frombuffer(talk.shared_memory(), np.uint8)
        free = deque(range(order["slots"]))
        for frame in frames:
            while not free:
                free.append(talk.hear()["free"])
            slot = free.popleft()
            first = slot * order["bytes"]
            for values, place in ((frame.pixels, first), (frame.beyond, first + order["pixels_bytes"])):
                if values is not None:
                    memory[place : place + values.nbytes].view(values.dtype).reshape(values.shape)[...] = values
            about = {"slot": slot, "pts": frame.pts, "time_base": str(frame.time_base), "duration": frame.duration}
            talk.say({**about, "beyond": frame.beyond is not None})
    talk.say({"end": True})
    talk.hear_out()


def _timeline(talk: Talk, told: dict[str, Any]) -> None:
    from service.media.timeline import read_timeline

    timeline = read_timeline(talk.files[0], Settings.model_construct(**told["settings"]))
    talk.say({"time_base": str(timeline.time_base)}, timeline.pts.tobytes(), timeline.keys.tobytes())


def _scan(talk: Talk, told: dict[str, Any]) -> None:
    from service.media.scan import find_field_order

    settings = Settings.model_construct(**told["settings"])
    talk.say({"order": find_field_order(talk.files[0], settings, sure=told["sure"], threads=talk.threads)})


def _mux(talk: Talk, told: dict[str, Any]) -> None:
    """Write a file from the picture's packets, which the worker sends, and the source's other tracks."""
    from av.packet import Packet

    from service.media.opening import OpenVideo
    from service.media.outfile import OutFile

    source, target = talk.files
    settings = Settings.model_construct(**told["settings"])
    with source.open() as bytes_of, OpenVideo(bytes_of, settings, threads=1) as like:
        output = {"format": told["format"], "codec": told["codec"], "crf": told["crf"]}
        with OutFile(target, source, like, **output, extradata=bytes.fromhex(told["extradata"])) as file:
            talk.say({"ready": True})
            while True:
                message = wire.receive(talk.channel)
                if message is None:
                    raise BrokenPipeError
                if message.said.get("close"):
                    break
                for about, block in zip(message.said["packets"], message.blocks, strict=True):
                    # A packet of its own size has the padding behind it that parsers may read.
                    packet: Packet[Any] = Packet(len(block))
                    packet.update(bytes(block))
                    packet.stream, packet.time_base = file.encoder.stream, Fraction(about["time_base"])
                    packet.pts, packet.dts = about["pts"], about["dts"]
                    packet.duration, packet.is_keyframe = about["duration"], about["key"]
                    file.mux([packet])
    talk.say({"lost": file.lost})


TASKS: dict[str, Callable[[Talk, dict[str, Any]], None]] = {
    "hello": _hello,
    "image": _image,
    "frames": _frames,
    "timeline": _timeline,
    "scan": _scan,
    "mux": _mux,
}
