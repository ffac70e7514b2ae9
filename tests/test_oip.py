"""Does the Open Inference Protocol hold for clients that we did not write, and give what REST gives?"""

import base64
import json
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import grpc
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.demo import png_bytes, read_photo, running_service, with_noise
from service.media.image import read_image, write_image
from service.oip import tiff
from service.rpc.generated import grpc_predict_v2_pb2 as pb
from service.rpc.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from service.settings import Settings

HERE = Path(__file__).parent
LENGTH = "Inference-Header-Content-Length"
MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def pixels():
    return np.ascontiguousarray(with_noise(read_photo(), 3)[200:264, 200:280])


@pytest.fixture(scope="module")
def service():
    with (
        running_service(max_message_bytes=MAX_BYTES) as base_url,
        httpx.Client(base_url=base_url, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def stub(service):
    with grpc.insecure_channel(grpc_address(service)) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def stock(service, pixels, tmp_path_factory):
    """What Triton's clients got."""
    folder = tmp_path_factory.mktemp("stock")
    np.save(folder / "pixels.npy", pixels)
    (folder / "picture.png").write_bytes(png_bytes(pixels))
    command = [sys.executable, HERE / "stock_clients.py", service.base_url.netloc.decode(), grpc_address(service)]
    ran = subprocess.run([*command, folder], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    with np.load(folder / "answers.npz", allow_pickle=True) as answers:
        return dict(answers), json.loads((folder / "told.json").read_text())


def grpc_address(service):
    return f"127.0.0.1:{service.get('/').json()['grpc_port']}"


def by_rest(service, pixels, **fields):
    """What POST /denoise/image makes of the same pixels."""
    done, png = cv2.imencode(".png", pixels[:, :, ::-1] if pixels.ndim == 3 else pixels)
    assert done
    answer = service.post("/denoise/image", files={"file": ("in.png", png.tobytes())}, data=fields)
    assert answer.status_code == 200, answer.text
    made = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    return made[:, :, ::-1] if made.ndim == 3 else made


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_stock_clients_get_the_pixels_that_rest_gives(service, stock, pixels, door):
    answers, _ = stock
    restored = by_rest(service, pixels)
    assert (restored != pixels).any()
    np.testing.assert_array_equal(answers[f"{door} uint8"], restored[None])
    np.testing.assert_array_equal(answers[f"{door} aio"], restored[None])
    np.testing.assert_array_equal(answers[f"{door} planes"], restored.transpose(2, 0, 1))
    np.testing.assert_array_equal(answers[f"{door} grey"], by_rest(service, pixels[:, :, 0]))
    by_sigma = [by_rest(service, pixels, sigma=sigma, model="dncnn.known") for sigma in (25, 50)]
    assert (by_sigma[0] != by_sigma[1]).any()
    np.testing.assert_array_equal(answers[f"{door} told"], by_sigma[0])
    np.testing.assert_array_equal(answers[f"{door} two"], [restored, by_rest(service, pixels[::-1])])


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_floats_are_what_rest_gives_of_a_16_bit_file(service, stock, pixels, door):
    answers, _ = stock
    restored = by_rest(service, pixels.astype(np.uint16) * 257).astype(np.float32) / np.float32(65535)
    np.testing.assert_array_equal(answers[f"{door} fp32"], restored)
    assert answers[f"{door} fp16"].dtype == np.float16
    # Eleven bits in and eleven bits out, of values up to one: half a unit in the last place each.
    np.testing.assert_allclose(answers[f"{door} fp16"], restored, atol=4e-3)


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_a_file_goes_in_as_bytes_and_comes_back_as_one(service, stock, pixels, door):
    (file,) = stock[0][f"{door} file"]
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(file, np.uint8), 1)[:, :, ::-1], by_rest(service, pixels))


def test_json_tensors_are_the_same_as_binary_ones(stock):
    answers, _ = stock
    for name in ("uint8", "fp32", "told"):
        np.testing.assert_array_equal(answers[f"json {name}"], answers[f"http {name}"])


def test_stock_clients_understand_what_is_told_beside_inference(stock):
    _, told = stock
    for door in (told["http"], told["grpc"]):
        assert (door["live"], door["ready"], door["model_ready"]) == (True, True, True)
        assert door["server"]["name"] == "quietframe"
        assert "binary_tensor_data" in door["server"]["extensions"]
        assert door["model"]["versions"] == ["1"]
        assert [one["name"] for one in door["model"]["inputs"]] == ["image", "sigma"]
        assert {"name": "fitvnet-spatial.camera", "version": "1", "state": "READY"}.items() <= next(
            one for one in door["index"] if one["name"] == "fitvnet-spatial.camera"
        ).items()
        assert not any(one["name"] == "fitvnet" for one in door["index"])  # it needs neighbouring frames
        assert set(door["refusals"]) == {"model", "parameter", "metadata"}
        assert "model is 'magic'" in door["refusals"]["model"][1]
        assert "'sgima'" in door["refusals"]["parameter"][1]
    assert told["http"]["refusals"]["model"][0] == "404"
    assert told["grpc"]["refusals"]["model"][0] == "StatusCode.NOT_FOUND"
    assert told["answer"]["id"] == "seven"
    assert len(told["answer"]["parameters"]["jobs"]) == 32


def test_our_messages_have_the_names_and_numbers_of_the_protocol(stock):
    theirs = stock[1]["messages"]
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        ours = json.loads(json.dumps(fields_of(message)))
        assert ours == theirs[message.name], message.name


def fields_of(message):
    return {
        field.name: [field.number, field.type, field.is_repeated, field.message_type.name if field.message_type else ""]
        for field in message.fields
    } | {nested.name: fields_of(nested) for nested in message.nested_types}


def test_typed_contents_are_taken_beside_raw_ones(service, stub, pixels):
    contents = pb.InferTensorContents(uint_contents=pixels.reshape(-1).tolist())
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=pixels.shape, contents=contents
    )
    answer = stub.ModelInfer(pb.ModelInferRequest(model_name="auto", inputs=[tensor], id="x"))
    made = np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(tuple(answer.outputs[0].shape))
    np.testing.assert_array_equal(made, by_rest(service, pixels))
    assert (answer.id, answer.model_version) == ("x", "1")
    assert answer.parameters["model"].string_param == "fitvnet-spatial.camera"


