"""Runs a denoiser that is a formula, not a network: the classical baselines, through libraries, on the CPU."""

import importlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from models.catalogue import DenoiserSpec, StageSpec
from trtbuild.engine import Array, BackendUnavailable, Precision

Method = Callable[[Array, float], Array]  # [3, H, W] noisy and its sigma, above 0, to [3, H, W]

# Of patches of 3 and 5 pixels, windows of 13 to 21 and strengths of 0.9 to 1.3 these are the best at every level from
# 10 to 50, within 0.01 dB; measured 2026-11-21 on eleven pictures of the training sets. OpenCV's own function for
# colour, with sigma as its strength, is 3.8 dB worse at level 25: it takes brightness and colour apart, and clips.
NLM_PATCH_PX = 3
NLM_WINDOW_PX = 13
NLM_STRENGTH = 1.1  # of sigma
NLM_MARGIN = 3.0  # sigmas of noise beyond black and white that are not clipped


class ClassicalEngine:
    """One picture after the other, each with its own noise level, which must be told."""

    backend = "classical"
    batch = 1
    contexts = 1

    def __init__(self, method: Method, precision: Precision) -> None:
        self._method = method
        self.precision = precision

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        restored = noisy.copy()
        for index, level in enumerate(sigma):
            if level > 0:
                restored[index] = self._method(noisy[index], float(level))
        return restored


def open_engine(
    spec: DenoiserSpec,  # noqa: ARG001 - the stage says all that is needed
    stage: StageSpec,
    *,
    precision: Precision | None,
    threads: int,
    graphs_dir: Path,  # noqa: ARG001 - there is no graph
    weights_dir: Path,  # noqa: ARG001 - there are no weights
) -> ClassicalEngine:
    """See `trtbuild.open.open_engine`."""
    opens, runs = _METHODS[stage.name]
    if precision not in (None, runs):
        raise BackendUnavailable(f"{stage.name} runs in {runs}; not in {precision}")
    if threads:
        cv2.setNumThreads(threads)  # of the whole process: there is no other way
    return ClassicalEngine(opens(), runs)


def _nlm() -> Method:
    return nlm


def nlm(noisy: Array, sigma: float) -> Array:
    """Non-local means, Buades, Coll, Morel 2005: a pixel is a mean of those around it that have like neighbourhoods.

    OpenCV computes it on 8-bit integers, all three colours together. The range that is cut into 256 steps goes beyond
    black and white by as much as the noise does, or clipping it would darken lights and lift shadows.
    """
    margin = NLM_MARGIN * sigma
    steps = 255 / (1 + 2 * margin)
    stored = np.clip(np.rint((noisy.transpose(1, 2, 0) + margin) * steps), 0, 255).astype(np.uint8)
    strength = NLM_STRENGTH * sigma * steps
    averaged = cv2.fastNlMeansDenoising(stored, None, strength, NLM_PATCH_PX, NLM_WINDOW_PX)
    restored: Array = np.asarray(averaged, np.float32).transpose(2, 0, 1) / np.float32(steps) - np.float32(margin)
    return restored


def _bm3d() -> Method:
    """CBM3D, Dabov et al. 2007, by its authors' own package, with its default profile.

    Its licence forbids commercial use: it is here to be measured against, and is not served.
    """
    try:
        bm3d_rgb = importlib.import_module("bm3d").bm3d_rgb
    except ModuleNotFoundError as err:
        raise BackendUnavailable(
            f"{err.name} is not installed; it comes with: pip install 'quietframe[bench]' (no commercial use)"
        ) from err

    def bm3d(noisy: Array, sigma: float) -> Array:
        restored: Array = bm3d_rgb(noisy.transpose(1, 2, 0).astype(np.float64), sigma).astype(np.float32)
        return restored.transpose(2, 0, 1)

    return bm3d


_METHODS: dict[str, tuple[Callable[[], Method], Precision]] = {"nlm": (_nlm, "uint8"), "bm3d": (_bm3d, "fp32")}
