"""Gets a TensorRT plan: out of the store, or built by a child process, once, whoever else wants it too."""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

from models.catalogue import DenoiserSpec, StageSpec
from trtbuild.engine import EngineFailed, OutOfDeviceMemory, Precision
from trtbuild.store import JSON, Key, Store, Tampered
from trtbuild.tensorrt_plan import BuildOptions, GpuFacts, plan_key, profiles_for, timing_key

log = logging.getLogger(__name__)

OnProgress = Callable[[float, str], None]  # told the share that is done, and what runs; what it raises ends the build
Check = Callable[[bytes], Mapping[str, JSON]]  # given a new plan; what it raises keeps the plan out of the store

_POLL_S = 0.2
_GRACE_S = 10.0  # for a build that is given up, to keep its timings
_TOLD_CHARACTERS = 2000  # of what a process said that crashed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan, which is code of this machine's own making."""

    key: Key
    content: bytes
    facts: Mapping[str, JSON]  # what the build, and whoever checked it, had to say
    was_stored: bool  # rather than built


def build_plan(
    graph: bytes,
    spec: DenoiserSpec,
    stage: StageSpec,
    *,
    precision: Precision,
    options: BuildOptions,
    store: Store,
    gpu: GpuFacts,
    tensorrt: str,
    on_progress: OnProgress | None = None,
    check: Check | None = None,
) -> Plan:
    """The plan for this graph on this GPU, from the store if it has it.

    Builds of one machine go one after the other: they time kernels, and two would time each other.

    Args:
        graph: ONNX as `export_stage` gives it, in the precision that is asked for.
        spec: whose stage it is.
        stage: says how many planes go in.
        precision: what the graph computes in; for the key and for people.
        options: of the builder, and the shapes to build for.
        store: keeps the plan, and the timings of kernels.
        gpu: that it is built on, the first that is visible.
        tensorrt: the version that `import tensorrt` gives here.
        on_progress: called several times a second, waiting and building.
        check: of a new plan, before it is stored; what it returns goes into the facts.

    Raises:
        EngineFailed: TensorRT refuses, or its process died; the message holds its own words.
        OutOfDeviceMemory: the GPU has too little free memory to build.
        what `on_progress` and `check` raise.
    """
    profiles = profiles_for(spec, options.tile_px, options.batch)
    key = plan_key(graph, stage, precision=precision, profiles=profiles, options=options, gpu=gpu, tensorrt=tensorrt)
    timings = timing_key(gpu, tensorrt)
    tell = on_progress or _tell_nobody
    if stored := _stored(store, key):
        return stored
    with store.lock(key, while_waiting=lambda: tell(0.0, "another process builds it")):
        if stored := _stored(store, key):
            return stored
        with store.lock(timings, while_waiting=lambda: tell(0.0, "another build has the GPU")):
            started = time.monotonic()
            request: dict[str, JSON] = {
                "profiles": [profile.shapes_of(stage) for profile in profiles],
                "workspace_bytes": options.workspace_bytes,
                "optimization_level": options.optimization_level,
            }
            content = _built(graph, request, f"{stage.name} in {precision}", store, timings, tell)
            seconds = round(time.monotonic() - started, 1)
        facts: dict[str, JSON] = {"build_s": seconds, "profiles": [str(profile) for profile in profiles]}
        if check:
            facts |= check(content)
        store.write(key, content, facts)
    log.info("%s: built in %.1f s, %d bytes", key.name, seconds, len(content))
    return Plan(key=key, content=content, facts=facts, was_stored=False)


def _tell_nobody(share: float, phase: str) -> None:
    pass


def _stored(store: Store, key: Key) -> Plan | None:
    try:
        found = store.read(key)
    except Tampered as err:
        log.error("%s; it is built anew", err)
        return None
    return Plan(key=key, content=found[0], facts=found[1], was_stored=True) if found else None


def _built(graph: bytes, request: dict[str, JSON], what: str, store: Store, timings: Key, tell: OnProgress) -> bytes:
    with tempfile.TemporaryDirectory(prefix="quietframe-build-") as name:  # for nobody else to read
        folder = Path(name)
        (folder / "graph.onnx").write_bytes(graph)
        known = _known_timings(store, timings)
        (folder / "timings").write_bytes(known)
        request |= {
            "graph": str(folder / "graph.onnx"),
            "plan": str(folder / "plan"),
            "timings_in": str(folder / "timings"),
            "timings_out": str(folder / "new-timings"),
        }
        try:
            with _Child(folder / "stderr", what) as child:
                child.ask(request)
                child.follow(tell)
            return (folder / "plan").read_bytes()
        finally:
            with suppress(FileNotFoundError):
                new = (folder / "new-timings").read_bytes()
                if new and new != known:
                    store.write(timings, new)


def _known_timings(store: Store, timings: Key) -> bytes:
    try:
        found = store.read(timings)
    except Tampered as err:
        log.error("%s; kernels are timed anew", err)
        return b""
    return found[0] if found else b""


class _Child:
    """The process that builds. Leaving it ends it, one way or the other."""

    def __init__(self, stderr: Path, what: str) -> None:
        self._stderr, self._what = stderr, what
        # It finds what we would: the modules of this process, and none that happen to lie where it was started.
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        with stderr.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trtbuild.tensorrt_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, "PYTHONPATH": path},
                encoding="utf-8",
            )
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        assert self._process.stdout is not None
        Thread(target=_pass_on, args=(self._process.stdout, self._answers), daemon=True).start()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None and self._process.poll() is None:
            self._say("stop")
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def ask(self, request: Mapping[str, JSON]) -> None:
        self._say(json.dumps(request))

    def _say(self, line: str) -> None:
        with suppress(OSError):  # it has ended, which is found out elsewhere
            assert self._process.stdin is not None
            print(line, file=self._process.stdin, flush=True)

    def follow(self, tell: OnProgress) -> None:
        """Come back when the plan is built."""
        share, phase = 0.0, "starting"
        while True:
            tell(share, phase)
            try:
                answer = self._answers.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if answer is None:
                raise self._died()
            if "failed" in answer:
                kind = OutOfDeviceMemory if answer["no_memory"] else EngineFailed
                raise kind(f"{self._what}: {answer['failed']}")
            if "built" in answer:
                return
            share, phase = float(answer["share"]), str(answer["phase"])

    def _died(self) -> EngineFailed:
        status = self._process.wait()
        how = f"ended with status {status}"
        if status < 0:
            how = f"died of {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                how += ", perhaps for want of memory"
        said = self._stderr.read_text(errors="replace").strip()[-_TOLD_CHARACTERS:]
        return EngineFailed(f"{self._what}: the process that built it {how}; it said: {said or 'nothing'}")


def _pass_on(lines: IO[str], answers: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    with lines:
        for line in lines:
            with suppress(ValueError):  # a library may greet when it is loaded
                answers.put(json.loads(line))
    answers.put(None)
