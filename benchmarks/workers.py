"""What a second worker brings on one machine: images per second, and frames per second of one video done in parts.

Workers share the machine's cores, so on few cores little is to be gained; on several machines or GPUs much is. Rounds
are interleaved, and medians over rounds are printed.

    python benchmarks/workers.py [--rounds 3] [--images 32] [--frames 96] [--model fitvnet-spatial]
"""

import argparse
import io
import time

import httpx
from support import median

from service.demo import moving_clip, png_bytes, read_photo, running_service, with_noise, write_clip

PART_FRAMES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--model", default="fitvnet-spatial")
    arguments = parser.parse_args()

    uploads = [png_bytes(with_noise(read_photo(), seed)) for seed in range(arguments.images)]
    frames = moving_clip(read_photo())
    frames = (frames * (1 + arguments.frames // len(frames)))[: arguments.frames]
    clip = io.BytesIO()
    write_clip(clip, [with_noise(frame, seed) for seed, frame in enumerate(frames)])

    images: dict[int, list[float]] = {1: [], 2: []}
    video: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for workers in images:
            with (
                running_service(workers=workers, part_frames=PART_FRAMES) as base_url,
                httpx.Client(base_url=base_url, timeout=300, trust_env=False) as client,
            ):
                while len(client.get("/readyz").json().get("workers", [])) < workers:
                    time.sleep(0.05)
                started = time.perf_counter()
                jobs = [submit(client, "/jobs/image", upload, arguments.model) for upload in uploads]
                for job in jobs:
                    finish(client, job)
                images[workers].append(len(jobs) / (time.perf_counter() - started))
                started = time.perf_counter()
                finish(client, submit(client, "/jobs/video", clip.getvalue(), arguments.model))
                video[workers].append(len(frames) / (time.perf_counter() - started))

    height, width = frames[0].shape[:2]
    print(f"{arguments.model}, {arguments.rounds} rounds; one video of {len(frames)} frames of {width}x{height}")
    print(f"{'workers':>8}  images/s  ratio  video frames/s  ratio")
    for workers in images:
        row = f"{workers:>8}"
        for rates, wide in ((images, 8), (video, 14)):
            gained = median([many / one for many, one in zip(rates[workers], rates[1], strict=True)])
            row += f"  {median(rates[workers]):{wide}.2f}  {gained:5.2f}"
        print(row)


def submit(client: httpx.Client, call: str, content: bytes, model: str) -> str:
    answer = client.post(call, files={"file": content}, data={"model": model})
    answer.raise_for_status()
    return str(answer.headers["Location"])


def finish(client: httpx.Client, job: str) -> None:
    """Wait for the job's end without asking again and again."""
    with client.stream("GET", f"{job}/events") as events:
        for _ in events.iter_lines():
            pass
    document = client.get(job).json()
    if document["state"] != "succeeded":
        raise RuntimeError(f"{job} is {document['state']}: {document['error']}")


if __name__ == "__main__":
    main()
