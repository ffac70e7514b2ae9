"""How DnCNN is wired: a plain stack of convolutions that predicts the noise.

Source: Zhang et al., "Beyond a Gaussian denoiser", 2017, arXiv:1608.03981, section III; depth 20 for the blind
colour network (CDnCNN-B), 64 maps, batch normalisation between the first and the last layer.
"""

import copy

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
        last = nn.Conv2d(width, channels, 3, padding=1)
        layers.append(last)
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.normal_(last.weight, std=1e-3)  # starts as identity

    def forward(self, noisy: Tensor, _sigma: Tensor) -> Tensor:
        """[N, 3, H, W] RGB in [0, 1] to [N, 3, H, W], not clamped."""
        noise: Tensor = self.layers(noisy)
        return noisy - noise

    def stages(self) -> tuple[nn.Module, ...]:
        """The catalogue's one stage: a copy for inference, its normalisations folded into the convolutions."""
        folded = copy.deepcopy(self).eval()
        layers: list[nn.Module] = []
        for layer in folded.layers:
            if isinstance(layer, nn.BatchNorm2d):
                before = layers.pop()
                assert isinstance(before, nn.Conv2d)
                layer = fuse_conv_bn_eval(before, layer)
            layers.append(layer)
        folded.layers = nn.Sequential(*layers)
        return (folded,)
