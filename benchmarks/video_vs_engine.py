"""How much of the engine's speed a video job keeps, from upload to result: probe, queue, decoding, encoding and all.

The engine alone streams the same decoded frames through the same stages. Rounds are interleaved; medians are printed.

    python benchmarks/video_vs_engine.py [--rounds 3] [--clip FILE]
"""

import argparse
import io
import time
from pathlib import Path

import httpx
from support import median

from service.demo import moving_clip, read_photo, running_service, with_noise, write_clip
from service.media.video import VideoReader
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip", type=Path, help="a video; without it, the demo's clip")
    parser.add_argument("--model", default="fitvnet")
    arguments = parser.parse_args()

    clip = arguments.clip
    if clip is None:
        clip = Path("demo-output") / "bench.mp4"
        clip.parent.mkdir(exist_ok=True)
        made = io.BytesIO()
        write_clip(made, [with_noise(frame, seed) for seed, frame in enumerate(moving_clip(read_photo()))])
        clip.write_bytes(made.getvalue())
    settings = Settings()
    with VideoReader(clip, settings) as reader:
        frames = [to_planes(frame.pixels) for frame in reader]
    denoiser = Shelf(settings).denoiser(arguments.model)
    list(denoiser.restore_frames(frames[:6]))

    alone: list[float] = []
    served: list[float] = []
    with running_service() as base_url, httpx.Client(base_url=base_url, timeout=600, trust_env=False) as client:
        _run_job(client, clip, arguments.model)
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            for _ in denoiser.restore_frames(frames):
                pass
            alone.append(len(frames) / (time.perf_counter() - started))
            served.append(len(frames) / _run_job(client, clip, arguments.model))

    height, width = frames[0].shape[1:]
    ratio = median([one / other for one, other in zip(served, alone, strict=True)])
    print(f"{arguments.model} on {denoiser.backend} {denoiser.precision}, {len(frames)} frames of {width}x{height}")
    print(f"engine alone      {median(alone):7.2f} frames/s")
    print(f"job, end to end   {median(served):7.2f} frames/s")
    print(f"ratio             {ratio:7.2f}")


def _run_job(client: httpx.Client, clip: Path, model: str) -> float:
    """Seconds from the start of the upload to the last byte of the result."""
    started = time.perf_counter()
    answer = client.post("/jobs/video", files={"file": clip.read_bytes()}, data={"model": model}).raise_for_status()
    url = answer.headers["Location"]
    with client.stream("GET", f"{url}/events") as events:  # told, not polled
        for _ in events.iter_lines():
            pass
    job = client.get(url).json()
    if job["state"] != "succeeded":
        raise RuntimeError(f"the job is {job['state']}: {job['error']}")
    client.get(f"{url}/result").raise_for_status()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
