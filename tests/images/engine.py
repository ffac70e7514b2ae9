"""Builds images and starts them with nothing but root, buildah and the kernel: no Docker engine, no registry."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from images.dockerfile import ROOT
from service.processes import dies_with_parent

BASE = "localhost/quietframe-base"
SUITE = "bookworm"
# What the Dockerfile asks of a base image, and certificates for whoever brings none of their own.
PACKAGES = "python3,python3-venv,ca-certificates"
_BUILD_S = 1800
_STOP_S = 60.0


class CannotBuild(Exception):
    """Something that this needs is not here."""


@dataclass(frozen=True, slots=True)
class Image:
    """One that was built."""

    name: str
    bytes: int  # of all its layers, unpacked
    config: dict[str, Any]


class Buildah:
    """Images and their layers in a folder of our own; what was built before is taken from there."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CannotBuild
        """
        if sys.platform != "linux" or os.geteuid() != 0:
            raise CannotBuild("images are built and started by root on Linux; nothing was checked")
        for program, package in (("buildah", "buildah"), ("unshare", "util-linux")):
            if shutil.which(program) is None:
                raise CannotBuild(f"{program} is not installed; on Debian: apt-get install {package}")
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Undo the mounts that buildah leaves behind, and those of whoever was killed here."""
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            place = line.split()[1]
            if Path(place).is_relative_to(self._folder.resolve()):
                subprocess.run(["umount", "--lazy", place], check=False)

    def ensure_base(self, mirror: str | None) -> str:
        """A Debian with Python, made from its packages.

        Raises:
            CannotBuild
        """
        if not self._run("images", "--quiet", "--filter", f"reference={BASE}"):
            if shutil.which("debootstrap") is None:
                raise CannotBuild(
                    "debootstrap is not installed (on Debian: apt-get install debootstrap), and no base was named: "
                    "--base IMAGE takes any image with Python 3.11"
                )
            with tempfile.TemporaryDirectory(dir=self._folder) as made:
                subprocess.run(
                    [
                        "debootstrap",
                        "--variant=minbase",
                        f"--include={PACKAGES}",
                        SUITE,
                        made,
                        *([mirror] if mirror else []),
                    ],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    timeout=_BUILD_S,
                )
                shutil.rmtree(Path(made, "var/cache/apt"))
                shutil.rmtree(Path(made, "var/lib/apt/lists"))
                packed = Path(made).with_suffix(".tar")
                try:
                    subprocess.run(["tar", "-C", made, "-cf", packed, "."], check=True, timeout=_BUILD_S)
                    container = self._run("from", "scratch")
                    self._run("add", container, str(packed), "/")
                    self._run("commit", "--rm", container, BASE)
                finally:
                    packed.unlink(missing_ok=True)
        return BASE

    def build(self, target: str, base: str) -> Image:
        """Build a target of the Dockerfile, with what pip is told on this machine."""
        name = f"localhost/quietframe-{target}"
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            told = Path(folder, "pip.conf")
            told.touch(mode=0o600)  # an index's password may be in it
            local = _write_pip_conf(told)
            self._run(
                "build",
                *("--isolation", "chroot", "--format", "docker", "--layers"),
                *("--target", target, "--tag", name, "--build-arg", f"PYTHON_IMAGE={base}"),
                *("--secret", f"id=pip,src={told}"),
                *(word for path in local for word in ("--volume", f"{path}:{path}:ro")),
                str(ROOT),
                shown=True,
            )
        facts = json.loads(self._run("inspect", "--type", "image", name))
        return Image(name, self.bytes_of(name), facts["Docker"]["config"])

    def bytes_of(self, name: str) -> int:
        """What its files hold, links counted once."""
        with self.mounted(name) as root:
            seen = set()
            total = 0
            for folder, _, files in os.walk(root):
                for file in files:
                    facts = os.lstat(os.path.join(folder, file))
                    if facts.st_ino not in seen:
                        seen.add(facts.st_ino)
                        total += facts.st_size
        return total

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """A container's root, made from an image; gone afterwards."""
        container = self._run("from", "--pull-never", image)
        try:
            yield Path(self._run("mount", container))
        finally:
            self._run("umount", container)
            self._run("rm", container)

    def _run(self, *words: str, shown: bool = False) -> str:
        places = ("--root", str(self._folder / "store"), "--runroot", str(self._folder / "run"))
        ran = subprocess.run(
            ["buildah", *places, *words],
            check=False,
            stdout=None if shown else subprocess.PIPE,
            stderr=None if shown else subprocess.PIPE,
            text=True,
            timeout=_BUILD_S,
        )
        if ran.returncode:
            raise CannotBuild(f"buildah {words[0]} failed: {(ran.stderr or 'see above').strip()[-2000:]}")
        return (ran.stdout or "").strip()


# A container as compose and Kubernetes run ours: its own processes, of which it is the first; a root that is read-only;
# an ordinary user who can gain nothing.
_ENTER = """
set -e
root=$1; user=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" --groups= "$root" /usr/bin/setpriv --no-new-privs -- "$@"
"""


class Container:
    """A started image."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def ended(self) -> int | None:
        return self._process.poll()

    @property
    def first_pid(self) -> int:
        """Of its first process, as seen from here."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def stop(self) -> int:
        """As an orchestrator does; the status that it ended with, 137 if it had to be killed."""
        if self._process.poll() is None:
            os.kill(self.first_pid, signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return 137

    def wait(self, within_s: float) -> int:
        return self._process.wait(within_s)

    def kill(self) -> None:
        self._process.kill()  # what it has started ends with it
        self._process.wait()


@contextmanager
def started(
    buildah: Buildah,
    image: Image,
    log: Path,
    *,
    environment: Mapping[str, str],
    volumes: Mapping[str, Path],
    command: Sequence[str] | None = None,
) -> Iterator[Container]:
    """Start it with its own environment, entry point and user; `command` takes the place of its own."""
    with ExitStack() as kept:
        root = kept.enter_context(buildah.mounted(image.name))
        # As every engine does it: a container can look up its own name.
        (root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n127.0.0.1 {socket.gethostname()}\n")
        inside = []
        for path, outside in volumes.items():
            outside.mkdir(exist_ok=True)
            os.chown(outside, *map(int, image.config["User"].split(":")))  # as an empty volume comes out of the image
            (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
            inside += [str(outside), path]
        own = dict(line.split("=", 1) for line in image.config["Env"])
        words = [*image.config["Entrypoint"], *(image.config["Cmd"] if command is None else command)]
        entering = ["sh", "-c", _ENTER, "sh", str(root), image.config["User"], *inside, "--"]
        asking = ["env", "-i", *(f"{name}={value}" for name, value in (own | dict(environment)).items())]
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", *entering, *asking, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=dies_with_parent(),
            )
        container = Container(process, log)
        kept.callback(container.kill)
        yield container


def _write_pip_conf(path: Path) -> list[str]:
    """What pip goes by here, as one file; and the places on this machine that it names."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    said: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):  # which goes before files
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in ("global", "install", ":env:") and option != "config-file":
            said[option.replace("_", "-")] = value.strip("'\"")
    path.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in said.items()))
    words = " ".join(said.get(name, "") for name in ("cert", "find-links", "index-url", "extra-index-url")).split()
    places = [unquote(urlsplit(word).path) if word.startswith("file:") else word for word in words]
    return sorted({str(_mount_of(Path(place))) for place in places if place.startswith("/") and Path(place).exists()})


def _mount_of(path: Path) -> Path:
    """A `simple` index names its files relative to itself, mostly beside it."""
    return path.parent if path.name == "simple" else path
