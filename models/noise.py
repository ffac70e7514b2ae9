"""Which noise is added to clean pictures to measure a denoiser by."""

import numpy as np
from numpy.typing import NDArray


def add_gaussian(clean: NDArray[np.float32], sigma: float, seed: int, *, clipped: bool = False) -> NDArray[np.float32]:
    """Additive white Gaussian noise, the same for the same seed and shape.

    Args:
        clean: any shape, on the scale [0, 1].
        sigma: standard deviation on that scale.
        seed: of the noise.
        clipped: clip to [0, 1] and round to 8 bits, which is what an upload is; published tables do neither.
    """
    noisy = np.random.default_rng(seed).standard_normal(clean.shape, np.float32)
    noisy *= sigma
    noisy += clean
    if clipped:
        np.rint(255 * noisy.clip(0, 1), out=noisy)
        noisy /= 255
    return noisy
