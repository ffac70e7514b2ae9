"""Do KServe's own clients get through both doors of the Open Inference Protocol what REST gives?

Not part of `make test`: the package `kserve` wants a protobuf older than the one that our generated code needs, and so
an environment of its own. `make kserve-check` makes it and runs this.
"""

import json
import subprocess
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from test_oip import by_rest, grpc_address

from service.demo import png_bytes, read_photo, running_service, with_noise

pytestmark = pytest.mark.kserve

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv" / "kserve" / "bin" / "python"
LED = "dncnn.known"  # by sigma, as in kserve_client.py
DOORS = pytest.mark.parametrize("door", ["http", "grpc"])


@pytest.fixture(scope="module")
def pixels():
    return np.ascontiguousarray(with_noise(read_photo(), 3)[200:264, 200:280])


@pytest.fixture(scope="module")
def service():
    with running_service() as base_url, httpx.Client(base_url=base_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(service, pixels, tmp_path_factory):
    """What KServe's clients got, and what they were told."""
    assert PYTHON.exists(), f"{PYTHON} is not there; `make kserve-check` makes it"
    folder = tmp_path_factory.mktemp("kserve")
    np.save(folder / "pixels.npy", pixels)
    (folder / "picture.png").write_bytes(png_bytes(pixels))
    command = [PYTHON, HERE / "kserve_client.py", str(service.base_url), grpc_address(service), folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    with np.load(folder / "answers.npz") as answers:
        return dict(answers), json.loads((folder / "told.json").read_text())


@DOORS
def test_kserve_s_clients_get_the_pixels_that_rest_gives(service, theirs, pixels, door):
    answers, _ = theirs
    restored = by_rest(service, pixels)
    assert (restored != pixels).any()
    for name in ("uint8", "uint8 plain"):
        np.testing.assert_array_equal(answers[f"{door} {name}"], restored[None])
    for name in ("version", "named"):
        np.testing.assert_array_equal(answers[f"{door} {name}"], restored)
    np.testing.assert_array_equal(answers[f"{door} planes"], restored.transpose(2, 0, 1))
    np.testing.assert_array_equal(answers[f"{door} two"], [restored, by_rest(service, pixels[::-1])])


@DOORS
def test_floats_are_what_rest_gives_of_a_16_bit_file(service, theirs, pixels, door):
    answers, _ = theirs
    restored = by_rest(service, pixels.astype(np.uint16) * 257).astype(np.float32) / np.float32(65535)
    for name in ("fp32", "fp32 plain"):
        np.testing.assert_array_equal(answers[f"{door} {name}"], restored)
    assert answers[f"{door} fp16"].dtype == np.float16
    # Eleven bits in and eleven bits out, of values up to one: half a unit in the last place each.
    np.testing.assert_allclose(answers[f"{door} fp16"], restored, atol=4e-3)


@DOORS
def test_sigma_leads_the_denoiser_as_a_parameter_as_text_and_as_a_second_input(service, theirs, pixels, door):
    answers, _ = theirs
    by_sigma = {sigma: by_rest(service, pixels, model=LED, sigma=sigma) for sigma in (25, 12.5)}
    assert (by_sigma[25] != by_sigma[12.5]).any()
    for name in ("parameter", "input", "input plain"):
        np.testing.assert_array_equal(answers[f"{door} {name}"], by_sigma[25])
    np.testing.assert_array_equal(answers[f"{door} text"], by_sigma[12.5])


def test_a_fraction_goes_as_a_number_over_rest(service, theirs, pixels):
    np.testing.assert_array_equal(theirs[0]["http fraction"], by_rest(service, pixels, model=LED, sigma=12.5))


def test_tensors_come_back_behind_the_json_where_that_is_asked_for_and_in_it_elsewhere(service, theirs, pixels):
    answers, told = theirs
    behind = {name for name, kind in told["http"]["came_as"].items() if kind == "application/octet-stream"}
    assert behind == {"all binary", "one binary", "fp16"}  # which has no form in JSON
    for name in ("all binary", "one binary"):
        np.testing.assert_array_equal(answers[f"http {name}"], by_rest(service, pixels))


@DOORS
def test_a_file_goes_in_as_bytes_and_comes_back_as_one(service, theirs, pixels, door):
    made = cv2.imdecode(theirs[0][f"{door} file"], cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(made, by_rest(service, pixels))


@DOORS
def test_kserve_s_clients_understand_what_is_told_beside_inference(theirs, door):
    told = theirs[1][door]
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert told["answer"] == ["seven", "auto", "restored", "fitvnet-spatial.camera"]
    assert told["server"]["name"] == "quietframe"
    assert "binary_tensor_data" in told["server"]["extensions"]
    assert (told["model"]["name"], told["model"]["versions"]) == ("auto", ["1"])
    assert [one["name"] for one in told["model"]["inputs"]] == ["image", "sigma"]
    assert [one["name"] for one in told["model"]["outputs"]] == ["restored"]


def test_kserve_s_clients_are_told_what_is_wrong(theirs):
    http, grpc = theirs[1]["http"], theirs[1]["grpc"]
    assert not http["other_ready"]
    statuses = {name: status for name, (status, _) in http["refusals"].items()}
    codes = {name: code for name, (code, _) in grpc["refusals"].items()}
    assert statuses == {"model": 404, "parameter": 422}
    assert codes == {"model": "NOT_FOUND", "parameter": "INVALID_ARGUMENT", "ready": "NOT_FOUND"}
    for door in (http, grpc):
        assert door["refusals"]["model"][1].startswith("model is 'magic'")
        assert door["refusals"]["parameter"][1].startswith("parameter 'sgima' is not known")
