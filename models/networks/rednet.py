"""How RED-Net is wired: five convolutions, five deconvolutions, and every second convolution added to its mirror image.

Source: Mao, Shen, Yang, "Image restoration using very deep convolutional encoder-decoder networks with symmetric skip
connections", NIPS 2016, arXiv:1603.09056, section 3; ten layers as in Dave, "Image de-noising using deep learning",
2021, section 7. All layers have 64 maps of full size.

Where they leave a choice, this file makes it:

* RED10 of the paper has no skips; Dave's ten layers have them. They are placed as in the released RED30, from the
  middle outwards, every two layers: convolution 4 is added to deconvolution 1, convolution 2 to deconvolution 3, with a
  ReLU before and after each sum. Nothing is added to the last deconvolution, and no ReLU follows it.
* A deconvolution of stride 1 is a convolution with its kernel turned by half a turn: it is written as one.
* As no connection reaches from the input to the output, the picture itself passes through all the maps. Training starts
  with three of them, and with the outer skip, handing it on unchanged.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import bias_of, conv

LAYERS = 5  # of each kind
SKIP_EVERY = 2


class REDNet(nn.Module):
    """One frame in, the same frame with less noise out."""

    def __init__(self, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        widths = [channels, *[width] * (2 * LAYERS - 1), channels]
        layers = [conv(inputs, outputs) for inputs, outputs in pairwise(widths)]
        self.convolutions = nn.ModuleList(layers[:LAYERS])
        self.deconvolutions = nn.ModuleList(layers[LAYERS:])
        self._start_as_identity(channels)

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not clamped."""
        maps, across = noisy, [noisy]
        for layer in self.convolutions:
            maps = F.relu(layer(maps))
            across.append(maps)
        *inner, last = self.deconvolutions
        for index, layer in enumerate(inner, 1):
            maps = F.relu(layer(maps))
            if index % SKIP_EVERY == 1:
                maps = F.relu(maps + across[LAYERS - index])
        restored: Tensor = last(maps)
        return restored

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage."""
        return (self,)

    def _start_as_identity(self, channels: int) -> None:
        """Let the outer skip hand the picture on, lifted out of the dead half of the ReLU by an offset."""
        offset = 0.5
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(bias_of(layer))
        first, second = layers[:SKIP_EVERY]
        *_, joined, fourth, last = layers
        with torch.no_grad():
            for layer in (first, second, fourth, last):
                layer.weight[:channels] = 0
                for plane in range(channels):
                    layer.weight[plane, plane, 1, 1] = 1
            joined.weight[:channels] = 0  # to these maps the skip adds the picture
            bias_of(first)[:channels] = offset
            bias_of(last).sub_(offset)
