"""How the deformable kernels are wired: for every pixel, which pixels to average, and with which weights.

Source: Xu, Li, Sun, "Learning deformable kernels for image and video denoising", 2019, Figure 3 (how the parts are
joined), Figure 4b (the offset network), Table 1 (its maps), equations (1) to (7).

A U-Net says for every pixel where its N samples lie, as offsets from a regular grid; three convolutions over samples,
noisy input and the U-Net's last maps say how much each sample counts; the restored pixel is their sum.

Where the paper leaves a choice, this file makes it:

* The paper is about grey pictures and does colour plane by plane (appendix B). The paper's width does just that. The
  narrow networks read the three colours together and have one grid for them, but weights for each of three planes:
  their mean and two differences, orthonormal, so that colour may be averaged more widely than brightness.
* All convolutions have stride 1 and sizes are not printed: pictures shrink by 2x2 means and grow bilinearly, as in KPN.
* Skips are sums "between congruent layers": behind the first convolution of each block on the way up, where the widths
  agree. At full size Table 1 has 64 and 128 maps, so there is none; noisy input and samples come in there anyway.
* Tanh gives offsets that are "normalized", to what is not said: here to `REACH_PX`, up to where the paper saw its
  samples, and in time to as many frames as there are on either side. The tanh is stretched as much the other way, and
  weights are 1 / N more than what their convolution gives over the root of N: offsets start at 0, at the regular grid,
  and a step of the optimizer moves both by little. Without that, Adam at 2e-3 diverged.
* The paper averages in linear light and compares encoded pixels. A service hands in and wants encoded ones, so at the
  paper's width the network takes them there and back. The narrow networks average encoded pixels, of noise that was
  made in linear light: after 400 steps of `deform2d` that was better by 1.1 dB on Gaussian noise of level 25, which is
  not biased there, and on the weaker noise of Table 2, by 0.4 on the stronger (21 November 2026).
* The noise level, where it is told, is one more plane for each plane of the picture: the standard deviation at each
  pixel of the reference frame, on the scale that is averaged on; the slope of the curve takes it to linear light.
* The samples of a 3D kernel are grouped by where they start in time: s = 3.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.networks.blocks import PooledUNet, conv, start_small
from models.networks.light import from_opponent, linear_slope, to_linear, to_opponent, to_srgb
from models.networks.sampling import sample_clip, sample_picture

Widths = tuple[tuple[int, ...], tuple[int, ...]]

# Table 1 has (64, 128, 256, 512, 512), (512, 256, 128, 128) and 64.
NARROW_WIDTHS: Widths = (16, 32, 64, 96, 96), (96, 64, 32, 32)
NARROW_WEIGHT_WIDTH = 32
REACH_PX = 15.0


class DeformableKernels(nn.Module):
    """Kernels of `grid` samples over one frame or several; height and width are multiples of 16."""

    def __init__(
        self,
        *,
        grid: tuple[int, int, int],
        frames: int = 1,
        told: bool = False,
        linear: bool = False,
        plane_by_plane: bool = False,
        widths: Widths = NARROW_WIDTHS,
        weight_width: int = NARROW_WEIGHT_WIDTH,
    ) -> None:
        """Build the network.

        Args:
            grid: how many samples lie along time, down and across before they are moved.
            frames: of the window.
            told: the noise level, as planes beside the frames.
            linear: average in linear light.
            plane_by_plane: restore the colours one after the other, as grey pictures.
            widths: maps of the U-Net's blocks, down and up.
            weight_width: maps of the convolutions that make the weights.
        """
        super().__init__()
        self._frames, self._told, self._linear, self._plane_by_plane = frames, told, linear, plane_by_plane
        self._groups = grid[0]
        planes = 1 if plane_by_plane else 3
        inputs = planes * (frames + told)
        axes = 3 if frames > 1 else 2
        points = torch.cartesian_prod(*(torch.arange(count) - (count - 1) / 2 for count in grid)).view(-1, 3)
        self.points: Tensor
        self.register_buffer("points", points.T[:, :, None, None], persistent=False)  # time, row, column of each sample
        self.features = PooledUNet(inputs, *widths, last_run=2)
        self.offsets = conv(widths[1][-1], axes * len(points))
        self.weights = nn.Sequential(
            conv(planes * len(points) + inputs + widths[1][-1], weight_width),
            nn.ReLU(inplace=True),
            conv(weight_width, weight_width),
            nn.ReLU(inplace=True),
            conv(weight_width, planes * len(points)),
        )
        self._start_at_the_mean()

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Restore the middle frame of every window.

        Args:
            noisy: [N, T*3, H, W], RGB in [0, 1], oldest frame first, H and W multiples of 16.
            sigma: [N], or [N, 3, H, W] where it is known of every pixel; ignored unless the network is told.

        Returns:
            [N, 3, H, W], not clamped.
        """
        return self.by_group(noisy, sigma)[0]

    def by_group(self, noisy: Tensor, sigma: Tensor, *, fixed: bool = False) -> tuple[Tensor, Tensor]:
        """What the whole kernel gives, equation (6), and what each group of its samples gives alone, equation (10).

        Args:
            noisy: as for `forward`.
            sigma: as for `forward`.
            fixed: do not teach the offsets; as they start at 0, the grid stays regular.

        Returns:
            [N, 3, H, W] and [N, s, 3, H, W].
        """
        clip = torch.unflatten(noisy.float(), 1, (self._frames, 3))
        level = None
        if self._told:
            reference = clip[:, self._frames // 2]
            level = (sigma if sigma.ndim > 1 else sigma[:, None, None, None]).float().expand_as(reference)
            level = level * linear_slope(reference.clamp(0, 1)) if self._linear else level
        if self._linear:
            clip = to_linear(clip)
        if self._plane_by_plane:
            levels = [None] * 3 if level is None else [level[:, index : index + 1] for index in range(3)]
            planes = [self._filtered(clip[:, :, index : index + 1], levels[index], fixed) for index in range(3)]
            groups = torch.cat(planes, 2)
        else:
            groups = from_opponent(self._filtered(to_opponent(clip), level, fixed))
        restored, groups = groups.sum(1), self._groups * groups
        return (to_srgb(restored), to_srgb(groups)) if self._linear else (restored, groups)

    def begin_as(self, blind: Mapping[str, Tensor]) -> None:
        """Become the network that is not told the noise level, with these weights: what it is told counts nothing yet.

        Args:
            blind: of a network with the same frames, grid and maps.

        Raises:
            ValueError: they are of another network.
        """
        planes = 1 if self._plane_by_plane else 3
        told_of = {"features.down.0.0.0.weight": planes * self._frames}
        told_of["weights.0.weight"] = planes * self.points.shape[1] + planes * self._frames
        for name, value in self.state_dict().items():
            if name not in blind:
                raise ValueError(f"the weights of the blind network have no {name}")
            given = blind[name].to(value)
            if self._told and name in told_of:
                before, after = given.tensor_split([told_of[name]], 1)
                given = torch.cat([before, torch.zeros_like(value[:, :planes]), after], 1)
            if given.shape != value.shape:
                raise ValueError(f"{name} is {tuple(given.shape)} with what is told; {tuple(value.shape)} was wanted")
            value.copy_(given)

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage: all of it. Neighbouring windows share nothing but frames."""
        return (self,)

    def _filtered(self, clip: Tensor, level: Tensor | None, fixed: bool) -> Tensor:
        """[N, T, C, H, W] and the level there to [N, s, C, H, W], the sum of each group."""
        given = clip.flatten(1, 2)
        if level is not None:
            given = torch.cat([given, level], 1)
        features = self.features(given)
        offsets = self.offsets(features)
        samples = self._sample(clip, offsets.detach() if fixed else offsets)
        count = samples.shape[2]
        weights: Tensor = self.weights(torch.cat([samples.flatten(1, 2), given, features], 1)).float()
        # In float32: if 1 / N were rounded to bfloat16 with the rest, pictures would get brighter or darker by 0.1 %.
        weights = 1 / count + torch.unflatten(weights, 1, (-1, count)) / count**0.5
        grouped = torch.unflatten(samples * weights, 2, (self._groups, -1)).sum(3)
        return grouped.transpose(1, 2)

    def _sample(self, clip: Tensor, offsets: Tensor) -> Tensor:
        """Equations (3), (4) and (7): [N, T, C, H, W], [N, axes*N', H, W] to [N, C, N', H, W]."""
        height, width = clip.shape[3:]
        middle = self._frames // 2
        # Paper's order: along the row, down, in time.
        across, down, *later = torch.unflatten(offsets.float(), 1, (-1, self.points.shape[1])).unbind(1)
        time, row, column = self.points.float().unbind()
        # Counted in integers first: TensorRT takes a range of floats only where its length is fixed.
        rows = torch.arange(height, device=clip.device).float()[:, None] + row + _up_to(REACH_PX, down)
        columns = torch.arange(width, device=clip.device).float() + column + _up_to(REACH_PX, across)
        if not later:
            return sample_picture(clip[:, 0], rows, columns)
        return sample_clip(clip, middle + time + _up_to(middle, later[0]), rows, columns)

    def _start_at_the_mean(self) -> None:
        """Regular grids and equal weights, behind layers that pass on what they get: see `start_small`."""
        last = self.weights[-1]
        assert isinstance(last, nn.Conv2d)
        start_small(self.weights, last)
        start_small(self.offsets, self.offsets)


def _up_to(reach: float, offset: Tensor) -> Tensor:
    """Tanh, stretched both ways: small offsets are in pixels or frames."""
    return reach * torch.tanh(offset / reach)
