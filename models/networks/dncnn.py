"""How DnCNN is wired: a plain stack of convolutions that predicts the noise.

Source: Zhang et al., "Beyond a Gaussian denoiser", 2017, arXiv:1608.03981, section III; depth 20 for the blind
colour network (CDnCNN-B), 64 maps, batch normalisation between the first and the last layer.

For known levels the paper trains one network each. Here one network is told the level instead, as one more plane that
holds it at every pixel (as Zhang, Zuo, Zhang, "FFDNet", 2018, arXiv:1710.04026, section III): `told`.
"""

import torch
from torch import Tensor, nn

from models.networks.blocks import folded, hand_on

BN_EPS = 1e-4  # the authors' PyTorch release


class DnCNN(nn.Module):
    """Residual CNN without pooling; each layer reaches one pixel further."""

    def __init__(self, depth: int = 20, width: int = 64, channels: int = 3, *, told: bool = False) -> None:
        super().__init__()
        self.told = told
        inputs = channels + 1 if told else channels
        layers: list[nn.Module] = [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),  # the normalisation has the bias
                nn.BatchNorm2d(width, eps=BN_EPS),
                nn.ReLU(inplace=True),
            ]
        last = nn.Conv2d(width, channels, 3, padding=1)
        layers.append(last)
        self.layers = nn.Sequential(*layers)
        convolutions = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        for layer in convolutions:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        hand_on(convolutions[:-1], inputs)
        nn.init.normal_(last.weight, std=1e-3)  # starts as identity

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not clamped; `sigma` [N] is read only where it is told."""
        seen = noisy
        if self.told:
            level = sigma[:, None, None, None].expand(-1, 1, *noisy.shape[2:])
            seen = torch.cat([noisy, level], 1)
        noise: Tensor = self.layers(seen)
        return noisy - noise

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage: a copy for inference, its normalisations folded into the convolutions."""
        return (folded(self),)
