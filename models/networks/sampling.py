"""Reads a picture between its pixels, and a clip between its frames as well.

Source: Xu, Li, Sun, "Learning deformable kernels for image and video denoising", 2019, equations (1) and (7); what
autograd makes of them is equations (13) to (15). Where a coordinate is whole, the printed derivatives contradict the
difference from either side; here it is the difference to the next pixel or frame.

Every pixel beyond the picture and every frame beyond the clip is 0, as in equation (7), whose sums end there.
Coordinates are float32 whatever the rest computes in: bfloat16 counts pixels beyond 256 in twos.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_picture(picture: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear samples.

    Args:
        picture: [N, C, H, W].
        rows: [N, K, H', W'], where K samples for each of H' times W' places lie, in pixels from the first row.
        columns: likewise.

    Returns:
        [N, C, K, H', W'].
    """
    height, width = picture.shape[2:]
    return _read(F.pad(picture.float(), (1, 1, 1, 1)), _in_margin(rows, height), _in_margin(columns, width))


def sample_clip(clip: Tensor, times: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Trilinear samples.

    The frames are laid one below the other, each in an empty margin, and the two next to each time are read bilinearly:
    GridSample reads clips in five dimensions only from opset 20 on, and OpenVINO and TensorRT not at all.

    Args:
        clip: [N, T, C, H, W].
        times: [N, K, H', W'], in frames from the first.
        rows: likewise, in pixels from the first row.
        columns: likewise.

    Returns:
        [N, C, K, H', W'].
    """
    count, frames, planes, height, width = clip.shape
    samples = times.shape[1]
    padded = F.pad(clip.float(), (1, 1, 1, 1, 0, 0, 1, 1))
    tall = padded.transpose(1, 2).reshape(count, planes, (frames + 2) * (height + 2), width + 2)
    time = _in_margin(times, frames)
    earlier = time.detach().floor().clamp(max=frames)
    row = _in_margin(rows, height) + (height + 2) * earlier
    column = _in_margin(columns, width)
    both = _read(tall, torch.cat([row, row + (height + 2)], 1), torch.cat([column, column], 1))
    before, after = both[:, :, :samples], both[:, :, samples:]
    return before + (time - earlier)[:, None] * (after - before)


def warped(neighbour: Tensor, flow: Tensor) -> Tensor:
    """Read each pixel where the flow says, bilinearly; beyond the picture its edge goes on, as in TOFlow.

    Args:
        neighbour: [N, C, H, W].
        flow: [N, 2, H, W] float32, in pixels to the right and down.

    Returns:
        [N, C, H, W] of the type of `neighbour`.
    """
    height, width = flow.shape[2:]
    # Counted in integers first: TensorRT takes a range of floats only where its length is fixed.
    across = torch.arange(width, device=flow.device).float()
    down = torch.arange(height, device=flow.device).float()
    pixels = torch.cat([flow[:, :1] + across, flow[:, 1:] + down[:, None]], 1)
    # A division, a single number as a factor or an expansion is rewritten by OpenVINO, and what takes its place forgets
    # that it is to stay float32; pairs of numbers, powers and sums are left as they are.
    last = torch.stack([across[-1], down[-1]]).view(1, 2, 1, 1)
    minus_one = flow.new_full((1, 2, 1, 1), -1.0)
    grid = pixels * torch.pow(last, minus_one) * flow.new_full((1, 2, 1, 1), 2.0) + minus_one
    read = F.grid_sample(
        neighbour.float(), grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="border", align_corners=True
    )
    return read.to(neighbour.dtype)


def _in_margin(coordinate: Tensor, length: int) -> Tensor:
    """Counted from the margin's first pixel; what lies beyond the margin lies in it, and is 0 either way."""
    return (coordinate.float() + 1).clamp(0, length + 1)


def _read(picture: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[N, C, H, W], coordinates [N, K, H', W'] inside of it, to [N, C, K, H', W']."""
    height, width = picture.shape[2:]
    samples, tall = rows.shape[1:3]
    grid = torch.stack([columns * (2 / (width - 1)) - 1, rows * (2 / (height - 1)) - 1], -1)
    read = F.grid_sample(picture, grid.flatten(1, 2), mode="bilinear", padding_mode="border", align_corners=True)
    return torch.unflatten(read, 2, (samples, tall))
