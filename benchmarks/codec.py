"""What denoisers make of noise that a codec has been at: PSNR before and after, of white noise behind x264 in 4:2:0.

The noise is drawn with a fixed seed on frames of 8 bits, then encoded; the clean frames are kept without loss.

    python benchmarks/codec.py FRAMES [--models fitvnet.camera,fitvnet] [--crf 10,20,28] [--sigma 20] [--frames 12]
"""

import argparse
import logging
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np

from models.catalogue import AUTO
from models.film import FAITHFUL
from service.demo import Image
from service.evaluation import SUFFIXES
from service.job import Options
from service.pipeline.shelf import Shelf
from service.pipeline.videos import denoise_video
from service.settings import Settings

WIDTH, HEIGHT = 512, 288  # cut from the middle


def cut(path: Path) -> Image:
    frame = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)
    top, left = (frame.shape[0] - HEIGHT) // 2, (frame.shape[1] - WIDTH) // 2
    return np.ascontiguousarray(frame[top : top + HEIGHT, left : left + WIDTH])


def write(path: Path, frames: list[Image], codec: str, pixel_format: str, **options: str) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        for frame in frames:
            made = av.VideoFrame.from_ndarray(frame, format="rgb24")
            out.mux(stream.encode(made.reformat(format=pixel_format, interpolation=FAITHFUL, threads=1)))
        out.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of numbered frames, at least 512x288")
    parser.add_argument("--models", default=f"{AUTO['video']},fitvnet,fitvnet-spatial,pridnet")
    parser.add_argument("--crf", default="10,20,28")
    parser.add_argument("--sigma", type=float, default=20.0)
    parser.add_argument("--frames", type=int, default=12)
    arguments = parser.parse_args()
    logging.getLogger("libav").setLevel(logging.ERROR)

    paths = [path for path in sorted(arguments.folder.glob("*")) if path.suffix.lower() in SUFFIXES]
    clean = [cut(path) for path in paths[: arguments.frames]]
    rng = np.random.default_rng(1)
    noisy = [np.rint((one + rng.normal(0, arguments.sigma, one.shape)).clip(0, 255)).astype(np.uint8) for one in clean]
    settings = Settings()
    shelf = Shelf(settings)
    with tempfile.TemporaryDirectory() as home:
        reference, source, target = (Path(home, name) for name in ("clean.mkv", "noisy.mp4", "restored.mkv"))
        write(reference, clean, "ffv1", "bgr0")
        for crf in arguments.crf.split(","):
            write(source, noisy, "libx264", "yuv420p", crf=crf)
            for model in arguments.models.split(","):
                found = denoise_video(
                    shelf.denoiser(model), source, target, Options(format="mkv"), settings, reference=reference
                ).metrics
                print(f"crf {crf}  {model:<24}{found.input_psnr_db:6.2f} -> {found.psnr_db:.2f} dB", flush=True)


if __name__ == "__main__":
    main()
