"""How FITVNet is wired: a spatial U-Net per frame, then two U-Nets over three frames each.

Source: Wang, Zhou, Cheng, "First image then video: a two-stage network for spatiotemporal video denoising", 2020,
Table 6 (spatial module), Table 5 (spatiotemporal block), Figure 3 (how they are joined).

Where the paper leaves a choice, this file makes it:

* Table 6 strides four times (1b, 3a, 4b, 6) and upsamples five times. Every stride and every skip is kept as printed;
  it is `Dec_Upsample2` that goes, for the maps it joins (`Dec_Conv3b` and `Enc_Conv1b`) are already of one size.
* Section 6.1 puts a ReLU behind every convolution. `Dec_Conv1b` of Table 5 has none: what it yields is added to the
  reference frame, and a correction must be able to be negative.
* Table 5 takes "three frames with noise map" and says no more of the map, and the network is to be blind. The map is
  made inside: what the spatial module took out of each pixel, signed, as a mean over the colours. It tells the level
  of the noise and where it is, and what the spatial module took for noise can be won back.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import TripletUNet, conv

LEAKY_SLOPE = 0.1  # Table 6, Dec_Conv0


class SpatialModule(nn.Module):
    """Table 6: one frame in, the same frame with less noise out. Height and width are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_conv0 = conv(3, 48)
        self.enc_conv1a = conv(48, 48)
        self.enc_conv1b = conv(48, 48, stride=2)
        self.enc_conv2a = conv(48, 48)
        self.enc_conv2b = conv(48, 48)
        self.enc_conv3a = conv(48, 48, stride=2)
        self.enc_conv3b = conv(48, 48)
        self.enc_conv4a = conv(48, 48)
        self.enc_conv4b = conv(48, 48, stride=2)
        self.enc_conv5a = conv(48, 48)
        self.enc_conv5b = conv(48, 48)
        self.enc_conv6 = conv(48, 48, stride=2)
        self.dec_conv5a = conv(48 + 48, 96)
        self.dec_conv5b = conv(96, 96)
        self.dec_conv4a = conv(96 + 48, 96)
        self.dec_conv4b = conv(96, 96)
        self.dec_conv3a = conv(96 + 48, 96)
        self.dec_conv3b = conv(96, 96)
        self.dec_conv2a = conv(96 + 48, 96)
        self.dec_conv2b = conv(96, 96)
        self.dec_conv1a = conv(96 + 3, 64)  # both rows are printed "Dec_Conv11"
        self.dec_conv1b = conv(64, 32)
        self.dec_conv0 = conv(32, 3)
        self._start_as_identity()

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """Restore frames one by one.

        Args:
            noisy: [N, 3, H, W], RGB in [0, 1], H and W multiples of 16.
            _sigma: ignored, as in all of FITVNet: it is blind.

        Returns:
            [N, 3, H, W], not clamped.
        """
        half = F.relu(self.enc_conv0(noisy))
        half = F.relu(self.enc_conv1a(half))
        half = F.relu(self.enc_conv1b(half))  # 1/2
        half_deep = F.relu(self.enc_conv2b(F.relu(self.enc_conv2a(half))))  # 1/2
        quarter = F.relu(self.enc_conv3b(F.relu(self.enc_conv3a(half_deep))))  # 1/4
        eighth = F.relu(self.enc_conv4b(F.relu(self.enc_conv4a(quarter))))  # 1/8
        deepest = F.relu(self.enc_conv5b(F.relu(self.enc_conv5a(eighth))))  # 1/8
        deepest = F.relu(self.enc_conv6(deepest))  # 1/16

        up = torch.cat([twice(deepest), eighth], 1)  # 1/8
        up = F.relu(self.dec_conv5b(F.relu(self.dec_conv5a(up))))
        up = torch.cat([twice(up), quarter], 1)  # 1/4
        up = F.relu(self.dec_conv4b(F.relu(self.dec_conv4a(up))))
        up = torch.cat([twice(up), half_deep], 1)  # 1/2
        up = F.relu(self.dec_conv3b(F.relu(self.dec_conv3a(up))))
        up = torch.cat([up, half], 1)  # 1/2 already: the upsampling that is one too many
        up = F.relu(self.dec_conv2b(F.relu(self.dec_conv2a(up))))
        up = torch.cat([twice(up), noisy], 1)  # 1
        up = F.relu(self.dec_conv1b(F.relu(self.dec_conv1a(up))))
        return F.leaky_relu(self.dec_conv0(up), LEAKY_SLOPE)

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage: the restored frame with its noise map, whether or not a block follows."""
        return (SpatialStage(self),)

    def _start_as_identity(self) -> None:
        """Let the three input planes that `Dec_Concat1` brings in reach the output unchanged before training.

        The network then learns a correction, which is zero at first, as residual networks do, without a connection that
        Table 6 does not have. The offset keeps pixels that noise has made negative out of the ReLU's dead half.
        """
        offset = 0.5
        with torch.no_grad():
            for layer, first_input in ((self.dec_conv1a, 96), (self.dec_conv1b, 0), (self.dec_conv0, 0)):
                for plane in range(3):
                    layer.weight[plane] = 0
                    layer.weight[plane, first_input + plane, 1, 1] = 1
                _bias(layer)[:3] = 0
            _bias(self.dec_conv1a)[:3] = offset
            _bias(self.dec_conv0)[:3] = -offset


class SpatiotemporalBlock(TripletUNet):
    """Table 5: three frames and their noise maps in, the middle frame out. Height and width are multiples of 4."""

    def forward(self, triplet: Tensor, _sigma: Tensor) -> Tensor:
        """Restore the middle frame.

        Args:
            triplet: [N, 12, H, W]: frame, map, frame, map, frame, map, oldest first; H and W multiples of 4.
            _sigma: ignored.

        Returns:
            [N, 3, H, W], not clamped.
        """
        return self.correction(triplet) + triplet[:, 4:7]


class SpatialStage(nn.Module):
    """The spatial module, with the noise map that the blocks behind it want beside each frame."""

    def __init__(self, spatial: SpatialModule) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """[N, 3, H, W] noisy to [N, 4, H, W]: the restored frame and its noise map."""
        restored = self.spatial(noisy, sigma)
        return torch.cat([restored, noise_map(noisy, restored)], 1)


class BlockStage(nn.Module):
    """A spatiotemporal block that hands the middle frame's noise map on to the next."""

    def __init__(self, block: SpatiotemporalBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """[N, 12, H, W] triplet to [N, 4, H, W]: the middle frame and its noise map."""
        return torch.cat([self.block(noisy, sigma), noisy[:, 7:8]], 1)


class FITVNet(nn.Module):
    """Figure 3: five noisy frames in, the middle one restored out. Height and width are multiples of 16.

    `stages` holds the same graph cut where it can be shared between neighbouring windows: a stream runs each stage once
    a frame, where this forward runs the spatial module five times and the first block three times.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spatial = SpatialModule()
        self.first = SpatiotemporalBlock()
        self.second = SpatiotemporalBlock()

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Restore the middle frame of every window.

        Args:
            noisy: [N, 15, H, W], five RGB frames in [0, 1], oldest first, H and W multiples of 16.
            sigma: [N], ignored.

        Returns:
            [N, 3, H, W], not clamped.
        """
        spatial, first, second = self.stages()
        frames = [spatial(noisy[:, 3 * t : 3 * t + 3], sigma) for t in range(5)]
        middle = [first(torch.cat(frames[t : t + 3], 1), sigma) for t in range(3)]
        restored: Tensor = second(torch.cat(middle, 1), sigma)
        return restored

    def stages(self) -> tuple[nn.Module, ...]:
        """The cascade as the catalogue names it: spatial (1 frame), first (3 frames), second (3 frames)."""
        return SpatialStage(self.spatial), BlockStage(self.first), self.second


def noise_map(noisy: Tensor, restored: Tensor) -> Tensor:
    """What was taken out of each pixel, signed, as a mean over three planes: [N, 1, H, W]."""
    return (noisy - restored).mean(1, keepdim=True)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def twice(maps: Tensor) -> Tensor:
    """Upsample 2x2 by repetition, as Noise2Noise's network does."""
    return F.interpolate(maps, scale_factor=2.0, mode="nearest")
