"""Shows the service at its main job: a noisy photo and a noisy clip go in over HTTP, clean ones come out.

Run by `make demo`. The samples are NASA's public domain portrait of Eileen Collins and a clip panned over it, with
Gaussian noise of a fixed seed; their clean originals go along as references, so PSNR and SSIM are true ones.
"""

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import httpx
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.quality import ssim
from models.samples import PORTRAIT

OUTPUT = Path("demo-output")
SIGMA = 25 / 255
SEED = 2026
CLIP_FRAMES, CLIP_HEIGHT, CLIP_WIDTH = 48, 208, 320
FRAME_RATE = Fraction(24)
AUDIO_RATE = 44_100

Image = NDArray[np.uint8]  # [H, W, 3] RGB
out = Console()


def main() -> None:
    """Run the demo."""
    OUTPUT.mkdir(exist_ok=True)
    photo = read_photo()
    noisy_photo = with_noise(photo, SEED)
    clip = moving_clip(photo)
    noisy_clip = [with_noise(frame, SEED + index) for index, frame in enumerate(clip)]
    write_png(OUTPUT / "noisy.png", noisy_photo)
    write_clip(OUTPUT / "noisy.mp4", noisy_clip)
    clean_png, clean_mp4 = png_bytes(photo), io.BytesIO()
    write_clip(clean_mp4, clip)

    started = time.monotonic()
    with running_service() as base_url:
        out.print(f"Service ready at {base_url} after {time.monotonic() - started:.1f} s")
        with httpx.Client(base_url=base_url, timeout=300, trust_env=False) as client:
            restored = _denoise_photo(client, clean_png, ssim(noisy_photo, photo))
            before = float(np.mean([ssim(noisy, clean) for noisy, clean in zip(noisy_clip, clip, strict=True)]))
            _denoise_clip(client, clean_mp4.getvalue(), before)
    out.print("Service stopped cleanly")
    write_png(OUTPUT / "before-after.png", side_by_side(noisy_photo, restored))
    out.print(f"Saved in {OUTPUT}: " + ", ".join(sorted(path.name for path in OUTPUT.iterdir())))


@contextmanager
def running_service(**settings: object) -> Iterator[str]:
    """Run `quietframe serve` over a fresh data directory, on a free port; gives its base URL.

    Args:
        settings: other than usual, by name.

    Raises:
        RuntimeError: it did not start, or did not end with status 0.
    """
    with tempfile.TemporaryDirectory(prefix="quietframe-") as data_dir:
        command = [sys.executable, "-P", "-m", "service", "serve", "--port", "0", "--grpc-port", "0"]
        command += ["--data-dir", data_dir]
        said = {f"QUIETFRAME_{name.upper()}": str(value) for name, value in settings.items()}
        environment = os.environ | {"QUIETFRAME_LOG_LEVEL": "warning"} | said
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as service:
            try:
                yield _base_url(service)
            finally:
                service.send_signal(signal.SIGTERM)
                status = service.wait(60)
        if status:
            raise RuntimeError(f"the service ended with status {status}")


def read_photo() -> Image:
    """The sample portrait, 512x512."""
    decoded = cv2.imread(str(PORTRAIT), cv2.IMREAD_COLOR_RGB)
    if decoded is None:
        raise FileNotFoundError(f"{PORTRAIT} is missing from the installation")
    return np.asarray(decoded, np.uint8)


def with_noise(clean: Image, seed: int) -> Image:
    """Additive white Gaussian noise of `SIGMA`, clipped and rounded as an 8-bit camera file is."""
    noise = np.random.default_rng(seed).standard_normal(clean.shape, np.float32)
    return np.clip(np.rint(clean + 255 * SIGMA * noise), 0, 255).astype(np.uint8)


def moving_clip(photo: Image) -> list[Image]:
    """A camera that pans and slowly turns over the photo while zooming in."""
    frames = []
    for index in range(CLIP_FRAMES):
        time_ = index / (CLIP_FRAMES - 1)
        zoom = 0.75 + 0.2 * time_
        centre = (190 + 110 * time_, 150 + 50 * np.sin(2.2 * time_))
        matrix = cv2.getRotationMatrix2D(centre, 5 * np.sin(3 * time_), zoom)
        matrix[:, 2] += np.array([CLIP_WIDTH / 2 - centre[0], CLIP_HEIGHT / 2 - centre[1]])
        frame = cv2.warpAffine(
            photo, matrix, (CLIP_WIDTH, CLIP_HEIGHT), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
        )
        frames.append(np.asarray(frame, np.uint8))
    return frames


