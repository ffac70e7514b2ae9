"""How the network with direct symmetric connections is wired: five convolutions, five deconvolutions, four gates.

Source: Zhao, "Image denoising with deep convolutional neural networks", Stanford, 2016, Table 1 (layers), section 3.1
(connections), section 4.2 (gates).

Where the paper leaves a choice, this file makes it:

* Kernels are 3x3 as in RED-Net, which the paper starts from; sizes halve by stride, from Conv-2 on.
* The equations of section 3.1 call both the layer's input and its output X, and give every layer one gate. Here the
  gate of a convolution parts what comes out of it: delta times it goes on to the next convolution, 1 - delta times it
  is added to what the deconvolution that mirrors it gives to the next. Section 4.2 explains the gates 0.1 to 0.4 the
  other way round ("minute amounts" pass from the noisy image to the denoised one); section 5 finds, as the equations
  have it, that most passes through the first connection.
* All layers end in a ReLU, the last one too. Training starts with three maps that hand the picture through the first
  connection, lifted out of the ReLU's dead half by an offset that is taken back; without connections there is no way.
* 518 maps, twice as printed, are 3.2 million parameters: `dsc.paper`. The shipped networks have 256 in the middle.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import bias_of, conv

TABLE_1 = (64, 64, 128, 256, 518)  # maps of Conv-1 to Conv-5; each Deconv has as many as the Conv that it mirrors reads
GATES = (0.1, 0.2, 0.3, 0.4)  # of Conv-1 to Conv-4


class DSC(nn.Module):
    """One frame in, the same frame with less noise out. Height and width are multiples of 16."""

    def __init__(self, widths: tuple[int, ...] = TABLE_1, gates: tuple[float, ...] = GATES, channels: int = 3) -> None:
        """Build the network.

        Args:
            widths: maps of the convolutions, the first at full size, each other at half the size of the one before.
            gates: which part of what a convolution yields goes on to the next; of all but the last. With ones nothing
                goes across: the network without connections.
            channels: planes of the picture.
        """
        super().__init__()
        self.gates = gates
        self.convolutions = nn.ModuleList(
            conv(inputs, outputs, stride=2 if index else 1)
            for index, (inputs, outputs) in enumerate(zip((channels, *widths), widths, strict=False))
        )
        # Table 1: Deconv-1 to Deconv-4 double the size, Deconv-5 stays at it: a convolution, its kernel turned.
        self.deconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
            for inputs, outputs in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.deconvolutions.append(conv(widths[0], channels))
        self._start(channels)

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not below 0."""
        maps, yielded = noisy, []
        for layer, gate in zip(self.convolutions, (1.0, *self.gates), strict=True):
            maps = F.relu(layer(maps if gate == 1 else gate * maps))
            yielded.append(maps)
        first, *others = self.deconvolutions
        maps = F.relu(first(maps))
        for layer, gate, mirrored in zip(others, self.gates[::-1], yielded[-2::-1], strict=True):
            maps = F.relu(layer(maps if gate == 1 else maps + (1 - gate) * mirrored))
        return maps

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage."""
        return (self,)

    def _start(self, channels: int) -> None:
        """Weights that keep the level of the maps through gates and strides, and if a connection is there, the picture.

        The gates multiply to 0.0024: a convolution makes up for the gate before it, or the middle would hear nothing.
        """
        for layer, gate in zip(self.convolutions, (1.0, *self.gates), strict=True):
            _draw_weights(layer, 9 * gate**2)
        for layer in self.deconvolutions:
            _draw_weights(layer, 9 / 4 if isinstance(layer, nn.ConvTranspose2d) else 9)  # taps that a pixel is made of
        offset = 0.5
        first, joined, last = self.convolutions[0], self.deconvolutions[-2], self.deconvolutions[-1]
        crossing = 1 - self.gates[0]
        with torch.no_grad():
            if not crossing:
                _weight(last).mul_(0.1)
                bias_of(last).fill_(offset)  # mid-grey: an output that starts at zero never leaves it
                return
            _weight(first)[:channels] = 0
            bias_of(first)[:channels] = offset
            _weight(joined)[:, :channels] = 0  # [inputs, outputs, ...]: the connection adds the picture to these maps
            _weight(last).zero_()
            bias_of(last).fill_(-offset)
            for plane in range(channels):
                _weight(first)[plane, plane, 1, 1] = 1
                _weight(last)[plane, plane, 1, 1] = 1 / crossing


def _draw_weights(layer: nn.Module, taps: float) -> None:
    """As Kaiming's initialisation, for so many taps an input map."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    nn.init.normal_(layer.weight, std=(2 / (taps * layer.in_channels)) ** 0.5)
    nn.init.zeros_(bias_of(layer))


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    return layer.weight
