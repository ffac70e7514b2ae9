"""What is gained by restoring the fields of interlaced video apart? PSNR of both ways on the same files.

Of each folder of frames every two are woven into one, upper lines of the earlier and lower lines of the later, noise is
added, and H.264 without loss keeps it in 4:2:0, told to be interlaced. Both ways restore the same file by the whole
pipeline; so they do the film, every other frame as it is, to say what weaving costs.

    python benchmarks/interlaced.py DIR [--model auto] [--sigma 10,20,30] [--frames 8]
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags

from service.job import Options
from service.media.planes import Pixels, frame_of, layout_of
from service.pipeline.denoiser import Denoiser
from service.pipeline.shelf import Shelf
from service.pipeline.videos import denoise_video
from service.settings import Settings

WIDTH, HEIGHT = 432, 288  # the middle of each frame
BT709, LIMITED = 1, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--sigma", default="10,20,30")
    parser.add_argument("--frames", type=int, default=8)
    said = parser.parse_args()
    settings = Settings()
    shelf = Shelf(settings)
    denoiser = shelf.denoiser(shelf.library.find(said.model, "video").name)
    sequences = [read(home, 2 * said.frames) for home in sorted(said.data.iterdir()) if home.is_dir()]
    sequences = [moments for moments in sequences if len(moments) == 2 * said.frames]
    print(f"{denoiser.spec.name}, {len(sequences)} sequences, {said.frames} frames of {WIDTH}x{HEIGHT}; PSNR, dB")
    print(f"{'sigma':>5} {'noisy':>6} {'together':>8} {'apart':>6} {'gain':>6}   {'film':>6}")
    for sigma in map(float, said.sigma.split(",")):
        rows = [measure(denoiser, moments, sigma, settings) for moments in sequences]
        noisy, together, apart, film = (statistics.fmean(column) for column in zip(*rows, strict=True))
        gains = [row[2] - row[1] for row in rows]
        print(
            f"{sigma:5g} {noisy:6.2f} {together:8.2f} {apart:6.2f} {apart - together:+6.2f}   {film:6.2f}"
            f"   (gains {min(gains):+.2f} to {max(gains):+.2f})",
            flush=True,
        )


def measure(denoiser: Denoiser, moments: Sequence[Pixels], sigma: float, settings: Settings) -> tuple[float, ...]:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        results = []
        for clean, is_interlaced, scans in (
            (woven(moments), True, ("progressive", "interlaced")),
            (moments[::2], False, ("progressive",)),
        ):
            random = np.random.default_rng(1)
            noise = [random.standard_normal(one.shape) * sigma for one in clean]
            noisy = [(one + more).clip(0, 255).round().astype(np.uint8) for one, more in zip(clean, noise, strict=True)]
            write(folder / "clean.mkv", clean, is_interlaced=is_interlaced)
            write(folder / "noisy.mkv", noisy, is_interlaced=is_interlaced)
            for scan in scans:
                options = Options(scan=scan, format="mkv")
                files = folder / "noisy.mkv", folder / "out.mkv"
                made = denoise_video(denoiser, *files, options, settings, reference=folder / "clean.mkv").metrics
                results.append((made.input_psnr_db or 0.0, made.psnr_db or 0.0))
    together, apart, film = results
    return together[0], together[1], apart[1], film[1]


def woven(moments: Sequence[Pixels]) -> list[Pixels]:
    frames = []
    for upper, lower in zip(moments[::2], moments[1::2], strict=True):
        frame = upper.copy()
        frame[1::2] = lower[1::2]
        frames.append(frame)
    return frames


def read(home: Path, count: int) -> list[Pixels]:
    files = sorted(path for path in home.iterdir() if path.suffix in {".jpg", ".png"})[:count]
    frames = [np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8) for path in files]
    tops = [((frame.shape[0] - HEIGHT) // 2, (frame.shape[1] - WIDTH) // 2) for frame in frames]
    return [frame[y : y + HEIGHT, x : x + WIDTH].copy() for frame, (y, x) in zip(frames, tops, strict=True)]


def write(path: Path, frames: Sequence[Pixels], *, is_interlaced: bool) -> None:
    layout = layout_of("yuv420p")
    assert layout is not None
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = BT709, LIMITED
        if is_interlaced:
            stream.codec_context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        for number, pixels in enumerate(frames):
            frame = frame_of(pixels, layout, BT709, LIMITED, by_field=is_interlaced)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


if __name__ == "__main__":
    main()
