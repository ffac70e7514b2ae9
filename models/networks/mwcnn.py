"""How MWCNN is wired: a U-Net that goes down and up by Haar wavelets instead of pooling.

Source: Liu, Zhang, Zhang, Lin, Zuo, "Multi-level wavelet-CNN for image restoration", CVPR workshops 2018,
arXiv:1805.07071, the figure of its architecture; four levels instead of its three as in Dave, "Image de-noising using
deep learning", 2021, section 7, whose network is 32 layers deep for it.

Where they leave a choice, this file makes it:

* The fourth level is built as the paper's third: four convolutions down, four up, as wide as the level above it.
  `MWCNN(widths=(160, 256, 256))` is the network of the paper itself, 16 million parameters, `mwcnn.paper` has 24. The
  shipped network is narrower: 80, 80, 64, 64.
* The transform is orthonormal: it keeps the energy, and its inverse is its transpose.
* Maps that come up are added to those that went down, and the noise, as an image, is added to the input: the last
  convolution, which has neither normalisation nor ReLU, starts small, and the network as identity. What comes up from
  the deeper levels starts small as well, and the finest level with its bands handed on (`hand_on`).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import bias_of, conv, folded, hand_on

CONVOLUTIONS = 4  # of a level, down and up: 24 layers at three levels, 32 at four
DEEPER_SHARE = 0.1  # how much of a normalised map the deeper levels begin by adding
# A pixel's 2x2 square, row by row, in each of the bands: average, change across, change down, diagonal.
HAAR = (((1, 1), (1, 1)), ((1, -1), (1, -1)), ((1, 1), (-1, -1)), ((1, -1), (-1, 1)))


class MWCNN(nn.Module):
    """One frame in, the same frame with less noise out. Height and width are multiples of 2 to the number of levels."""

    def __init__(self, widths: tuple[int, ...] = (160, 256, 256, 256), channels: int = 3) -> None:
        """Build the network.

        Args:
            widths: maps of each level, the finest (at half size) first.
            channels: planes of the picture.
        """
        super().__init__()
        self.into_bands = nn.ModuleList(Haar(inputs) for inputs in (channels, *widths[:-1]))
        self.out_of_bands = nn.ModuleList(InverseHaar(inputs) for inputs in (channels, *widths[:-1]))
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for inputs, width in zip((channels, *widths[:-1]), widths, strict=True):
            inner = [width] * (CONVOLUTIONS - 1)
            self.down.append(_convolutions([4 * inputs, width, *inner]))
            # What leaves the finest level is noise, and must be able to be negative: its last layer stands below.
            self.up.append(_convolutions([width, *inner, 4 * inputs] if len(self.up) else [width, *inner]))
        self.last = conv(widths[0], 4 * channels)
        nn.init.normal_(self.last.weight, std=1e-3)
        nn.init.zeros_(bias_of(self.last))
        self._start(4 * channels)

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not clamped."""
        maps, before = noisy, []
        for into_bands, convolutions in zip(self.into_bands, self.down, strict=True):
            before.append(maps)
            maps = convolutions(into_bands(maps))
        for level in reversed(range(len(before))):
            bands = self.up[level](maps)
            maps = before[level] + self.out_of_bands[level](bands if level else self.last(bands))
        return maps

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage: a copy for inference, its normalisations folded into the convolutions."""
        return (folded(self),)

    def _start(self, bands: int) -> None:
        finest = [*self.down[0].modules(), *self.up[0].modules()]
        hand_on([layer for layer in finest if isinstance(layer, nn.Conv2d)], bands)
        for convolutions in self.up[1:]:
            *_, normalisation = (layer for layer in convolutions.modules() if isinstance(layer, nn.BatchNorm2d))
            nn.init.constant_(normalisation.weight, DEEPER_SHARE)


class Haar(nn.Module):
    """The orthonormal 2x2 Haar transform: [N, C, H, W] to [N, 4C, H/2, W/2], the four bands of a plane together.

    A convolution of stride 2 whose weights are fixed. Measured 2026-11-21 in OpenVINO, this is faster than sums of
    slices and than a shuffle of pixels before a 1x1 convolution.
    """

    kernels: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernels", _kernels(channels), persistent=False)

    def forward(self, planes: Tensor) -> Tensor:
        return F.conv2d(planes, self.kernels, stride=2, groups=self.channels)


class InverseHaar(nn.Module):
    """What `Haar` took apart, joined again: [N, 4C, H, W] to [N, C, 2H, 2W]."""

    kernels: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernels", _kernels(channels), persistent=False)

    def forward(self, bands: Tensor) -> Tensor:
        return F.conv_transpose2d(bands, self.kernels, stride=2, groups=self.channels)


def _kernels(channels: int) -> Tensor:
    """[4C, 1, 2, 2]; halved, so that their squares sum to one."""
    return (torch.tensor(HAAR, dtype=torch.float32) / 2)[:, None].repeat(channels, 1, 1, 1)


def _convolutions(widths: list[int]) -> nn.Sequential:
    """From each width to the next: 3x3, batch normalisation, ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = conv(inputs, outputs, bias=False)  # the normalisation has the bias
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        layers += [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
