"""How KPN is wired: for every pixel, the weights of the pixels around it in each frame, on a rigid grid.

Source: Mildenhall et al., "Burst denoising with kernel prediction networks", 2018; for one picture and with kernels of
5x5 and 7x7, Xu, Li, Sun, "Learning deformable kernels for image and video denoising", 2019, Tables 2 and 3, whose
baseline it is. A U-Net ends in the weights of a kernel for each pixel of each frame; the restored pixel is the sum of
the pixels so weighted.

Where the papers leave a choice, this file makes it:

* They restore grey pictures in linear light. As in `deform.py`, so does the paper's width, colour by colour, and the
  narrow networks take encoded colours together, with kernels for each of three planes: their mean and two differences.
* The U-Net ends at half size; the maps are then enlarged bilinearly, and a last convolution without ReLU makes the
  weights. At the paper's width that run has as many maps as there are weights.
* A mean over frames of what each gives, as printed, is a sum over all with weights that are so much smaller. With
  what they start at, as in `deform.py`, KPN starts as a blur.
* What lies beyond the frame is 0.
* All of ours are blind; the paper tells its network the noise level.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import PooledUNet, conv, start_small
from models.networks.light import from_opponent, to_linear, to_opponent, to_srgb

# The paper has (64, 128, 256, 512, 512) and (512, 256).
NARROW_DOWN, NARROW_UP = (16, 32, 64, 96, 96), (96, 64, 48)


class KPN(nn.Module):
    """Kernels of `side` times `side` for each of one frame or several; height and width are multiples of 16."""

    def __init__(
        self,
        *,
        side: int = 5,
        frames: int = 1,
        linear: bool = False,
        plane_by_plane: bool = False,
        down: Sequence[int] = NARROW_DOWN,
        up: Sequence[int] = NARROW_UP,
    ) -> None:
        """Build the network.

        Args:
            side: of the kernels.
            frames: of the window.
            linear: average in linear light.
            plane_by_plane: restore the colours one after the other, as grey pictures.
            down: maps of the U-Net's runs, full size first.
            up: likewise; the last is at half size. If it is not given, it has as many maps as there are weights.
        """
        super().__init__()
        self._side, self._frames, self._linear, self._plane_by_plane = side, frames, linear, plane_by_plane
        planes = 1 if plane_by_plane else 3
        weights = planes * frames * side**2
        widths = [*up, weights] if len(up) == len(down) - 3 else up
        self.features = PooledUNet(planes * frames, down, widths, joined=True)
        self.weights = conv(widths[-1], weights)
        start_small(self.weights, self.weights)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Restore the middle frame of every window.

        Args:
            noisy: [N, T*3, H, W], RGB in [0, 1], oldest frame first, H and W multiples of 16.
            sigma: [N], ignored.

        Returns:
            [N, 3, H, W], not clamped.
        """
        return self.by_group(noisy, sigma)[0]

    def by_group(self, noisy: Tensor, _sigma: Tensor, *, fixed: bool = True) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The mean over the frames, and what each frame gives alone, of which the annealed loss is made.

        Returns:
            [N, 3, H, W] and [N, T, 3, H, W].
        """
        clip = torch.unflatten(noisy.float(), 1, (self._frames, 3))
        if self._linear:
            clip = to_linear(clip)
        if self._plane_by_plane:
            groups = torch.cat([self._filtered(clip[:, :, plane : plane + 1]) for plane in range(3)], 2)
        else:
            groups = from_opponent(self._filtered(to_opponent(clip)))
        restored, groups = groups.sum(1), self._frames * groups
        return (to_srgb(restored), to_srgb(groups)) if self._linear else (restored, groups)

    def begin_as(self, single: Mapping[str, Tensor]) -> None:
        """Become the network of one frame with these weights.

        Its kernels lie in the middle of this one's, in the middle frame; all around is nothing.

        Args:
            single: of a network with the same maps, and kernels no larger.

        Raises:
            ValueError: they are of another network.
        """
        for name, value in self.state_dict().items():
            if name not in single:
                raise ValueError(f"the weights of one frame have no {name}")
            given = single[name].to(value)
            if name.startswith("weights."):
                given = self._widened(name, value, given)
            elif given.ndim == 4 and given.shape[1] * self._frames == value.shape[1]:
                spread = torch.unflatten(torch.zeros_like(value), 1, (self._frames, given.shape[1]))
                spread[:, self._frames // 2] = given
                given = spread.flatten(1, 2)
            if given.shape != value.shape:
                raise ValueError(f"{name} is {tuple(given.shape)} of one frame; {tuple(value.shape)} was wanted")
            value.copy_(given)

    def _widened(self, name: str, value: Tensor, given: Tensor) -> Tensor:
        """What makes the kernels of a smaller network, as part of what makes these; as it is where that cannot be."""
        planes = 1 if self._plane_by_plane else 3
        side = math.isqrt(len(given) // planes)
        edge = (self._side - side) // 2
        if side**2 * planes != len(given) or side + 2 * edge != self._side or edge < 0:
            return given
        spread = value.new_zeros(self._side, self._side, self._frames, planes, *given.shape[1:])
        inside = spread[edge : edge + side, edge : edge + side, self._frames // 2]
        # Of what the weights start at, each network has as much as it has pixels to weigh.
        count, before = self._frames * self._side**2, side**2
        if name.endswith("bias"):
            spread -= count**-0.5
            inside += count**0.5 / before
        inside += (count / before) ** 0.5 * given.view_as(inside)
        return spread.flatten(0, 3)

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage: all of it."""
        return (self,)

    def _filtered(self, clip: Tensor) -> Tensor:
        """[N, T, C, H, W] to the same: each frame's pixels around a place, weighted and summed."""
        frames, planes, height, width = clip.shape[1:]
        maps = F.interpolate(self.features(clip.flatten(1, 2)), scale_factor=2.0, mode="bilinear")
        taps = self._side**2
        count = frames * taps
        weights = 1 / count + self.weights(maps).float() / count**0.5
        around = F.pad(clip.flatten(1, 2), [self._side // 2] * 4)
        # A tap at a time: together they would be as many planes as there are weights.
        sums = torch.zeros_like(clip.flatten(1, 2))
        for tap, share in enumerate(torch.split(weights, frames * planes, 1)):
            down, across = divmod(tap, self._side)
            sums = sums + share * around[:, :, down : down + height, across : across + width]
        return torch.unflatten(sums, 1, (frames, planes))
