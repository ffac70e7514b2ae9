"""A denoiser that is loaded and takes pictures of any size: pads, cuts into tiles, runs its stages, joins."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from models.catalogue import DenoiserSpec, StageSpec
from models.noise_level import estimate_sigma
from service.pipeline.cascade import Result, align, restore_stream
from service.pipeline.relief import Relief
from service.pipeline.tiles import Tile, plan_tiles, read_padded
from service.pipeline.turns import Turns, Urgency
from service.telemetry import tracing
from trtbuild.engine import Array, Engine, OutOfDeviceMemory, PixelEngine
from trtbuild.engine import Pixels as WholePixels

Pixels = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]  # [H, W, 3] RGB
OnTile = Callable[[int], None]  # told how many tiles there are in all
OpenSpare = Callable[[StageSpec], Engine]  # an engine that needs no device's memory

# Not turned by a quarter too, which is another shape to an engine. Measured on nine pictures of CBSD68 at level 25:
# these four gain 0.105 dB with `fitvnet-spatial.camera`, all eight 0.104 with `fitvnet-spatial`.
_MIRRORED: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
MOST_SPANS = 32  # of runs of an engine, told for one job: a video has one for each frame


class Watch(Protocol):
    """Is told how engines are used."""

    def ran(self, model: str, backend: str, precision: str, tiles: int, seconds: float) -> None: ...
    def ran_out_of_memory(self, backend: str, step: str) -> None: ...


@dataclass(slots=True)
class Tally:
    """What is learnt on the way, added up over tiles and frames."""

    infer_s: float = 0.0
    runs: int = 0  # of engines
    removed_power: float = 0.0  # sum of squares of noisy minus restored, [0, 1] scale
    values: int = 0
    relief: Relief = field(default_factory=Relief)
    ran: dict[tuple[str, str], None] = field(default_factory=dict)  # backends and precisions that had a share in it
    notes: list[str] = field(default_factory=list)  # what else should be known of the way it went

    @property
    def backend(self) -> str:
        return "+".join(sorted({backend for backend, _ in self.ran}))

    @property
    def precision(self) -> str:
        return "+".join(sorted({precision for _, precision in self.ran}))

    @property
    def sigma_estimate(self) -> float | None:
        """Root mean square of what was taken out, on the 8-bit scale: what the network took for noise."""
        return float(np.sqrt(self.removed_power / self.values) * 255) if self.values else None

    def add_removed(self, noisy: Array, restored: Array) -> None:
        removed = (noisy - restored).ravel()
        self.removed_power += float(np.dot(removed, removed))
        self.values += removed.size


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A catalogue entry with an engine for each of its stages. Any thread may use it: the engine is shared by turns."""

    spec: DenoiserSpec
    engines: Sequence[Engine]
    tile_px: int
    turns: Turns = field(default_factory=Turns)
    open_spare: OpenSpare | None = None  # where an engine's device may run out of memory
    open_for_grey: "Callable[[], Denoiser] | None" = None  # what restores grey pictures in its stead
    watch: Watch | None = None
    ensemble: int = 1  # of `job.ENSEMBLES`

    def of(self, ensemble: int) -> "Denoiser":
        """This one as a self-ensemble: it restores what it is given so many times, mirrored in other ways, and takes
        the mean (Timofte, Rothe, Van Gool 2016, "Seven ways to improve example-based single image super resolution").

        Args:
            ensemble: 1, which is the denoiser alone; 2 adds left and right swapped; 4 also top and bottom, and both.
        """
        return replace(self, ensemble=ensemble)

    @property
    def backend(self) -> str:
        return self.engines[0].backend

    @property
    def precision(self) -> str:
        return self.engines[0].precision

    def for_grey(self, tally: Tally) -> "Denoiser":
        """What restores a grey picture best: it may be another, and if there is none, that is noted."""
        if self.open_for_grey:
            other = self.open_for_grey().of(self.ensemble)
            tally.notes.append(f"the picture is grey: restored by {other.spec.name}")
            return other
        if self.spec.weights and "grey" not in self.spec.taught:
            tally.notes.append(
                f"the picture is grey, and {self.spec.name} was taught on colours: it leaves most of a grey noise; "
                "model auto has weights for it"
            )
        return self

    def restore_picture(
        self,
        pixels: Pixels,
        *,
        strength: float = 1.0,
        sigma: float | None = None,
        urgency: Urgency = Urgency.BATCH,
        tally: Tally | None = None,
        on_tile: OnTile | None = None,
    ) -> Pixels:
        """Take the noise out of one picture with a denoiser of a single frame.

        Memory beyond the picture and its result depends on the tile alone.

        Args:
            pixels: [H, W, 3] RGB, uint8 or uint16 over its full range, or float32 in [0, 1].
            strength: share of the found noise that is taken out; 0 gives the input back exactly.
            sigma: noise level on the [0, 1] scale, for denoisers that must be told; None estimates it from the picture.
            urgency: when several jobs want the engine.
            tally: is added to.
            on_tile: told after each tile; what it raises stops the work.

        Returns:
            Like `pixels`, clipped; whole numbers are rounded.
        """
        (stage,) = self.spec.stages
        if sigma is None and self.spec.sigma is not None:
            sigma = _estimated(self.spec, pixels.transpose(2, 0, 1))
        tally = tally if tally is not None else Tally()
        restored = np.empty_like(pixels)
        scale = np.float32(white_of(pixels.dtype))
        tiles = plan_tiles(*pixels.shape[:2], tile_px=self.tile_px, halo_px=stage.halo_px, multiple=self.spec.multiple)
        for together in _groups(tiles, self.engines[0].batch):
            cuts = [read_padded(pixels, tile) for tile in together]
            by_pixels = strength == 1 and pixels.dtype.kind == "u" and self.ensemble == 1
            finished = (
                self._run_pixels(cast("WholePixels", np.stack(cuts)), sigma, urgency, tally) if by_pixels else None
            )
            noisy = np.stack([to_planes(cut) for cut in cuts])
            if finished is not None:
                output = np.stack([to_planes(one) for one in finished])
            else:
                output = self._run(stage, noisy, sigma, urgency, tally)[:, : self.spec.channels]
            for tile, before, after in zip(together, noisy, output, strict=True):
                inside = (slice(None), *tile.kept_inside)
                kept, clean = before[inside], after[inside]
                tally.add_removed(kept, clean)
                restored[tile.kept] = to_pixels(blend(kept, clean, strength), pixels.dtype, scale)
                if on_tile:
                    on_tile(len(tiles))
        return restored

    def restore_frames(
        self,
        frames: Iterable[Array],
        *,
        sigma: float | None = None,
        urgency: Urgency = Urgency.VIDEO,
        tally: Tally | None = None,
        goes_on_before: bool = False,
        goes_on_after: bool = False,
    ) -> Iterator[Array]:
        """Restore a stream of frames of one size.

        Args:
            frames: [3, H, W] float32 in [0, 1], oldest first.
            sigma: noise level on the [0, 1] scale, for denoisers that must be told; None estimates it frame by frame.
            urgency: when several jobs want the engine.
            tally: its time in the engine, and in laying neighbours over frames, is added to.
            goes_on_before: the first `spec.frames // 2` frames are there as neighbours only, and have no result.
            goes_on_after: the last ones are.

        Yields:
            [3, H, W], not clamped, one for each frame; `spec.frames // 2` frames behind the input.
        """
        tally = tally if tally is not None else Tally()
        estimates = _Estimates(self.spec) if sigma is None and self.spec.sigma is not None else None

        def run(stage: StageSpec, planes: Array) -> Array:
            level = estimates.level_for(stage, planes) if estimates else sigma
            return self._run_tiled(stage, planes, level, urgency, tally)

        def timed_align(window: Sequence[Result]) -> tuple[list[Array], tuple[Array, ...]]:
            started = time.monotonic()
            aligned = align(window)
            tally.infer_s += time.monotonic() - started
            return aligned

        for planes in restore_stream(
            self.spec.stages,
            run,
            frames,
            align=timed_align if self.spec.aligned else None,
            goes_on_before=goes_on_before,
            goes_on_after=goes_on_after,
        ):
            yield planes[: self.spec.channels]

    def _run_tiled(self, stage: StageSpec, planes: Array, sigma: float | None, urgency: Urgency, tally: Tally) -> Array:
        """[T*C, H, W] to [planes_out, H, W], whatever the size."""
        height, width = planes.shape[1:]
        # Every stage is padded alike: a later one's edge must not lie where an earlier one saw the frame go on.
        tiles = plan_tiles(height, width, tile_px=self.tile_px, halo_px=stage.halo_px, multiple=self.spec.multiple)
        pixels = planes.transpose(1, 2, 0)
        if len(tiles) == 1:
            noisy = np.ascontiguousarray(read_padded(pixels, tiles[0]).transpose(2, 0, 1))
            return self._run(stage, noisy[None], sigma, urgency, tally)[0, :, :height, :width]
        result = np.empty((stage.planes_out, height, width), np.float32)
        for together in _groups(tiles, self._engine_for(stage).batch):
            noisy = np.stack([read_padded(pixels, tile).transpose(2, 0, 1) for tile in together])
            output = self._run(stage, noisy, sigma, urgency, tally)
            for tile, restored in zip(together, output, strict=True):
                result[(slice(None), *tile.kept)] = restored[(slice(None), *tile.kept_inside)]
        return result

    def _engine_for(self, stage: StageSpec) -> Engine:
        return self.engines[self.spec.stages.index(stage)]

    def _run(self, stage: StageSpec, planes: Array, sigma: float | None, urgency: Urgency, tally: Tally) -> Array:
        """[N, T*C, H, W] to [N, planes_out, H, W], the mean over the ensemble."""
        restored = self._run_once(stage, planes, sigma, urgency, tally)
        if self.ensemble == 1:
            return restored
        total = restored.copy()  # an engine may keep what it gave
        for axes in _MIRRORED[1 : self.ensemble]:
            mirrored = self._run_once(stage, np.ascontiguousarray(np.flip(planes, axes)), sigma, urgency, tally)
            total += np.flip(mirrored, axes)
        total /= self.ensemble
        return total

    def _run_once(self, stage: StageSpec, planes: Array, sigma: float | None, urgency: Urgency, tally: Tally) -> Array:
        """The same for one of the ensemble, by as much at a time as the engine's device has memory for."""
        relief = tally.relief
        while True:
            spared = self.open_spare if relief.spared else None
            engine = spared(stage) if spared else self._engine_for(stage)
            try:
                if relief.side_px and max(planes.shape[2:]) > relief.side_px:
                    return self._run_smaller(stage, planes, relief.side_px, sigma, urgency, tally)
                at_once = min(relief.batch or len(planes), engine.batch, len(planes))
                if at_once == len(planes):
                    return self._run_at_once(engine, planes, sigma, urgency, tally)
                parts = [planes[start : start + at_once] for start in range(0, len(planes), at_once)]
                return np.concatenate([self._run_at_once(engine, part, sigma, urgency, tally) for part in parts])
            except OutOfDeviceMemory as err:
                step = "none"
                try:
                    step = relief.give_way(
                        err,
                        engine,
                        planes.shape,
                        halo_px=stage.halo_px,
                        multiple=self.spec.multiple,
                        spare=self.open_spare is not None,
                    )
                finally:
                    if self.watch:
                        self.watch.ran_out_of_memory(engine.backend, step)

    def _run_pixels(self, pixels: WholePixels, sigma: float | None, urgency: Urgency, tally: Tally) -> Pixels | None:
        """Pictures as files have them, where the engine takes them so and has memory enough; else None."""
        engine = self.engines[0]
        if not isinstance(engine, PixelEngine) or not engine.takes_pixels or tally.relief.notes:
            return None
        with self.turns.turn(urgency, engine.contexts):
            started = time.monotonic()
            try:
                restored = engine.denoise_pixels(pixels, np.full(len(pixels), sigma or 0.0, np.float32))
            except OutOfDeviceMemory:
                return None  # the other way has steps to go down
            seconds = time.monotonic() - started
        self._note(engine, len(pixels), seconds, tally)
        return restored

    def _run_smaller(
        self, stage: StageSpec, planes: Array, side_px: int, sigma: float | None, urgency: Urgency, tally: Tally
    ) -> Array:
        """What is one tile for the frame is cut again."""
        restored = np.empty((len(planes), stage.planes_out, *planes.shape[2:]), np.float32)
        cuts = plan_tiles(*planes.shape[2:], tile_px=side_px, halo_px=stage.halo_px, multiple=self.spec.multiple)
        for one, result in zip(planes, restored, strict=True):
            for cut in cuts:
                noisy = np.ascontiguousarray(read_padded(one.transpose(1, 2, 0), cut).transpose(2, 0, 1))
                output = self._run_once(stage, noisy[None], sigma, urgency, tally)[0]
                result[(slice(None), *cut.kept)] = output[(slice(None), *cut.kept_inside)]
        return restored

    def _run_at_once(self, engine: Engine, planes: Array, sigma: float | None, urgency: Urgency, tally: Tally) -> Array:
        with self.turns.turn(urgency, engine.contexts):
            started = time.monotonic()
            restored = engine.denoise(planes, np.full(len(planes), sigma or 0.0, np.float32))
            seconds = time.monotonic() - started
        self._note(engine, len(planes), seconds, tally)
        return restored

    def _note(self, engine: Engine, tiles: int, seconds: float, tally: Tally) -> None:
        """An engine has just run on a batch."""
        tally.infer_s += seconds
        tally.runs += 1
        tally.ran[engine.backend, engine.precision] = None
        if self.watch:
            self.watch.ran(self.spec.name, engine.backend, engine.precision, tiles, seconds)
        if tally.runs <= MOST_SPANS:
            tracing.told("run batch", seconds, tiles=tiles, backend=engine.backend, precision=engine.precision)


