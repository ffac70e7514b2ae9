"""Restores frames as they come: raw pixels in, raw pixels out, and in between only what the model's windows reach."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import BadInput
from service.pipeline.denoiser import Denoiser, Pixels, blend, to_pixels, to_planes
from service.pipeline.relay import read_ahead
from service.pipeline.turns import Urgency
from trtbuild.engine import Array

# Frames that may wait before the network, and restored ones behind it: one that is being read or written while the
# network has the next is enough, and each more would only be older when it is shown.
DEPTH = 1
_BUSY = 2 * DEPTH + 2  # those, one in the network, one on its way


class _Unwanted(Exception):
    """Nobody waits for the results any more. Never leaves this file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSetup:
    """What all frames of a stream have in common."""

    width: int
    height: int
    dtype: np.dtype[np.uint8] | np.dtype[np.uint16]  # [H, W, 3] RGB, little-endian where a value has two bytes
    sigma: float | None = None  # on the [0, 1] scale; None lets the denoiser find out
    strength: float = 1.0

    @property
    def frame_bytes(self) -> int:
        return self.width * self.height * 3 * self.dtype.itemsize


def latency_frames(denoiser: Denoiser) -> int:
    """How many later frames must be there before one can be restored."""
    return denoiser.spec.frames // 2


def frames_in_flight(denoiser: Denoiser) -> int:
    """So many unanswered frames keep receiving, network and sending busy at once."""
    return latency_frames(denoiser) + _BUSY


def restore_live(
    denoiser: Denoiser,
    setup: LiveSetup,
    frames: Iterable[bytes],
    *,
    is_wanted: Callable[[], bool] = lambda: True,
) -> Iterator[bytes]:
    """Restore a stream; reading and the network run in threads of their own, a frame apart.

    The same frames give the same results, to the last bit, as those of a video job.

    Args:
        denoiser: what to run.
        setup: of all frames.
        frames: raw, oldest first. What reading them raises is raised here. A thread that waits for the next one is left
            to itself when this ends: it must not wait for ever then.
        is_wanted: asked before each frame goes to the network; False ends the stream where it is.

    Yields:
        Each frame restored, as soon as the frames that its window reaches are there.

    Raises:
        BadInput: a frame has another number of bytes than the setup says.
    """
    noisy: deque[Array] = deque()  # those the network still has in its windows: put by one thread, taken by another
    is_left = False

    def pixels_of() -> Iterator[Pixels]:
        shape = (setup.height, setup.width, 3)
        for index, frame in enumerate(frames):
            if len(frame) != setup.frame_bytes:
                raise BadInput(
                    f"frame {index} has {len(frame)} bytes; {setup.width}x{setup.height} pixels of "
                    f"{setup.dtype.itemsize * 8} bits and 3 colours are {setup.frame_bytes}"
                )
            values: NDArray[Any] = np.frombuffer(frame, setup.dtype.newbyteorder("<"))
            yield values.reshape(shape)

    def planes_of(ahead: Iterable[Pixels]) -> Iterator[Array]:
        for pixels in ahead:
            if not is_wanted():
                raise _Unwanted  # were this a mere end, the last frames would still be finished
            planes = to_planes(pixels)
            noisy.append(planes)
            yield planes
        if is_left or not is_wanted():
            raise _Unwanted

    scale = np.float32(np.iinfo(setup.dtype).max)
    with (
        read_ahead(pixels_of(), DEPTH, waits=False) as ahead,
        read_ahead(
            denoiser.restore_frames(planes_of(ahead), sigma=setup.sigma, urgency=Urgency.INTERACTIVE),
            DEPTH,
            waits=False,
        ) as finished,
        suppress(_Unwanted),
    ):
        try:
            for restored in finished:
                pixels = to_pixels(blend(noisy.popleft(), restored, setup.strength), setup.dtype, scale)
                yield pixels.astype(setup.dtype.newbyteorder("<"), copy=False).tobytes()
        finally:
            is_left = True