def test_a_file_may_be_the_whole_body(service, pixels):
    answer = service.post("/v2/models/auto/infer", content=png_bytes(pixels), headers={LENGTH: "0"})
    head = json.loads(answer.content[: int(answer.headers[LENGTH])])
    file = answer.content[int(answer.headers[LENGTH]) + 4 :]
    assert head["outputs"][0]["datatype"] == "BYTES"
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(file, np.uint8), 1)[:, :, ::-1], by_rest(service, pixels))


def test_kserve_s_wire_format_with_a_file_in_base64(service, pixels):
    """As KServe's client writes it: everything in JSON, the model's version in the path."""
    body = {
        "id": "42",
        "inputs": [
            {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(png_bytes(pixels)).decode()]}
        ],
        "parameters": {"format": "jpeg", "quality": 90, "sigma": 20.0, "strength": 0.5},
    }
    answer = service.post("/v2/models/dncnn/versions/1/infer", json=body).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("42", "dncnn", "1")
    assert base64.b64decode(answer["outputs"][0]["data"][0]).startswith(b"\xff\xd8")
    (job,) = service.get("/jobs", params={"limit": 1}).json()["jobs"]
    assert (job["options"]["sigma"], job["options"]["strength"], job["model"]) == (20, 0.5, "dncnn")