def _groups(tiles: Sequence[Tile], size: int) -> Iterator[Sequence[Tile]]:
    return (tiles[start : start + size] for start in range(0, len(tiles), size))


def _estimated(spec: DenoiserSpec, planes: NDArray[Any]) -> float:
    """The noise level of [C, H, W], as near as the denoiser has been told any."""
    assert spec.sigma is not None
    low, high = spec.sigma
    return min(max(estimate_sigma(planes), low), high)


class _Estimates:
    """The noise level of the frame in the middle of each window, through all stages of a cascade.

    Levels go with their frames, whatever part of a clip these are in: its parts are restored as the whole is.
    """

    def __init__(self, spec: DenoiserSpec) -> None:
        # Before a window longer than one the clip is mirrored; estimates are made behind that, from the first stage on.
        assert spec.stages[0].frames > 1 or all(stage.frames == 1 for stage in spec.stages), spec.name
        self._spec = spec
        self._stages = spec.stages
        self._channels = spec.channels
        # Of what each stage gave and the next one still reads, oldest first.
        self._levels: list[deque[float]] = [deque() for _ in spec.stages[1:]]

    def level_for(self, stage: StageSpec, planes: Array) -> float:
        """[T*C, H, W] noisy for the first stage; a later one has the level of the result in its middle."""
        index, middle = self._stages.index(stage), stage.frames // 2
        if index == 0:
            level = _estimated(self._spec, planes[middle * self._channels : (middle + 1) * self._channels])
        else:
            level = self._levels[index - 1][middle]
            self._levels[index - 1].popleft()
        if index < len(self._levels):
            self._levels[index].append(level)
        return level


def white_of(dtype: "np.dtype[Any]") -> int:
    """The number that is white in a picture of this type."""
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 1


def to_planes(pixels: Pixels) -> Array:
    """[H, W, 3] uint8, uint16 or float32 to [3, H, W] float32 in [0, 1], contiguous."""
    scale = np.float32(1 / white_of(pixels.dtype))
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    planes *= scale
    return planes


def to_pixels(planes: Array, dtype: "np.dtype[Any]", scale: np.float32) -> Pixels:
    """[3, H, W] float32 to [H, W, 3], clipped to [0, 1]; whole numbers are rounded."""
    scaled = np.clip(planes, 0, 1) * scale
    if dtype.kind == "u":
        np.rint(scaled, out=scaled)
    return np.ascontiguousarray(scaled.astype(dtype).transpose(1, 2, 0))


def blend(noisy: Array, restored: Array, strength: float) -> Array:
    """Between the noisy and the restored frame; the ends are exact."""
    if strength == 1:
        return restored
    if strength == 0:
        return noisy
    between: Array = noisy + np.float32(strength) * (restored - noisy)
    return between
