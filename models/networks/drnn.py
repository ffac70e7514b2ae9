"""How the deep recurrent network is wired: stacked tanh layers over the patches of a frame, each with a memory.

Source: Chen, Song, Yang, "Deep RNNs for video denoising", 2016, as far as its public text tells: equations (1), (2) and
the stacked form behind them, two layers, patches at stride 3 whose overlaps are averaged, pixels normalised to
(x - 0.5) / 0.2, weights uniform within 1 / sqrt(n), n the size of the layer before. Sizes are not told.

Where the paper leaves a choice, this file makes it:

* Patches are 9x9 pixels in three colours, layers 288 wide. Patches begin one stride outside the frame, where its edge
  pixels are repeated, so that a corner is in four of them and not in one.
* All patches of a frame go through the same, so it is a convolution: W_hx of 9x9 at stride 3, the other matrices of
  1x1 over the grid of patches. Patches are put back as nine shifted sums, one for each third of their sides.
* The paper has no connection from input to output, and neither has this network: before training it gives grey.

The network is causal: y(t) knows the frames up to t. `step` runs it as the paper's equations stand, over a clip of any
length with the state carried on. A service that cuts videos into parts wants a part's frames to be those of the
undivided run, so what it runs is the window: from an empty state over three frames before and the frame itself. That
costs what the state would still know of earlier frames, and the first three steps once for every frame: 4 times the
work of `step`. The three frames behind the middle of the window are there to make it the middle; they are not read.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, SPREAD = 0.5, 0.2
PATCH_PX, STRIDE_PX = 9, 3
WINDOW = 7  # frames; as many steps are taken as lead to its middle
THIRDS = PATCH_PX // STRIDE_PX  # a patch is 3x3 blocks of 3x3 pixels; each block is shared with eight neighbours
BLOCK_SIZE = 3 * STRIDE_PX**2  # colour by colour, row by row
PATCH_SIZE = THIRDS**2 * BLOCK_SIZE  # block column by block column, each from the top

State = tuple[Tensor, ...]  # [N, width, rows, columns] of each layer, over the grid of patches


class DRNN(nn.Module):
    """Equations (1) and (2), `layers` deep. Height and width are multiples of 3."""

    def __init__(self, width: int = 288, layers: int = 2) -> None:
        super().__init__()
        self.from_input = nn.Conv2d(3, width, PATCH_PX, stride=STRIDE_PX)  # W_hx, b_h
        self.from_below = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(layers - 1))
        self.from_before = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(layers))  # W_hh
        self.output = nn.Conv2d(width, PATCH_SIZE, 1)  # W_yh, b_y
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                bound = 1 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.weight, -bound, bound)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """Restore the middle frame of every window, from an empty state.

        Args:
            noisy: [N, 21, H, W], seven RGB frames in [0, 1], oldest first; H and W multiples of 3.
            _sigma: ignored: it is blind.

        Returns:
            [N, 3, H, W], not clamped.
        """
        state: State | None = None
        for t in range(WINDOW // 2 + 1):
            state = self._after(self._read(noisy[:, 3 * t : 3 * t + 3]), state)
        assert state is not None
        return placed(self.output(state[-1]))

    def step(self, frame: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Restore the next frame of a stream.

        Args:
            frame: [N, 3, H, W], RGB in [0, 1].
            state: what the step before gave; None at the beginning.

        Returns:
            [N, 3, H, W], not clamped, and the state to go on with.
        """
        state = self._after(self._read(frame), state)
        return placed(self.output(state[-1])), state

    def cubes(self, noisy: Tensor) -> Tensor:
        """What training compares: patches side by side, each followed through the clip from an empty state.

        Args:
            noisy: [N, T, 3, H, W], H and W at least 9.

        Returns:
            [N, T, 243, H // 9, W // 9], normalised like the input of the network.
        """
        state: State | None = None
        restored = []
        for frame in noisy.unbind(1):
            weight, bias = self.from_input.weight, self.from_input.bias
            state = self._after(F.conv2d(_normalised(frame), weight, bias, stride=PATCH_PX), state)
            restored.append(self.output(state[-1]))
        return torch.stack(restored, 1)

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage, over a window."""
        return (self,)

    def _read(self, frame: Tensor) -> Tensor:
        patches: Tensor = self.from_input(F.pad(_normalised(frame), (STRIDE_PX,) * 4, "replicate"))
        return patches

    def _after(self, given: Tensor, before: State | None) -> State:
        """One time step of all layers; `given` is the input's share in the lowest."""
        state = []
        for index, memory in enumerate(self.from_before):
            if before is not None:
                given = given + memory(before[index])
            state.append(torch.tanh(given))
            if index < len(self.from_below):
                given = self.from_below[index](state[-1])
        return tuple(state)


def placed(patches: Tensor) -> Tensor:
    """Every patch where the frame had it, averaged where they overlap.

    Args:
        patches: [N, 243, H / 3, W / 3], normalised; the first reaches from three pixels before the frame to its sixth.

    Returns:
        [N, 3, H, W] on the scale of the frame.
    """
    total = _shifted(F.pad(patches, (1, 1, 1, 1)), -1)
    total = _shifted(total, -2)
    overlaps = THIRDS**2 * F.avg_pool2d(
        torch.ones_like(patches[:1, :1]), THIRDS, stride=1, padding=1
    )  # 9; 6, 4 outside
    return F.pixel_shuffle(total / overlaps, STRIDE_PX) * SPREAD + MEAN


def _shifted(blocks: Tensor, axis: int) -> Tensor:
    """Of each patch its three blocks along an axis, laid where they belong and added up.

    Args:
        blocks: planes of the first, the second and the third block of each patch, with a margin of one along the axis.
    """
    length = blocks.shape[axis] - 2
    thirds = blocks.chunk(THIRDS, 1)
    moved = [part.narrow(axis, THIRDS - 1 - index, length) for index, part in enumerate(thirds)]
    return moved[0] + moved[1] + moved[2]


def patches_of(clip: Tensor) -> Tensor:
    """[N, T, 3, H, W] to its patches side by side, normalised: [N, T, 243, H // 9, W // 9]."""
    count, frames, _, height, width = clip.shape
    rows, columns = height // PATCH_PX, width // PATCH_PX
    cut = _normalised(clip)[..., : rows * PATCH_PX, : columns * PATCH_PX]
    blocks = F.pixel_unshuffle(cut.flatten(0, 1), STRIDE_PX)  # [N*T, 27, 3 * rows, 3 * columns]
    blocks = blocks.view(count, frames, BLOCK_SIZE, rows, THIRDS, columns, THIRDS)
    return blocks.permute(0, 1, 6, 4, 2, 3, 5).reshape(count, frames, PATCH_SIZE, rows, columns)


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels - MEAN) / SPREAD
