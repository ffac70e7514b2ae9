"""How the fast denoisers are wired: small U-Nets that never work at full size.

No paper has just these networks; their parts are known. The picture goes in with each 2x2 square as twelve planes, as
in FFDNet (Zhang, Zuo, Zhang 2018, arXiv:1710.04026, section III), from which a U-Net goes down twice more, by
convolutions of stride two as in FastDVDnet (Tassano, Delon, Veit 2020, arXiv:1907.01361), and up by shuffled
pixels. Pairs of convolutions are added to what they read, as in residual networks (He et al. 2016, arXiv:1512.03385).
Maps that come up are added to those that went down. Nothing is normalised, and no ReLU follows a sum.

For video a second one reads three frames, as FITVNet's blocks do (Wang, Zhou, Cheng 2020): what the first made of each,
and, that nothing it smoothed away be lost, each as it was.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import bias_of, conv, start_small

PAIR_SHARE = 0.3  # with which a pair of convolutions begins


class SmallUNet(nn.Module):
    """One frame or several in, the middle one with less noise out. Height and width are multiples of 8."""

    def __init__(
        self,
        widths: tuple[int, int, int] = (32, 64, 128),
        pairs: Sequence[int] = (1, 1, 2, 1, 1),
        *,
        frames: int = 1,
        planes: int = 3,
    ) -> None:
        """Build the network.

        Args:
            widths: maps at half, quarter and eighth size.
            pairs: of convolutions at half, quarter, eighth, quarter and half size again.
            frames: of the window; the first convolution reads all of them.
            planes: of each frame; the first three are what is corrected.
        """
        super().__init__()
        self._middle = frames // 2 * planes
        half, quarter, eighth = widths
        self.first = conv(4 * frames * planes, half)
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
        """[N, frames * planes, H, W], RGB in [0, 1] first of each, to [N, 3, H, W], not clamped."""
        half = self.half_down(self.first(F.pixel_unshuffle(noisy, 2)))
        quarter = self.quarter_down(self.to_quarter(half))
        deepest = self.deepest(self.to_eighth(quarter))
        quarter = self.quarter_up(F.pixel_shuffle(self.from_eighth(deepest), 2) + quarter)
        half = self.half_up(F.pixel_shuffle(self.from_quarter(quarter), 2) + half)
        frame = noisy if noisy.shape[1] == 3 else noisy[:, self._middle : self._middle + 3]
        return frame + F.pixel_shuffle(self.last(half), 2)

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage."""
        return (self,)


class FrameAndOrigin(nn.Module):
    """A frame restored by itself, and beside it the frame as it was: the first stage of `SmallVideoUNet`."""

    def __init__(self, single: SmallUNet) -> None:
        super().__init__()
        self.single = single

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, 6, H, W]."""
        return torch.cat([self.single(noisy, sigma), noisy], 1)


class SmallVideoUNet(nn.Module):
    """Each frame by itself, then the middle one of three by all of them. Height and width are multiples of 8."""

    def __init__(self, widths: tuple[int, int, int] = (48, 64, 128)) -> None:
        """Build the network.

        Args:
            widths: of the second U-Net; the first is as images have it.
        """
        super().__init__()
        self.single = SmallUNet()
        self.over = SmallUNet(widths, frames=3, planes=6)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """[N, 9, H, W], three RGB frames in [0, 1], oldest first, where they are, to [N, 3, H, W], not clamped."""
        first = self.stages()[0]
        restored: Tensor = self.over(torch.cat([first(frame, sigma) for frame in noisy.chunk(3, 1)], 1), sigma)
        return restored

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's two stages."""
        return FrameAndOrigin(self.single), self.over


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
