"""Files and folders are denoised in place of nothing: what was there before is still there after."""

import json
import math

import cv2
import numpy as np
import pytest

from service.demo import png_bytes, read_photo
from service.errors import BadInput
from service.files import FileDone, denoise_files
from service.job import Metrics
from service.settings import Settings


class NoBar:
    def start(self, name): ...
    def move(self, done, total): ...
    def finish(self): ...


def run(source, target, **said):
    options = {"model": "dncnn", "sigma": None, "strength": 1.0, "reference": None, "quality": None}
    options |= {"codec": None, "crf": None} | said
    return list(denoise_files(source, target, settings=Settings(), bar=NoBar(), **options))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "noisy.png"
    path.write_bytes(png_bytes(read_photo()[:48, :48]))
    return path


def test_a_result_never_replaces_its_input(picture):
    before = picture.read_bytes()
    for target in (picture, picture.parent):
        with pytest.raises(BadInput, match="is the input itself"):
            run(picture, target)
    assert picture.read_bytes() == before


def test_the_suffix_is_the_format(picture):
    (done,) = run(picture, picture.with_name("clean.jpg"))
    assert done.error is None
    assert picture.with_name("clean.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    with pytest.raises(BadInput, match=r"the result's suffix is '\.gif'"):
        run(picture, picture.with_name("clean.gif"))


def test_what_is_for_videos_is_refused_of_an_image(picture):
    with pytest.raises(BadInput, match="scan is 'interlaced'; it is for videos"):
        run(picture, picture.with_name("clean.png"), scan="interlaced")
    assert not picture.with_name("clean.png").exists()


def test_a_folder_goes_on_past_what_cannot_be_read_and_leaves_its_own_results_alone(picture):
    (picture.parent / "notes.txt").write_text("no picture")
    target = picture.parent / "out"
    for _ in range(2):  # the second time its results are there, and are no input
        done = run(picture.parent, target)
        assert [(one.source.rpartition("/")[2], one.error is None) for one in done] == [
            ("noisy.png", True),
            ("notes.txt", False),
        ]
    assert [path.name for path in target.iterdir()] == ["noisy.png"]
    assert np.asarray(cv2.imread(str(target / "noisy.png"))).shape == (48, 48, 3)


def test_a_container_that_is_not_written_gets_the_name_of_the_one_that_is(tmp_path):
    frame = np.full((32, 32, 3), 90, np.uint8)
    writer = cv2.VideoWriter(str(tmp_path / "old.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 32))
    for _ in range(3):
        writer.write(frame)
    writer.release()
    (done,) = run(tmp_path / "old.avi", tmp_path / "new.avi")
    assert done.target == str(tmp_path / "new.mp4")
    assert (tmp_path / "new.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_missing_reference_is_said(picture):
    with pytest.raises(BadInput, match="does not exist"):
        run(picture, picture.with_name("clean.png"), reference=picture.with_name("nothing.png"))


def test_what_is_told_is_json_even_of_equal_pictures():
    done = FileDone("a", "b", "dncnn", "openvino", Metrics(psnr_db=math.inf, ssim=1.0))
    assert json.loads(json.dumps(done.as_dict(), allow_nan=False))["metrics"]["psnr_db"] is None
