"""Every backend in every precision on every shipped network, on a CPU: speed, share of its limit, nearness to float32.

The limit is what torch's own matrix multiply reaches in the same type on as many threads, measured in the same rounds:
a network that does nothing but multiply, as well as that, has a share of 1. Rounds are interleaved, and medians over
them are printed. Decibels are of the tiles of the guard, against the reference. Quantised engines need pictures to
calibrate on, which are no part of this repository.

    python benchmarks/engines.py [STAGE...] [--calibrate FOLDER] [--side 256] [--threads 1] [--rounds 5] [--cpu-time]
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from support import median

from models.catalogue import CATALOGUE, DenoiserSpec, StageSpec
from trtbuild import openvino_engine
from trtbuild.engine import Array, Engine, Precision
from trtbuild.guard import Guard, Verdict
from trtbuild.open import open_engine
from trtbuild.quantise import calibration_tiles, quantise

LIMITS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
MATRIX = 2048
WARM_UPS = 2


@dataclass(slots=True)
class Run:
    """One engine, and how long it took."""

    spec: DenoiserSpec
    stage: StageSpec
    engine: Engine
    verdict: Verdict
    noisy: Array
    times_s: list[float]

    @property
    def multiply_adds(self) -> int:
        return self.stage.macs_per_pixel * self.noisy.shape[2] * self.noisy.shape[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help="by name; all that ship if none is given")
    parser.add_argument("--calibrate", type=Path, help="a folder of clean pictures, for int8")
    parser.add_argument("--side", type=int, default=256, help="of the square that is restored, in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count what the process used: for one thread on a machine that is busy"
    )
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter

    pictures = _pictures(arguments.calibrate) if arguments.calibrate else []
    guard = Guard("torch", threads=arguments.threads)
    runs = []
    for spec, stage in _stages(arguments.stages):
        for engine in _engines(spec, stage, arguments.threads, pictures):
            side = -(-arguments.side // spec.multiple) * spec.multiple
            noisy = np.random.default_rng(1).random((1, stage.frames * stage.planes_in, side, side), np.float32)
            runs.append(Run(spec, stage, engine, guard.verdict(engine, spec, stage), noisy, []))
            print(f"opened {runs[-1].verdict}", flush=True)

    limits: dict[Precision, list[float]] = {name: [] for name in LIMITS}
    multiply = {name: _multiply(kind) for name, kind in LIMITS.items()}
    told = np.full(1, 25 / 255, np.float32)
    for round_ in range(-WARM_UPS, arguments.rounds):
        for name, work in multiply.items():
            took = _timed(work, clock)
            if round_ >= 0:
                limits[name].append(took)
        for run in runs:
            took = _timed(lambda run=run: run.engine.denoise(run.noisy, told), clock)
            if round_ >= 0:
                run.times_s.append(took)

    reach = {name: MATRIX**3 / median(times) for name, times in limits.items()}
    print(
        f"\n{arguments.threads} threads, {arguments.side}x{arguments.side}, {arguments.rounds} rounds; torch multiplies"
    )
    print(", ".join(f"{name} at {rate / 1e9:.0f} GMAC/s" for name, rate in reach.items()))
    print("\n| stage | backend | precision | megapixels/s | GMAC/s | of the limit | of torch fp32 | dB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in runs:
        took = median(run.times_s)
        base = next(other for other in runs if other.stage == run.stage and other.engine.backend == "torch")
        rate = run.multiply_adds / took
        pixels = run.noisy.shape[2] * run.noisy.shape[3]
        cells = [
            run.stage.name,
            run.engine.backend,
            run.engine.precision,
            f"{pixels / took / 1e6:.2f}",
            f"{rate / 1e9:.0f}",
            f"{rate / reach[run.engine.precision]:.2f}",
            f"{median(base.times_s) / took:.1f}",
            f"{run.verdict.psnr_db:.1f}",
        ]
        print(f"| {' | '.join(cells)} |")


def _stages(asked: list[str]) -> Iterator[tuple[DenoiserSpec, StageSpec]]:
    seen = set()
    for spec in CATALOGUE.values():
        for stage in spec.stages if spec.weights else ():
            if stage.name not in seen and (not asked or stage.name in asked):
                seen.add(stage.name)
                yield spec, stage


def _engines(spec: DenoiserSpec, stage: StageSpec, threads: int, pictures: list[Array]) -> Iterator[Engine]:
    ways: list[tuple[str, Precision]] = [("torch", "fp32"), ("onnxruntime", "fp32"), ("openvino", "fp32")]
    if openvino_engine.has_bf16():
        ways.append(("openvino", "bf16"))
    for backend, precision in ways:
        yield open_engine(spec, stage, backend=backend, precision=precision, threads=threads)
    if pictures:
        before = spec.stages[: spec.stages.index(stage)]
        earlier = [open_engine(spec, one, backend="openvino", precision="fp32", threads=threads) for one in before]
        graph = (spec.home / f"{stage.name}.onnx").read_bytes()
        made = quantise(graph, calibration_tiles(spec, stage, pictures, earlier))
        yield openvino_engine.open_graph(made, spec, stage, precision="int8", threads=threads)


def _pictures(folder: Path) -> list[Array]:
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in {".png", ".jpg", ".jpeg"}]
    read = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in paths[:: max(1, len(paths) // 24)]]
    return [np.asarray(one, np.float32).transpose(2, 0, 1) / np.float32(255) for one in read if one is not None]


def _multiply(kind: torch.dtype) -> Callable[[], object]:
    if kind == torch.int8:
        first, second = (torch.randint(-128, 127, (MATRIX, MATRIX), dtype=torch.int8) for _ in range(2))
        return lambda: torch._int_mm(first, second)
    first, second = (torch.rand(MATRIX, MATRIX).to(kind) for _ in range(2))
    return lambda: first @ second


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


if __name__ == "__main__":
    main()
