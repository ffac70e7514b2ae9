"""What do several networks have in common? Layers and blocks that mean the same in each."""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)
Layer = Callable[..., nn.Module]  # as `conv`


def conv(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size, or divides it by the stride."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=bias)


def bias_of(layer: nn.Module) -> Tensor:
    """Of a convolution, of either kind, that has one."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    assert layer.bias is not None
    return layer.bias


def normalised_conv(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A 3x3 convolution with batch normalisation, which has the bias."""
    layer = conv(inputs, outputs, stride=stride, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def folded(network: Network) -> Network:
    """A copy for inference: in every sequence, a batch normalisation is folded into the convolution before it."""
    copied = copy.deepcopy(network).eval()
    for layers in copied.modules():
        if isinstance(layers, nn.Sequential):
            _fold(layers)
    return copied


def _fold(layers: nn.Sequential) -> None:
    for index in reversed(range(1, len(layers))):
        before, layer = layers[index - 1], layers[index]
        if isinstance(before, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d):
            layers[index - 1] = fuse_conv_bn_eval(before, layer)
            del layers[index]


def hand_on(layers: Sequence[nn.Conv2d], planes: int) -> None:
    """Start with some maps of each layer handing on what the first one reads: each plane, and the same negative.

    They are at least twice as many maps as planes. Behind normalisation and ReLU the two are what is above the mean
    and what is below. A stack of random layers has lost sight of single pixels by its end, and takes a thousand steps
    to find them again. Measured 2026-11-21, half the squared error after 150 steps on eight crops of 48x48, with this
    and without: DnCNN 0.0013 and 0.0049, MWCNN 0.0011 and 0.0029.
    """
    with torch.no_grad():
        for index, layer in enumerate(layers):
            layer.weight[: 2 * planes] = 0
            for one in range(2 * planes):
                if index == 0:
                    layer.weight[one, one % planes, 1, 1] = 1 if one < planes else -1
                else:
                    layer.weight[one, one, 1, 1] = 1


def start_small(network: nn.Module, last: nn.Conv2d) -> None:
    """A small correction at first, zero here, from layers that pass it all the way down and up.

    PyTorch's own initial weights shrink what a layer with ReLU hands on to 0.4 of it; a dozen such layers in a row,
    with sums for skips, would leave the deep ones out of the first thousands of steps.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    with torch.no_grad():
        last.weight.zero_()


class TripletUNet(nn.Module):
    """The block of FITVNet and FastDVDnet: three frames with a noise map each to a correction of the middle one.

    FITVNet's Table 5 prints its layers. FastDVDnet, where it comes from, has the same but for two things: its layers
    are normalised, and the two convolutions whose maps are shuffled to twice the size are bare, where FITVNet has a
    ReLU behind them. Height and width are multiples of 4.
    """

    def __init__(
        self, per_frame: int = 30, widths: tuple[int, int, int] = (32, 64, 128), *, normalised: bool = False
    ) -> None:
        """Build the block.

        Args:
            per_frame: maps that each frame gets for itself first.
            widths: maps at full, half and quarter size.
            normalised: FastDVDnet's way.
        """
        super().__init__()
        layer: Layer = normalised_conv if normalised else conv
        self._normalised = normalised
        full, half, quarter = widths
        self.enc_conv1a = layer(12, 3 * per_frame, groups=3)
        self.enc_conv1b = layer(3 * per_frame, full)
        self.enc_conv1c = layer(full, half, stride=2)
        self.enc_conv2a = layer(half, half)
        self.enc_conv2b = layer(half, half)
        self.enc_conv2c = layer(half, quarter, stride=2)
        self.enc_conv3a = layer(quarter, quarter)
        self.enc_conv3b = layer(quarter, quarter)
        self.dec_conv3a = layer(quarter, quarter)
        self.dec_conv3b = layer(quarter, quarter)
        self.dec_conv3c = conv(quarter, 4 * half, bias=not normalised)
        self.dec_conv2a = layer(half, half)
        self.dec_conv2b = layer(half, half)
        self.dec_conv2c = conv(half, 4 * full, bias=not normalised)
        self.dec_conv1a = layer(full, full)
        self.dec_conv1b = conv(full, 3, bias=not normalised)
        start_small(self, self.dec_conv1b)

    def correction(self, triplet: Tensor) -> Tensor:
        """[N, 12, H, W], frame, map, frame, map, frame, map, oldest first, to [N, 3, H, W]."""
        full = F.relu(self.enc_conv1b(F.relu(self.enc_conv1a(triplet))))
        half = F.relu(self.enc_conv1c(full))
        half = F.relu(self.enc_conv2b(F.relu(self.enc_conv2a(half))))
        quarter = F.relu(self.enc_conv2c(half))
        quarter = F.relu(self.enc_conv3b(F.relu(self.enc_conv3a(quarter))))
        quarter = F.relu(self.dec_conv3b(F.relu(self.dec_conv3a(quarter))))
        up = self._twice(self.dec_conv3c(quarter)) + half
        up = F.relu(self.dec_conv2b(F.relu(self.dec_conv2a(up))))
        up = self._twice(self.dec_conv2c(up)) + full
        correction: Tensor = self.dec_conv1b(F.relu(self.dec_conv1a(up)))
        return correction

    def _twice(self, maps: Tensor) -> Tensor:
        return F.pixel_shuffle(maps if self._normalised else F.relu(maps), 2)


class PooledUNet(nn.Module):
    """The U-Net of networks that predict kernels: runs of 3x3 convolutions, a ReLU behind each.

    Sizes go down by 2x2 means and up bilinearly. Height and width are multiples of 2 to the number of runs down, but
    one. The last run up may stay below full size.
    """

    def __init__(
        self, inputs: int, down: Sequence[int], up: Sequence[int], *, last_run: int = 3, joined: bool = False
    ) -> None:
        """Build the network.

        Args:
            inputs: planes.
            down: maps of each run, full size first.
            up: maps of each run, the one behind the smallest first.
            last_run: convolutions in the last run up; all others have 3.
            joined: what a run down gave is joined to what the run up reads; else, where they are as many maps, it is
                added behind that run's first convolution.
        """
        super().__init__()
        self._joined = joined
        skipped = tuple(reversed(down))[1:]
        runs_down, runs_up = [], []
        for maps in down:
            runs_down.append(_run(inputs, maps, 3))
            inputs = maps
        for index, maps in enumerate(up):
            inputs += skipped[index] if joined else 0
            runs_up.append(_run(inputs, maps, last_run if index == len(up) - 1 else 3))
            inputs = maps
        self.down, self.up = nn.ModuleList(runs_down), nn.ModuleList(runs_up)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # as in `start_small`
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, planes: Tensor) -> Tensor:
        met: list[Tensor] = []
        maps = planes
        for run in self.down:
            maps = run(F.avg_pool2d(maps, 2) if met else maps)
            met.append(maps)
        for run, skipped in zip(self.up, reversed(met[:-1]), strict=False):
            maps = F.interpolate(maps, scale_factor=2.0, mode="bilinear")
            if self._joined:
                maps = run(torch.cat([maps, skipped], 1))
                continue
            assert isinstance(run, nn.Sequential)
            first, *rest = run.children()
            maps = first(maps)
            if maps.shape[1] == skipped.shape[1]:
                maps = maps + skipped
            for layer in rest:
                maps = layer(maps)
        return maps


def _run(inputs: int, outputs: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(_relu_conv(inputs if index == 0 else outputs, outputs) for index in range(layers)))


def _relu_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs), nn.ReLU(inplace=True))
