"""How PRIDNet is wired: channel attention, a pyramid of U-Nets, and a choice between kernel sizes.

Source: Zhao, Jiang, Dong, Feng, "Pyramid real image denoising network", 2019, arXiv:1908.00273, Figures 1 to 4, and
Dave, "Image de-noising using deep learning", 2021, section 7, who builds it with five U-Nets of five scales.

Where the paper leaves a choice, this file makes it:

* The five U-Nets do not share weights. At the paper's widths they are 74 million parameters: `pridnet.paper`. The
  shipped network is narrower, and its two coarsest U-Nets have four and three scales instead of five: behind a pooling
  by 16, five scales need sides that are multiples of 256, and their deepest pixel would look at nothing else.
* The convolutions of the kernel-selecting module have no activation: what follows them weighs and adds.
* Nothing is added to the input (the paper has no global connection), but training starts there: the input is among the
  planes that the last two modules join, and they begin by handing it on.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.2
REDUCTIONS = (1, 2, 4, 8, 16)  # Figure 3: what the picture is average-pooled by
KERNELS_PX = (3, 5, 7)  # Figure 4
ATTENTION_WIDTH = 2  # of the bottleneck of both attentions' first fully connected layer: 32 to 2, 21 to 4
SELECTION_WIDTH = 4


class PRIDNet(nn.Module):
    """One frame in, the same frame with less noise out. Height and width are multiples of `multiple`."""

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128, 256, 512),
        scales: tuple[int, ...] = (5, 5, 5, 5, 5),
        channels: int = 3,
    ) -> None:
        """
        Args:
            widths: maps of a U-Net's scales, the finest first.
            scales: how many of them each of the five U-Nets has, the one over the full picture first.
            channels: planes of the picture.
        """
        super().__init__()
        self.multiple = max(pooled * 2 ** (count - 1) for pooled, count in zip(REDUCTIONS, scales, strict=True))
        self.estimation = NoiseEstimation(channels)
        self.pyramid = nn.ModuleList(UNet(2 * channels, channels, widths[:count]) for count in scales)
        joined = 2 * channels + len(scales) * channels
        self.selection = KernelSelection(joined)
        self.last = nn.Conv2d(joined, channels, 3, padding=1)
        self._start_as_identity(channels)

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not clamped."""
        seen = torch.cat([noisy, self.estimation(noisy)], 1)
        views = [seen]
        for pooled, unet in zip(REDUCTIONS, self.pyramid, strict=True):
            if pooled == 1:
                views.append(unet(seen))
                continue
            small = unet(F.avg_pool2d(seen, pooled))
            views.append(F.interpolate(small, scale_factor=float(pooled), mode="bilinear", align_corners=False))
        restored: Tensor = self.last(self.selection(torch.cat(views, 1)))
        return restored

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage."""
        return (self,)

    def _start_as_identity(self, channels: int) -> None:
        with torch.no_grad():
            for layer in (*self.selection.branches, self.last):
                assert isinstance(layer, nn.Conv2d)
                assert layer.bias is not None
                layer.weight.mul_(0.1)
                layer.bias.zero_()
                middle = layer.kernel_size[0] // 2
                for plane in range(channels):
                    layer.weight[plane] = 0
                    layer.weight[plane, plane, middle, middle] = 1


class NoiseEstimation(nn.Module):
    """Figure 2: four convolutions, their maps weighed by channel attention, and one to as many planes as came in."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(channels if index == 0 else width, width, 3, padding=1) for index in range(4)
        )
        self.squeeze = _squeeze(width, ATTENTION_WIDTH)
        self.excite = nn.Conv2d(ATTENTION_WIDTH, width, 1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noisy: Tensor) -> Tensor:
        """[N, C, H, W] to as many."""
        maps = noisy
        for layer in self.layers:
            maps = F.leaky_relu(layer(maps), LEAKY_SLOPE)
        attention = torch.sigmoid(self.excite(F.relu(self.squeeze(maps.mean((2, 3), keepdim=True)))))
        noise: Tensor = self.last(maps * attention)
        return noise


class UNet(nn.Module):
    """Four convolutions a scale on the way down, three on the way up, and a last one of 1x1."""

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        for scale, width in enumerate(widths):
            before = widths[scale - 1] if scale else inputs
            self.down.append(_convolutions(4, before, width))
        self.up = nn.ModuleList()
        self.joined = nn.ModuleList()
        for deeper, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.append(nn.ConvTranspose2d(deeper, width, 2, stride=2))
            self.joined.append(_convolutions(3, 2 * width, width))
        self.last = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]; H and W multiples of 2 to the number of scales less one."""
        skips: list[Tensor] = []
        for convolutions in self.down:
            if skips:
                maps = F.max_pool2d(maps, 2)
            maps = convolutions(maps)
            skips.append(maps)
        skips.pop()
        for up, convolutions in zip(self.up, self.joined, strict=True):
            maps = convolutions(torch.cat([up(maps), skips.pop()], 1))
        planes: Tensor = self.last(maps)
        return planes


class KernelSelection(nn.Module):
    """Figure 4: convolutions of three sizes, of which each channel takes its own mixture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(channels, channels, size, padding=size // 2) for size in KERNELS_PX)
        self.squeeze = _squeeze(channels, SELECTION_WIDTH)
        self.select = nn.ModuleList(nn.Conv2d(SELECTION_WIDTH, channels, 1) for _ in KERNELS_PX)

    def forward(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] to as many."""
        views = [branch(maps) for branch in self.branches]
        squeezed = F.relu(self.squeeze(torch.stack(views).sum(0).mean((2, 3), keepdim=True)))
        votes = torch.stack([vote(squeezed) for vote in self.select]).softmax(0)
        return sum((view * vote for view, vote in zip(views, votes.unbind(), strict=True)), torch.zeros(()))


def _squeeze(inputs: int, outputs: int) -> nn.Conv2d:
    """A fully connected layer, over maps of one pixel. So few outputs might all start in their ReLU's dead half."""
    layer = nn.Conv2d(inputs, outputs, 1)
    assert layer.bias is not None
    nn.init.ones_(layer.bias)
    return layer


def _convolutions(count: int, inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(count):
        layer = nn.Conv2d(inputs if index == 0 else outputs, outputs, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
