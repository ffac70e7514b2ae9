"""Speaks to a service with Triton's own clients, in a process of its own: their messages and ours have the same names.

Called with an HTTP address, a gRPC address and a folder with `pixels.npy` and `picture.png`; leaves `answers.npz` and
`told.json` there.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

MODEL = "auto"
LED = {"told": "dncnn.known"}  # by sigma; what auto takes for an image is blind


def inputs_of(kind, *arrays, **how):
    made = []
    for name, datatype, array in arrays:
        made.append(kind.InferInput(name, array.shape, datatype))
        made[-1].set_data_from_numpy(array, **how)
    return made


def shapes(pixels, picture):
    floats = pixels.astype(np.float32) / 255
    return {
        "uint8": [("image", "UINT8", pixels[None])],
        "planes": [("image", "UINT8", np.ascontiguousarray(pixels.transpose(2, 0, 1)))],
        "grey": [("image", "UINT8", np.ascontiguousarray(pixels[:, :, 0]))],
        "fp32": [("image", "FP32", floats)],
        "fp16": [("image", "FP16", floats.astype(np.float16))],
        "told": [("image", "UINT8", pixels), ("sigma", "FP32", np.array([25], np.float32))],
        "two": [("image", "UINT8", np.stack([pixels, pixels[::-1]]))],
        "file": [("image", "BYTES", np.array([picture], object))],
    }


def told_by(client, module):
    """What the clients make of everything beside inference."""
    wrong = inputs_of(module, ("image", "UINT8", np.zeros((1, 8, 8, 3), np.uint8)))
    refusals = {}
    for name, ask in {
        "model": lambda: client.infer("magic", wrong),
        "parameter": lambda: client.infer(MODEL, wrong, parameters={"sgima": 25}),
        "metadata": lambda: client.get_model_metadata("magic"),
    }.items():
        try:
            ask()
        except InferenceServerException as error:
            refusals[name] = [error.status(), error.message()]
    plain = {"as_json": True} if module is over_grpc else {}
    index = client.get_model_repository_index(**plain)
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(MODEL),
        "server": client.get_server_metadata(**plain),
        "model": client.get_model_metadata(MODEL, **plain),
        "index": index["models"] if module is over_grpc else index,
        "refusals": refusals,
    }


async def by_aio(module, address, inputs):
    client = module.InferenceServerClient(address)
    try:
        answer = await client.infer(MODEL, inputs)
        return answer.as_numpy("restored")
    finally:
        await client.close()


def fields_of(message):
    return {
        field.name: [field.number, field.type, field.is_repeated, field.message_type.name if field.message_type else ""]
        for field in message.fields
    } | {nested.name: fields_of(nested) for nested in message.nested_types}


def main(http, grpc, folder):
    pixels, picture = np.load(folder / "pixels.npy"), (folder / "picture.png").read_bytes()
    answers, told = {}, {}
    with over_http.InferenceServerClient(http) as client:
        told["http"] = told_by(client, over_http)
        for name, arrays in shapes(pixels, picture).items():
            answer = client.infer(LED.get(name, MODEL), inputs_of(over_http, *arrays), request_id="seven")
            answers[f"http {name}"] = answer.as_numpy("restored")
        told["answer"] = answer.get_response()
        for name in ("uint8", "fp32", "told"):
            (made, *more) = inputs_of(over_http, *shapes(pixels, picture)[name], binary_data=False)
            wanted = [over_http.InferRequestedOutput("restored", binary_data=False)]
            answer = client.infer(LED.get(name, MODEL), [made, *more], outputs=wanted)
            answers[f"json {name}"] = answer.as_numpy("restored")
    with over_grpc.InferenceServerClient(grpc) as client:
        told["grpc"] = told_by(client, over_grpc)
        for name, arrays in shapes(pixels, picture).items():
            answer = client.infer(LED.get(name, MODEL), inputs_of(over_grpc, *arrays))
            answers[f"grpc {name}"] = answer.as_numpy("restored")
    (uint8,) = shapes(pixels, picture)["uint8"]
    answers["grpc aio"] = asyncio.run(by_aio(over_grpc_aio, grpc, inputs_of(over_grpc, uint8)))
    answers["http aio"] = asyncio.run(by_aio(over_http_aio, http, inputs_of(over_http, uint8)))
    told["messages"] = {m.name: fields_of(m) for m in service_pb2.DESCRIPTOR.message_types_by_name.values()}
    np.savez(folder / "answers.npz", **answers)
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
