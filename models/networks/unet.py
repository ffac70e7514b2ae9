"""How the fast denoiser is wired: a small U-Net that never works at full size.

No paper has just this network; its parts are known. The picture goes in with each 2x2 square as twelve planes, as in
FFDNet (Zhang, Zuo, Zhang 2018, arXiv:1710.04026, section III), from which a U-Net goes down twice more, by
convolutions of stride two as in FastDVDnet (Tassano, Delon, Veit 2020, arXiv:1907.01361), and up by shuffled
pixels. Pairs of convolutions are added to what they read, as in residual networks (He et al. 2016, arXiv:1512.03385).
Maps that come up are added to those that went down. Nothing is normalised, and no ReLU follows a sum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import bias_of, conv, start_small

PAIR_SHARE = 0.3  # with which a pair of convolutions begins


class SmallUNet(nn.Module):
    """One frame in, the same frame with less noise out. Height and width are multiples of 8."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), pairs: Sequence[int] = (1, 1, 2, 1, 1)) -> None:
        """Build the network.

        Args:
            widths: maps at half, quarter and eighth size.
            pairs: of convolutions at half, quarter, eighth, quarter and half size again.
        """
        super().__init__()
        half, quarter, eighth = widths
        self.first = conv(12, half)
        self.half_down = _pairs(half, pairs[0])
        self.to_quarter = nn.Conv2d(half, quarter, 2, stride=2)
        self.quarter_down = _pairs(quarter, pairs[1])
        self.to_eighth = nn.Conv2d(quarter, eighth, 2, stride=2)
        self.deepest = _pairs(eighth, pairs[2])
        self.from_eighth = nn.Conv2d(eighth, 4 * quarter, 1)
        self.quarter_up = _pairs(quarter, pairs[3])
        self.from_quarter = nn.Conv2d(quarter, 4 * half, 1)
        self.half_up = _pairs(half, pairs[4])
        self.last = conv(half, 12)
        start_small(self, self.last)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, Pair):
                    layer.second.weight *= PAIR_SHARE
                    bias_of(layer.second).zero_()

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not clamped."""
        half = self.half_down(self.first(F.pixel_unshuffle(noisy, 2)))
        quarter = self.quarter_down(self.to_quarter(half))
        deepest = self.deepest(self.to_eighth(quarter))
        quarter = self.quarter_up(F.pixel_shuffle(self.from_eighth(deepest), 2) + quarter)
        half = self.half_up(F.pixel_shuffle(self.from_quarter(quarter), 2) + half)
        return noisy + F.pixel_shuffle(self.last(half), 2)

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage."""
        return (self,)


class Pair(nn.Module):
    """Two convolutions, added to what they read."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv(width, width)
        self.second = conv(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, width, H, W] to the same."""
        added: Tensor = maps + self.second(F.relu(self.first(maps)))
        return added


def _pairs(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Pair(width) for _ in range(count)))
