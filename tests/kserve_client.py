"""Speaks to a service with KServe's own clients, in an environment of its own: their pins exclude ours.

Called with an HTTP address, a gRPC address and a folder with `pixels.npy` and `picture.png`; leaves `answers.npz` and
`told.json` there.
"""

import asyncio
import base64
import json
import sys
from importlib.metadata import version
from pathlib import Path

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from kserve.protocol.infer_type import RequestedOutput
from kserve.protocol.rest.v2_datamodels import ModelMetadataResponse, ModelReadyResponse, ServerMetadataResponse

MODEL = "auto"
LED = "dncnn.known"  # by sigma; what auto takes for an image is blind
LEVELS = np.array([25], np.float32)


def tensor(name, datatype, array, *, binary):
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def request(*tensors, binary=True, model=MODEL, **more):
    return InferRequest(model, [tensor(*one, binary=binary) for one in tensors], request_id="seven", **more)


def requests_of(pixels, picture):
    """By name; a request is changed when it is sent, so each goes once."""
    floats = pixels.astype(np.float32) / 255
    image, levels = ("image", "UINT8", pixels), ("sigma", "FP32", LEVELS)
    return {
        "uint8": request(("image", "UINT8", pixels[None])),
        "uint8 plain": request(("image", "UINT8", pixels[None]), binary=False),
        "fp32": request(("image", "FP32", floats)),
        "fp32 plain": request(("image", "FP32", floats), binary=False),
        "fp16": request(("image", "FP16", floats.astype(np.float16))),
        "planes": request(("image", "UINT8", np.ascontiguousarray(pixels.transpose(2, 0, 1)))),
        "two": request(("image", "UINT8", np.stack([pixels, pixels[::-1]]))),
        "parameter": request(image, parameters={"sigma": 25}, model=LED),
        "text": request(image, parameters={"sigma": "12.5"}, model=LED),
        "input": request(image, levels, model=LED),
        "input plain": request(image, levels, binary=False, model=LED),
        "version": request(image, model_version="1"),
        "named": request(image, request_outputs=[RequestedOutput("restored")]),
        "file": request(("image", "BYTES", np.array([picture], object))),
    }


async def refused(asking):
    try:
        await asking
    except grpc.aio.AioRpcError as error:
        return [error.code().name, error.details()]
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]
    raise AssertionError("it was not refused")


async def over_rest(base_url, pixels, picture):
    answers, told = {}, {}
    image = ("image", "UINT8", pixels)
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        asked = requests_of(pixels, picture)
        asked["fraction"] = request(image, parameters={"sigma": 12.5}, model=LED)
        asked["all binary"] = request(image, parameters={"binary_data_output": True})
        asked["one binary"] = request(image, request_outputs=[RequestedOutput("restored", {"binary_data": True})])
        told["came_as"] = {}
        for name, one in asked.items():
            headers = {}
            answer = await client.infer(base_url, one, model_name=one.model_name, response_headers=headers)
            answers[name] = answer.outputs[0].as_numpy()
            told["came_as"][name] = headers["content-type"]
        # What comes back of a file is base64 in JSON: their client reads no binary BYTES but text.
        answers["file"] = np.frombuffer(base64.b64decode(answers["file"].item()), np.uint8)
        told["answer"] = [answer.id, answer.model_name, answer.outputs[0].name, answer.parameters["model"]]
        told["live"] = await client.is_server_live(base_url)
        told["ready"] = await client.is_server_ready(base_url)
        told["model_ready"] = await client.is_model_ready(base_url, MODEL)
        told["other_ready"] = await client.is_model_ready(base_url, "magic")
        told["refusals"] = {
            "model": await refused(client.infer(base_url, request(image, model="magic"), model_name="magic")),
            "parameter": await refused(
                client.infer(base_url, request(image, parameters={"sgima": 25}), model_name=MODEL)
            ),
        }
    # Their REST client has no call for metadata; what their server answers with must hold ours too.
    async with httpx.AsyncClient(base_url=base_url) as client:
        told["server"] = ServerMetadataResponse(**(await client.get("/v2")).json()).model_dump()
        told["model"] = ModelMetadataResponse(**(await client.get(f"/v2/models/{MODEL}")).json()).model_dump()
        ModelReadyResponse(**(await client.get(f"/v2/models/{MODEL}/ready")).json())
    return answers, told


async def over_grpc(address, pixels, picture):
    answers, told = {}, {}
    image = ("image", "UINT8", pixels)
    async with InferenceGRPCClient(address) as client:
        for name, one in requests_of(pixels, picture).items():
            answer = await client.infer(one)
            answers[name] = answer.outputs[0].as_numpy()
        answers["file"] = np.frombuffer(answers["file"].item(), np.uint8)
        model = answer.parameters["model"].string_param
        told["answer"] = [answer.id, answer.model_name, answer.outputs[0].name, model]
        told["live"] = await client.is_server_live()
        told["ready"] = await client.is_server_ready()
        told["model_ready"] = await client.is_model_ready(MODEL)
        told["refusals"] = {
            "model": await refused(client.infer(request(image, model="magic"))),
            "parameter": await refused(client.infer(request(image, parameters={"sgima": 25}))),
            "ready": await refused(client.is_model_ready("magic")),
        }
    # Their client has no call for metadata; the stub that it is made of has.
    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        server = await stub.ServerMetadata(pb.ServerMetadataRequest())
        about = await stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL))
    told["server"] = {"name": server.name, "version": server.version, "extensions": list(server.extensions)}
    told["model"] = {
        "name": about.name,
        "versions": list(about.versions),
        "platform": about.platform,
        "inputs": [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in about.inputs],
        "outputs": [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in about.outputs],
    }
    return answers, told


def main(base_url, address, folder):
    pixels, picture = np.load(folder / "pixels.npy"), (folder / "picture.png").read_bytes()
    answers, told = {}, {"version": version("kserve")}
    rest, told["http"] = asyncio.run(over_rest(base_url, pixels, picture))
    rpc, told["grpc"] = asyncio.run(over_grpc(address, pixels, picture))
    answers = {f"http {name}": one for name, one in rest.items()} | {f"grpc {name}": one for name, one in rpc.items()}
    np.savez(folder / "answers.npz", **answers)
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
