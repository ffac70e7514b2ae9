"""How much of the bare engine's speed the service keeps, on 512x512 images at concurrency 1, 4 and 16.

The bare loop runs the engine on float arrays: no codec, no HTTP, no queue. The service decodes a PNG, denoises and
encodes a PNG. Rounds are interleaved, and medians over rounds are printed.

    python benchmarks/service_vs_engine.py [--rounds 3] [--images 24] [--model fitvnet-spatial]
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
from support import median, percentile

from service.demo import png_bytes, read_photo, running_service, with_noise
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--model", default="fitvnet-spatial")
    arguments = parser.parse_args()

    pictures = [with_noise(read_photo(), seed) for seed in range(arguments.images)]
    uploads = [png_bytes(picture) for picture in pictures]
    planes = [to_planes(picture)[None] for picture in pictures]
    denoiser = Shelf(Settings()).denoiser(arguments.model)
    engine, told = denoiser.engines[0], np.zeros(1, np.float32)
    engine.denoise(planes[0], told)

    bare: list[float] = []
    served: dict[int, list[float]] = {1: [], 4: [], 16: []}
    waits: dict[int, list[float]] = {1: [], 4: [], 16: []}
    with running_service() as base_url, httpx.Client(base_url=base_url, timeout=300, trust_env=False) as client:

        def post(upload: bytes) -> float:
            started = time.perf_counter()
            client.post("/denoise/image", files={"file": upload}, data={"model": arguments.model}).raise_for_status()
            return time.perf_counter() - started

        post(uploads[0])
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            for noisy in planes:
                engine.denoise(noisy, told)
            bare.append(len(planes) / (time.perf_counter() - started))
            for concurrency, rates in served.items():
                with ThreadPoolExecutor(concurrency) as pool:
                    started = time.perf_counter()
                    waits[concurrency] += pool.map(post, uploads)
                    rates.append(len(uploads) / (time.perf_counter() - started))

    print(f"{arguments.model} on {denoiser.backend} {denoiser.precision}, 512x512, {arguments.rounds} rounds")
    print(f"{'':>18}  images/s  of bare   p50 ms   p95 ms")
    print(f"{'bare engine':>18}  {median(bare):8.2f}  {1:7.2f}  {1000 / median(bare):7.0f}")
    for concurrency, rates in served.items():
        ratio = median([rate / alone for rate, alone in zip(rates, bare, strict=True)])
        p50, p95 = (percentile(waits[concurrency], percent) for percent in (50, 95))
        print(f"{f'service, {concurrency} at once':>18}  {median(rates):8.2f}  {ratio:7.2f}  {p50:7.0f}  {p95:7.0f}")


if __name__ == "__main__":
    main()
