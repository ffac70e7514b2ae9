"""How much of the engine's speed a live stream keeps, from client through API and worker and back, and how late it is.

The engine alone streams the same frames through the same stages. Rounds are interleaved; medians are printed. Latency
is from a frame's taking to its restored one's coming: with as many frames on their way as keep the service busy, with
as few as the model's window allows, and with frames that come at a share of the speed, as from a camera.

    python benchmarks/streams.py [--rounds 3] [--frames 48] [--size 320x208] [--model fitvnet] [--load 0.7]
"""

import argparse
import time
from collections.abc import Iterator

import cv2
import numpy as np
from support import median, percentile

from service.client import Client
from service.demo import moving_clip, read_photo, running_service, with_noise
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--size", default="320x208")
    parser.add_argument("--model", default="fitvnet")
    parser.add_argument("--load", type=float, default=0.7, help="share of the engine's speed that the camera has")
    arguments = parser.parse_args()

    width, height = map(int, arguments.size.split("x"))
    clean = moving_clip(read_photo())
    noisy = [
        with_noise(cv2.resize(clean[index % len(clean)], (width, height)), index) for index in range(arguments.frames)
    ]
    planes = [to_planes(frame) for frame in noisy]
    denoiser = Shelf(Settings()).denoiser(arguments.model)
    list(denoiser.restore_frames(planes[:6]))

    alone: list[float] = []
    served: dict[str, list[float]] = {"busy": [], "few": [], "camera": []}
    late: dict[str, list[float]] = {name: [] for name in served}

    def stream(client: Client, name: str, frames, in_flight: int | None = None) -> None:
        fields = {"width": width, "height": height, "model": arguments.model, "in_flight": in_flight}
        with client.stream(frames, **fields) as live:
            started = time.perf_counter()
            late[name] += [restored.latency_s for restored in live]
            served[name].append(len(noisy) / (time.perf_counter() - started))

    with running_service() as base_url, Client(base_url) as client:
        stream(client, "busy", noisy)
        for seen in (served, late):
            seen["busy"].clear()
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            for _ in denoiser.restore_frames(planes):
                pass
            alone.append(len(planes) / (time.perf_counter() - started))
            stream(client, "busy", noisy)
            stream(client, "few", noisy, in_flight=1)
            stream(client, "camera", paced(noisy, arguments.load * alone[-1]))

    print(f"{arguments.model} on {denoiser.backend} {denoiser.precision}, {len(noisy)} frames of {width}x{height}")
    print(f"{'':>24}  frames/s  of engine   p50 ms   p95 ms")
    print(f"{'engine alone':>24}  {median(alone):8.2f}  {1:9.2f}")
    told = {"busy": "kept busy", "few": "fewest on the way", "camera": f"camera at {arguments.load:g} of it"}
    for name, rates in served.items():
        ratio = median([one / other for one, other in zip(rates, alone, strict=True)])
        p50, p95 = (percentile(late[name], percent) for percent in (50, 95))
        print(f"{told[name]:>24}  {median(rates):8.2f}  {ratio:9.2f}  {p50:7.0f}  {p95:7.0f}")


def paced(frames: list[np.ndarray], rate: float) -> Iterator[np.ndarray]:
    """As a camera's come: each at its moment, or at once where that has passed."""
    began = time.perf_counter()
    for index, frame in enumerate(frames):
        time.sleep(max(0.0, began + index / rate - time.perf_counter()))
        yield frame


if __name__ == "__main__":
    main()
