"""What is a TensorRT plan built for? The shapes that it takes, the builder's options, and the key of all it depends on.

Needs no TensorRT, so that whoever sets options can do without.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from models.catalogue import DenoiserSpec, StageSpec
from trtbuild.engine import BackendUnavailable, Precision
from trtbuild.store import Key

SCHEMA = 1  # of how we build: raised when the same graph is to be built in another way
SMALLEST_PX = 16  # of a side: networks are not built for less, for their padding may be wider than the picture
# TF32 is for whoever did not say what he wants. A layer that is float32 in our graphs has a reason to be.
FLAGS = ("strongly typed", "no TF32")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """All of a GPU and its software that a plan depends on."""

    name: str
    compute_capability: str  # as "9.0"
    cuda: str  # the runtime's version
    driver: str  # its major version


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What the settings say about plans."""

    tile_px: int = 512  # longest side of a tile
    batch: int = 4  # windows at a time
    workspace_bytes: int = 2 * _GIB  # of GPU memory that a kernel may want
    optimization_level: int = 3  # 0 to 5: time to build against time to run
    contexts: int = 1  # threads that run one plan at once, each with its own stream


class Span(NamedTuple):
    """What one axis may be, and what kernels are chosen for."""

    smallest: int
    best: int
    largest: int

    def holds(self, size: int) -> bool:
        return self.smallest <= size <= self.largest

    def __str__(self) -> str:
        return f"{self.smallest} to {self.largest}" if self.smallest != self.largest else str(self.largest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The shapes that one optimization profile serves."""

    batch: Span
    height: Span
    width: Span

    @property
    def is_fixed(self) -> bool:
        """Height and width are one size, so that a CUDA graph pays."""
        return self.height.smallest == self.height.largest and self.width.smallest == self.width.largest

    def holds(self, batch: int, height: int, width: int) -> bool:
        return self.batch.holds(batch) and self.height.holds(height) and self.width.holds(width)

    def shapes_of(self, stage: StageSpec) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Smallest, best and largest shape of each input that a stage may have."""
        planes = stage.frames * stage.planes_in
        corners = list(zip(self.batch, self.height, self.width, strict=True))
        return {
            "noisy": tuple((batch, planes, height, width) for batch, height, width in corners),
            "sigma": tuple((batch,) for batch, _height, _width in corners),
        }

    def __str__(self) -> str:
        return f"{self.batch} windows of {self.height} x {self.width}"


def profiles_for(spec: DenoiserSpec, tile_px: int, batch: int) -> list[Profile]:
    """The full tile, whose size is fixed, and whatever is smaller: the pictures that fit into one tile.

    Args:
        spec: says what sides are multiples of.
        tile_px: longest side of a tile.
        batch: most windows at a time.

    Raises:
        BackendUnavailable: a tile is smaller than the smallest that networks are built for.
    """
    tile = tile_px // spec.multiple * spec.multiple
    smallest = -(-SMALLEST_PX // spec.multiple) * spec.multiple
    if tile < smallest or batch < 1:
        raise BackendUnavailable(
            f"tensorrt: {spec.name} in tiles of {tile_px} pixels in batches of {batch};"
            f" at least {smallest} and 1 are needed"
        )
    windows, whole = Span(1, batch, batch), Span(tile, tile, tile)
    profiles = [Profile(batch=windows, height=whole, width=whole)]
    if smallest < tile:
        # The largest are the most work, so kernels are chosen for them.
        smaller = Span(smallest, tile, tile)
        profiles.append(Profile(batch=windows, height=smaller, width=smaller))
    return profiles


def plan_key(
    graph: bytes,
    stage: StageSpec,
    *,
    precision: Precision,
    profiles: Sequence[Profile],
    options: BuildOptions,
    gpu: GpuFacts,
    tensorrt: str,
) -> Key:
    """All that a plan depends on: if any of it changes, it is another plan."""
    return Key(
        {
            "kind": "plan",
            "stage": stage.name,
            "backend": "tensorrt",
            "precision": precision,
            "device": gpu.name,
            "compute_capability": gpu.compute_capability,
            "cuda": gpu.cuda,
            "driver": gpu.driver,
            "tensorrt": tensorrt,
            "graph_sha256": hashlib.sha256(graph).hexdigest(),
            "profiles": [asdict(profile) for profile in profiles],
            "flags": FLAGS,
            "hardware_compatibility": "none",
            "workspace_bytes": options.workspace_bytes,
            "optimization_level": options.optimization_level,
            "schema": SCHEMA,
        }
    )


def timing_key(gpu: GpuFacts, tensorrt: str) -> Key:
    """Of the timings of kernels that builds on one kind of GPU share."""
    return Key({"kind": "timing cache", "backend": "tensorrt", "device": gpu.name, "tensorrt": tensorrt})
