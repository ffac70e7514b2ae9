"""How TOFlow is wired: the motion to each neighbour is found, the neighbours are laid over the frame, all are cleaned.

Source: Xue, Chen, Wu, Wei, Freeman, "Video enhancement with task-oriented flow", 2019, arXiv:1711.09078, the baseline
of FITVNet's section 4.2: a flow network, a transformation and a processing network, trained together for the task.

Where the paper leaves a choice, or is left, this file says so:

* The flow network is coarse to fine, like the SPyNet in the paper, but small: at each of four scales, from 1/16 to 1/2,
  four convolutions of 5x5 (16, 32, 16, 2 maps) where SPyNet has five of 7x7 (32, 64, 32, 16, 2), without normalisation.
  Each corrects the flow of the coarser one. The finest is scaled up to full size bilinearly.
* The processing network has two convolutions of 9x9 and two of 1x1, 32 maps wide. What it gives is added to the noisy
  frame, and is zero before training.
* Of the neighbours both read what differs from the frame, in about unit variance. Their first layers are linear and
  could compute the same from the neighbours themselves, but from differences, whose mean is zero, they learn far
  faster. Measured 2026-11-21: what motion leaves between clean frames had fallen to 0.80 after 200 steps, else to 0.96.
* A neighbour is read bilinearly, and beyond its edge the edge goes on. Where it is read is float32 whatever the layers
  compute in: bfloat16 cannot count the pixels of a row.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.blocks import start_small
from models.networks.sampling import warped

WINDOW = 7
MIDDLE = WINDOW // 2
LEVELS = 4  # of the pyramid; the finest is at half size
WIDTH = 32  # of the processing network
SPREAD = 0.2  # about the standard deviation of pixels
FLOW_SPREAD_PX = 8


class FlowLevel(nn.Sequential):
    """At one scale: from the frame, a neighbour that the flow so far has moved, and that flow, to what it lacks."""

    def __init__(self) -> None:
        widths = (3 + 3 + 2, 16, 32, 16, 2)
        layers: list[nn.Module] = []
        for index in range(len(widths) - 1):
            last = nn.Conv2d(widths[index], widths[index + 1], 5, padding=2)
            layers += [last, nn.ReLU()]
        super().__init__(*layers[:-1])
        start_small(self, last)
        nn.init.normal_(last.weight, std=1e-3)  # nothing moves at first


class FlowNetwork(nn.Module):
    """Where each pixel of a frame lies in its neighbours. Height and width are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(FlowLevel() for _ in range(LEVELS))  # the coarsest first

    def forward(self, frame: Tensor, neighbour: Tensor) -> Tensor:
        """Find the flow.

        Args:
            frame: [N, 3, H, W].
            neighbour: [N, 3, H, W].

        Returns:
            [N, 2, H, W] float32: how many pixels to the right, and how many down.
        """
        moved = F.avg_pool2d(neighbour, 2**LEVELS)
        flow = torch.zeros_like(moved[:, :2], dtype=torch.float32)
        for index, level in enumerate(self.levels):
            shrunk = 2 ** (LEVELS - index)
            if index:
                moved = warped(F.avg_pool2d(neighbour, shrunk), flow)
            here = F.avg_pool2d(frame, shrunk)
            given = torch.cat(
                [(here - 0.5) / SPREAD, (moved - here) / SPREAD, flow.to(moved.dtype) / FLOW_SPREAD_PX], 1
            )
            flow = 2 * F.interpolate(flow + level(given).float(), scale_factor=2.0, mode="bilinear")
        return flow


class TOFlow(nn.Module):
    """Seven noisy frames in, the middle one restored out. Height and width are multiples of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = FlowNetwork()
        last = nn.Conv2d(WIDTH, 3, 1)
        self.processing = nn.Sequential(
            nn.Conv2d(3 * WINDOW, WIDTH, 9, padding=4),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 9, padding=4),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.ReLU(),
            last,
        )
        start_small(self.processing, last)

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """Restore the middle frame of every window.

        Args:
            noisy: [N, 21, H, W], seven RGB frames in [0, 1], oldest first; H and W multiples of 16.
            _sigma: ignored: it is blind.

        Returns:
            [N, 3, H, W], not clamped.
        """
        return self.restored(noisy, self.flows(noisy))

    def flows(self, noisy: Tensor) -> Tensor:
        """[N, 21, H, W] to [N * 6, 2, H, W], of the middle frame to each other one, oldest first."""
        frame, neighbours = apart(noisy)
        flow: Tensor = self.flow(frame[:, None].expand_as(neighbours).flatten(0, 1), neighbours.flatten(0, 1))
        return flow

    def restored(self, noisy: Tensor, flows: Tensor) -> Tensor:
        """As `forward`, along flows at hand."""
        frame, neighbours = apart(noisy)
        moved = warped(neighbours.flatten(0, 1), flows).view_as(neighbours)
        differences = (moved - frame[:, None]).flatten(1, 2)
        correction: Tensor = self.processing(torch.cat([frame - 0.5, differences], 1) / SPREAD)
        return frame + correction

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage."""
        return (self,)


def apart(window: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 21, H, W] to its middle frame [N, 3, H, W] and the others [N, 6, 3, H, W], oldest first."""
    # Not len(window): that would write the batch of the example into an exported graph.
    frames = window.reshape(window.shape[0], WINDOW, 3, *window.shape[2:])
    return frames[:, MIDDLE], torch.cat([frames[:, :MIDDLE], frames[:, MIDDLE + 1 :]], 1)