def test_a_fraction_may_be_told_as_text(service, stub, pixels):
    """KServe's gRPC client has no other way: its messages know parameters that are true, whole, or text."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
    asked = pb.ModelInferRequest(model_name="dncnn.known", inputs=[tensor], raw_input_contents=[pixels.tobytes()])
    asked.parameters["sigma"].string_param = "12.5"
    asked.parameters["strength"].string_param = "0.5"
    answer = stub.ModelInfer(asked)
    options = service.get(f"/jobs/{answer.parameters['jobs'].string_param}").json()["options"]
    assert (options["sigma"], options["strength"]) == (12.5, 0.5)
    made = np.frombuffer(answer.raw_output_contents[0], np.uint8).reshape(pixels.shape)
    np.testing.assert_array_equal(made, by_rest(service, pixels, model="dncnn.known", sigma=12.5, strength=0.5))


def image(**changes):
    return {"name": "image", "datatype": "UINT8", "shape": [2, 2], "data": [1, 2, 3, 4]} | changes


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "Invalid JSON"),
        ({}, 400, "inputs: Field required"),
        ({"inputs": []}, 422, "there must be image"),
        ({"inputs": [image(), image()]}, 422, "there must be image"),
        ({"inputs": [image(name="picture")]}, 422, "the inputs are picture"),
        ({"inputs": [image(datatype="INT64")]}, 422, "image is INT64"),
        ({"inputs": [image(shape=[-2, -2])]}, 400, "greater than or equal to 0"),
        ({"inputs": [image(shape=[4])]}, 422, "image has shape [4]"),
        ({"inputs": [image(shape=[2, 2, 7])]}, 422, "image has shape [2, 2, 7]"),
        ({"inputs": [image(shape=[0, 2, 3], data=[])]}, 422, "image has shape [0, 2, 3]"),
        ({"inputs": [image(shape=[1 << 40, 1 << 40])]}, 422, "image has 4 values"),
        ({"inputs": [image(shape=[2, 3])]}, 422, "image has 4 values; its shape takes 6"),
        ({"inputs": [image(data=[1, 2, 3, 256])]}, 422, "whole numbers from 0 to 255"),
        ({"inputs": [image(data=[1, 2, 3, 0.5])]}, 422, "whole numbers from 0 to 255"),
        ({"inputs": [image(data=["a", "b", "c", "d"])]}, 422, "not numbers"),
        ({"inputs": [image(data=[[1, 2], [3]])]}, 422, "not numbers"),
        ({"inputs": [image(data=None)]}, 422, "neither data nor binary_data_size"),
        ({"inputs": [image(datatype="FP16")]}, 422, "binary data only"),
        ({"inputs": [image(datatype="BYTES", shape=[1], data=["%%"])]}, 422, "base64"),
        ({"inputs": [image(shape=[17, 1, 1, 1], data=[0] * 17)]}, 422, "17 pictures"),
        ({"inputs": [image(data=None, parameters={"binary_data_size": 4})]}, 422, "take 4 bytes"),
        ({"inputs": [image()], "outputs": [{"name": "clean"}]}, 422, "the outputs asked for are clean"),
        ({"inputs": [image()], "parameters": {"sigma": "much"}}, 422, "sigma is 'much'"),
        ({"inputs": [image()], "parameters": {"sigma": "nan"}}, 422, "sigma is 'nan'"),
        ({"inputs": [image()], "parameters": {"sigma": 900}}, 422, "0 to 55"),
        ({"inputs": [image()], "parameters": {"sigma": "900.5"}}, 422, "0 to 55"),
        ({"inputs": [image()], "parameters": {"format": "png"}}, 422, "format is for files"),
        ({"inputs": [image()], "parameters": {"timeout": -1}}, 422, "timeout is '-1'"),
        (
            {"inputs": [image(), {"name": "sigma", "datatype": "FP32", "shape": [2], "data": [1, 2]}]},
            422,
            "sigma has 2 values for 1 pictures",
        ),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong_in_the_protocol_s_shape(service, body, status, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = service.post("/v2/models/auto/infer", content=content)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]
    assert answer.headers["Quietframe-Code"]


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=5))
NESTED = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
PARAMETERS = st.dictionaries(
    st.sampled_from(["sigma", "strength", "format", "quality", "timeout", "binary_data_size", "other"]), SCALARS
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "sigma", "other"]),
        "datatype": st.sampled_from(["UINT8", "FP16", "FP32", "FP64", "BYTES", "BOOL", ""]),
        "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 3, 1 << 70]), max_size=9),
    },
    optional={"data": NESTED, "parameters": PARAMETERS},
)


@hypothesis_settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(inputs=st.lists(TENSORS, max_size=3), parameters=PARAMETERS, behind=st.binary(max_size=8), told=st.booleans())
def test_whatever_is_sent_is_answered_or_refused(service, inputs, parameters, behind, told):
    head = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
    headers = {LENGTH: str(len(head))} if told else {}
    answer = service.post("/v2/models/dncnn/infer", content=head + behind, headers=headers)
    assert answer.status_code in (200, 400, 415, 422), answer.text
    assert answer.status_code == 200 or list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v2/models/fitvnet", 404, "needs neighbouring frames"),
        ("GET", "/v2/models/auto/versions/2", 404, "version 1 only"),
        ("GET", "/v2/models/magic/ready", 404, "magic"),
        ("GET", "/v2/nothing", 404, "nothing answers /v2/nothing"),
        ("DELETE", "/v2/models/auto", 405, "DELETE"),
    ],
)
def test_what_is_not_there_is_told_in_that_shape_too(service, method, path, status, words):
    answer = service.request(method, path)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (bytes(MAX_BYTES + 1), {}, 413, f"at most {MAX_BYTES}"),
        (b"{}", {LENGTH: "3"}, 400, "the body has 2 bytes"),
        (b"{}", {LENGTH: "many"}, 400, "number of bytes"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "gzip"),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(service, content, headers, status, words):
    answer = service.post("/v2/models/auto/infer", content=content, headers=headers)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]


def test_lengths_inside_a_binary_tensor_are_not_believed(service):
    raw = struct.pack("<I", 1 << 31) + b"abc"
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = service.post("/v2/models/auto/infer", content=head + raw, headers={LENGTH: str(len(head))})
    assert answer.status_code == 422
    assert "say otherwise" in answer.json()["error"]


def test_values_that_are_no_numbers_are_refused(stub):
    raw = np.full((8, 8), np.nan, np.float32).tobytes()
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="FP32", shape=[8, 8])
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(pb.ModelInferRequest(model_name="auto", inputs=[tensor], raw_input_contents=[raw]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no finite numbers" in refused.value.details()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (300, 211)])
def test_pixels_go_through_our_tiff_and_a_worker_s_unchanged(tmp_path, bits, channels, size):
    """What wraps them is read by the worker's decoder, and what its encoder writes is read here."""
    kind = np.uint8 if bits == 8 else np.uint16
    pixels = np.random.default_rng(1).integers(0, 1 << bits, (*size, channels), kind)
    path = tmp_path / "in.tiff"
    path.write_bytes(tiff.wrapped(pixels))
    picture = read_image(path, Settings())
    assert picture.is_grey == (channels == 1)
    np.testing.assert_array_equal(picture.pixels[:, :, :channels], pixels)
    np.testing.assert_array_equal(tiff.unwrapped(write_image(picture.pixels, picture, format="tiff").data), pixels)
    np.testing.assert_array_equal(tiff.unwrapped(path.read_bytes()), pixels)
