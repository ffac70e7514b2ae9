"""Which results can be asked for: containers, codecs, their pairings and their ranges.

Standard library only: the API process checks a request with it and must load no decoder.
"""

from dataclasses import dataclass

from models.catalogue import Kind
from service.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """A kind of file that results are written in."""

    content_type: str
    suffix: str
    codecs: tuple[str, ...] = ()  # video only; the first is what it gets unless told otherwise


@dataclass(frozen=True, slots=True)
class CodecSpec:
    crf: int | None  # default constant rate factor; None for a lossless codec, which has none
    max_crf: int = 0


IMAGES: dict[str, ContainerSpec] = {
    "png": ContainerSpec(content_type="image/png", suffix=".png"),
    "jpeg": ContainerSpec(content_type="image/jpeg", suffix=".jpg"),
    "webp": ContainerSpec(content_type="image/webp", suffix=".webp"),
    "tiff": ContainerSpec(content_type="image/tiff", suffix=".tiff"),
    "bmp": ContainerSpec(content_type="image/bmp", suffix=".bmp"),  # not to be asked for: only what `same` keeps
}
IMAGE_FORMATS = ("same", "png", "jpeg", "webp", "tiff")

CODECS: dict[str, CodecSpec] = {
    # h264 at 18 is taken for visually lossless; the others are set to look alike.
    "h264": CodecSpec(18, 51),
    "hevc": CodecSpec(20, 51),
    "av1": CodecSpec(24, 63),
    "vp9": CodecSpec(24, 63),
    "ffv1": CodecSpec(None),
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
) -> None:
    """Refuse what cannot be written, before any work is done.

    Args:
        kind: Of the job.
        content_type: Of the input, where it is known: then `same` is checked too.

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
        raise BadInput(f"quality is {quality}, but only JPEG and WebP have one; a video has crf")
    if codec is not None:
        _one_of("codec", codec, tuple(CODECS))
    # An input that is not known yet is taken for one that `same` turns into mp4, or into mkv if the codec needs it.
    named = codec_for(container_for(format, content_type or "", codec), codec)
    if crf is not None:
        spec = CODECS[named]
        if spec.crf is None:
            raise BadInput(f"crf is {crf}, but {named} is lossless and has none")
        if not 0 <= crf <= spec.max_crf:
            raise BadInput(f"crf is {crf}; {named} allows 0 to {spec.max_crf}")


def image_format_for(format: str, content_type: str) -> str:  # noqa: A002
    """The key into `IMAGES` of a result; `same` is the input's own."""
    _one_of("format", format, IMAGE_FORMATS)
    if format != "same":
        return format
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


def codec_for(container: str, codec: str | None) -> str:
    """The codec of a result in this container; none named means the container's first."""
    allowed = VIDEOS[container].codecs
    if codec is None:
        return allowed[0]
    if codec not in allowed:
        raise BadInput(f"codec is {codec!r}; {container} holds {', '.join(allowed)}")
    return codec


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInput(f"{field} is {value!r}; allowed are {', '.join(allowed)}")
