"""What gives way when a device's memory runs out: first tiles at a time, then their size, then the device.

A job begins with all that its engines offer, and goes on with what is left to it once memory ran out: what fills a GPU
may be gone by the next job.
"""

from dataclasses import dataclass, field

from service.pipeline.tiles import up_to
from trtbuild.engine import Engine, OutOfDeviceMemory

SMALLEST_SIDE_PX = 64  # below, all the memory goes into weights


@dataclass(slots=True)
class Relief:
    """What a job must do without by now."""

    batch: int | None = None  # tiles at a time; None for as many as the engine takes
    side_px: int | None = None  # longest side of a tile; None for those that the frame was cut into
    spared: bool = False  # the device is left to others
    notes: list[str] = field(default_factory=list)  # what gave way, for the job's document

    def give_way(
        self,
        err: OutOfDeviceMemory,
        engine: Engine,
        shape: tuple[int, ...],
        *,
        halo_px: int,
        multiple: int,
        spare: bool,
    ) -> str:
        """Take the next step down.

        Args:
            err: raised again if there is no further step.
            engine: that ran out of memory.
            shape: [N, C, H, W] of what it was given.
            halo_px: context that a tile of it needs on every side.
            multiple: sides of tiles are multiples of it.
            spare: whether there is another engine to go to, away from the device.

        Returns:
            What gave way: `batch`, `tile` or `cpu`.
        """
        at_once = min(shape[0], self.batch or shape[0])
        side = min(max(shape[2:]), self.side_px or max(shape[2:]))
        half = up_to(side // 2, multiple)
        if at_once > 1:
            self.batch = at_once // 2
            self._note(engine, f"{self.batch} tiles at a time instead of {at_once}")
            return "batch"
        if half >= max(SMALLEST_SIDE_PX, 4 * up_to(halo_px, multiple)):  # a quarter of what is computed is kept
            self.side_px = half
            self._note(engine, f"tiles of {half} pixels instead of {side}")
            return "tile"
        if spare and not self.spared:
            self.batch, self.side_px, self.spared = None, None, True
            self._note(engine, "the CPU goes on")
            return "cpu"
        raise err

    def _note(self, engine: Engine, step: str) -> None:
        self.notes.append(f"{engine.backend} ran out of memory: {step}")
