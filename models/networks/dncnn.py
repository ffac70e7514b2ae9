"""How DnCNN is wired: a plain stack of convolutions that predicts the noise.

Source: Zhang et al., "Beyond a Gaussian denoiser", 2017, arXiv:1608.03981, section III; depth 20 for the blind
colour network (CDnCNN-B), 64 maps, batch normalisation between the first and the last layer.
"""

from torch import Tensor, nn

BN_EPS = 1e-4  # the authors' PyTorch release


class DnCNN(nn.Module):
    """Residual CNN without pooling; each layer reaches one pixel further."""

    def __init__(self, depth: int = 20, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),  # the normalisation has the bias
                nn.BatchNorm2d(width, eps=BN_EPS),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(width, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(layers[-1].weight, std=1e-3)  # type: ignore[arg-type]  # starts as identity

    def forward(self, noisy: Tensor, sigma: Tensor | None = None) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not clamped. `sigma` is ignored: blind."""
        noise: Tensor = self.layers(noisy)
        return noisy - noise
