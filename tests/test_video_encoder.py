"""Who encodes a video: the GPU where it is asked and takes it, software in all other cases, and the file says the same.

No NVENC was at hand. In its place stands x264, set up otherwise than the one of the process that writes the file.
"""

import errno
from dataclasses import replace

import av
import pytest
from av.codec.context import CodecContext
from media_samples import timestamps
from test_parts import in_parts, mixing
from video_samples import CLOCK, decoded, soft_noise, write_video

from models.catalogue import FITVNET_SPATIAL
from models.quality import psnr_db
from service.job import Options
from service.media import encoder
from service.media.video import VideoReader
from service.pipeline.denoiser import Tally
from service.pipeline.videos import denoise_video
from service.settings import Settings

ON_GPU = Settings(video_encoder="nvidia", part_frames=8)
MP4 = Options(format="mp4", codec="h264")


@pytest.fixture
def source(tmp_path):
    return write_video(tmp_path / "in.mkv", count=30, frame=soft_noise, size=(256, 256), options={"g": "1"})


@pytest.fixture
def stand_in(monkeypatch):
    """Another encoder of H.264, in NVENC's place: other parameter sets, and no frames out of order."""
    other = encoder._Spec("libx264", {"preset": "ultrafast", "x264-params": "cabac=0:bframes=0"}, whole_chroma=True)
    monkeypatch.setitem(encoder._NVIDIA, "h264", other)
    monkeypatch.setattr(encoder, "ON_GPU", frozenset({"libx264"}))


def head_of(path):
    with VideoReader(path, Settings()) as reader:
        return reader.head


def coded_by_cabac(path) -> bool:
    """What the parameter sets of a file say, and whether its frames can be read by them."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert len(frames) == 30
        assert all(frame.format.name == "yuv420p" for frame in frames)
        return container.streams.video[0].codec_context.profile != "Constrained Baseline"


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_nvenc_knows_every_option_that_it_is_given(codec):
    spec = encoder._NVIDIA[codec]
    context = CodecContext.create(spec.name, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 256, 256, "yuv420p", CLOCK
    assert refusal(context, {"preset": "p4", "rc": "none of these"}) == errno.EINVAL
    # Without a driver it is refused as well, but options are read before.
    assert refusal(context, {**spec.options, spec.quality: "24"}) not in (errno.EINVAL, errno.ERANGE)


def refusal(context, options) -> int | None:
    context.options = options
    try:
        context.open()
    except av.FFmpegError as err:
        return err.errno
    return None


def test_where_no_gpu_encodes_software_does_and_the_log_says_why(source, tmp_path, caplog):
    tally = Tally()
    made = denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "out.mp4", MP4, ON_GPU, tally=tally)
    assert made.frames == 30
    by_gpu = "the result was encoded on the GPU, by h264_nvenc" in tally.notes
    assert by_gpu != any("h264 is encoded without the GPU" in record.message for record in caplog.records)


def test_a_library_without_nvenc_is_no_failure(source, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(encoder._NVIDIA, "h264", encoder._Spec("h264_of_nobody", {}))
    denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "out.mp4", MP4, ON_GPU)
    assert coded_by_cabac(tmp_path / "out.mp4")
    assert any("h264 is encoded without the GPU" in record.message for record in caplog.records)


def test_a_file_says_what_the_encoder_was_that_made_its_frames(source, tmp_path, stand_in):
    usual = denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "usual.mp4", MP4, Settings())
    other = denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "other.mp4", MP4, ON_GPU)
    assert not coded_by_cabac(tmp_path / "other.mp4")
    assert coded_by_cabac(tmp_path / "usual.mp4")
    assert other.lost == usual.lost


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_what_nvenc_makes_is_the_video_that_software_makes(codec, source, tmp_path):
    options = MP4.model_copy(update={"codec": codec, "strength": 0.0})
    denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "usual.mp4", options, Settings())
    tally = Tally()
    denoise_video(mixing(FITVNET_SPATIAL), source, tmp_path / "out.mp4", options, ON_GPU, tally=tally)
    if not any("encoded on the GPU" in note for note in tally.notes):
        pytest.skip(f"this GPU does not encode {codec}")
    assert timestamps(tmp_path / "out.mp4") == timestamps(tmp_path / "usual.mp4")
    pairs = zip(decoded(tmp_path / "out.mp4"), decoded(source), strict=True)
    shown = [psnr_db(*(frame.to_ndarray(format="rgb24") for frame in pair)) for pair in pairs]
    assert min(shown) > 25  # of noise; software has 28 to 31


def test_parts_that_a_gpu_encoded_are_joined_by_who_has_none(source, tmp_path, stand_in):
    """`in_parts` makes and joins them by the settings of its module; the parts alone are made as on a GPU."""
    joined, parts = in_parts(mixing(FITVNET_SPATIAL), source, tmp_path, MP4, parts_by=ON_GPU)
    assert len(parts) >= 3
    assert not coded_by_cabac(joined)


def test_the_gpu_is_asked_for_what_its_encoders_all_take(source, tmp_path):
    head = head_of(source)
    assert encoder.suits_nvidia("h264", head, None)
    assert encoder.suits_nvidia("av1", head, 40)
    assert not encoder.suits_nvidia("ffv1", head, None)
    assert not encoder.suits_nvidia("vp9", head, None)
    assert not encoder.suits_nvidia("h264", head, 0)  # without loss
    assert not encoder.suits_nvidia("h264", replace(head, width=255), None)  # colours of half a pixel
    for pixel_format in ("yuv422p", "yuv444p", "yuv420p10le", "gray"):
        other = write_video(
            tmp_path / f"{pixel_format}.mkv", count=2, frame=soft_noise, size=(256, 256), pixel_format=pixel_format
        )
        assert not encoder.suits_nvidia("hevc", head_of(other), None)
