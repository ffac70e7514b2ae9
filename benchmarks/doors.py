"""One image through every door: REST, gRPC, and the Open Inference Protocol over both, beside the bare engine.

Files (PNG) go through the first two, UINT8 tensors through the others; each answer has the same pixels. Doors take
turns, image by image, so that a busy machine is busy for all of them; medians over rounds are printed.

    python benchmarks/doors.py [--rounds 5] [--images 12] [--side 256] [--at-once 1] [--model fitvnet-spatial]
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import numpy as np
from support import median, percentile

from service.demo import png_bytes, read_photo, running_service, with_noise
from service.pipeline.denoiser import to_planes
from service.pipeline.shelf import Shelf
from service.rpc.generated import grpc_predict_v2_pb2 as oip
from service.rpc.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from service.rpc.generated.quietframe.v1 import denoiser_pb2 as pb
from service.rpc.generated.quietframe.v1.denoiser_pb2_grpc import DenoiserStub
from service.settings import Settings

LENGTH = "Inference-Header-Content-Length"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--model", default="fitvnet-spatial")
    arguments = parser.parse_args()

    photo = read_photo()[: arguments.side, : arguments.side]
    pictures = [np.ascontiguousarray(with_noise(photo, seed)) for seed in range(arguments.images)]
    uploads = [png_bytes(picture) for picture in pictures]
    planes = [to_planes(picture)[None] for picture in pictures]
    denoiser = Shelf(Settings()).denoiser(arguments.model)
    engine, told = denoiser.engines[0], np.zeros(1, np.float32)
    engine.denoise(planes[0], told)

    with running_service() as base_url, httpx.Client(base_url=base_url, timeout=300, trust_env=False) as client:
        address = f"127.0.0.1:{client.get('/').json()['grpc_port']}"
        with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
            doors = doors_to(client, channel, arguments.model, pictures, uploads)
            bare, rates, waits = measured(engine_of(engine, planes, told), doors, arguments)

    print(
        f"{arguments.model} on {denoiser.backend} {denoiser.precision}, {arguments.side}x{arguments.side}, "
        f"{arguments.at_once} at once, {arguments.rounds} rounds of {arguments.images}"
    )
    print(f"{'':>22}  images/s  of bare   p50 ms   p95 ms")
    print(f"{'bare engine':>22}  {median(bare):8.2f}  {1:7.2f}  {1000 / median(bare):7.0f}")
    for name in doors:
        ratio = median([rate / alone for rate, alone in zip(rates[name], bare, strict=True)])
        p50, p95 = (percentile(waits[name], percent) for percent in (50, 95))
        print(f"{name:>22}  {median(rates[name]):8.2f}  {ratio:7.2f}  {p50:7.1f}  {p95:7.1f}")


def engine_of(engine, planes, told) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        for noisy in planes:
            engine.denoise(noisy, told)
        return len(planes) / (time.perf_counter() - started)

    return run


def doors_to(client, channel, model, pictures, uploads) -> dict[str, Callable[[int], None]]:
    """What sends the n-th picture and waits for it, by the name of the door."""
    denoiser, inference = DenoiserStub(channel), GRPCInferenceServiceStub(channel)

    def rest(number: int) -> None:
        client.post("/denoise/image", files={"file": uploads[number]}, data={"model": model}).raise_for_status()

    def rpc(number: int) -> None:
        denoiser.DenoiseImage(pb.DenoiseImageRequest(image=uploads[number], model=model))

    def oip_rest(number: int) -> None:
        raw = pictures[number].tobytes()
        tensor = {"name": "image", "datatype": "UINT8", "shape": pictures[number].shape}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        answer = client.post(f"/v2/models/{model}/infer", content=head + raw, headers={LENGTH: str(len(head))})
        answer.raise_for_status()

    def oip_rpc(number: int) -> None:
        kind = oip.ModelInferRequest.InferInputTensor
        tensor = kind(name="image", datatype="UINT8", shape=pictures[number].shape)
        raw = pictures[number].tobytes()
        inference.ModelInfer(oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[raw]))

    return {"REST, PNG": rest, "gRPC, PNG": rpc, "OIP REST, UINT8": oip_rest, "OIP gRPC, UINT8": oip_rpc}


def measured(bare_run, doors, arguments):
    bare: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in doors}
    waits: dict[str, list[float]] = {name: [] for name in doors}
    for door in doors.values():
        door(0)

    def timed(door, number) -> float:
        started = time.perf_counter()
        door(number)
        return time.perf_counter() - started

    with ThreadPoolExecutor(arguments.at_once) as pool:
        for _ in range(arguments.rounds):
            bare.append(bare_run())
            for first in range(0, arguments.images, arguments.at_once):
                batch = range(first, min(first + arguments.at_once, arguments.images))
                for name, door in doors.items():
                    started = time.perf_counter()
                    waits[name] += pool.map(timed, [door] * len(batch), batch)
                    rates[name].append(len(batch) / (time.perf_counter() - started))
    # One rate a round, to stand beside the bare engine's.
    turns = len(next(iter(rates.values()))) // arguments.rounds
    rates = {
        name: [median(all_of_them[at : at + turns]) for at in range(0, len(all_of_them), turns)]
        for name, all_of_them in rates.items()
    }
    return bare, rates, waits


if __name__ == "__main__":
    main()
