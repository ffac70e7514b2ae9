"""How are encoded pixels taken to linear light and back, and RGB to planes of brightness and colour?

Source: IEC 61966-2-1; Xu, Li, Sun, "Learning deformable kernels for image and video denoising", 2019, equation (8).
The sRGB curve is straight near black; both functions go on so below it, for what noise has made negative.
"""

import torch
from torch import Tensor

STRAIGHT_UNTIL = 0.0031308  # in linear light
ALPHA = 0.055
SLOPE = 12.92
EXPONENT = 2.4


def to_linear(encoded: Tensor) -> Tensor:
    """Undo the sRGB curve."""
    curved = ((_curved_part(encoded) + ALPHA) / (1 + ALPHA)) ** EXPONENT
    return curved.where(encoded > SLOPE * STRAIGHT_UNTIL, encoded / SLOPE)


def to_srgb(linear: Tensor) -> Tensor:
    """Equation (8)."""
    # A power of what is not positive has no gradient, and `where` would hand it on.
    curved = (1 + ALPHA) * linear.clamp(min=STRAIGHT_UNTIL) ** (1 / EXPONENT) - ALPHA
    return curved.where(linear > STRAIGHT_UNTIL, SLOPE * linear)


def linear_slope(encoded: Tensor) -> Tensor:
    """By how much linear light grows with the encoded value, there: the derivative of `to_linear`."""
    curved = EXPONENT / (1 + ALPHA) * ((_curved_part(encoded) + ALPHA) / (1 + ALPHA)) ** (EXPONENT - 1)
    return curved.where(encoded > SLOPE * STRAIGHT_UNTIL, curved.new_full((), 1 / SLOPE))


def _curved_part(encoded: Tensor) -> Tensor:
    return encoded.clamp(min=SLOPE * STRAIGHT_UNTIL)


def to_opponent(rgb: Tensor) -> Tensor:
    """[..., 3, H, W] RGB to its mean and two differences, turned only: white noise stays white and as strong."""
    red, green, blue = rgb.unbind(-3)
    return torch.stack(
        [
            (red + green + blue) * (1 / 3) ** 0.5,
            (red - blue) * (1 / 2) ** 0.5,
            (red - 2 * green + blue) * (1 / 6) ** 0.5,
        ],
        -3,
    )


def from_opponent(planes: Tensor) -> Tensor:
    """Undo `to_opponent`."""
    mean, red_blue, green = planes.unbind(-3)
    grey, side, tip = mean * (1 / 3) ** 0.5, red_blue * (1 / 2) ** 0.5, green * (1 / 6) ** 0.5
    return torch.stack([grey + side + tip, grey - 2 * tip, grey - side + tip], -3)
