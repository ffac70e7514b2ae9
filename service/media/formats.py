"""Which results can be asked for: containers, codecs, their pairings and their ranges.

Standard library only: the API process checks a request with it and must load no decoder.
"""

from dataclasses import dataclass

from models.catalogue import Kind
from service.errors import BadInput
from service.job import InputFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A kind of file that results are written in."""

    content_type: str
    suffix: str
    codecs: tuple[str, ...] = ()  # video only; the first is what it gets unless told otherwise


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """A codec as the encoders at hand write it."""

    crf: int | None  # default constant rate factor; None for a lossless codec, which has none
    max_crf: int = 0
    bits: int = 8  # of a component, at most
    smallest: tuple[int, int] = (1, 1)  # width and height of a frame


IMAGES: dict[str, ContainerSpec] = {
    "png": ContainerSpec(content_type="image/png", suffix=".png"),
    "jpeg": ContainerSpec(content_type="image/jpeg", suffix=".jpg"),
    "webp": ContainerSpec(content_type="image/webp", suffix=".webp"),
    "tiff": ContainerSpec(content_type="image/tiff", suffix=".tiff"),
    "avif": ContainerSpec(content_type="image/avif", suffix=".avif"),
    "exr": ContainerSpec(content_type="image/x-exr", suffix=".exr"),
    "bmp": ContainerSpec(content_type="image/bmp", suffix=".bmp"),  # not to be asked for: only what `same` keeps
}
BECOMES = {"image/heic": "avif"}  # what is read and not written, and what is nearest to it
IMAGE_FORMATS = ("same", "png", "jpeg", "webp", "tiff", "avif", "exr")

CODECS: dict[str, CodecSpec] = {
    # h264 at 18 is taken for visually lossless; the others are set to look alike.
    "h264": CodecSpec(18, 51, bits=10),
    # x265 writes beyond its buffers where frames are up to 48 pixels wide, and SVT-AV1 fails where they are up to 18,
    # and neither says so (PyAV 18.1, seen with glibc's malloc checks): both are given whole blocks.
    "hevc": CodecSpec(20, 51, bits=12, smallest=(64, 64)),
    "av1": CodecSpec(24, 63, bits=10, smallest=(64, 64)),
    "vp9": CodecSpec(24, 63),
    "ffv1": CodecSpec(None, bits=16),
}
VIDEOS: dict[str, ContainerSpec] = {
    "mp4": ContainerSpec(content_type="video/mp4", suffix=".mp4", codecs=("h264", "hevc", "av1", "vp9")),
    "mkv": ContainerSpec(content_type="video/x-matroska", suffix=".mkv", codecs=("h264", "hevc", "av1", "vp9", "ffv1")),
    "mov": ContainerSpec(content_type="video/quicktime", suffix=".mov", codecs=("h264", "hevc")),
    "webm": ContainerSpec(content_type="video/webm", suffix=".webm", codecs=("vp9", "av1")),
}
VIDEO_FORMATS = ("same", *VIDEOS)


def validate_output(
    kind: Kind,
    format: str,  # noqa: A002 - the name it has in the public contract
    codec: str | None = None,
    crf: int | None = None,
    quality: int | None = None,
    content_type: str | None = None,
    source: InputFacts | None = None,
) -> None:
    """Refuse what cannot be written, before any work is done.

    Args:
        kind: Of the job.
        content_type: Of the input, where it is known: then `same` is checked too.
        source: Where all is known of a video that its header says: then its own codec is, and the size of its frames.

    Raises:
        BadInput: A value is not among those allowed; the message has both.
    """
    if kind == "image":
        _one_of("format", format, IMAGE_FORMATS)
        for name, value in (("codec", codec), ("crf", crf)):
            if value is not None:
                raise BadInput(f"{name} is {value!r}, but only a video has one")
        if quality is not None and not 1 <= quality <= 100:
            raise BadInput(f"quality is {quality}; allowed are 1 to 100")
        return
    _one_of("format", format, VIDEO_FORMATS)
    if quality is not None:
        raise BadInput(f"quality is {quality}, but only JPEG, WebP and AVIF have one; a video has crf")
    if codec is not None:
        _one_of("codec", codec, tuple(CODECS))
    # An input that is not known yet is taken for one that `same` turns into mp4, or into mkv if the codec needs it.
    container = container_for(format, content_type or "", codec)
    if source is not None:
        video_output(source, format, codec, crf)
    elif codec is not None:
        codec_for(container, codec)
        _check_crf(crf, codec)
    else:
        _check_crf(crf, *VIDEOS[container].codecs)  # which of them it will be is not known


def video_output(source: InputFacts, format: str, codec: str | None, crf: int | None) -> tuple[str, str]:  # noqa: A002
    """The container and the codec of a video's result, by their names here.

    Raises:
        BadInput: They do not go together, or with the frames' size or the crf.
    """
    container = container_for(format, source.content_type, codec)
    named = codec_for(container, codec, source, crf)
    _check_crf(crf, named)
    width, height = CODECS[named].smallest
    if source.width < width or source.height < height:
        raise BadInput(f"frames are {source.width}x{source.height}; {named} needs at least {width}x{height}")
    return container, named


def image_format_for(format: str, content_type: str) -> str:  # noqa: A002
    """The key into `IMAGES` of a result; `same` is the input's own, or what is nearest to it."""
    _one_of("format", format, IMAGE_FORMATS)
    if format != "same":
        return format
    if content_type in BECOMES:
        return BECOMES[content_type]
    return next(name for name, spec in IMAGES.items() if spec.content_type == content_type)


def container_for(format: str, content_type: str, codec: str | None) -> str:  # noqa: A002
    """The key into `VIDEOS` of a result.

    `same` keeps mp4, mkv, mov and webm. Of any other input it makes mp4 where that holds the codec, else mkv.
    """
    _one_of("format", format, VIDEO_FORMATS)
    if format != "same":
        return format
    for name, spec in VIDEOS.items():
        if spec.content_type == content_type:
            return name
    return "mp4" if codec is None or codec in VIDEOS["mp4"].codecs else "mkv"


def codec_for(container: str, codec: str | None, source: InputFacts | None = None, crf: int | None = None) -> str:
    """The codec of a result in this container.

    None named is the source's own, if it is one of the container's, else the container's first. Where that is too
    shallow for the source, or its blocks too large, it is the one that keeps most; with a crf, one that has such.
    """
    allowed = VIDEOS[container].codecs
    if codec is not None:
        if codec not in allowed:
            raise BadInput(f"codec is {codec!r}; {container} holds {', '.join(allowed)}")
        return codec
    if source is None:
        return allowed[0]
    depth = source.bit_depth or 8
    rest = [name for name in allowed if crf is None or CODECS[name].crf is not None]
    rest.sort(key=lambda name: name != source.codec)
    fitting = [
        name for name in rest if source.width >= CODECS[name].smallest[0] and source.height >= CODECS[name].smallest[1]
    ]
    return max(fitting or rest, key=lambda name: min(CODECS[name].bits, depth))


def _check_crf(crf: int | None, *codecs: str) -> None:
    """Whether one of these takes it."""
    if crf is None:
        return
    most = max(CODECS[name].max_crf for name in codecs)
    if all(CODECS[name].crf is None for name in codecs):
        raise BadInput(f"crf is {crf}, but {' and '.join(codecs)} is lossless and has none")
    if not 0 <= crf <= most:
        raise BadInput(f"crf is {crf}; {', '.join(codecs)} allows 0 to {most}")


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInput(f"{field} is {value!r}; allowed are {', '.join(allowed)}")
