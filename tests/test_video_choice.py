"""Which codec a result has, and what is refused before any work is done."""

import pytest
from av.codec.codec import Codec
from av.video.format import VideoFormat
from media_samples import make_video
from video_samples import decoded, write_video

from service.errors import BadInput
from service.job import InputFacts
from service.media.encoder import _SPECS
from service.media.formats import CODECS, VIDEOS, codec_for, validate_output, video_output
from service.media.probe import probe_video_here
from service.media.video import VideoReader, VideoWriter
from service.settings import Settings

LIMITS = Settings()


def a_video(content_type="video/mp4", codec="h264", bit_depth=8, size=(640, 480)) -> InputFacts:
    width, height = size
    return InputFacts(content_type=content_type, bytes=1, width=width, height=height, codec=codec, bit_depth=bit_depth)


def copied(source, target, form="same", codec=None):
    with VideoReader(source, LIMITS) as reader:
        with VideoWriter(target, reader, format=form, codec=codec) as writer:
            for frame in reader:
                writer.write(frame)
        return writer


@pytest.mark.parametrize(
    ("source", "form", "chosen"),
    [
        (a_video(), "same", ("mp4", "h264")),
        (a_video(codec="hevc"), "same", ("mp4", "hevc")),
        (a_video(codec="av1"), "same", ("mp4", "av1")),
        (a_video("video/quicktime", "hevc"), "same", ("mov", "hevc")),
        (a_video("video/quicktime", "prores", 10), "same", ("mov", "h264")),
        (a_video("video/quicktime", "prores", 12), "same", ("mov", "hevc")),  # H.264 is written with 10 bits at most
        (a_video("video/x-matroska", "ffv1"), "same", ("mkv", "ffv1")),  # an archive's copy stays lossless
        (a_video("video/x-matroska", "ffv1"), "mp4", ("mp4", "h264")),
        (a_video("video/x-matroska", "rawvideo", 16), "same", ("mkv", "ffv1")),
        (a_video("video/webm", "vp8"), "same", ("webm", "vp9")),
        (a_video("video/webm", "vp9"), "same", ("webm", "vp9")),
        (a_video("video/webm", "vp9", 10), "same", ("webm", "av1")),  # this VP9 encoder has 8 bits
        (a_video("video/webm", "vp9", 10, (48, 48)), "same", ("webm", "vp9")),  # and AV1's blocks would be too large
        (a_video("video/x-msvideo", "mpeg4"), "same", ("mp4", "h264")),
        (a_video(codec="hevc", size=(48, 48)), "same", ("mp4", "h264")),
        (a_video(codec="hevc"), "webm", ("webm", "vp9")),
    ],
)
def test_the_sources_own_codec_is_kept_where_it_can_be_and_else_what_keeps_most(source, form, chosen):
    assert video_output(source, form, None, None) == chosen


def test_whoever_gives_a_quality_gets_a_codec_that_has_one():
    assert video_output(a_video("video/x-matroska", "ffv1"), "same", None, 20) == ("mkv", "h264")
    assert codec_for("mkv", None, a_video("video/x-matroska", "ffv1", 16), 20) == "hevc"


@pytest.mark.parametrize(
    ("source", "asked", "told"),
    [
        (a_video(size=(48, 64)), ("same", "hevc", None), "frames are 48x64; hevc needs at least 64x64"),
        (a_video(codec="av1"), ("same", None, 64), "crf is 64; av1 allows 0 to 63"),
        (a_video(codec="hevc"), ("same", None, 52), "crf is 52; hevc allows 0 to 51"),
        (a_video(), ("webm", "hevc", None), "codec is 'hevc'; webm holds vp9, av1"),
        (a_video("video/quicktime"), ("same", "ffv1", None), "codec is 'ffv1'; mov holds h264, hevc"),
        (a_video(), ("mkv", "ffv1", 3), "crf is 3, but ffv1 is lossless"),
    ],
)
def test_what_cannot_be_is_refused_once_the_header_is_read(source, asked, told):
    with pytest.raises(BadInput, match=told):
        validate_output("video", *asked, None, source.content_type, source)
    with pytest.raises(BadInput, match=told):
        video_output(source, *asked)


def test_a_quality_is_not_refused_before_the_codec_is_known():
    validate_output("video", "same", None, 60)
    with pytest.raises(BadInput, match="crf is 64"):
        validate_output("video", "same", None, 64)


def test_the_table_says_what_the_encoders_at_hand_take():
    for name, spec in CODECS.items():
        offered = [one.name for one in Codec(_SPECS[name].name, "w").video_formats or () if "f" not in one.name[4:]]
        depths = {VideoFormat(one).components[0].bits for one in offered}
        assert spec.bits == max(depths), name
    assert {codec for spec in VIDEOS.values() for codec in spec.codecs} == set(CODECS)


@pytest.mark.parametrize(
    ("muxer", "encoder", "pixel_format", "codec", "made"),
    [
        ("mp4", "libx265", "yuv420p", "hevc", "yuv420p"),
        ("mp4", "libx265", "yuv422p12le", "hevc", "yuv422p12le"),
        ("matroska", "ffv1", "yuv420p16le", "ffv1", "yuv420p16le"),
        ("mov", "prores_ks", "yuv422p10le", "h264", "yuv422p10le"),
        ("matroska", "libsvtav1", "yuv420p10le", "av1", "yuv420p10le"),
        ("mov", "qtrle", "rgb24", "h264", "yuv444p"),
    ],
)
def test_a_result_has_the_codec_and_the_depth_of_its_source(muxer, encoder, pixel_format, codec, made, tmp_path):
    source = write_video(
        tmp_path / "in", muxer=muxer, encoder=encoder, pixel_format=pixel_format, size=(96, 64)
    ) if encoder != "qtrle" else make_video(
        tmp_path / "in", muxer=muxer, encoder=encoder, pixel_format=pixel_format, pts=range(0, 3003, 1001)
    )  # fmt: skip
    facts = probe_video_here(source, LIMITS)
    assert facts.bit_depth == VideoFormat(pixel_format).components[0].bits
    writer = copied(source, tmp_path / "out")
    frame = decoded(tmp_path / "out")[0]
    assert (writer.codec, frame.format.name) == (codec, made)
    assert writer.lost == (["RGB (now yuv444p)"] if encoder == "qtrle" else [])


@pytest.mark.parametrize(
    ("pixel_format", "codec", "lost"),
    [
        ("yuv444p", "av1", ["chroma of yuv444p (now yuv420p)"]),
        ("yuv422p10le", "av1", ["chroma of yuv422p10le (now yuv420p10le)"]),
        ("yuv420p12le", "h264", ["12 bit depth"]),
        ("yuv420p10le", "vp9", ["10 bit depth"]),
        ("yuv411p", "h264", []),
        ("gray", "av1", []),
    ],
)
def test_what_the_codec_asked_for_cannot_hold_is_named(pixel_format, codec, lost, tmp_path):
    source = write_video(tmp_path / "in", pixel_format=pixel_format, size=(64, 64))
    assert copied(source, tmp_path / "out", "mkv", codec).lost == lost
