"""What does `quietframe build` tell and leave behind?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from models.samples import PORTRAIT
from service.building import Step, build_engines, kept, prune
from service.errors import BadInput
from service.pipeline.shelf import Shelf
from service.settings import Settings
from trtbuild.guard import FLOORS_DB
from trtbuild.quantise import FEWEST_PICTURES, TILE_PX
from trtbuild.store import Key, Store


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QUIETFRAME_DATA_DIR": str(tmp_path), "QUIETFRAME_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "service", "build", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def built(settings: Settings, *names: str, backend: str = "openvino", precision: str = "fp32") -> list[Step]:
    return list(
        build_engines(names, settings, backend=backend, precision=precision, on_step=lambda *_: None)  # type: ignore[arg-type]
    )


def test_a_first_call_checks_each_stage_and_a_second_finds_all_done(tmp_path):
    first, second = run(tmp_path, "fitvnet", "--json"), run(tmp_path, "fitvnet", "--json")
    steps, again = json.loads(first.stdout), json.loads(second.stdout)
    assert [step["stage"] for step in steps] == ["fitvnet-spatial", "fitvnet-first", "fitvnet-second"]
    assert {step["state"] for step in steps} == {"checked"}
    assert {step["state"] for step in again} == {"stored"}
    assert all(step["psnr_db"] > 50 for step in steps)


def test_what_is_there_is_listed_verified_and_pruned(tmp_path):
    settings = Settings(data_dir=tmp_path, threads=1)
    assert kept(settings) == []
    built(settings, "dncnn")
    (entry,) = kept(settings)
    assert entry.usable
    assert entry.psnr_db is not None
    assert entry.psnr_db > 60
    assert prune(settings) == []  # it is of this machine
    store = Store(settings.own_engines_dir)
    store.write(
        Key({"kind": "check", "stage": "dncnn", "backend": "openvino", "version": "2020.1", "device": "a 486"}), b""
    )
    assert [one.name for one in prune(settings)] == ["check dncnn openvino a 486"]
    assert len(kept(settings, verify=True)) == 1


def test_an_entry_that_was_tampered_with_is_told_of_and_made_anew(tmp_path):
    settings = Settings(data_dir=tmp_path, threads=1)
    built(settings, "dncnn")
    (path,) = settings.own_engines_dir.glob("*.entry")
    path.write_bytes(path.read_bytes().replace(b'"psnr_db":', b'"psnr_dB":'))
    ran = run(tmp_path, "--verify")
    assert ran.returncode == 1
    assert "secret" in ran.stdout
    (step,) = built(settings, "dncnn")
    assert step.state == "checked"
    assert run(tmp_path, "--verify").returncode == 0


def test_what_cannot_be_built_here_says_what_would_help_and_the_exit_code_tells(tmp_path):
    ran = run(tmp_path, "dncnn", "--backend", "openvino", "--precision", "fp16")
    assert ran.returncode == 1
    assert "fp16" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--backend", "magic"], "backend is 'magic'"),
        (["--precision", "fp4"], "precision is 'fp4'"),
        (["--list", "--prune"], "one at a time"),
        (["dncnn", "--verify"], "drop the models"),
        (["no-such-model"], "no-such-model"),
        (["dncnn", "--tile", "100"], "tile_px"),
    ],
)
def test_a_wrong_call_names_the_value(tmp_path, arguments, told):
    ran = run(tmp_path, *arguments)
    assert ran.returncode != 0
    assert told in " ".join(ran.stderr.replace("│", " ").split())
    assert "Traceback" not in ran.stderr


def test_int8_asks_for_pictures_and_reads_only_what_is_one(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    with pytest.raises(BadInput, match="--calibrate"):
        built(settings, "dncnn", precision="int8")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(BadInput, match="no picture"):
        list(build_engines(["dncnn"], settings, precision="int8", calibration=tmp_path, on_step=lambda *_: None))


def test_a_classical_denoiser_has_nothing_to_build(tmp_path):
    assert built(Settings(data_dir=tmp_path), "nlm") == []


def test_a_folder_that_others_can_write_to_is_refused(tmp_path):
    settings = Settings(data_dir=tmp_path)
    settings.own_engines_dir.mkdir()
    settings.own_engines_dir.chmod(0o777)
    ran = run(tmp_path, "dncnn")
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr
    assert str(settings.own_engines_dir) in ran.stderr


def test_a_model_quantised_on_pictures_of_ones_own_is_what_a_worker_then_runs(tmp_path):
    photo = Image.open(PORTRAIT)
    (tmp_path / "photos").mkdir()
    for number in range(FEWEST_PICTURES):
        place = 20 * number
        photo.crop((place, place, place + 2 * TILE_PX, place + 2 * TILE_PX)).save(tmp_path / "photos" / f"{number}.png")
    settings = Settings(data_dir=tmp_path / "data", threads=1, backend="openvino", precision="int8")
    assert Shelf(settings, makes_store=True).denoiser("rednet").precision != "int8"  # until it is built
    (step,) = build_engines(
        ["rednet"],
        settings,
        backend="openvino",
        precision="int8",
        calibration=tmp_path / "photos",
        on_step=lambda *_: None,
    )
    assert (step.state, step.error) == ("built", None)
    assert step.psnr_db is not None
    assert step.psnr_db > FLOORS_DB["int8"]
    assert Shelf(settings).denoiser("rednet").precision == "int8"
