"""What a running stage looks like to those who use it, whatever backend runs it."""

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from models.errors import QuietframeError

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8] | NDArray[np.uint16]  # RGB over the full range
Precision = Literal["fp32", "bf16", "fp16", "int8", "uint8"]  # the last of classical denoisers alone


class BackendUnavailable(QuietframeError):
    """This machine cannot run that backend; the message says why and what would help."""


class ShapeOutsideProfile(QuietframeError):
    """This batch, height or width is one that the engine was not built for; the message gives both."""


class OutOfDeviceMemory(QuietframeError):
    """The GPU has no room for this; a smaller batch or a smaller tile may have."""


class EngineFailed(QuietframeError):
    """A backend could not build or run a stage, and said so; the message holds its own words."""


class PrecisionLost(QuietframeError):
    """What an engine gives strays from the float32 reference beyond its floor: it must not serve."""


class Engine(Protocol):
    """One stage of a denoiser, loaded and ready. Callers take turns: no more at once than it has contexts."""

    @property
    def backend(self) -> str:
        """`openvino` or `torch`; `classical` of a denoiser that is no network."""

    @property
    def precision(self) -> Precision:
        """What the inner layers compute in; inputs and outputs are float32."""

    @property
    def batch(self) -> int:
        """How many windows it does best at a time; more may be refused."""

    @property
    def contexts(self) -> int:
        """How many threads may be in `denoise` at once."""

    def denoise(self, noisy: Array, sigma: Array) -> Array:
        """Run the stage on a batch of windows.

        Args:
            noisy: [N, T*C, H, W], C-contiguous, RGB in [0, 1] for the first stage, the T frames stacked oldest first; H
                and W multiples of the stage's `multiple`.
            sigma: [N], on the scale of `noisy`; ignored when blind.

        Returns:
            [N, planes_out, H, W], not clamped, owned by the caller.
        """


@runtime_checkable
class PixelEngine(Protocol):
    """An engine on a device of its own, to which pixels go as files have them: a quarter or half of the bytes."""

    @property
    def takes_pixels(self) -> bool:
        """Whether its stage reads one RGB frame and gives one; else `denoise_pixels` cannot be used."""

    def denoise_pixels(self, pixels: Pixels, sigma: Array) -> Pixels:
        """Run the stage on a batch of pictures.

        Args:
            pixels: [N, H, W, 3], sides as for `Engine.denoise`.
            sigma: [N], on the [0, 1] scale; ignored when blind.

        Returns:
            Like `pixels`, clipped and rounded, owned by the caller.
        """
