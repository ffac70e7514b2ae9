"""How FastDVDnet is wired: the same small U-Net twice, each over three frames and a map that tells the noise level.

Source: Tassano, Delon, Veit, "FastDVDnet: towards real-time deep video denoising without flow estimation", 2020,
arXiv:1907.01361, section 3 and figure 2; what follows which layer, and 2.479 million parameters, as the authors'
release has it. FITVNet's Table 5 prints the layers of the block.

Where the paper leaves a choice, or is left, this file says so:

* The paper's widths (30 maps a frame; 32, 64, 128) are `fastdvdnet.paper`: 318 thousand multiply-accumulates a pixel.
  `fastdvdnet` has about three quarters of each (24; 24, 48, 96), which is 183 thousand.
* The noise map is one number everywhere, so each block makes it from `sigma` by itself, and only pictures pass between
  the two. In the paper the map is an input that a user might vary over the frame.
* The last convolution of each block starts at zero, and with it the network at the identity; all others start as
  Kaiming's, like the paper's.
"""

import torch
from torch import Tensor, nn

from models.networks.blocks import TripletUNet, folded

PAPER_WIDTHS = (30, 32, 64, 128)  # maps a frame; maps at full, half and quarter size


class DenoisingBlock(TripletUNet):
    """Three frames and their noise level in, the middle frame out. Height and width are multiples of 4."""

    def __init__(self, per_frame: int, full: int, half: int, quarter: int) -> None:
        super().__init__(per_frame, (full, half, quarter), normalised=True)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Restore the middle frame.

        Args:
            noisy: [N, 9, H, W], three RGB frames, oldest first; H and W multiples of 4.
            sigma: [N], noise level of the frames that the cascade began with.

        Returns:
            [N, 3, H, W], not clamped: the middle frame less the noise that was found in it.
        """
        level = sigma[:, None, None, None].expand(-1, -1, noisy.shape[2], noisy.shape[3])
        oldest, middle, newest = noisy[:, :3], noisy[:, 3:6], noisy[:, 6:]
        noise = self.correction(torch.cat([oldest, level, middle, level, newest, level], 1))
        return middle - noise


class FastDVDnet(nn.Module):
    """Figure 2: five noisy frames in, the middle one restored out. Height and width are multiples of 4.

    Within the first step the block is the same for all three triplets; the second step's has weights of its own. A
    stream runs each once a frame, where this forward runs the first three times.
    """

    def __init__(self, widths: tuple[int, int, int, int] = PAPER_WIDTHS) -> None:
        super().__init__()
        self.first = DenoisingBlock(*widths)
        self.second = DenoisingBlock(*widths)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Restore the middle frame of every window.

        Args:
            noisy: [N, 15, H, W], five RGB frames in [0, 1], oldest first, H and W multiples of 4.
            sigma: [N], their noise level.

        Returns:
            [N, 3, H, W], not clamped.
        """
        middle = [self.first(noisy[:, 3 * t : 3 * t + 9], sigma) for t in range(3)]
        restored: Tensor = self.second(torch.cat(middle, 1), sigma)
        return restored

    def stages(self) -> tuple[nn.Module, ...]:
        """The cascade as the catalogue names it, for inference: first (3 frames), second (3 of its results)."""
        return folded(self.first), folded(self.second)