def write_clip(target: Path | io.BytesIO, frames: list[Image]) -> None:
    """An H.264 clip, nearly lossless so that the noise is the noise, with a tone of a rising pitch beside it."""
    with av.open(str(target) if isinstance(target, Path) else target, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "6", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = CLIP_WIDTH, CLIP_HEIGHT, "yuv444p"
        audio = container.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, 1 / FRAME_RATE
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for block in _tone(len(frames) / float(FRAME_RATE)):
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))


def png_bytes(pixels: Image) -> bytes:
    return bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1])


def write_png(path: Path, pixels: Image) -> None:
    path.write_bytes(png_bytes(pixels))


def side_by_side(noisy: Image, restored: Image) -> Image:
    """The noisy picture and what was made of it, with a white line between."""
    line = np.full((noisy.shape[0], 4, 3), 255, np.uint8)
    return np.concatenate([noisy, line, restored], axis=1)


def _tone(seconds: float) -> list[av.AudioFrame]:
    moments = np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE
    samples = (0.2 * np.sin(2 * np.pi * (220 * moments + 60 * moments**2))).astype(np.float32)
    frames = []
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, start, Fraction(1, AUDIO_RATE)
        frames.append(frame)
    return frames


def _base_url(service: subprocess.Popen[str]) -> str:
    """From the curl line that `serve` prints when it is ready."""
    for line in service.stdout or ():
        for word in line.split():
            if word.startswith("http://") and word.endswith("/denoise/image"):
                return word.removesuffix("/denoise/image")
    raise RuntimeError(f"the service ended with status {service.wait()} while starting")


def _denoise_photo(client: httpx.Client, clean_png: bytes, ssim_before: float) -> Image:
    noisy = (OUTPUT / "noisy.png").read_bytes()
    started = time.monotonic()
    answer = client.post("/denoise/image", files={"file": ("noisy.png", noisy), "reference": ("clean.png", clean_png)})
    answer.raise_for_status()
    took = time.monotonic() - started
    said = answer.headers
    (OUTPUT / "denoised.png").write_bytes(answer.content)
    out.print(f"POST /denoise/image: {said['Quietframe-Model']} on {said['Quietframe-Backend']}, {took:.2f} s")
    psnrs = float(said["Quietframe-Input-PSNR"]), float(said["Quietframe-PSNR"])
    _print_quality(*psnrs, ssim_before, float(said["Quietframe-SSIM"]))
    decoded = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.asarray(decoded, np.uint8)


def _denoise_clip(client: httpx.Client, clean_mp4: bytes, ssim_before: float) -> None:
    noisy = (OUTPUT / "noisy.mp4").read_bytes()
    answer = client.post("/jobs/video", files={"file": ("noisy.mp4", noisy), "reference": ("clean.mp4", clean_mp4)})
    answer.raise_for_status()
    url = answer.headers["Location"]
    out.print(f"POST /jobs/video: accepted, {url}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out) as bars:
        task = bars.add_task("frames", total=CLIP_FRAMES)
        while True:
            job = client.get(url).raise_for_status().json()
            bars.update(task, completed=job["progress"]["done"], description=job["state"])
            if job["state"] not in {"queued", "running"}:
                break
            time.sleep(0.3)
    if job["state"] != "succeeded":
        raise RuntimeError(f"the job is {job['state']}: {job['error']}")
    metrics = job["metrics"]
    out.print(f"{job['model']} on {job['backend']} {job['precision']}, {job['progress']['rate']:.1f} frames/s")
    _print_quality(metrics["input_psnr_db"], metrics["psnr_db"], ssim_before, metrics["ssim"])
    result = client.get(job["result"]["url"]).raise_for_status()
    (OUTPUT / "denoised.mp4").write_bytes(result.content)


def _print_quality(before_db: float, after_db: float, ssim_before: float, ssim_after: float) -> None:
    gain = after_db - before_db
    out.print(
        f"  PSNR {before_db:.2f} -> [bold]{after_db:.2f} dB[/] (+{gain:.2f}), "
        f"SSIM {ssim_before:.3f} -> {ssim_after:.3f}",
    )


if __name__ == "__main__":
    main()
