"""What a film makes of frames: encoded as H.264 by x264 and decoded again, through PyAV."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB, height and width even

# Else the library rounds down, there and back: films would come out darker than what they are of by 1 of 255.
FAITHFUL = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)


def through_h264(frames: Frames, crf: float, preset: str = "veryfast", *, is_hd: bool = False) -> Frames:
    """Frames as a film of 8-bit 4:2:0 gives them back, the same every time.

    Args:
        frames: oldest first.
        crf: x264's constant rate factor, 0 to 51; 23 is its own choice.
        preset: how much time x264 takes; slower ones also keep more of what looks like grain.
        is_hd: whether colours are kept by the matrix of ITU-R BT.709, as HD has them, instead of BT.601.
    """
    matrix = Colorspace.ITU709 if is_hd else Colorspace.ITU601
    writer = av.VideoCodecContext.create("libx264", "w")
    writer.height, writer.width = frames.shape[1:3]
    writer.pix_fmt, writer.time_base, writer.framerate = "yuv420p", Fraction(1, 24), Fraction(24)
    writer.thread_count = 1
    # Where bits go by what later frames take from a block, x264's AVX-512 code gives now this film, now that.
    writer.options = {"crf": f"{crf:.2f}", "preset": preset, "x264-params": "mbtree=0"}
    packets = []
    for index, pixels in enumerate(frames):
        # On more than one thread the library's conversions give now and then another row (see service/media/colour.py).
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, interpolation=FAITHFUL, threads=1)
        frame.pts = index
        packets += writer.encode(frame)
    packets += writer.encode(None)
    reader = av.VideoCodecContext.create("h264", "r")
    film = [frame for packet in (*packets, None) for frame in reader.decode(packet)]
    seen = [frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=FAITHFUL, threads=1) for frame in film]
    return np.stack([frame.to_ndarray() for frame in seen])
